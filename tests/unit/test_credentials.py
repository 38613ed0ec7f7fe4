from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import nkeys
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.ids import Address
from services.kit.credentials import (
    AccountClaims,
    NKey,
    Permissions,
    UserClaims,
    account_jwt,
    creds_text,
    decode_jwt,
    operator_jwt,
    public_nkey,
    user_jwt,
)
from services.kit.errors import SettingsError
from services.kit.permissions import service_permissions
from services.registry.minting import Mint

ROLES = [nkeys.PREFIX_BYTE_OPERATOR, nkeys.PREFIX_BYTE_ACCOUNT, nkeys.PREFIX_BYTE_USER]
ACCOUNT = NKey(b"a" * 32, nkeys.PREFIX_BYTE_ACCOUNT)
USER = NKey(b"u" * 32, nkeys.PREFIX_BYTE_USER)


def part(jwt: str, number: int) -> bytes:
    text = jwt.split(".")[number]
    assert "=" not in text
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


@given(st.binary(min_size=32, max_size=32), st.sampled_from(ROLES))
def test_keys_are_what_the_nkeys_library_makes_of_the_same_seed(seed: bytes, role: int) -> None:
    ours = NKey(seed, role)
    theirs = nkeys.from_seed(bytearray(ours.seed_text))
    assert ours.public == theirs.public_key.decode()
    assert ours.sign(b"nonce") == theirs.sign(b"nonce")
    assert ours.public[0] == {nkeys.PREFIX_BYTE_OPERATOR: "O", nkeys.PREFIX_BYTE_ACCOUNT: "A"}.get(role, "U")


def test_a_key_is_read_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "account.nk"
    path.write_bytes(ACCOUNT.seed_text + b"\n")
    assert NKey.load(path).public == ACCOUNT.public
    path.write_bytes(b"nonsense")
    with pytest.raises(SettingsError, match=r"account\.nk"):
        NKey.load(path)
    with pytest.raises(SettingsError, match="was it moved away"):
        NKey.load(tmp_path / "missing.nk")


def test_a_jwt_is_signed_by_its_issuer_over_what_it_says() -> None:
    jwt = user_jwt(ACCOUNT, UserClaims("cam", USER.public, Permissions(("a.b",), ("c.*",)), issued_at=5, expires_at=9))
    assert json.loads(part(jwt, 0)) == {"typ": "JWT", "alg": "ed25519-nkey"}
    claims = decode_jwt(jwt)
    assert (claims["iss"], claims["sub"], claims["iat"], claims["exp"]) == (ACCOUNT.public, USER.public, 5, 9)
    assert claims["nats"]["pub"] == {"allow": ["a.b"]}
    assert claims["nats"]["sub"] == {"allow": ["c.*"]}
    nkeys.from_seed(bytearray(ACCOUNT.seed_text)).verify(jwt.rsplit(".", 1)[0].encode(), part(jwt, 2))
    named = {name: value for name, value in claims.items() if name != "jti"}
    digest = hashlib.new("sha512_256", json.dumps(named, separators=(",", ":"), sort_keys=True).encode()).digest()
    assert claims["jti"] == base64.b32encode(digest).rstrip(b"=").decode()


def test_no_subjects_means_none_and_not_all() -> None:
    jwt = user_jwt(ACCOUNT, UserClaims("nobody", USER.public, Permissions((), ()), issued_at=5))
    claims = decode_jwt(jwt)
    assert claims["nats"]["pub"] == claims["nats"]["sub"] == {"deny": [">"]}
    assert claims["nats"]["allowed_connection_types"] == ["STANDARD"]
    assert "exp" not in claims
    assert "bearer_token" not in claims["nats"]


def test_accounts_and_operators_say_what_the_server_needs() -> None:
    operator = NKey(b"o" * 32, nkeys.PREFIX_BYTE_OPERATOR)
    assert decode_jwt(operator_jwt(operator, ACCOUNT.public, 5))["nats"]["system_account"] == ACCOUNT.public
    claims = AccountClaims("causeway", ACCOUNT.public, 5, jetstream=True, revocations={USER.public: 7})
    nats = decode_jwt(account_jwt(operator, claims))["nats"]
    assert nats["revocations"] == {USER.public: 7}
    wanted = {
        *("subs", "data", "payload", "imports", "exports", "wildcards", "conn", "leaf"),
        *("mem_storage", "disk_storage", "streams", "consumer"),
    }
    assert wanted == set(nats["limits"])
    system = decode_jwt(account_jwt(operator, AccountClaims("SYS", ACCOUNT.public, 5, jetstream=False)))["nats"]
    assert system["limits"]["streams"] == system["limits"]["disk_storage"] == 0


def test_a_devices_bus_user_is_its_own_key() -> None:
    raw = bytes(range(32))
    assert base64.b32decode(public_nkey(raw, nkeys.PREFIX_BYTE_USER))[1:33] == raw


def test_client_ids_are_stable_distinct_and_keyed() -> None:
    cam, one, two = Address("harbour", "cam-1"), Mint(ACCOUNT, b"one"), Mint(ACCOUNT, b"two")
    assert one.client_id(cam, "A") == one.client_id(cam, "A")
    made = {one.client_id(cam, "A"), one.client_id(cam, "B"), two.client_id(cam, "A")}
    made |= {one.client_id(Address("harbour", "cam-2"), "A"), Mint.bootstrap_client_id(), Mint.bootstrap_client_id()}
    assert len(made) == 6
    assert all(len(client_id) == 43 and client_id.replace("-", "").replace("_", "").isalnum() for client_id in made)


def test_a_bootstrap_credential_is_for_one_door() -> None:
    jwt = Mint(ACCOUNT, b"s").bootstrap_jwt(Address("harbour", "cam-1"), 5, 9)
    claims = decode_jwt(jwt)
    assert claims["nats"]["pub"]["allow"] == sorted(
        f"cw.1.harbour.cam-1.{end}" for end in ("letter.enrol", "parcel.want", "state.got", "state.hello")
    )
    assert claims["nats"]["sub"]["allow"] == ["cw.1.harbour.cam-1.down.*"]
    assert (claims["nats"]["bearer_token"], claims["nats"]["allowed_connection_types"]) == (True, ["MQTT"])


def test_credentials_read_as_nats_tools_read_them() -> None:
    text = creds_text("a.b.c", USER.seed_text).decode()
    assert "-----BEGIN NATS USER JWT-----\na.b.c\n" in text
    assert USER.seed_text.decode() in text


@pytest.mark.parametrize("service", ["registry", "courier", "depot", "ota", "scheduler", "aggregator", "gateway"])
def test_services_answer_whom_they_may_be_asked_by(service: str) -> None:
    permissions = service_permissions(service)
    # With it nats-server would remember the reply subject of each message that it delivers.
    assert not permissions.allow_responses
    assert "_INBOX_operator.>" in permissions.publish
    assert ">" not in permissions.publish
    assert ">" not in permissions.subscribe
