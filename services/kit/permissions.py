"""Which subjects each service may use; the whole authority of its bus credentials (design, section 6)."""

from __future__ import annotations

from collections.abc import Iterable

from schemas.topics import BROADCASTS, DOWN_PARCELS, Channel, in_pattern, up_pattern
from services.kit.credentials import Permissions
from services.kit.streams import BUCKETS, STREAMS

SYSTEM_USER = "system"
OPERATOR = "operator"
AUDITOR = "auditor"

_SECRET = frozenset({"tokens"})
"""Buckets that only their owner reads: whoever holds a token's secret can enrol as its device."""

_READS: dict[str, tuple[str, ...]] = {
    "courier": ("devices",),
    "depot": ("devices",),
    "ota": ("devices", "releases"),
    "scheduler": ("devices",),
    "aggregator": ("devices",),
    "gateway": ("devices", "releases", "rollouts", "tasks", "jobs"),
}
_EVENTS_READERS = frozenset({"ota", "scheduler", "aggregator", "gateway"})
_INTAKES: dict[str, tuple[str, ...]] = {
    "registry": ("enrol", "event", "losses"),
    "courier": ("bundle",),
    "ota": ("report",),
    "scheduler": ("result",),
    "aggregator": ("update",),
}
"""Letters that a service reads from IN, each with a durable consumer that no other service may touch."""
_LETTERS: dict[str, tuple[str, ...]] = {
    "registry": ("welcome", "config", "recall"),
    "ota": ("assign",),
    "scheduler": ("task", "cancel"),
    "aggregator": ("round", "cancel"),
}
_CALLS: dict[str, tuple[str, ...]] = {
    "courier": ("cw.rpc.depot.pack", "cw.rpc.registry.quarantine"),
    "ota": ("cw.rpc.depot.show",),
    "scheduler": ("cw.rpc.registry.list",),
    "aggregator": ("cw.rpc.depot.register",),
    "gateway": ("cw.rpc.*.list", "cw.rpc.*.show", "cw.rpc.*.snapshot"),
    "registry": ("cw.rpc.depot.trust", "cw.rpc.courier.lower"),
}
"""Single verbs: whoever may ask the registry for a token owns every device."""
_EXTRA_PUBLISH: dict[str, tuple[str, ...]] = {
    "courier": ("cw.in.>", f"cw.1.*.*.{Channel.DOWN}.*"),
    "depot": (
        *(f"cw.1.*.*.{Channel.DOWN}.{kind}" for kind in sorted(DOWN_PARCELS - {"bundle"})),
        *(f"cw.1.*.all.{kind}" for kind in sorted(BROADCASTS)),
    ),
    "aggregator": ("cw.rounds.*",),
}
_EXTRA_SUBSCRIBE: dict[str, tuple[str, ...]] = {
    "courier": (up_pattern(Channel.STATE, "hello"), up_pattern(Channel.STATE, "got")),
    "depot": (up_pattern(Channel.STATE, "hello"), up_pattern(Channel.PARCEL)),
    "gateway": ("cw.ev.>",),
    "aggregator": (up_pattern(Channel.STATE, "progress"),),
}


def service_permissions(service: str) -> Permissions:
    """Subjects of one service: its own streams, consumers, verbs and inbox."""
    publish: set[str] = {f"cw.ev.{service}.*", f"cw.rejects.{service}", "$JS.API.INFO"}
    subscribe: set[str] = {f"_INBOX_{service}.>", f"cw.rpc.{service}.*"}
    for stream in STREAMS.values():
        if stream.owner == service:
            publish |= _owns(stream.name) | _consumes(stream.name)
    for bucket in BUCKETS.values():
        if bucket.owner == service:
            publish |= _owns(f"KV_{bucket.name}") | _consumes(f"KV_{bucket.name}") | {f"$KV.{bucket.name}.>"}
    if service in _EVENTS_READERS:
        publish |= _reads("EVENTS")
    for kind in _INTAKES.get(service, ()):
        publish |= _takes(service, kind)
    for bucket_name in _READS.get(service, ()):
        publish |= _reads_bucket(bucket_name)
    publish |= {f"cw.out.*.*.{kind}.*" for kind in _LETTERS.get(service, ())}
    publish |= set(_CALLS.get(service, ())) | set(_EXTRA_PUBLISH.get(service, ()))
    publish |= {f"_INBOX_{caller}.>" for caller in _callers(service)}
    subscribe |= set(_EXTRA_SUBSCRIBE.get(service, ()))
    return Permissions(tuple(publish), tuple(subscribe))


