"""Opening an update: the vector's bytes against what the letter says of them."""

from __future__ import annotations

import base64
import binascii
import hashlib

import numpy as np

from schemas.aggregator import Update
from services.aggregator.fx1 import OutOfRangeError, Vector, require_in_range

WIRE_BYTES = 4


class UpdateError(Exception):
    """An update that cannot count.

    Attributes:
        reason: word for the ledger and the counters.
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def open_update(update: Update, length: int) -> Vector:
    """The vector of an update for a model of `length` numbers.

    Raises:
        UpdateError: `no_samples`, `no_vector`, `wrong_length`, `wrong_digest` or `out_of_range`.
    """
    if update.samples < 1:
        raise UpdateError("the update was trained on no samples", reason="no_samples")
    if update.vector is None or update.sha256 is None:
        raise UpdateError("the update carries no vector", reason="no_vector")
    try:
        raw = base64.b64decode(update.vector, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UpdateError(f"the vector is not base64: {error}", reason="no_vector") from error
    if len(raw) != length * WIRE_BYTES or update.length != len(raw):
        raise UpdateError(
            f"the vector has {len(raw)} bytes and says {update.length}, the model has {length * WIRE_BYTES}",
            reason="wrong_length",
        )
    digest = hashlib.sha256(raw).hexdigest()
    if digest != update.sha256:
        raise UpdateError(f"the vector has sha256 {digest}, the letter says {update.sha256}", reason="wrong_digest")
    vector = np.frombuffer(raw, dtype="<f4").astype(np.float32, copy=False)
    try:
        require_in_range(vector)
    except OutOfRangeError as error:
        raise UpdateError(str(error), reason="out_of_range") from error
    return vector


def stored_vector(text: str) -> Vector:
    """The vector of an accepted entry, which was checked before it was written."""
    return np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float32, copy=False)
