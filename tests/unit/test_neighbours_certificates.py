from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st
from ulid import ULID

from edge_runtime.carriers.certificates import NeighbourError, contexts, recognise
from edge_runtime.identity import Credentials, Identity
from schemas.errors import MessageError
from schemas.ids import IDENTIFIER, Address
from schemas.neighbours import parse_peer_uri, peer_uri
from schemas.registry import Welcome
from services.kit.errors import SettingsError
from services.kit.folder import StateFolder
from services.kit.neighbours import Lease, open_neighbours_authority
from tests.support.neighbours import ENDS, NOW, authority, device

PLATFORM = str(ULID())
OWN = Address("home", "own")
names = st.from_regex(IDENTIFIER, fullmatch=True)


def der(identity: Identity) -> bytes:
    assert identity.certificate is not None
    return x509.load_pem_x509_certificate(identity.certificate.encode()).public_bytes(Encoding.DER)


def at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


@given(names, names)
def test_the_name_in_a_certificate_reads_back(fleet: str, name: str) -> None:
    address = Address(fleet, name)
    assert parse_peer_uri(peer_uri(PLATFORM, address)) == (PLATFORM, address)


@given(st.text(max_size=300))
def test_any_other_name_is_refused(text: str) -> None:
    with pytest.raises(MessageError):
        parse_peer_uri(f"causeway:///{PLATFORM}/home/a/{text}")
    with pytest.raises(MessageError):
        parse_peer_uri(text)


def test_a_certificate_names_the_device_and_its_letter_key(tmp_path) -> None:
    cam = device("cam", PLATFORM, authority(tmp_path, PLATFORM))
    neighbour = recognise(der(cam), PLATFORM, OWN, at(NOW))
    assert (neighbour.address, neighbour.key, neighbour.expires) == (cam.address, cam.public_key, at(ENDS))


@pytest.mark.parametrize(
    ("name", "platform", "now", "reason"),
    [
        ("cam", str(ULID()), NOW, "wrong_platform"),
        ("cam", PLATFORM, ENDS, "expired"),
        ("own", PLATFORM, NOW, "own_name"),
    ],
)
def test_a_certificate_out_of_place_is_refused(tmp_path, name: str, platform: str, now: int, reason: str) -> None:
    cam = device(name, PLATFORM, authority(tmp_path, PLATFORM))
    with pytest.raises(NeighbourError) as caught:
        recognise(der(cam), platform, OWN, at(now))
    assert caught.value.reason == reason


def test_a_certificate_from_before_its_time_is_taken_by_a_device_without_a_clock(tmp_path) -> None:
    cam = device("cam", PLATFORM, authority(tmp_path, PLATFORM))
    assert recognise(der(cam), PLATFORM, OWN, at(0)).address == cam.address


def foreign(key: object, names: list[x509.GeneralName] | None) -> bytes:
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(at(1))
        .not_valid_after(at(ENDS))
    )
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    signer = ed25519.Ed25519PrivateKey.generate()
    return builder.sign(signer, None).public_bytes(Encoding.DER)


