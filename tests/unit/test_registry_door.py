from __future__ import annotations

import nkeys
import pytest

from schemas.ids import Address
from services.kit.credentials import NKey, Permissions, UserClaims, user_jwt, verified_jwt
from services.kit.devices import DeviceRecord
from services.registry.door import Turned, ended, refused
from tests.support.registry import CAPABILITIES

NOW = 1_000_000
ACCOUNT = NKey.generate(nkeys.PREFIX_BYTE_ACCOUNT)
CAM = Address("harbour", "cam-1")


def jwt(issuer: NKey = ACCOUNT, *, issued: int = NOW - 100, expires: int = NOW + 100, name: str = str(CAM)) -> str:
    user = NKey.generate(nkeys.PREFIX_BYTE_USER).public
    return user_jwt(issuer, UserClaims(name, user, Permissions(("a",), ("b",)), issued, expires_at=expires))


def record(standing: str = "enrolled", issued: int = NOW - 100) -> DeviceRecord:
    return DeviceRecord.model_validate(
        {
            "fleet": CAM.fleet,
            "device": CAM.device,
            "public_key": "",
            "seal_key": "",
            "standing": standing,
            "capabilities": CAPABILITIES,
            "enrol_id": "",
            "bus_key": "",
            "jwt_issued": issued,
            "jwt_expires": NOW,
            "enrolled_at": "",
        }
    )


def turned(text: str, known: DeviceRecord | None = None) -> Turned:
    return refused({"jwt": text, "user": "cam-9"}, ACCOUNT.public, lambda _: known, NOW)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "a.b.c",
        "\u00e4.\u00e4.\u00e4",
        jwt()[:-4] + "AAAA",
        jwt(NKey.generate(nkeys.PREFIX_BYTE_ACCOUNT)),
    ],
)
def test_what_the_account_did_not_sign_proves_nothing(text: str) -> None:
    assert verified_jwt(text, ACCOUNT.public) is None
    assert turned(text) == Turned("wrong_credential", "cam-9", claimed=True)


def test_the_reason_is_the_first_that_explains_the_refusal() -> None:
    assert turned(jwt(expires=NOW - 1)) == Turned("expired", str(CAM), claimed=False)
    assert turned(jwt(), record("revoked")) == Turned("revoked", str(CAM), claimed=False)
    assert turned(jwt(issued=NOW - 200), record()) == Turned("revoked", str(CAM), claimed=False)
    assert turned(jwt(), record()) == Turned("not_allowed", str(CAM), claimed=False)
    assert turned(jwt()) == Turned("not_allowed", str(CAM), claimed=False)
    assert turned(jwt(name="courier")) == Turned("not_allowed", "courier", claimed=False)


def test_only_endings_that_a_person_should_hear_of_are_told() -> None:
    client = {"name_tag": str(CAM)}
    assert ended({"reason": "Authentication Expired", "client": client}) == Turned("expired", str(CAM), claimed=False)
    assert ended({"reason": "Client Closed", "client": client}) is None
    assert ended({}) is None
