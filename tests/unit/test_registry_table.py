from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from ulid import ULID

from schemas.courier import Clock, Got, Hello
from schemas.events import Message
from schemas.ids import Address
from schemas.letters import write_state
from schemas.registry import Gone, Heartbeat, OutboxState
from schemas.topics import Channel, Topic
from services.kit.api.registry import DeviceView
from services.kit.devices import DeviceRecord
from services.registry.table import MAX_BAD, Sight, Table, read_heartbeat
from services.registry.telemetry import Allowance
from services.registry.views import page, view
from tests.support.registry import CAPABILITIES

CAM = Address("harbour", "cam-1")
MOMENT = datetime(2030, 1, 1, tzinfo=UTC)
SESSIONS = [str(ULID.from_timestamp(second)) for second in (1, 2)]


def word(kind: str, data: Message, at: float = 100.0, address: Address = CAM, source: Address | None = None) -> tuple:
    raw = write_state(kind, data, event_id=str(ULID()), address=source or address, time=MOMENT)
    return Topic(address, Channel.STATE, kind).subject, raw, at


def beat(at: float = 100.0, session: int = 0, address: Address = CAM, **readings) -> tuple:
    return word("heartbeat", Heartbeat(session=SESSIONS[session], uptime_s=1.0, **readings), at, address)


def hello(at: float, session: int) -> tuple:
    data = Hello(
        session=SESSIONS[session], epoch=SESSIONS[0], sent={}, marks={}, agent="t", clock=Clock(synchronised=True)
    )
    return word("hello", data, at)


def gone(at: float, session: int) -> tuple:
    return word("gone", Gone(session=SESSIONS[session]), at)


def knowing(*addresses: Address, online: bool = False, now: float = 0.0) -> Table:
    table = Table()
    for address in addresses or (CAM,):
        table.know(address, online=online, now=now)
    return table


def test_a_heartbeat_fills_its_row_and_what_is_absent_stays_absent() -> None:
    table = knowing()
    result = table.absorb([beat(load=0.5, battery_percent=0.0, outbox=OutboxState(letters=3, bytes=9, dropped=1))])
    assert (result.heartbeats, result.passed_over.total(), result.bad.total()) == (1, 0, 0)
    sight = table.sight(CAM)
    assert (sight.online, sight.last_seen) == (True, 100.0)
    assert read_heartbeat(sight.heartbeat or b"").load == 0.5
    assert table.column("battery_percent").tolist() == [0.0]
    assert np.isnan(table.column("temp_c")).all()
    assert table.column("outbox_letters").tolist() == [3.0]


def test_the_last_of_several_heartbeats_wins() -> None:
    table = knowing()
    table.absorb([beat(at=100.0 + number, load=float(number)) for number in range(5)])
    assert table.column("load").tolist() == [4.0]
    assert table.sight(CAM).last_seen == 104.0


def test_a_strangers_word_is_counted_and_not_stored() -> None:
    table = knowing()
    hello = Topic(Address("harbour", "new"), Channel.STATE, "hello").subject
    made_up = f"cw.1.harbour.{CAM.device}.state.nonsense"
    words = [beat(address=Address("harbour", "ghost")), (hello, b"{}", 1.0), (made_up, b"{}", 1.0)]
    result = table.absorb(words)
    assert (result.heartbeats, result.passed_over) == (0, {"unknown": 1})
    assert result.bad == {("heartbeat", "unknown_device"): 1, ("unknown", "bad_topic"): 1}
    assert table.sight(Address("harbour", "ghost")) == Sight(online=False, last_seen=None, heartbeat=None)


def test_what_does_not_fit_is_named_and_changes_nothing() -> None:
    table = knowing(CAM, Address("harbour", "cam-2"))
    subject = Topic(CAM, Channel.STATE, "heartbeat").subject
    bad = [
        (subject, b"not json", 1.0),
        (subject, b"{" + b" " * 5_000 + b"}", 1.0),
        word("heartbeat", Heartbeat(session=SESSIONS[0], uptime_s=1), source=Address("harbour", "cam-2")),
        (subject, beat()[1].replace(b"heartbeat.v1", b"heartbeat.v2"), 1.0),
        (subject, gone(1.0, 0)[1], 1.0),
        (Topic(CAM, Channel.STATE, "gone").subject, b"{}", 1.0),
    ]
    result = table.absorb(bad)
    assert [entry.reason for entry in result.shown] == [
        "malformed",
        "oversized",
        "wrong_source",
        "unsupported_version",
        "malformed",
        "malformed",
    ]
    assert result.bad.total() == len(bad)
    assert not table.sight(CAM).online
    flood = table.absorb([(subject, b"x", 1.0)] * 500)
    assert (flood.bad, len(flood.shown)) == ({("heartbeat", "malformed"): 500}, MAX_BAD)


def test_any_word_means_online_and_silence_means_offline() -> None:
    table = knowing()
    table.absorb([word("got", Got(ids=[SESSIONS[0]]), at=50.0)])
    assert table.sight(CAM).online
    assert table.take_flips(10) == [CAM]
    assert table.sweep(horizon=139.0, silence_s=90.0) == 0
    assert table.sweep(horizon=141.0, silence_s=90.0) == 1
    assert not table.sight(CAM).online
    assert table.take_flips(10) == [CAM]


