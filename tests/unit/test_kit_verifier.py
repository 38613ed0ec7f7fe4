from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.envelope import Signer, Verifier, parse, seal
from schemas.errors import EnvelopeError
from services.kit.verifier import SodiumVerifier

SIGNER = Signer.from_seed(bytes(range(32)))
OURS, THEIRS = SodiumVerifier(SIGNER.public_key), Verifier(SIGNER.public_key)


@given(st.binary(max_size=300), st.integers(0, 63), st.integers(1, 255))
def test_it_agrees_with_openssl_on_signatures_and_on_damaged_ones(message: bytes, at: int, damage: int) -> None:
    signature = SIGNER.sign(message)
    assert OURS.holds(signature, message)
    broken = bytearray(signature)
    broken[at] ^= damage
    for found, text in ((bytes(broken), message), (signature, message + b"x"), (signature[:at], message)):
        assert not OURS.holds(found, text)
        assert not THEIRS.holds(found, text)


def test_a_key_of_small_order_signs_nothing() -> None:
    # The neutral element: with it the zero signature fits any message in lenient implementations.
    assert not SodiumVerifier(b"\x01" + bytes(31)).holds(b"\x01" + bytes(63), b"anything")


def test_it_opens_envelopes() -> None:
    assert parse(seal(b"{}", SIGNER)).verify({OURS.keyid: OURS}) == SIGNER.keyid
    with pytest.raises(EnvelopeError, match="does not hold"):
        parse(seal(b"{}", SIGNER).replace(b'"payload":"e30="', b'"payload":"e319"')).verify({OURS.keyid: OURS})


def test_it_is_read_from_base64_as_its_own_kind() -> None:
    assert isinstance(SodiumVerifier.from_base64(base64.b64encode(SIGNER.public_key).decode()), SodiumVerifier)
