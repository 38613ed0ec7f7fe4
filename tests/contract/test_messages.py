from __future__ import annotations

import base64
import json
import math
import re._parser as sre_parser  # the only way to ask how long a match can be
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ulid import ULID

from schemas import asyncapi
from schemas.aggregator import MAX_INLINE_BYTES, Update
from schemas.depot import TrustAnnouncement, TrustPack, Want, read_piece, read_recipe, write_piece, write_recipe
from schemas.envelope import MAX_LETTER_BYTES, Signer, parse
from schemas.errors import MessageError
from schemas.events import DownLetter, Event, Message, UpLetter
from schemas.ids import Address
from schemas.letters import (
    DOWN_DATA,
    STATE_DATA,
    UP_DATA,
    Place,
    check_down,
    check_up,
    read_down,
    read_state,
    read_up,
    write_down,
    write_state,
    write_up,
)
from schemas.ota import ReleaseCustom
from schemas.registry import EventReport, Gone, Heartbeat, Token, Welcome
from schemas.trust import ServicesDocument

NOW = datetime(2026, 6, 1, tzinfo=UTC)
CAM = Address("harbour", "cam-1")
PLATFORM = str(ULID())
SIGNER = Signer.from_seed(bytes(32))

MODELS = [
    *(UpLetter[model] for model in UP_DATA.values()),
    *(DownLetter[model] for model in DOWN_DATA.values()),
    *(Event[model] for model in STATE_DATA.values()),
    Want,
    TrustPack,
    TrustAnnouncement,
    ReleaseCustom,
    Token,
    ServicesDocument,
]


def unbounded(schema: dict[str, Any], place: str = "") -> list[str]:
    """Places in a JSON schema where a string, list or mapping has no limit."""
    found = [f"{place}: {schema['type']}"] if has_no_limit(schema) else []
    named = schema.get("properties", {}) | schema.get("$defs", {})
    for name, inner in named.items():
        found += unbounded(inner, f"{place}.{name}")
    for inner in (schema.get("items"), schema.get("additionalProperties"), *schema.get("anyOf", [])):
        if isinstance(inner, dict):
            found += unbounded(inner, f"{place}[]")
    return found


def has_no_limit(schema: dict[str, Any]) -> bool:
    """Whether one level of a schema lets its value grow without end."""
    match schema.get("type"):
        case "string":
            longest = sre_parser.parse(schema.get("pattern", ".*")).getwidth()[1]
            return longest > 65_536 and not {"maxLength", "const", "enum", "format"} & schema.keys()
        case "array":
            return "maxItems" not in schema
        case "object":
            return isinstance(schema.get("additionalProperties"), dict) and "maxProperties" not in schema
    return False


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_string_list_and_mapping_is_bounded(model: type[Message]) -> None:
    assert unbounded(model.model_json_schema(), model.__name__) == []


def up(data: Message, kind: str = "event", **changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "letter_id": str(ULID()),
        "address": CAM,
        "platform": PLATFORM,
        "time": NOW,
        "expires": NOW + timedelta(days=1),
        "signer": SIGNER,
    } | changes
    return write_up(kind, data, Place(str(ULID()), "normal", 3, 1), **fields)


REPORT = EventReport(name="door.open", message="The door is open.")


def test_the_largest_inline_update_fits_into_a_letter() -> None:
    vector = base64.b64encode(bytes(MAX_INLINE_BYTES)).decode()
    update = Update(
        job="j" * 63,
        round=10**6,
        attempt=10**4,
        base="0" * 64,
        samples=2**53,
        sha256="0" * 64,
        length=MAX_INLINE_BYTES,
        vector=vector,
        metrics={f"{n:063}": -1.2345678901234567e11 for n in range(2)},
    )
    assert len(up(update, "update")) <= MAX_LETTER_BYTES


def test_a_letter_up_survives() -> None:
    letter = read_up(parse(up(REPORT)).body, "event")
    assert letter.data == REPORT
    assert (letter.lane, letter.sequence, letter.floor) == ("normal", 3, 1)
    check_up(letter, CAM, PLATFORM, NOW)


@pytest.mark.parametrize(
    ("address", "platform", "now", "reason"),
    [
        (Address("harbour", "cam-2"), PLATFORM, NOW, "wrong_source"),
        (CAM, str(ULID()), NOW, "wrong_platform"),
        (CAM, PLATFORM, NOW + timedelta(days=2), "expired"),
    ],
)
def test_a_letter_out_of_place_is_refused(address: Address, platform: str, now: datetime, reason: str) -> None:
    letter = read_up(parse(up(REPORT)).body, "event")
    with pytest.raises(MessageError) as caught:
        check_up(letter, address, platform, now)
    assert caught.value.reason == reason