def uri(name: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(peer_uri(PLATFORM, Address("home", name)))


@pytest.mark.parametrize(
    ("certificate", "reason"),
    [
        (None, "no_certificate"),
        (b"", "bad_certificate"),
        (b"\x30\x03\x02\x01\x01", "bad_certificate"),
        (foreign(ed25519.Ed25519PrivateKey.generate(), None), "bad_certificate"),
        (foreign(ed25519.Ed25519PrivateKey.generate(), [x509.DNSName("cam")]), "bad_certificate"),
        (foreign(ed25519.Ed25519PrivateKey.generate(), [uri("a"), uri("b")]), "bad_certificate"),
        (
            foreign(ed25519.Ed25519PrivateKey.generate(), [x509.UniformResourceIdentifier("causeway:///x/y/z")]),
            "bad_certificate",
        ),
        (foreign(ec.generate_private_key(ec.SECP256R1()), [uri("a")]), "bad_certificate"),
    ],
    ids=["none", "empty", "no certificate", "no names", "dns", "two names", "no platform", "other key"],
)
def test_what_is_no_certificate_of_a_device_is_refused(certificate: bytes | None, reason: str) -> None:
    with pytest.raises(NeighbourError) as caught:
        recognise(certificate, PLATFORM, OWN, at(NOW))
    assert caught.value.reason == reason


def test_the_same_lease_gives_the_same_certificate_again(tmp_path) -> None:
    lease = Lease(OWN, bytes(range(32)), 1, 2, "01")
    assert authority(tmp_path, PLATFORM).certify(lease) == authority(tmp_path, PLATFORM).certify(lease)
    other = Lease(OWN, bytes(range(32)), 1, 2, "02")
    assert authority(tmp_path, PLATFORM).certify(lease) != authority(tmp_path, PLATFORM).certify(other)


def test_the_authority_is_made_once_private_and_checked(tmp_path) -> None:
    state = StateFolder(tmp_path)
    first = authority(tmp_path, PLATFORM)
    assert stat.S_IMODE(state.neighbours_key.stat().st_mode) == 0o600
    assert authority(tmp_path, PLATFORM).ca_pem == first.ca_pem
    other = authority(tmp_path / "other", PLATFORM)
    state.neighbours_ca.write_text(first.ca_pem + other.ca_pem)
    assert authority(tmp_path, PLATFORM).ca_pem == first.ca_pem + other.ca_pem, "an earlier one may stand beside it"
    state.neighbours_ca.write_text(other.ca_pem)
    with pytest.raises(SettingsError, match="is not that of this Ed25519 key"):
        authority(tmp_path, PLATFORM)
    state.neighbours_key.write_text("rubbish")
    with pytest.raises(SettingsError, match="restore it"):
        open_neighbours_authority(state, PLATFORM, datetime.now(UTC))


def test_a_device_without_a_certificate_cannot_meet_and_says_why(tmp_path) -> None:
    cam = device("cam", PLATFORM, authority(tmp_path, PLATFORM))
    with pytest.raises(NeighbourError) as caught:
        contexts(cam.model_copy(update={"certificate": None}))
    assert caught.value.reason == "no_certificate"
    other = device("other", PLATFORM, authority(tmp_path, PLATFORM))
    with pytest.raises(NeighbourError) as caught:
        contexts(cam.model_copy(update={"certificate": other.certificate}))
    assert caught.value.reason == "bad_certificate"


def test_a_key_never_lies_in_a_file_that_stays(tmp_path, monkeypatch) -> None:
    cam = device("cam", PLATFORM, authority(tmp_path / "ca", PLATFORM))
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    contexts(cam)
    assert not list(folder.iterdir())
    monkeypatch.delattr("os.memfd_create")
    contexts(cam)
    assert not list(folder.iterdir())


def test_a_welcome_brings_the_certificate_and_one_without_keeps_it(tmp_path) -> None:
    cam = device("cam", PLATFORM, authority(tmp_path, PLATFORM))
    fresh = cam.model_copy(update={"certificate": None, "neighbours_ca": None})
    welcome = Welcome(
        enrol_id=str(ULID()),
        jwt="a.b.c",
        client_id="c" * 20,
        expires=at(NOW) + timedelta(days=1),
        certificate=cam.certificate,
        neighbours_ca=cam.neighbours_ca,
    )
    welcomed = fresh.welcomed(Welcome.read(welcome.write()), at(NOW))
    assert (welcomed.certificate, welcomed.neighbours_ca) == (cam.certificate, cam.neighbours_ca)
    bare = welcome.model_copy(update={"certificate": None, "neighbours_ca": None})
    assert welcomed.welcomed(bare, at(NOW)).certificate == cam.certificate


def test_a_device_asks_for_a_certificate_once_its_owner_wants_neighbours(tmp_path) -> None:
    cam = device("cam", PLATFORM, authority(tmp_path, PLATFORM))
    assert not cam.renewal_due(at(NOW), neighbours=True), "it is not enrolled"
    credentials = Credentials(jwt="a.b.c", client_id="c" * 20, received=at(0), expires=at(2 * NOW))
    cam = cam.model_copy(update={"credentials": credentials})
    assert not cam.renewal_due(at(NOW - 1), neighbours=True)
    assert cam.renewal_due(at(NOW), neighbours=False), "at half of their life"
    old = cam.model_copy(update={"certificate": None})
    assert old.renewal_due(at(NOW - 1), neighbours=True)
    assert not old.renewal_due(at(NOW - 1), neighbours=False)
