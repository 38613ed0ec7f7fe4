"""Every topic and subject, both ways. No other module spells one (design, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from schemas.errors import TopicError
from schemas.ids import Address, check_identifier

ROOT = "cw"
VERSION = "1"
PREFIX = f"{ROOT}.{VERSION}"


class Channel(StrEnum):
    """What becomes of a message on its way; the fifth level of a topic."""

    LETTER = "letter"
    STATE = "state"
    PARCEL = "parcel"
    DOWN = "down"


UP_LETTERS = frozenset({"enrol", "report", "result", "update", "sample", "event", "losses", "bundle"})
DOWN_LETTERS = frozenset({"welcome", "assign", "config", "task", "round", "cancel", "recall"})
STATES = frozenset({"heartbeat", "hello", "gone", "progress", "got"})
UP_PARCELS = frozenset({"want", "piece"})
DOWN_STATES = frozenset({"receipt"})
DOWN_PARCELS = frozenset({"piece", "slice", "trust", "bundle"})
BROADCASTS = frozenset({"trust"})

KINDS: dict[Channel, frozenset[str]] = {
    Channel.LETTER: UP_LETTERS,
    Channel.STATE: STATES,
    Channel.PARCEL: UP_PARCELS,
    Channel.DOWN: DOWN_LETTERS | DOWN_STATES | DOWN_PARCELS,
}


@dataclass(frozen=True, slots=True)
class Topic:
    """Where one message of one device travels.

    Raises:
        TopicError: if the kind does not exist on the channel; a kind that no stream lists would vanish in silence.
    """

    address: Address
    channel: Channel
    kind: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS[self.channel]:
            known = ", ".join(sorted(KINDS[self.channel]))
            raise TopicError(f"there is no kind {self.kind[:40]!r} on channel {self.channel}: known are {known}")

    @property
    def mqtt(self) -> str:
        """The topic that devices use."""
        return f"{ROOT}/{VERSION}/{self.address.fleet}/{self.address.device}/{self.channel}/{self.kind}"

    @property
    def subject(self) -> str:
        """The same on the NATS side."""
        return f"{PREFIX}.{self.address.fleet}.{self.address.device}.{self.channel}.{self.kind}"


def parse_mqtt(topic: str) -> Topic:
    """Read an MQTT topic of a device.

    Raises:
        TopicError: if it is not one; reason `unsupported_version` for another version of the contract.
    """
    return _parse(topic, topic.split("/"))


def parse_subject(subject: str) -> Topic:
    """Read the NATS form of a device's topic. Raises as `parse_mqtt`."""
    return _parse(subject, subject.split("."))


def _parse(text: str, levels: list[str]) -> Topic:
    if len(levels) != 6 or levels[0] != ROOT:
        raise TopicError(f"topic {text[:120]!r} is not of the form {ROOT}/{VERSION}/fleet/device/channel/kind")
    if levels[1] != VERSION:
        raise TopicError(
            f"topic {text[:120]!r} speaks version {levels[1][:20]!r} of the contract, this side speaks {VERSION}",
            reason="unsupported_version",
        )
    try:
        channel = Channel(levels[4])
    except ValueError as error:
        raise TopicError(f"topic {text[:120]!r} has no channel {levels[4][:40]!r}") from error
    return Topic(Address(levels[2], levels[3]), channel, levels[5])


def broadcast_mqtt(fleet: str, kind: str) -> str:
    """Topic that every listening device of a fleet hears; at most 1 KB."""
    return broadcast_subject(fleet, kind).replace(".", "/")


def broadcast_subject(fleet: str, kind: str) -> str:
    """NATS form of `broadcast_mqtt`."""
    if kind not in BROADCASTS:
        raise TopicError(f"there is no broadcast {kind[:40]!r}: known are {', '.join(sorted(BROADCASTS))}")
    return f"{PREFIX}.{check_identifier(fleet, 'fleet')}.all.{kind}"


def parse_broadcast(topic: str) -> tuple[str, str] | None:
    """Fleet and kind of a broadcast's MQTT topic, or None where the topic is not a broadcast."""
    levels = topic.split("/")
    if len(levels) == 5 and levels[:2] == [ROOT, VERSION] and levels[3] == "all" and levels[4] in BROADCASTS:
        return levels[2], levels[4]
    return None


def device_filters(address: Address) -> tuple[str, str]:
    """MQTT filters that a device subscribes to: its own, and its fleet's."""
    return (
        f"{ROOT}/{VERSION}/{address.fleet}/{address.device}/{Channel.DOWN}/+",
        f"{ROOT}/{VERSION}/{address.fleet}/all/+",
    )


