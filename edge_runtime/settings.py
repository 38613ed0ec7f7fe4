"""Settings of a device: a TOML file that the owner writes. The owner's limits win over whatever the platform wishes."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from edge_runtime.errors import ConfigError
from schemas.ids import PEER, EntryPoint, Identifier
from schemas.ota import Stage
from schemas.wording import setting_problems

MB = 1 << 20


DAY_S = 86_400.0


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


class LaneLimits(BaseModel):
    """Bounds of what waits in one lane; an absent one leaves it to the bounds of the whole outbox."""

    model_config = ConfigDict(extra="forbid")

    max_bytes: int | None = Field(None, ge=MB)
    """Of the lane's waiting letters."""
    max_letters: int | None = Field(None, ge=100)
    """That wait in the lane."""
    max_age_s: float | None = Field(None, ge=60)
    """A letter that waited longer is given up. Counts while the device is on, whatever its clock says."""


class OutboxLimits(BaseModel):
    """Bounds of what waits for a receipt; what does not fit is given up, least urgent and oldest first."""

    model_config = ConfigDict(extra="forbid")

    max_bytes: int = Field(64 * MB, ge=MB)
    """Of the letters that wait; receipted ones are kept in what is left."""
    max_letters: int = Field(100_000, ge=100)
    """That wait, in all lanes."""
    memory_bytes: int = Field(4 * MB, ge=MB)
    """Of the letters that wait in memory while the disk is full, read-only or broken."""
    control: LaneLimits = LaneLimits()
    normal: LaneLimits = LaneLimits()
    bulk: LaneLimits = LaneLimits(max_age_s=7 * DAY_S)


class OwnerLimits(BaseModel):
    """What the platform may do with this device at most."""

    model_config = ConfigDict(extra="forbid")

    max_cpu_percent: float = Field(100.0, gt=0, le=100)
    """Share of all processors that a task may take."""
    min_battery_percent: float = Field(20.0, ge=0, le=100)
    """Below it, without a charger, no task and no training begins, and bulk is held."""
    max_temp_c: float = Field(70.0, ge=0, le=120)
    """In degrees Celsius; above it no task and no training begins, and bulk yields."""
    max_activations_per_day: int = Field(24, ge=1)
    """Of one model; spares the flash. A local rollback is not counted."""
    training: bool = True
    """Whether this device takes part in training."""
    tasks: bool = True
    """Whether it takes tasks."""
    bulk_on_metered: bool = False
    """Let bulk letters (bundles of other devices) use a metered link."""


class NeighbourSettings(BaseModel):
    """Whether and how devices on one LAN carry letters for each other."""

    model_config = ConfigDict(extra="forbid")

    enabled: bool = False
    """Off: nothing listens, and nothing is announced."""
    port: int = Field(0, ge=0, le=65_535)
    """Where this device listens; 0 takes a free one, which it announces."""
    interface: str | None = Field(None, min_length=1, max_length=32)
    """Network interface whose neighbours are met, as `wlan0`; absent: all but the loopback."""
    peers: Annotated[list[Annotated[str, Field(pattern=PEER)]], Field(max_length=32)] = []
    """`host:port` of neighbours in a network without multicast; others are found by mDNS."""
    meet_s: float = Field(30.0, ge=0.5, le=86_400)
    """Mean time between two meetings with the same peer while there is no news."""


class CarrierSettings(BaseModel):
    """Store and forward: letters and updates that travel by folder or by neighbour where there is no link."""

    model_config = ConfigDict(extra="forbid")

    enabled: bool = True
    """Take part at all, be it with this device's own letters only."""
    carry: bool = True
    """Take bundles of other devices along; sealed, so that nobody on the way can read them."""
    max_bytes: int = Field(16 * MB, ge=MB)
    """What bundles of others may fill."""
    max_piece_bytes: int = Field(512 * MB, ge=MB)
    """What pieces of updates from a folder may fill until they are installed."""
    folder: Path | None = None
    """A synced directory, exchanged by itself. A stick needs none: `causeway-edge bundle export` and `import`."""
    folder_poll_s: float = Field(5.0, ge=0.2, le=3_600)
    """How often the folder is looked at."""


class EdgeSettings(BaseModel):
    """The whole file; unknown names are refused, since a misspelt limit would be no limit."""

    model_config = ConfigDict(extra="forbid")

    state: Path = Path("causeway-edge")
    """Relative to the settings file."""
    heartbeat_s: float | None = Field(None, ge=0.2, le=3_600)
    """Absent: as the platform wishes (30 s)."""
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)] = "INFO"
    """Least severe lines that the agent logs."""
    url: str | None = None
    """Overrides the broker's address of the token, for a device behind a forwarder: `mqtts://host:port`."""
    tls_hostname: str | None = None
    """Name in the server's certificate where `url` names another host."""
    worker_idle_s: float = Field(30.0, ge=1)
    """After it the process that verifies, infers and trains is ended, which gives its memory back."""
    stage: Stage = "production"
    """Least mature releases that this device takes: `production` alone, `test` and up, or any (`development`)."""
    outbox: OutboxLimits = OutboxLimits()
    neighbours: NeighbourSettings = NeighbourSettings()
    limits: OwnerLimits = OwnerLimits()
    carriers: CarrierSettings = CarrierSettings()
    datasets: dict[Identifier, Path] = {}
    """Local data, as `.npz` with arrays `x` (samples first, float32) and `y`; it never leaves the device."""
    runners: dict[EntryPoint, Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]] = {}
    """Task code that the owner installs: `name@1 = "package.module:function"`."""
    estimators: dict[EntryPoint, Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]] = {}
    """Trainable models that the owner installs: `name@1 = "package.module:Class"`."""


def load_settings(path: Path) -> EdgeSettings:
    """Read a settings file; relative paths in it count from its folder.

    Raises:
        ConfigError: naming the file, the setting and what is wrong.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        settings = EdgeSettings(**values)
    except OSError as error:
        hint = f"name the file in it, as {path / 'edge.toml'}" if path.is_dir() else "write one or pass --config"
        raise ConfigError(f"read settings {path}: {error.strerror}; {hint}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"read settings {path}: not TOML: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"read settings {path}: not TOML: {error}; save it as UTF-8") from error
    except ValidationError as error:
        raise ConfigError(f"read settings {path}: {setting_problems(error, EdgeSettings)}") from error
    base = path.parent
    carriers = settings.carriers
    if carriers.folder is not None:
        carriers = carriers.model_copy(update={"folder": base / carriers.folder})
    return settings.model_copy(
        update={
            "state": base / settings.state,
            "carriers": carriers,
            "datasets": {name: base / file for name, file in settings.datasets.items()},
        }
    )
