"""Messages of the registry: who a device is, what it can do, how it is doing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, StringConstraints

from schemas.events import Lane, Message
from schemas.ids import (
    Base64,
    Count,
    Digest,
    EntryPoint,
    Identifier,
    Key32,
    Line,
    Percent,
    Ratio,
    Ulid,
    Word,
)

Quality = Literal["excellent", "good", "fair", "poor", "offline"]
Jwt = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$", max_length=8_192)]
Name = Annotated[str, StringConstraints(max_length=128)]
Pem = Annotated[str, StringConstraints(pattern=r"^-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n-]", max_length=8_192)]


class Capabilities(Message):
    """What a device found out about itself; an absent reading is absent, never 0."""

    os: Name
    arch: Name
    python: Name
    agent: Name
    cpu_count: Annotated[int, Field(ge=1, le=4096)]
    cpu_mhz: Annotated[float, Field(ge=0, le=100_000)] | None = None
    ram_mb: Count
    disk_mb: Count
    gpus: Annotated[list[Name], Field(max_length=16)] = []
    battery: bool = False
    thermal: bool = False
    network: Name = "unknown"
    runtimes: Annotated[dict[Identifier, Name], Field(max_length=32)] = {}
    """Installed machine-learning runtimes and their versions, as `onnxruntime: 1.31.1`."""
    runners: Annotated[list[EntryPoint], Field(max_length=64)] = []
    """Task entry points that the owner installed."""
    estimators: Annotated[list[EntryPoint], Field(max_length=64)] = []
    datasets: Annotated[dict[Identifier, Count], Field(max_length=64)] = {}
    """Samples per local dataset; never the samples."""


class Enrol(Message):
    """First letter of a device, or its renewal (`token` and `proof` absent, signed by the current key)."""

    token: Ulid | None = None
    public_key: Key32
    seal_key: Key32
    proof: Digest | None = None
    """HMAC-SHA256(secret, public key bytes + seal key bytes + "fleet/device") in hex."""
    capabilities: Capabilities


class TrustFloors(Message):
    """TUF versions below which a fresh device must not go."""

    root: Count
    timestamp: Count
    snapshot: Count
    targets: Count


class Twin(Message):
    """Desired settings; a device's own limits file wins, the twin may only tighten."""

    heartbeat_s: Annotated[float, Field(ge=0.2, le=3_600)] = 30.0
    max_cpu_percent: Percent | None = None
    min_battery_percent: Percent | None = None
    throttle_temp_c: Annotated[float, Field(ge=0, le=120)] | None = None


class Welcome(Message):
    """The registry's answer to enrol: either credentials, or a refusal with its reason."""

    enrol_id: Ulid
    jwt: Jwt | None = None
    client_id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{16,64}$")] | None = None
    tuf_floors: TrustFloors | None = None
    twin: Twin | None = None
    expires: AwareDatetime | None = None
    """When the JWT ends; renewed at half-life."""
    certificate: Pem | None = None
    """Of the device's letter key, for its neighbours; ends with the JWT."""
    neighbours_ca: Pem | None = None
    """By which it recognises theirs; may hold several."""
    refused: bool = False
    reason: Word | None = None
    message: Line | None = None


class Network(Message):
    """The link as the device measures it."""

    kind: Name = "unknown"
    metered: bool = False
    rtt_ms: Annotated[float, Field(ge=0, le=600_000)] | None = None
    loss_ratio: Ratio | None = None
    quality: Quality | None = None


class ServedModel(Message):
    """A model that answers on the device."""

    name: Identifier
    digest: Digest
    revision: Count
    p50_ms: Annotated[float, Field(ge=0, le=600_000)] | None = None
    errors: Count = 0


class OutboxState(Message):
    """What waits for a receipt."""

    letters: Count
    bytes: Count
    dropped: Count
    storage: Literal["disk", "memory"] | None = None
    """Where new letters go; memory while the disk is full, read-only or broken."""


TaskMark = Annotated[str, StringConstraints(pattern=r"^[0-7][0-9A-HJKMNP-TV-Z]{25}:[0-9]{1,9}$")]
"""`task:term` of a task in hand."""


class Heartbeat(Message):
    """How a device is doing. Every reading may be absent; absent is not 0."""

    session: Ulid
    uptime_s: Annotated[float, Field(ge=0, le=2**40)]
    load: Annotated[float, Field(ge=0, le=10_000)] | None = None
    cpu_ratio: Ratio | None = None
    ram_used_mb: Count | None = None
    ram_free_mb: Count | None = None
    disk_free_mb: Count | None = None
    battery_percent: Percent | None = None
    charging: bool | None = None
    discharging: bool | None = None
    temp_c: Annotated[float, Field(ge=-100, le=300)] | None = None
    network: Network = Network()
    screen_on: bool | None = None
    user_active: bool | None = None
    models: Annotated[list[ServedModel], Field(max_length=16)] = []
    tasks: Annotated[list[TaskMark], Field(max_length=32)] = []
    samples: Annotated[dict[Identifier, Count], Field(max_length=32)] = {}
    outbox: OutboxState | None = None
    trust_age_s: Annotated[float, Field(ge=0, le=2**40)] | None = None
    restarts: Count = 0


class Gone(Message):
    """Last will; ignored if a newer session spoke."""

    session: Ulid


class Recall(Message):
    """Send again what you still keep of this lane, from this sequence on."""

    epoch: Ulid
    lane: Lane
    from_sequence: Annotated[int, Field(ge=1, le=2**53, alias="from")]


class EventReport(Message):
    """Something that happened on a device and that people may want to know."""

    name: Word
    severity: Literal["info", "warning", "high"] = "info"
    reason: Word | None = None
    message: Line
    details: Annotated[dict[Word, Line | Count | float | bool], Field(max_length=16)] = {}


class Token(Message):
    """An enrolment token, as the file on its way to a device holds it (mode 0600)."""

    url: Annotated[str, StringConstraints(pattern=r"^mqtts?://[^\s]{1,255}$")]
    ca_pem: Annotated[str, StringConstraints(max_length=16_384)] | None = None
    platform: Ulid
    fleet: Identifier
    device: Identifier
    root_sha256: Digest
    secret: Base64
    expires: AwareDatetime
    token: Ulid
    bootstrap_jwt: Jwt
    client_id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{16,64}$")]