def test_a_letter_down_is_for_its_recipient_alone() -> None:
    raw = write_down(
        "welcome",
        Welcome(enrol_id=str(ULID()), refused=True, reason="token_used"),
        letter_id=str(ULID()),
        service="registry",
        address=CAM,
        platform=PLATFORM,
        time=NOW,
        expires=NOW + timedelta(days=1),
        generation=1,
        revision=7,
        slot="-",
        signer=SIGNER,
    )
    letter = read_down(parse(raw).body, "welcome")
    check_down(letter, CAM, PLATFORM, NOW)
    with pytest.raises(MessageError) as caught:
        check_down(letter, Address("harbour", "cam-2"), PLATFORM, NOW)
    assert caught.value.reason == "wrong_recipient"


@given(st.from_regex(r"[a-z]{1,12}", fullmatch=True), st.integers() | st.text() | st.none())
def test_an_unknown_extra_field_is_ignored(name: str, value: object) -> None:
    body = json.loads(write_state("gone", Gone(session=str(ULID())), event_id=str(ULID()), address=CAM, time=NOW))
    plain = read_state(json.dumps(body).encode(), "gone")
    if name in body or name in body["data"]:
        return
    body[name] = value
    body["data"][name] = value
    assert read_state(json.dumps(body).encode(), "gone") == plain


def test_another_version_of_a_type_is_named() -> None:
    raw = write_state("gone", Gone(session=str(ULID())), event_id=str(ULID()), address=CAM, time=NOW)
    with pytest.raises(MessageError, match="version 2 of gone") as caught:
        read_state(raw.replace(b"causeway.gone.v1", b"causeway.gone.v2"), "gone")
    assert caught.value.reason == "unsupported_version"


def test_a_kind_on_the_wrong_topic_is_named() -> None:
    with pytest.raises(MessageError) as caught:
        read_up(parse(up(REPORT)).body, "report")
    assert caught.value.reason in {"wrong_kind", "malformed"}


def test_state_is_bounded_by_bytes() -> None:
    with pytest.raises(MessageError) as caught:
        read_state(b" " * 4_097, "heartbeat")
    assert caught.value.reason == "oversized"


@pytest.mark.parametrize("number", [math.nan, math.inf, -1.0, 2.0])
def test_a_ratio_out_of_range_is_refused(number: float) -> None:
    body = {"session": str(ULID()), "uptime_s": 1, "cpu_ratio": number}
    with pytest.raises(MessageError, match="cpu_ratio"):
        Heartbeat.read(json.dumps(body).encode())


def test_an_absent_reading_stays_absent() -> None:
    beat = Heartbeat(session=str(ULID()), uptime_s=1.0)
    assert b"battery" not in beat.write()
    assert Heartbeat.read(beat.write()).battery_percent is None
    assert Heartbeat(session=str(ULID()), uptime_s=1.0, battery_percent=0).battery_percent == 0


@given(st.binary(max_size=400))
def test_any_bytes_are_a_message_or_a_clear_refusal(raw: bytes) -> None:
    for kind in STATE_DATA:
        with pytest.raises(MessageError):
            read_state(raw, kind)


@given(st.binary(min_size=1, max_size=1_000), st.data())
def test_a_piece_proves_itself(data: bytes, draw: st.DataObject) -> None:
    raw = write_piece(data)
    assert read_piece(raw)[1] == data
    place = draw.draw(st.integers(0, len(raw) - 1))
    changed = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
    with pytest.raises(MessageError) as caught:
        read_piece(changed)
    assert caught.value.reason == "wrong_digest"


@given(st.lists(st.tuples(st.binary(min_size=32, max_size=32), st.integers(1, 262_144)), min_size=1, max_size=20))
def test_a_recipe_survives(entries: list[tuple[bytes, int]]) -> None:
    assert [(bytes.fromhex(e.sha256), e.length) for e in read_recipe(write_recipe(entries))] == entries


def test_the_checked_in_asyncapi_document_is_fresh() -> None:
    path = Path(__file__).parents[2] / "docs" / "asyncapi.yaml"
    assert path.read_text() == asyncapi.text(), "stale: run `make docs`"
