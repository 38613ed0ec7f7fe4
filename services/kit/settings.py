"""Settings of a platform, read from `settings.toml` in its state folder and overridden by `CAUSEWAY_*` variables."""

from __future__ import annotations

import tomllib
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from schemas.ids import HOST, Identifier, Ulid
from schemas.wording import problems
from services.kit.errors import SettingsError
from services.kit.folder import StateFolder

S = TypeVar("S", bound=BaseSettings)


class BusSettings(BaseModel):
    """The one nats-server with its two listeners."""

    host: Annotated[str, Field(pattern=HOST)] = "127.0.0.1"
    """Address that both listeners bind to and that tokens name."""
    nats_port: int = Field(4222, ge=1, le=65535)
    mqtt_port: int = Field(8883, ge=1, le=65535)
    tls: bool = True
    gc_percent: int = Field(50, ge=10, le=400)
    """How much nats-server's memory may grow before it is collected (Go's GOGC, whose own default is 100)."""

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

    kind: Literal["folder", "s3"] = "folder"
    folder: Path | None = None
    """Default: `artifacts` in the state folder."""
    endpoint: str = "127.0.0.1:9000"
    bucket: str = "causeway"
    secure: bool = True
    credentials: Path | None = None
    """File with the access key on its first line and the secret on its second."""


class HttpSettings(BaseModel):
    """Ports of the gateway and of each service's health page, all on `host`."""

    host: str = "127.0.0.1"
    gateway_port: int = Field(8080, ge=1, le=65535)
    health_ports: dict[str, int] = {}
    """By service; a service that is not listed takes a free port and logs it."""


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

    model_config = SettingsConfigDict(env_prefix="CAUSEWAY_", env_nested_delimiter="__", extra="ignore")

    platform: Ulid
    fleet: Identifier = "home"
    """Fleet of commands that name none."""
    bus: BusSettings = BusSettings()
    store: StoreSettings = StoreSettings()
    http: HttpSettings = HttpSettings()


def load_settings(state: StateFolder) -> Settings:
    """Read the settings of a state folder.

    Raises:
        SettingsError: if the folder was not initialised, or a setting does not fit.
    """
    state.require()
    return _read(state, Settings, _tables(state))


def load_table(state: StateFolder, service: str, model: type[S]) -> S:
    """Read a service's own table, as `[registry]`; what it leaves out has its default.

    Raises:
        SettingsError: naming the setting that does not fit.
    """
    table = _tables(state).get(service, {})
    if not isinstance(table, dict):
        raise SettingsError(f"read {state.settings}: {service} must be a table; write [{service}]")
    return _read(state, model, table)


def _tables(state: StateFolder) -> dict[str, Any]:
    try:
        return tomllib.loads(state.settings.read_text())
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"read {state.settings}: not TOML: {error}") from error


def _read(state: StateFolder, model: type[S], values: dict[str, Any]) -> S:
    try:
        return model(**values)
    except ValidationError as error:
        raise SettingsError(
            f"read {state.settings}: {problems(error)}; correct it or take it out for the default"
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
