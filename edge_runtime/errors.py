"""Errors of the runtime. `reason` is a stable word that travels in reports."""

from __future__ import annotations


class EdgeError(Exception):
    """Root of the runtime's errors.

    Attributes:
        reason: snake_case word for reports and metrics.
    """

    reason = "failed"

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason


class ConfigError(EdgeError):
    """The settings file or the state folder is missing or wrong."""

    reason = "config"


class EnrolError(EdgeError):
    """The platform did not take this device."""

    reason = "enrol"


class OutboxError(EdgeError):
    """A letter could not be stored; it was not accepted."""

    reason = "outbox"


class TrustError(EdgeError):
    """Trust metadata that does not verify, or a letter that may not be acted on."""

    reason = "trust"


class InstallError(EdgeError):
    """A model could not be installed; the previous one keeps running."""

    reason = "install"


class FetchError(EdgeError):
    """An artifact did not arrive, or is not what was asked for."""

    reason = "fetch"


class WorkerError(EdgeError):
    """A job in the worker process failed or took too long."""

    reason = "worker"
