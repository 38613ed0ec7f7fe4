from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ulid import ULID

from schemas.envelope import Signer
from schemas.ids import Address
from schemas.registry import Enrol
from services.kit.devices import DeviceRecord
from services.registry.enrolment import (
    Admit,
    Application,
    Ignore,
    Known,
    Refuse,
    Repeat,
    Verdict,
    answer_id,
    decide,
    live_revocations,
    revoke,
)
from services.registry.tokens import TokenRecord, proof
from tests.support.registry import CAPABILITIES

CAM = Address("harbour", "cam-1")
NOW = 1_000_000
LIFE = 30 * 86_400
SECRET = base64.b64encode(b"s" * 32).decode()
SEAL = base64.b64encode(b"e" * 32).decode()
WEAK = base64.b64encode(bytes(32)).decode()
"""A point of low order: whatever it is multiplied by, nothing comes of it."""


def key(number: int = 1) -> str:
    return base64.b64encode(Signer.from_seed(bytes([number]) * 32).public_key).decode()


def token(**changes: Any) -> TokenRecord:
    fields: dict[str, Any] = {
        "token": str(ULID.from_timestamp(1)),
        "fleet": "harbour",
        "device": "cam-1",
        "secret": SECRET,
        "made_at": NOW - 100.0,
        "expires": NOW + 100.0,
    }
    return TokenRecord(**fields | changes)


def letter(
    spent: TokenRecord | None = None,
    *,
    public: str | None = None,
    by_current: bool = False,
    at: float = NOW,
    **changes: Any,
) -> Application:
    public = public or key()
    fields: dict[str, Any] = {
        "token": spent.token if spent else None,
        "public_key": public,
        "seal_key": SEAL,
        "proof": proof(SECRET, public, SEAL, CAM) if spent else None,
        "capabilities": CAPABILITIES,
    }
    return Application(CAM, str(ULID()), at, Enrol(**fields | changes), by_current)


def rule(application: Application, known: TokenRecord | None = None, record: DeviceRecord | None = None) -> Verdict:
    return decide(application, Known(known, record, None), NOW, LIFE)


def admitted(verdict: Verdict) -> Admit:
    assert isinstance(verdict, Admit), verdict
    return verdict


def refused(verdict: Verdict) -> str:
    assert isinstance(verdict, Refuse), verdict
    return verdict.reason


def test_a_good_token_is_spent_on_one_letter() -> None:
    application = letter(token())
    verdict = admitted(rule(application, token()))
    assert verdict.token is not None
    assert verdict.token.used_by == application.letter_id
    record = verdict.record
    assert (record.jwt_issued, record.jwt_expires) == (NOW - 60, NOW + LIFE)
    assert record.bus_key.startswith("U")
    # After a crash between token and record the same letter is let in, another is not.
    assert isinstance(rule(application, verdict.token), Admit)
    assert refused(rule(letter(token()), verdict.token)) == "token_used"
    # With the record written it is a repetition, whatever became of the token.
    assert rule(application, None, record) == Repeat(record)


@pytest.mark.parametrize(
    ("application", "known", "reason"),
    [
        (letter(token()), None, "token_unknown"),
        (letter(token()), token(device="cam-2"), "token_unknown"),
        (letter(token()), token(fleet="other"), "token_unknown"),
        (letter(token()), token(secret=SEAL), "bad_proof"),
        (letter(token(), proof=None), token(), "bad_proof"),
        (letter(token(), public_key=key(2)), token(), "bad_proof"),
        (letter(token(), seal_key=key(3)), token(), "bad_proof"),
        (letter(token(), at=NOW + 100), token(), "token_expired"),
        (letter(), None, "token_unknown"),
        (letter(token(), seal_key=WEAK, proof=proof(SECRET, key(), WEAK, CAM)), token(), "bad_seal_key"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(application: Application, known: TokenRecord | None, reason: str) -> None:
    assert refused(rule(application, known)) == reason


def test_a_letter_that_waited_is_judged_by_when_it_was_stored() -> None:
    late = decide(letter(token(), at=NOW + 99), Known(token(), None, None), NOW + 5_000, LIFE)
    assert isinstance(late, Admit)


def test_a_name_that_is_taken_needs_its_old_key() -> None:
    record = admitted(rule(letter(token()), token())).record
    fresh = token(token=str(ULID()))
    assert refused(rule(letter(fresh, public=key(2)), fresh, record)) == "already_enrolled"
    assert isinstance(rule(letter(fresh, by_current=True), fresh, record), Admit)
    # A new key that the old one vouches for: the old key's credentials end.
    rotated = admitted(rule(letter(public=key(2), by_current=True), None, record))
    assert live_revocations([rotated.record], NOW) == {record.bus_key: NOW}
    assert refused(rule(letter(public=key(2)), None, record)) == "bad_proof"


def test_a_key_belongs_to_one_device() -> None:
    verdict = decide(letter(token()), Known(token(), None, Address("harbour", "cam-9")), NOW, LIFE)
    assert refused(verdict) == "key_in_use"


def test_a_revoked_device_returns_by_a_newer_token_only() -> None:
    record = revoke(admitted(rule(letter(token()), token())).record, NOW + 10.5)
    assert (record.standing, record.online) == ("revoked", False)
    assert live_revocations([record], NOW) == {record.bus_key: NOW + 10}
    assert refused(rule(letter(by_current=True), None, record)) == "revoked"
    old = token(token=str(ULID()), made_at=NOW + 10.0)
    assert refused(rule(letter(old), old, record)) == "revoked"
    new = token(token=str(ULID()), made_at=NOW + 11.0)
    back = admitted(rule(letter(new), new, record)).record
    # Its old JWT stays void, and the new one must be younger than the revocation.
    assert live_revocations([back], NOW) == {record.bus_key: NOW + 10}
    assert back.jwt_issued == NOW + 11
    assert live_revocations([back], record.jwt_expires + 1) == {}


def test_a_letter_from_before_the_present_credentials_has_had_its_answer() -> None:
    first = letter(token())
    record = admitted(rule(first, token())).record
    renewal = letter(by_current=True, at=NOW + 5)
    renewed = admitted(rule(renewal, None, record)).record
    assert rule(first, token(used_by=first.letter_id), renewed) == Ignore()
    assert rule(renewal, None, renewed) == Repeat(renewed)


@given(st.lists(st.integers(min_value=0, max_value=3), min_size=1, max_size=30))
def test_however_often_letters_repeat_a_token_admits_one(order: list[int]) -> None:
    letters = [letter(token(), public=key(number + 1), at=NOW + number) for number in range(4)]
    spent, record, admissions = token(), None, 0
    for number in order:
        verdict = decide(letters[number], Known(spent, record, None), NOW, LIFE)
        if isinstance(verdict, Admit):
            admissions += 1
            spent, record = verdict.token or spent, verdict.record
    assert admissions == 1
    assert record is not None
    assert record.enrol_id == letters[order[0]].letter_id


def test_an_answer_has_one_id_however_often_it_is_written() -> None:
    enrol_id = str(ULID())
    assert answer_id(CAM, enrol_id) == answer_id(CAM, enrol_id)
    assert answer_id(CAM, enrol_id) != answer_id(Address("harbour", "cam-2"), enrol_id)
    assert ULID.from_str(answer_id(CAM, enrol_id)).milliseconds == ULID.from_str(enrol_id).milliseconds