def operator_permissions() -> Permissions:
    """The CLI: asks services, reads state, changes nothing by itself."""
    publish: set[str] = {"cw.rpc.>", "$JS.API.INFO"}
    for bucket in BUCKETS.keys() - _SECRET:
        publish |= _reads_bucket(bucket)
    for stream in ("EVENTS", "REJECTS"):
        publish |= _reads(stream)
    return Permissions(tuple(publish), (f"_INBOX_{OPERATOR}.>", "cw.ev.>"))


def auditor_permissions() -> Permissions:
    """Reads every ledger, writes nothing."""
    publish: set[str] = {"$JS.API.INFO"}
    for bucket in BUCKETS.keys() - _SECRET:
        publish |= _reads_bucket(bucket)
    for stream in STREAMS:
        publish |= _reads(stream)
    return Permissions(tuple(publish), (f"_INBOX_{AUDITOR}.>", "cw.ev.>"), forbidden=tuple(_others_consumers()))


def reader_permissions(name: str, kinds: Iterable[str]) -> Permissions:
    """A program of the operator's own: takes letters of these kinds from IN, each by one durable consumer."""
    publish = {"$JS.API.INFO"}
    for kind in kinds:
        durable = reader_consumer(name, kind)
        publish |= {
            # With the filter in the subject, which the server compares with the one that is asked for.
            f"$JS.API.CONSUMER.CREATE.IN.{durable}.{in_pattern(kind)}",
            f"$JS.API.CONSUMER.INFO.IN.{durable}",
            f"$JS.API.CONSUMER.MSG.NEXT.IN.{durable}",
            f"$JS.ACK.IN.{durable}.>",
        }
    return Permissions(tuple(publish), (f"_INBOX_{name}.>",))


def reader_consumer(name: str, kind: str) -> str:
    """Name of the durable consumer by which such a program takes letters of a kind."""
    return f"{name}-{kind}"


def _callers(service: str) -> set[str]:
    """Who may ask a service, so whom it may answer; an inbox ends in an unguessable part.

    Not `allow_responses`: with it nats-server 2.9.10 remembers the reply subject of every message that it delivers,
    those of JetStream too, and searches them all again and again: 3,000 messages a second instead of 180,000.
    """
    asking = {caller for caller, verbs in _CALLS.items() if any(_reaches(verb, service) for verb in verbs)}
    return asking | {OPERATOR}


def _reaches(verb: str, service: str) -> bool:
    return verb.split(".")[2] in {service, "*"}


def _owns(stream: str) -> set[str]:
    return {f"$JS.API.STREAM.{verb}.{stream}" for verb in ("CREATE", "UPDATE", "INFO", "MSG.DELETE", "PURGE")}


def _reads(stream: str) -> set[str]:
    """Looking at a stream with consumers that vanish by themselves."""
    return {
        f"$JS.API.STREAM.INFO.{stream}",
        f"$JS.API.STREAM.MSG.GET.{stream}",
        f"$JS.API.DIRECT.GET.{stream}",
        f"$JS.API.DIRECT.GET.{stream}.>",
        f"$JS.API.CONSUMER.CREATE.{stream}",
        f"$JS.API.CONSUMER.CREATE.{stream}.>",
        f"$JS.API.CONSUMER.INFO.{stream}.*",
        f"$JS.API.CONSUMER.MSG.NEXT.{stream}.*",
        f"$JS.FC.{stream}.>",
    }


def _consumes(stream: str) -> set[str]:
    """Everything that the owner of a stream does with its consumers."""
    return _reads(stream) | {
        f"$JS.API.CONSUMER.DURABLE.CREATE.{stream}.*",
        f"$JS.API.CONSUMER.DELETE.{stream}.*",
        f"$JS.ACK.{stream}.>",
    }


def _takes(service: str, kind: str) -> set[str]:
    """One durable consumer on IN, by name: who could pull from or acknowledge another's would make letters vanish."""
    return {"$JS.API.STREAM.INFO.IN", *_uses("IN", f"{service}-{kind}")}


def _uses(stream: str, durable: str) -> set[str]:
    return {
        f"$JS.API.CONSUMER.CREATE.{stream}.{durable}",
        f"$JS.API.CONSUMER.CREATE.{stream}.{durable}.>",
        f"$JS.API.CONSUMER.DURABLE.CREATE.{stream}.{durable}",
        f"$JS.API.CONSUMER.INFO.{stream}.{durable}",
        f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}",
        f"$JS.ACK.{stream}.{durable}.>",
    }


def _others_consumers() -> set[str]:
    """What a reader of every stream must not do: take from the durable consumers of services."""
    denied = _uses("UP", "courier")
    for service, kinds in _INTAKES.items():
        for kind in kinds:
            denied |= _uses("IN", f"{service}-{kind}")
    return {subject for subject in denied if ".INFO." not in subject}


def _reads_bucket(bucket: str) -> set[str]:
    return _reads(f"KV_{bucket}")
