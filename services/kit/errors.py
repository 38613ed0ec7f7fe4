"""Errors of the platform's side, with the next step in the message."""

from __future__ import annotations


class PlatformError(Exception):
    """Root of the platform's errors.

    Attributes:
        code: stable snake_case word; travels in RPC answers.
    """

    code = "failed"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class SettingsError(PlatformError):
    """The state folder or a setting is missing or wrong."""

    code = "settings"


class NotFoundError(PlatformError):
    """Nothing has this name."""

    code = "not_found"


class RefusedError(PlatformError):
    """Understood, and not allowed."""

    code = "refused"


class UnreachableError(PlatformError):
    """A service or server does not answer."""

    code = "unreachable"
