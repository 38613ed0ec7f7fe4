from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope as ReferenceEnvelope
from securesystemslib.signer import CryptoSigner, SSlibKey

from schemas.envelope import MAX_LETTER_BYTES, PAYLOAD_TYPE, Signer, Verifier, pae, parse, seal
from schemas.errors import EnvelopeError

SIGNER = Signer.from_seed(bytes(range(32)))
KEYS = {SIGNER.keyid: Verifier(SIGNER.public_key)}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


@given(json_values)
def test_an_envelope_carries_any_json_unchanged(value: object) -> None:
    body = json.dumps(value).encode()
    envelope = parse(seal(body, SIGNER))
    assert envelope.verify(KEYS) == SIGNER.keyid
    assert envelope.body == body


@given(st.binary(max_size=200), st.data())
def test_any_changed_byte_is_refused(body: bytes, data: st.DataObject) -> None:
    raw = seal(body, SIGNER)
    place = data.draw(st.integers(0, len(raw) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b != raw[place]))
    changed = raw[:place] + bytes([byte]) + raw[place + 1 :]
    with pytest.raises(EnvelopeError):
        parse(changed).verify(KEYS)


@given(st.binary(max_size=300))
def test_any_bytes_are_an_envelope_or_a_clear_refusal(raw: bytes) -> None:
    with pytest.raises(EnvelopeError):
        parse(raw).verify(KEYS)


@given(st.binary(max_size=500))
def test_our_envelopes_verify_with_the_reference_implementation(body: bytes) -> None:
    public = SSlibKey.from_crypto(SIGNER._key.public_key(), keyid=SIGNER.keyid)
    reference = ReferenceEnvelope.from_dict(json.loads(seal(body, SIGNER)))
    assert reference.verify([public], 1)
    assert reference.pae() == pae(body)


@given(st.binary(max_size=500))
def test_envelopes_of_the_reference_implementation_verify_with_ours(body: bytes) -> None:
    public = SSlibKey.from_crypto(SIGNER._key.public_key(), keyid=SIGNER.keyid)
    reference = ReferenceEnvelope(payload=body, payload_type=PAYLOAD_TYPE, signatures={})
    reference.sign(CryptoSigner(SIGNER._key, public))
    envelope = parse(json.dumps(reference.to_dict()).encode())
    assert envelope.verify(KEYS) == SIGNER.keyid
    assert envelope.body == body


def test_a_stranger_is_not_a_forger() -> None:
    raw = seal(b"{}", Signer.generate())
    with pytest.raises(EnvelopeError) as caught:
        parse(raw).verify(KEYS)
    assert caught.value.reason == "unknown_key"


def test_a_signature_under_a_borrowed_key_id_is_bad() -> None:
    fields = json.loads(seal(b"{}", Signer.generate()))
    fields["signatures"][0]["keyid"] = SIGNER.keyid
    with pytest.raises(EnvelopeError) as caught:
        parse(json.dumps(fields).encode()).verify(KEYS)
    assert caught.value.reason == "bad_signature"


def test_size_is_bounded_both_ways() -> None:
    with pytest.raises(EnvelopeError, match="send large data by digest") as caught:
        seal(b"x" * MAX_LETTER_BYTES, SIGNER)
    assert caught.value.reason == "oversized"
    with pytest.raises(EnvelopeError) as caught:
        parse(b" " * (MAX_LETTER_BYTES + 1))
    assert caught.value.reason == "oversized"


@pytest.mark.parametrize("count", [0, 5])
def test_the_number_of_signatures_is_bounded(count: int) -> None:
    signature = {"keyid": "a", "sig": base64.b64encode(b"x" * 64).decode()}
    fields = {"payloadType": PAYLOAD_TYPE, "payload": "", "signatures": [signature] * count}
    with pytest.raises(EnvelopeError, match="1 to 4 signatures"):
        parse(json.dumps(fields).encode())
