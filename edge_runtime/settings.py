"""Settings of a device: a TOML file that the owner writes. The owner's limits win over whatever the platform wishes."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge_runtime.errors import ConfigError
from schemas.ids import EntryPoint, Identifier
from schemas.ota import Stage
from schemas.wording import problems

MB = 1 << 20


class OutboxLimits(BaseModel):
    """Bounds of what waits for a receipt."""

    model_config = ConfigDict(extra="forbid")

    max_bytes: int = Field(64 * MB, ge=MB)
    max_letters: int = Field(100_000, ge=100)


class OwnerLimits(BaseModel):
    """What the platform may do with this device at most."""

    model_config = ConfigDict(extra="forbid")

    max_cpu_percent: float = Field(100.0, gt=0, le=100)
    min_battery_percent: float = Field(20.0, ge=0, le=100)
    max_temp_c: float = Field(70.0, ge=0, le=120)
    max_activations_per_day: int = Field(24, ge=1)
    """Of one model; spares the flash. A local rollback is not counted."""
    training: bool = True
    tasks: bool = True


class EdgeSettings(BaseModel):
    """The whole file; unknown names are refused, since a misspelt limit would be no limit."""

    model_config = ConfigDict(extra="forbid")

    state: Path = Path("causeway-edge")
    """Relative to the settings file."""
    heartbeat_s: float | None = Field(None, ge=0.2, le=3_600)
    """Absent: as the platform wishes (30 s)."""
    log_level: str = "INFO"
    url: str | None = None
    """Overrides the broker's address of the token, for a device behind a forwarder: `mqtts://host:port`."""
    tls_hostname: str | None = None
    """Name in the server's certificate where `url` names another host."""
    worker_idle_s: float = Field(30.0, ge=1)
    stage: Stage = "production"
    """Least mature releases that this device takes: `production` alone, `test` and up, or any (`development`)."""
    outbox: OutboxLimits = OutboxLimits()
    limits: OwnerLimits = OwnerLimits()
    datasets: dict[Identifier, Path] = {}
    """Local data, as `.npz` with arrays `x` (samples first, float32) and `y`; it never leaves the device."""
    runners: dict[EntryPoint, Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]] = {}
    """Task code that the owner installs: `name@1 = "package.module:function"`."""
    estimators: dict[EntryPoint, Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]] = {}
    """Trainable models that the owner installs: `name@1 = "package.module:Class"`."""


def _known(error: ValidationError) -> str:
    """The names that there are, for whoever misspelt one."""
    wrong = next((problem["loc"] for problem in error.errors() if problem["type"] == "extra_forbidden"), None)
    if wrong is None:
        return ""
    tables: dict[object, type[BaseModel]] = {"outbox": OutboxLimits, "limits": OwnerLimits}
    known = tables[wrong[0]] if len(wrong) > 1 else EdgeSettings
    return f"; known are {', '.join(sorted(known.model_fields))}"


def load_settings(path: Path) -> EdgeSettings:
    """Read a settings file; relative paths in it count from its folder.

    Raises:
        ConfigError: naming the file, the setting and what is wrong.
    """
    try:
        values = tomllib.loads(path.read_text())
        settings = EdgeSettings(**values)
    except OSError as error:
        raise ConfigError(f"read settings {path}: {error.strerror}; write one or pass --config") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"read settings {path}: not TOML: {error}") from error
    except ValidationError as error:
        raise ConfigError(f"read settings {path}: {problems(error)}{_known(error)}") from error
    base = path.parent
    return settings.model_copy(
        update={
            "state": base / settings.state,
            "datasets": {name: base / file for name, file in settings.datasets.items()},
        }
    )
