"""Bounds of the courier, each with its name."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.kit.settings import FileSettings


class CourierSettings(FileSettings):
    """Table `[courier]` of settings.toml, overridden by `CAUSEWAY_COURIER_*` variables."""

    model_config = SettingsConfigDict(env_prefix="CAUSEWAY_COURIER_", extra="forbid")

    batch: int = Field(256, ge=1, le=4_096)
    """Letters that are verified and stored in one go."""
    publish_timeout_s: float = Field(5.0, gt=0)
    """How long acknowledgements of one batch may take; nats-py itself waits for ever."""
    receipt_interval_s: float = Field(0.25, gt=0)
    """At most one receipt per device in this time."""
    receipt_lifetime_s: float = Field(3_600.0, gt=0)
    snapshot_interval_s: float = Field(30.0, gt=0)
    snapshot_letters: int = Field(20_000, ge=1)
    """Marks are saved when either has passed; a restart replays at most about that much of IN."""
    lease_refresh_s: float = Field(1.0, gt=0)
    """A third of the lease's life, which is the bucket's TTL."""
    max_sessions: int = Field(200_000, ge=1)
    mailbox_letters: int = Field(256, ge=1)
    """Letters per device; beyond, the oldest is dropped and counted."""
    mailbox_window: int = Field(32, ge=1)
    """Letters on their way to one device at a time."""
    resend_first_s: float = Field(1.0, gt=0)
    resend_limit_s: float = Field(60.0, gt=0)
    resend_attempts: int = Field(8, ge=1)
    """After these a letter rests until its device says hello."""
    rejects_per_minute: int = Field(10, ge=1)
    """Kept in REJECTS per device and reason; the rest is only counted, since a device sends again what was refused."""