def up_pattern(channel: Channel, kind: str = "*") -> str:
    """NATS pattern over all fleets and devices for one channel and kind (`*` is any kind, `>` the stream's form)."""
    if kind not in {"*", ">"} and kind not in KINDS[channel]:
        raise TopicError(f"there is no kind {kind!r} on channel {channel}")
    return f"{PREFIX}.*.*.{channel}.{kind}"


def device_permissions(address: Address) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """NATS subjects that an enrolled device may publish, and may subscribe to."""
    own = f"{PREFIX}.{address.fleet}.{address.device}"
    publish = tuple(f"{own}.{channel}.*" for channel in (Channel.LETTER, Channel.STATE, Channel.PARCEL))
    return publish, (f"{own}.{Channel.DOWN}.*", f"{PREFIX}.{address.fleet}.all.*")


def bootstrap_permissions(address: Address) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The same for a device that holds only an enrolment token."""
    kinds = (
        (Channel.STATE, "hello"),
        (Channel.STATE, "got"),
        (Channel.PARCEL, "want"),
        (Channel.LETTER, "enrol"),
    )
    publish = tuple(Topic(address, channel, kind).subject for channel, kind in kinds)
    return publish, (f"{PREFIX}.{address.fleet}.{address.device}.{Channel.DOWN}.*",)


def in_subject(kind: str, address: Address) -> str:
    """Where the courier puts a verified letter."""
    _known(kind, UP_LETTERS)
    return f"{ROOT}.in.{kind}.{address.fleet}.{address.device}"


def in_pattern(kind: str) -> str:
    """All verified letters of one kind."""
    _known(kind, UP_LETTERS)
    return f"{ROOT}.in.{kind}.>"


def in_of(address: Address) -> str:
    """Everything in IN that is of one device, set aside or not."""
    return f"{ROOT}.in.*.{address.fleet}.{address.device}"


def parse_in(subject: str) -> tuple[str, Address]:
    """Kind and sender of a verified letter."""
    levels = subject.split(".")
    if len(levels) != 5 or levels[:2] != [ROOT, "in"]:
        raise TopicError(f"subject {subject[:120]!r} is not of the form {ROOT}.in.kind.fleet.device")
    return _known(levels[2], UP_LETTERS), Address(levels[3], levels[4])


def fence_subject() -> str:
    """The courier's own marks between letters in IN; three levels, so that no reader of a kind sees them."""
    return f"{ROOT}.in.fence"


def refused_subject(address: Address) -> str:
    """Where IN keeps a letter whose sender is proven and whose turn it is, but which is expired or does not fit.

    No service reads it; it spends the letter's number, so that those behind it do not wait for ever.
    """
    return f"{ROOT}.in.refused.{address.fleet}.{address.device}"


def out_subject(address: Address, kind: str, slot: str) -> str:
    """A place in a device's mailbox; the newest letter of a slot wins."""
    _known(kind, DOWN_LETTERS)
    if slot != "-":
        check_identifier(slot, "slot")
    return f"{ROOT}.out.{address.fleet}.{address.device}.{kind}.{slot}"


def out_pattern(kind: str = "*") -> str:
    """All mailboxes, or all letters of one kind in them."""
    return f"{ROOT}.out.*.*.{kind}.*"


def parse_out(subject: str) -> tuple[Address, str, str]:
    """Owner, kind and slot of a letter in a mailbox."""
    levels = subject.split(".")
    if len(levels) != 6 or levels[:2] != [ROOT, "out"]:
        raise TopicError(f"subject {subject[:120]!r} is not of the form {ROOT}.out.fleet.device.kind.slot")
    return Address(levels[2], levels[3]), _known(levels[4], DOWN_LETTERS), levels[5]


def event_subject(service: str, event: str) -> str:
    """A fact that a service announces."""
    return f"{ROOT}.ev.{check_identifier(service, 'service')}.{check_identifier(event, 'event')}"


def rpc_subject(service: str, verb: str) -> str:
    """A request to a service."""
    return f"{ROOT}.rpc.{check_identifier(service, 'service')}.{check_identifier(verb, 'verb')}"


def reject_subject(service: str) -> str:
    """Where a service puts what it refused."""
    return f"{ROOT}.rejects.{check_identifier(service, 'service')}"


def rounds_subject(job: str) -> str:
    """The ledger of a learning job."""
    return f"{ROOT}.rounds.{check_identifier(job, 'job')}"


def _known(kind: str, kinds: frozenset[str]) -> str:
    if kind not in kinds:
        raise TopicError(f"there is no letter {kind[:40]!r}: known are {', '.join(sorted(kinds))}")
    return kind
