from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import TopicError
from schemas.ids import Address
from schemas.topics import (
    DOWN_LETTERS,
    KINDS,
    UP_LETTERS,
    Channel,
    Topic,
    bootstrap_permissions,
    broadcast_mqtt,
    device_filters,
    device_permissions,
    in_subject,
    out_subject,
    parse_broadcast,
    parse_in,
    parse_mqtt,
    parse_out,
    parse_subject,
)

identifiers = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", fullmatch=True)
addresses = st.builds(Address, identifiers, identifiers)
topics = st.sampled_from(list(Channel)).flatmap(
    lambda channel: st.builds(Topic, addresses, st.just(channel), st.sampled_from(sorted(KINDS[channel])))
)


@given(topics)
def test_a_topic_survives_the_way_there_and_back(topic: Topic) -> None:
    assert parse_mqtt(topic.mqtt) == topic
    assert parse_subject(topic.subject) == topic
    assert topic.mqtt.replace("/", ".") == topic.subject


@given(addresses, st.sampled_from(sorted(UP_LETTERS)), st.sampled_from(sorted(DOWN_LETTERS)), identifiers)
def test_service_subjects_survive_the_way_there_and_back(address: Address, up: str, down: str, slot: str) -> None:
    assert parse_in(in_subject(up, address)) == (up, address)
    assert parse_out(out_subject(address, down, slot)) == (address, down, slot)
    assert parse_out(out_subject(address, down, "-")) == (address, down, "-")


@given(identifiers)
def test_a_broadcast_survives_and_is_no_device_topic(fleet: str) -> None:
    assert parse_broadcast(broadcast_mqtt(fleet, "trust")) == (fleet, "trust")
    with pytest.raises(TopicError):
        parse_mqtt(broadcast_mqtt(fleet, "trust"))


@given(st.text(max_size=80))
def test_any_text_is_a_topic_or_a_clear_refusal(text: str) -> None:
    with contextlib.suppress(TopicError):
        assert parse_mqtt(text).mqtt == text


@pytest.mark.parametrize("bad", ["", "a.b", "a b", "a/b", "+", "#", "*", ">", "-a", "x" * 64, "é", "a\n", "a\x00"])
def test_bad_identifiers_are_refused_with_what_is_allowed(bad: str) -> None:
    with pytest.raises(TopicError, match="1 to 63 letters") as caught:
        Address("harbour", bad)
    assert caught.value.reason == "bad_identifier"


def test_another_version_is_named() -> None:
    with pytest.raises(TopicError, match="speaks version '2'") as caught:
        parse_mqtt("cw/2/harbour/cam-1/state/heartbeat")
    assert caught.value.reason == "unsupported_version"


def test_a_kind_that_no_stream_lists_cannot_be_built() -> None:
    with pytest.raises(TopicError, match="no kind 'heartbeat' on channel letter"):
        Topic(Address("harbour", "cam-1"), Channel.LETTER, "heartbeat")


@given(addresses, addresses)
def test_permissions_of_a_device_reach_no_other(one: Address, other: Address) -> None:
    publish, subscribe = device_permissions(one)
    for subject in (*publish, subscribe[0], *bootstrap_permissions(one)[0], *bootstrap_permissions(one)[1]):
        assert subject.startswith(f"cw.1.{one.fleet}.{one.device}.")
    if one != other:
        assert not set(publish) & set(device_permissions(other)[0])
    assert device_filters(one)[0].replace("/", ".").replace("+", "*") == subscribe[0]