def test_a_last_will_of_an_older_session_is_ignored() -> None:
    table = knowing()
    table.absorb([hello(1.0, 0), hello(2.0, 1), gone(3.0, 0)])
    assert table.sight(CAM).online
    table.absorb([gone(4.0, 1)])
    assert not table.sight(CAM).online
    table.absorb([beat(5.0, session=1)])
    assert table.sight(CAM).online


def test_the_order_inside_a_batch_counts() -> None:
    table = knowing()
    table.absorb([beat(1.0), gone(2.0, 0), beat(3.0, session=1)])
    assert table.sight(CAM).online
    table.absorb([beat(4.0, session=1), gone(5.0, 1)])
    assert not table.sight(CAM).online


def test_while_the_bus_is_away_nobody_is_silent() -> None:
    table = knowing(online=True, now=0.0)
    table.restart(1_000.0)
    assert table.sweep(horizon=1_050.0, silence_s=90.0) == 0
    assert table.sweep(horizon=1_091.0, silence_s=90.0) == 1


def test_a_revoked_device_is_forgotten_until_it_is_known_again() -> None:
    table = knowing()
    table.absorb([beat()])
    table.forget(CAM, "revoked")
    assert table.take_flips(10) == []
    assert table.absorb([beat()]).bad == {("heartbeat", "revoked"): 1}
    assert (len(table), table.online_count) == (0, 0)
    table.know(CAM, online=False, now=0.0)
    assert table.absorb([beat()]).heartbeats == 1


def test_a_flip_that_could_not_be_written_is_taken_again() -> None:
    table = knowing()
    table.absorb([beat()])
    assert table.take_flips(10) == [CAM]
    assert table.take_flips(10) == []
    table.put_back(CAM)
    assert table.take_flips(10) == [CAM]


def test_it_grows() -> None:
    addresses = [Address("harbour", f"d{number}") for number in range(2_500)]
    table = knowing(*addresses)
    table.absorb([beat(address=address, load=float(number)) for number, address in enumerate(addresses)])
    assert table.online_count == len(table) == 2_500
    assert table.column("load").tolist() == [float(number) for number in range(2_500)]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["beat", "hello", "gone"]), st.integers(0, 1)), max_size=40),
    st.integers(0, 40),
)
def test_the_cut_into_batches_changes_nothing(story: list[tuple[int, str, int]], cut: int) -> None:
    words = []
    for number, (device, kind, session) in enumerate(story):
        address = Address("harbour", f"d{device}")
        make = {"beat": beat, "hello": hello, "gone": gone}[kind]
        _, raw, at = make(float(number), session)
        raw = raw.replace(CAM.source.encode(), address.source.encode())
        words.append((Topic(address, Channel.STATE, {"beat": "heartbeat"}.get(kind, kind)).subject, raw, at))
    addresses = [Address("harbour", f"d{device}") for device in range(4)]
    whole, parts = knowing(*addresses), knowing(*addresses)
    whole.absorb(words)
    parts.absorb(words[:cut])
    parts.absorb(words[cut:])
    assert [whole.sight(address) for address in addresses] == [parts.sight(address) for address in addresses]


def record(number: int) -> DeviceRecord:
    return DeviceRecord(
        fleet="harbour",
        device=f"d{number:04}",
        public_key="",
        seal_key="",
        capabilities=CAPABILITIES,
        enrol_id=SESSIONS[0],
        bus_key="U",
        jwt_issued=0,
        jwt_expires=0,
        enrolled_at="",
    )


def test_pages_hold_every_device_once() -> None:
    records = {entry.address: entry for entry in map(record, range(100))}
    dark = Sight(online=False, last_seen=None, heartbeat=None)
    after, names, pages = None, [], 0
    while True:
        shown = page(sorted(records), lambda a: view(records[a], dark, heartbeat=True), after, max_bytes=5_000)
        if not shown:
            break
        pages += 1
        names += [DeviceView.model_validate(entry).device for entry in shown]
        after = f"harbour/{names[-1]}"
    assert names == [f"d{number:04}" for number in range(100)]
    assert pages > 3


def test_an_allowance_is_so_many_per_second() -> None:
    allowance = Allowance(2)
    assert [allowance.take(10.0) for _ in range(4)] == [True, True, False, False]
    assert [allowance.take(10.6), allowance.take(10.6)] == [True, False]
    assert not Allowance(0).take(10.0)


def test_what_a_device_in_quarantine_says_is_counted_as_such_and_not_as_a_strangers() -> None:
    table = Table()
    table.forget(CAM, "quarantined")
    result = table.absorb([beat(), hello(101.0, 0)])
    assert result.bad == {("heartbeat", "quarantined"): 1}
    assert "causeway device show" in result.shown[0].message
    assert result.passed_over == {"quarantined": 1}
    table.know(CAM, online=False, now=0.0)
    assert table.absorb([beat()]).heartbeats == 1
