"""Bounds of the registry, each with its name."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.kit.settings import FileSettings

DAY_S = 86_400


class RegistrySettings(FileSettings):
    """Table `[registry]` of settings.toml, overridden by `CAUSEWAY_REGISTRY_*` variables."""

    model_config = SettingsConfigDict(env_prefix="CAUSEWAY_REGISTRY_", extra="forbid")

    jwt_life_s: int = Field(30 * DAY_S, ge=60, le=366 * DAY_S)
    """Of a device's credentials; the device renews them at half-life."""
    welcome_life_s: int = Field(7 * DAY_S, ge=60)
    """How long an answer to enrol waits in the mailbox."""
    heartbeat_s: float = Field(30.0, ge=0.2, le=3_600)
    """Interval that new devices are told."""
    silence_s: float | None = Field(None, gt=0)
    """After it a device counts as offline; absent: three heartbeats."""
    sweep_s: float = Field(0.5, gt=0)
    """How often silence is looked for and presence is written down."""
    writes_in_flight: int = Field(64, ge=1, le=1_024)
    """Changes of presence that are stored at the same time."""
    batch: int = Field(500, ge=1, le=10_000)
    """Messages that one pull of TELEMETRY asks for; three pulls are always out."""
    rejects_per_s: int = Field(20, ge=0)
    """Bad state messages that are kept in REJECTS; the rest is counted."""
    list_bytes: int = Field(900_000, ge=50_000, le=1_000_000)
    """Of one answer; nats-server takes 1 MB."""
    trust_timeout_s: float = Field(5.0, gt=0)
    """How long the depot may take to say which trust metadata holds."""
    max_revocations: int = Field(8_000, ge=1, le=9_000)
    """Live entries in the account's JWT; 10,000 would exceed what nats-server takes."""
    claims_check_s: float = Field(15.0, gt=0)
    """How often a revocation that did not reach the bus is tried again."""

    @property
    def offline_after_s(self) -> float:
        """Silence that means offline."""
        return self.silence_s if self.silence_s is not None else 3 * self.heartbeat_s
