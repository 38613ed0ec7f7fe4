"""Errors of the contract. Each carries a short `reason` that names the refusal in metrics, rejects and reports."""

from __future__ import annotations


class ContractError(Exception):
    """Something on the wire does not follow the contract.

    Attributes:
        reason: stable snake_case word for counters and reject records.
    """

    reason = "contract"

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason


class TopicError(ContractError):
    """A topic or subject that the contract does not know."""

    reason = "bad_topic"


class EnvelopeError(ContractError):
    """An envelope that is malformed, or whose signature does not hold."""

    reason = "bad_envelope"


class MessageError(ContractError):
    """A message body that does not fit its model."""

    reason = "malformed"
