"""Fairness and bounds of the depot: queues, trust packs and budgets."""

from __future__ import annotations

import json
import os

import zstandard
from hypothesis import given
from hypothesis import strategies as st

from schemas.depot import MAX_TRUST_BYTES, MAX_TRUST_EXPANDED_BYTES, TrustState
from schemas.ids import Address
from services.depot.handlers import spread_s
from services.depot.metadata import Head
from services.depot.packs import Packs
from services.depot.queues import Item, Queues
from services.depot.requests import TRUST_BURST, Budget

A, B = Address("f", "a"), Address("f", "b")


def item(name: object) -> Item:
    return Item("recipe", str(name))


def test_devices_take_turns() -> None:
    queues = Queues()
    queues.add(A, [item(n) for n in range(3)])
    queues.add(B, [item(n) for n in range(2)])
    turns = [queues.next() for _ in range(6)]
    assert turns == [(A, item(0)), (B, item(0)), (A, item(1)), (B, item(1)), (A, item(2)), None]


@given(st.lists(st.tuples(st.sampled_from([A, B]), st.lists(st.integers(0, 9), max_size=12)), max_size=20))
def test_nothing_waits_twice_nothing_above_the_bound_and_nothing_is_lost(wants: list) -> None:
    queues = Queues(per_device=5, devices=2)
    refused = sum(queues.add(address, [item(n) for n in names]) for address, names in wants)
    given_out = []
    while (turn := queues.next()) is not None:
        given_out.append(turn)
    assert len(given_out) == len(set(given_out)) <= 10
    asked = {(address, item(n)) for address, names in wants for n in names}
    assert set(given_out) <= asked
    assert refused or set(given_out) == asked
    assert len(queues) == 0


def test_more_devices_than_the_bound_are_refused() -> None:
    queues = Queues(devices=1)
    assert queues.add(A, [item(1)]) == 0
    assert queues.add(B, [item(1), item(2)]) == 2


def test_a_budget_is_spent_and_comes_back() -> None:
    now = [0.0]
    budget = Budget(lambda: now[0])
    assert [budget.spend(A) for _ in range(int(TRUST_BURST) + 1)] == [True] * int(TRUST_BURST) + [False]
    assert budget.spend(B)
    now[0] = 1.0
    assert budget.spend(A)
    assert not budget.spend(A)


def unpack(raw: bytes) -> dict:
    return json.loads(zstandard.ZstdDecompressor().decompress(raw))


def head(models: int) -> Head:
    return Head(3, 9, 8, 4, {f"model-m{n:03d}": 2 for n in range(models)})


def test_a_fresh_device_gets_every_root_and_all_of_few_models() -> None:
    files = unpack(Packs(lambda name: b'{"x":"y"}').answer(head(2), TrustState(root=0)))["files"]
    assert sorted(files) == [
        "1.root.json",
        "2.model-m000.json",
        "2.model-m001.json",
        "2.root.json",
        "3.root.json",
        "4.targets.json",
        "8.snapshot.json",
        "services.json",
        "timestamp.json",
    ]


def test_of_many_models_a_device_gets_those_that_it_names() -> None:
    held = TrustState(root=3, timestamp=9, snapshot=8, targets=4, roles={"m007": 1, "m008": 2, "gone": 1})
    assert list(unpack(Packs(lambda _: b"{}").answer(head(40), held))["files"]) == ["2.model-m007.json"]


def test_a_device_ahead_of_the_depot_is_told_what_holds() -> None:
    held = TrustState(root=3, timestamp=99, snapshot=99, targets=4)
    files = unpack(Packs(lambda _: b"{}").answer(head(0), held))["files"]
    assert sorted(files) == ["8.snapshot.json", "timestamp.json"]


def test_the_same_question_is_answered_from_memory() -> None:
    reads = []
    packs = Packs(lambda name: reads.append(name) or b"{}")
    first = packs.answer(head(1), TrustState(root=0))
    count = len(reads)
    assert packs.answer(head(1), TrustState(root=0)) is first
    assert len(reads) == count


def test_a_pack_stays_in_its_bounds_and_keeps_the_core() -> None:
    def read(name: str) -> bytes:
        return os.urandom(40_000).hex().encode() if "model" in name else b"{}"

    raw = Packs(read).answer(head(16), TrustState(root=0))
    expanded = zstandard.ZstdDecompressor().decompress(raw)
    assert len(raw) <= MAX_TRUST_BYTES
    assert len(expanded) <= MAX_TRUST_EXPANDED_BYTES
    assert {"timestamp.json", "8.snapshot.json", "4.targets.json", "services.json"} <= set(
        json.loads(expanded)["files"]
    )


def test_a_fleet_spreads_over_a_bounded_window() -> None:
    assert spread_s(0) == 0
    assert 10 <= spread_s(10_000) <= 60
    assert spread_s(10**9) == 3_600
