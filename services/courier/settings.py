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
    """How long a device may believe a receipt that came over the link."""
    snapshot_interval_s: float = Field(30.0, gt=0)
    """Marks and sessions are saved at least this often."""
    snapshot_letters: int = Field(20_000, ge=1)
    """And after so many letters; a restart replays at most about that much of IN."""
    lease_refresh_s: float = Field(1.0, gt=0)
    """A third of the lease's life, which is the bucket's TTL."""
    letters_per_minute: int = Field(60_000, ge=60)
    """Taken from one device; beyond them its letters are left for it to send again, so that it cannot fill IN or keep
    the courier from all others."""
    watched_lanes: int = Field(8_192, ge=1)
    """Lanes whose last letters are remembered, to recognise a clone."""
    max_sessions: int = Field(200_000, ge=1)
    """Devices whose session, to which receipts are bound, is remembered; the others say hello again after silence."""
    mailbox_letters: int = Field(256, ge=1)
    """Letters per device; beyond, the oldest is dropped and counted."""
    mailbox_window: int = Field(32, ge=1)
    """Letters on their way to one device at a time."""
    resend_first_s: float = Field(1.0, gt=0)
    """How soon a letter down goes again that its device did not report as got; then twice as late each time."""
    resend_limit_s: float = Field(60.0, gt=0)
    """Up to which that doubles."""
    resend_attempts: int = Field(8, ge=1)
    """After these a letter rests until its device says hello."""
    bundle_fragments: int = Field(2_048, ge=64, le=65_536)
    """Fragments of incomplete bundles that are held, of 24 KiB each; beyond, the oldest bundle of whoever has most of
    them is refused."""
    early_fragments: int = Field(512, ge=64, le=65_536)
    """Fragments of bundles that are held until letters before theirs have come; beyond, the oldest bundle is let go,
    whose letters its device still holds."""
    bundles_per_origin: int = Field(8, ge=1)
    """Incomplete bundles of one device that are held, and as many early ones; beyond, its oldest is refused, or let
    go."""
    bundle_wait_s: float = Field(86_400.0, gt=0)
    """How long a bundle waits for the rest of its fragments, if its lifetime does not end before."""
    bundle_ack_wait_s: float = Field(10.0, ge=1)
    """When fragments that a dead courier held come to the next one."""
    answer_interval_s: float = Field(1.0, gt=0)
    """At most one answer by bundle per device in this time."""
    answer_bytes: int = Field(262_144, ge=65_536, le=393_216)
    """Letters down in one bundle, in bytes of their envelopes; what does not fit comes with the next."""
    answer_lifetime_s: int = Field(7 * 86_400, ge=60, le=30 * 86_400)
    """Of bundles down, and of the receipts in them: a carrier may take days."""
    answers_kept_bytes: int = Field(32 << 20, ge=1 << 20)
    """Answers by bundle that are kept for ten minutes, to be sent once more to carriers that connect anew; beyond, the
    oldest is forgotten, and its device's next bundle asks again."""
    max_origins: int = Field(10_000, ge=1)
    """Devices whose carried hello and carriers are remembered."""
    rejects_per_minute: int = Field(10, ge=1)
    """Kept in REJECTS per device and reason; the rest is only counted, since a device sends again what was refused."""
