"""Every stream and bucket of the platform, declared once (design, section 5).

Owners ensure theirs at start and on reconnect.
"""

from __future__ import annotations

from dataclasses import dataclass

from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, KeyValueConfig, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, NotFoundError

from schemas.topics import Channel, up_pattern

HOUR_S = 3_600.0
DAY_S = 24 * HOUR_S
MB = 1 << 20


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """A stream and its bounds."""

    name: str
    owner: str
    subjects: tuple[str, ...]
    storage: StorageType
    max_age_s: float
    max_bytes: int
    no_ack: bool = False
    latest_only: bool = False
    duplicate_window_s: float = 10.0
    """Short: effects are deduplicated by marks, and 300,000 ids cost 50 MB."""
    max_message_bytes: int = -1
    """What devices write to needs a bound: over MQTT nats-server does not enforce `max_payload` (its issue 7439), and a
    stored message larger than `max_pending` cuts every reader off, again at each attempt to read it."""

    def config(self) -> StreamConfig:
        """The form that JetStream takes."""
        return StreamConfig(
            name=self.name,
            subjects=list(self.subjects),
            retention=RetentionPolicy.LIMITS,
            storage=self.storage,
            discard=DiscardPolicy.OLD,
            max_age=self.max_age_s,
            max_bytes=self.max_bytes,
            max_msg_size=self.max_message_bytes,
            max_msgs_per_subject=1 if self.latest_only else -1,
            no_ack=self.no_ack,
            allow_direct=True,
            duplicate_window=min(self.duplicate_window_s, self.max_age_s),
        )


@dataclass(frozen=True, slots=True)
class BucketSpec:
    """A key-value bucket with one owner."""

    name: str
    owner: str
    history: int = 1
    ttl_s: float | None = None
    storage: StorageType = StorageType.FILE


TELEMETRY = StreamSpec(
    "TELEMETRY",
    "registry",
    (up_pattern(Channel.STATE, ">"),),
    StorageType.MEMORY,
    120.0,
    256 * MB,
    max_message_bytes=64 << 10,
)
UP = StreamSpec(
    "UP",
    "courier",
    (up_pattern(Channel.LETTER, ">"),),
    StorageType.MEMORY,
    300.0,
    256 * MB,
    no_ack=True,
    max_message_bytes=MB,
)
# The marks and the chain keep letters from standing there twice; the window would only hide that one was deleted.
IN = StreamSpec("IN", "courier", ("cw.in.>",), StorageType.FILE, 7 * DAY_S, 8_192 * MB, duplicate_window_s=1.0)
OUT = StreamSpec("OUT", "courier", ("cw.out.>",), StorageType.FILE, 30 * DAY_S, 4_096 * MB, latest_only=True)
EVENTS = StreamSpec("EVENTS", "registry", ("cw.ev.>",), StorageType.FILE, 7 * DAY_S, 1_024 * MB)
REJECTS = StreamSpec("REJECTS", "courier", ("cw.rejects.*",), StorageType.FILE, 7 * DAY_S, 512 * MB)
ROUNDS = StreamSpec("ROUNDS", "aggregator", ("cw.rounds.*",), StorageType.FILE, 365 * DAY_S, 16_384 * MB)

STREAMS = {spec.name: spec for spec in (TELEMETRY, UP, IN, OUT, EVENTS, REJECTS, ROUNDS)}

BUCKETS = {
    spec.name: spec
    for spec in (
        BucketSpec("devices", "registry"),
        # A token lives 30 days at most; a week later nobody asks why it was refused.
        BucketSpec("tokens", "registry", ttl_s=37 * DAY_S),
        BucketSpec("losses", "registry"),
        BucketSpec("releases", "depot"),
        BucketSpec("recipes", "depot"),
        BucketSpec("rollouts", "ota", history=5),
        BucketSpec("tasks", "scheduler", history=5),
        BucketSpec("jobs", "aggregator", history=5),
        BucketSpec("marks", "courier"),
        BucketSpec("leader", "courier", ttl_s=3.0, storage=StorageType.MEMORY),
    )
}


async def ensure_owned(js: JetStreamContext, owner: str) -> None:
    """Create or update the streams and buckets of a service; safe to repeat.

    Raises:
        nats.js.errors.APIError: if JetStream refuses, for want of space for one.
    """
    for stream in STREAMS.values():
        if stream.owner == owner:
            await _ensure_stream(js, stream)
    for bucket in BUCKETS.values():
        if bucket.owner == owner:
            await _ensure_bucket(js, bucket)


async def _ensure_stream(js: JetStreamContext, spec: StreamSpec) -> None:
    config = spec.config()
    try:
        info = await js.stream_info(spec.name)
    except NotFoundError:
        await js.add_stream(config)
        return
    # The storage of a stream cannot be changed; everything else may be.
    config.storage = info.config.storage
    await js.update_stream(config)


async def _ensure_bucket(js: JetStreamContext, spec: BucketSpec) -> None:
    try:
        await js.stream_info(f"KV_{spec.name}")
    except NotFoundError:
        config = KeyValueConfig(
            bucket=spec.name, history=spec.history, ttl=spec.ttl_s, storage=spec.storage, direct=True
        )
        try:
            await js.create_key_value(config)
        except APIError as error:
            if error.err_code != 10058:  # made by another instance in the same moment
                raise
