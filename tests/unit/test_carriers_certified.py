"""Certificates that travel with heads: carriers who never met the origin tell its bundles from forged ones."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from ulid import ULID

from edge_runtime.carriers.names import key_of
from edge_runtime.carriers.port import Peer
from schemas.bundles import BUNDLE_TYPE, MAX_FRAGMENT_BYTES, BundleHead, Parcel, bundle_to_letter
from schemas.envelope import Signer, parse, seal
from services.kit.neighbours import Lease, NeighboursAuthority
from tests.support.carriers import Realm, Traveller, meet
from tests.support.neighbours import authority

DAY_S = 86_400


def certify(of: Traveller, ca: NeighboursAuthority, *, ends: float | None = None) -> Traveller:
    """Give a device the certificate that its welcome would have brought."""
    now = int(datetime.now(UTC).timestamp())
    lease = Lease(of.address, of.identity.public_key, now - DAY_S, int(ends or now + DAY_S), str(ULID()))
    of.identity = of.identity.model_copy(update={"certificate": ca.certify(lease), "neighbours_ca": ca.ca_pem})
    return of


@pytest.fixture
def ca(realm: Realm, tmp_path: Path) -> NeighboursAuthority:
    return authority(tmp_path / "ca", realm.platform)


@pytest.fixture
def chain(three: list[Traveller], ca: NeighboursAuthority) -> list[Traveller]:
    return [certify(each, ca) for each in three]


def packed(of: Traveller) -> Parcel:
    of.say()
    of.custodian.packer.pack(urgent=True, anew=True)
    (one,) = of.store.packed()
    return of.store.fragments_of(one.id)[0].on_its_way(hops=1, copies=1, age_s=0.0)


def verified(at: Traveller, parcel: Parcel) -> bool:
    facts = at.store.facts(key_of(parcel))
    assert facts is not None
    return facts.verified


def signed_anew(parcel: Parcel, signer: Signer, **changes: object) -> Parcel:
    head = parcel.head.model_copy(update=changes)
    raw = seal(head.write(), signer, BUNDLE_TYPE)
    return replace(parcel, head=BundleHead.read(head.write()), head_bytes=raw, envelope=parse(raw, BUNDLE_TYPE))


def test_a_carrier_of_a_carrier_knows_what_is_genuine(chain: list[Traveller]) -> None:
    a, b, c = chain
    parcel = packed(a)
    meet(a, b)
    meet(b, c)
    assert verified(b, parcel)
    assert verified(c, parcel)


def test_who_forges_under_a_certificate_is_refused_and_without_one_not_believed(
    chain: list[Traveller], ca: NeighboursAuthority, realm: Realm, tmp_path: Path
) -> None:
    a, b, c = chain
    giver, genuine, thief = Peer(c.address, key=c.identity.public_key), packed(a), Signer.generate()
    own = packed(c).head.certificate
    other = Realm()
    foreign = certify(Traveller(other, tmp_path / "foreign", "a"), authority(tmp_path / "far", realm.platform))
    expired = certify(Traveller(realm, tmp_path / "old", "a"), ca, ends=datetime.now(UTC).timestamp() - 1.0)
    assert b.custodian.take(signed_anew(genuine, thief), giver) == "refused", "the certificate names another key"
    for certificate, signer in (
        (None, thief),
        (base64.b64encode(b"rubbish").decode(), thief),
        (own, c.identity.signer),
        (packed(foreign).head.certificate, foreign.identity.signer),
        (packed(expired).head.certificate, expired.identity.signer),
    ):
        forged = signed_anew(genuine, signer, certificate=certificate)
        assert b.custodian.take(forged, giver) == "kept"
        assert not verified(b, forged)
    many = parse(
        genuine.head_bytes.replace(b'"signatures":[', b'"signatures":[{"keyid":"x","sig":"%s"},' % (b"A" * 86 + b"==")),
        BUNDLE_TYPE,
    )
    assert b.custodian.take(replace(genuine, envelope=many), giver) == "refused", "one signature, not one among several"
    assert b.custodian.take(genuine, giver) == "kept"
    assert verified(b, genuine)
    foreign.close()
    expired.close()


@pytest.mark.parametrize(
    ("what", "by"),
    [
        (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x06"),
        (b"\x06\x03\x2b\x65\x70", b"\x06\x03\x2b\x65\x7f"),
    ],
    ids=["version", "algorithms"],
)
def test_a_certificate_that_nobody_can_read_is_not_believed(chain: list[Traveller], what: bytes, by: bytes) -> None:
    refuses(chain, lambda raw: raw.replace(what, by))


def test_nor_is_one_with_a_negative_serial_number(chain: list[Traveller]) -> None:
    version = b"\xa0\x03\x02\x01\x02"

    def negative(raw: bytes) -> bytes:
        at = raw.index(version) + len(version) + 2
        return raw[:at] + bytes([raw[at] | 0x80]) + raw[at + 1 :]

    refuses(chain, negative)


def refuses(chain: list[Traveller], altered: Callable[[bytes], bytes]) -> None:
    a, b, c = chain
    genuine = packed(a)
    assert genuine.head.certificate is not None
    raw = base64.b64decode(genuine.head.certificate)
    assert altered(raw) != raw
    forged = signed_anew(genuine, a.identity.signer, certificate=base64.b64encode(altered(raw)).decode())
    assert b.custodian.take(forged, Peer(c.address, key=c.identity.public_key)) == "kept"
    assert not verified(b, forged)


def test_what_nobody_could_check_is_believed_once_its_origin_comes_by(three: list[Traveller]) -> None:
    a, b, c = three
    parcel = packed(a)
    assert c.custodian.take(parcel, Peer(b.address, key=b.identity.public_key)) == "kept"
    assert not verified(c, parcel)
    c.custodian.take(parcel, Peer(a.address, key=a.identity.public_key))
    assert verified(c, parcel)


def test_a_head_with_its_certificate_still_fits_into_a_letter(chain: list[Traveller]) -> None:
    parcel = replace(packed(chain[0]), payload=bytes(MAX_FRAGMENT_BYTES))
    raw = bundle_to_letter(parcel).write()
    assert len(raw) * 4 / 3 < 60_000, len(raw)
