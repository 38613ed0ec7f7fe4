from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.counter import Counter
from bench.load import FIRST_UPTIME_S, Beats
from bench.mqtt import connect_packet, publish_packet, subscribe_packet
from bench.processes import memory
from bench.report import Target, percentile
from schemas.ids import Address
from schemas.letters import read_state
from schemas.topics import parse_mqtt

CAM = Address("bench", "d0001")


def packets(raw: bytes) -> list[tuple[str, bytes]]:
    """Topic and body of each PUBLISH in a write."""
    found = []
    while raw:
        assert raw[0] == 0x30
        length, at, shift = 0, 1, 0
        while True:
            length |= (raw[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if not raw[at - 1] & 0x80:
                break
        body, raw = raw[at : at + length], raw[at + length :]
        end = 2 + int.from_bytes(body[:2], "big")
        found.append((body[2:end].decode(), body[end:]))
    return found


@given(st.integers(1, 5), st.integers(1, 4))
def test_every_heartbeat_is_valid_and_different_and_the_last_one_names_the_count(burst: int, takes: int) -> None:
    beats = Beats(CAM, burst)
    sent = [one for _ in range(takes) for one in packets(bytes(beats.take(b"2026-05-01T10:00:00.")))]
    events = [read_state(body, "heartbeat") for _, body in sent]
    assert {parse_mqtt(topic).address for topic, _ in sent} == {CAM}
    assert len({event.id for event in events}) == len({event.time for event in events}) == burst * takes
    assert [event.data.uptime_s for event in events] == [FIRST_UPTIME_S + n + 0.5 for n in range(1, burst * takes + 1)]
    assert beats.count == burst * takes


@given(st.binary(max_size=300))
def test_a_publish_packet_carries_its_body_whole(body: bytes) -> None:
    assert packets(publish_packet("cw/1/f/d/state/heartbeat", body)) == [("cw/1/f/d/state/heartbeat", body)]


def test_packets_are_those_of_the_standard() -> None:
    # MQTT 3.1.1, figures 3.6 and 3.23.
    assert connect_packet("id", "pw") == bytes.fromhex(
        "101a 0004 4d515454 04 c2 0258 0002 6964 0006 646576696365 0002 7077"
    )
    assert connect_packet("id", "pw", will=("w", b"\x01\x02")) == bytes.fromhex(
        "1021 0004 4d515454 04 c6 0258 0002 6964 0001 77 0002 0102 0006 646576696365 0002 7077"
    )
    assert subscribe_packet("a/b") == bytes.fromhex("8208 0001 0003 612f62 00")


def test_a_count_is_seen_by_others(tmp_path: Path) -> None:
    writer, reader = Counter(tmp_path / "count"), Counter(tmp_path / "count")
    writer.value = 1 << 40
    assert reader.value == 1 << 40


def test_memory_of_a_process_lies_between_its_bounds() -> None:
    own = memory(os.getpid())
    assert 0 < own.private_mb <= own.pss_mb <= own.rss_mb
    assert own.processes >= 1


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300), st.integers(1, 100))
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(values: list[float], percent: int) -> None:
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) * 100 >= percent * len(values)


def test_what_was_not_measured_meets_no_target() -> None:
    assert Target("per_s", 5, at_least=True).judge(None) == {"value": None, "at_least": 5, "met": False}
    assert Target("ms", 5, at_least=False).judge(5)["met"]
    with pytest.raises(ValueError, match="nothing was measured"):
        percentile([], 50)
