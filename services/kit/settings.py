"""Settings of a platform, read from `settings.toml` in its state folder and overridden by `CAUSEWAY_*` variables."""

from __future__ import annotations

import os
import tomllib
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as EnvironmentSettingsError

from schemas.ids import HOST, Identifier, Ulid
from schemas.wording import nearest, setting_problems
from services.kit.errors import SettingsError
from services.kit.folder import SERVICES, StateFolder
from services.kit.variables import check_variables, variables_of

S = TypeVar("S", bound=BaseSettings)

TABLES = frozenset({"registry", "courier"})
"""Tables that a service reads for itself, with `load_table`."""


class BusSettings(BaseModel):
    """The one nats-server with its two listeners."""

    model_config = ConfigDict(extra="forbid")

    host: Annotated[str, Field(pattern=HOST)] = "127.0.0.1"
    """Address that both listeners bind to and that tokens name."""
    nats_port: int = Field(4222, ge=1, le=65535)
    """Of the listener for services and for programs of your own."""
    mqtt_port: int = Field(8883, ge=1, le=65535)
    """Of the listener for devices."""
    tls: bool = True
    """Off only on 127.0.0.1, for trying things out."""
    gc_percent: int = Field(50, ge=10, le=400)
    """How much nats-server's memory may grow before it is collected (Go's GOGC, whose own default is 100)."""
    memory_mb: int = Field(0, ge=0)
    """Soft bound of nats-server's memory, 0 for none: near it the collector takes up to half of the processors.
    Where memory is short, 61 for each 1,000 devices is advised (decision 19)."""

    @model_validator(mode="after")
    def _no_clear_text_on_a_network(self) -> Self:
        if not self.tls and not _is_loopback(self.host):
            raise ValueError(
                f"tls is off on {self.host}: without TLS only 127.0.0.1 is served; "
                "set bus.tls = true or bus.host = '127.0.0.1'"
            )
        return self

    @property
    def nats_url(self) -> str:
        """Where services connect."""
        return f"{'tls' if self.tls else 'nats'}://{self.host}:{self.nats_port}"

    @property
    def mqtt_url(self) -> str:
        """Where devices connect."""
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.mqtt_port}"


class StoreSettings(BaseModel):
    """Where artifacts live."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["folder", "s3"] = "folder"
    """A folder on this machine, or a bucket of MinIO or S3."""
    folder: Path | None = None
    """Default: `artifacts` in the state folder."""
    endpoint: str = "127.0.0.1:9000"
    """`host:port` of the S3 server."""
    bucket: str = "causeway"
    """On that server; made if it is not there."""
    secure: bool = True
    """Whether the S3 server is spoken to over TLS."""
    credentials: Path | None = None
    """File with the access key on its first line and the secret on its second."""


class HttpSettings(BaseModel):
    """Ports of the gateway and of each service's health page, all on `host`."""

    model_config = ConfigDict(extra="forbid")

    host: str = "127.0.0.1"
    """Address that they bind to; they have no password."""
    gateway_port: int = Field(8080, ge=1, le=65535)
    """Of the read-only gateway: its page, its API and the metrics of the whole platform."""
    health_ports: dict[str, int] = {}
    """By service; a service that is not listed takes a free port and logs it."""

    @field_validator("health_ports")
    @classmethod
    def _of_services(cls, ports: dict[str, int]) -> dict[str, int]:
        for name in ports.keys() - set(SERVICES):
            raise ValueError(f"there is no service {name}{nearest(name, SERVICES)}; known are {', '.join(SERVICES)}")
        return ports


class FileSettings(BaseSettings):
    """Read from a file by whoever constructs it; the environment wins over the file."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment first, then what was passed; nothing else."""
        return env_settings, init_settings


class Settings(FileSettings):
    """Everything that all parts share."""

    model_config = SettingsConfigDict(env_prefix="CAUSEWAY_", env_nested_delimiter="__", extra="forbid")

    platform: Ulid
    """Id of this platform, written by `causeway init`; devices and keys are bound to it."""
    fleet: Identifier = "home"
    """Fleet of commands that name none."""
    bus: BusSettings = BusSettings()
    store: StoreSettings = StoreSettings()
    http: HttpSettings = HttpSettings()


def load_settings(state: StateFolder) -> Settings:
    """Read the settings of a state folder.

    Raises:
        SettingsError: if the folder was not initialised, or a setting does not fit or has a name that there is not.
    """
    state.require()
    own = {name: value for name, value in _tables(state).items() if name not in TABLES}
    return _read(state, Settings, own)


def load_table(state: StateFolder, service: str, model: type[S]) -> S:
    """Read a service's own table, as `[registry]`; what it leaves out has its default.

    Raises:
        SettingsError: naming the setting that does not fit.
    """
    assert service in TABLES, "else its table is taken for a misspelt one"
    table = _tables(state).get(service, {})
    if not isinstance(table, dict):
        raise SettingsError(f"read {state.settings}: {service} must be a table; write [{service}]")
    return _read(state, model, table, f"[{service}] ")


def _tables(state: StateFolder) -> dict[str, Any]:
    try:
        return tomllib.loads(state.settings.read_text())
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"read {state.settings}: not TOML: {error}") from error


def _read(state: StateFolder, model: type[S], values: dict[str, Any], table: str = "") -> S:
    others = TABLES if model is Settings else ()
    check_variables(model, os.environ, others)
    try:
        return model(**values)
    except ValidationError as error:
        said = variables_of(model, os.environ, [problem["loc"] for problem in error.errors()])
        files = " and ".join([str(state.settings), *said])
        raise SettingsError(
            f"read {files}: {table}{setting_problems(error, model, others)}; correct it or take it out for the default"
        ) from error
    except EnvironmentSettingsError as error:
        said = variables_of(model, os.environ, [(name,) for name in model.model_fields if f'"{name}"' in str(error)])
        raise SettingsError(
            f"read {' and '.join(said)} of the environment: {error.__cause__ or error}; "
            "a whole table is written as JSON, a setting of it as CAUSEWAY_BUS__NATS_PORT=4222"
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
