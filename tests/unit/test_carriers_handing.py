"""Handing fragments in at the platform, and when custody ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from edge_runtime.carriers.handing import MAX_WAITING, Counter, HandingIn
from edge_runtime.carriers.names import key_of
from edge_runtime.letters.sending import Run
from schemas.bundles import Parcel, bundle_of_letter
from schemas.events import Message
from tests.support.carriers import Realm, Traveller


def test_fragments_are_handed_in_a_few_at_a_time_and_custody_ends_with_the_receipt(
    pair: tuple[Traveller, Traveller], realm: Realm
) -> None:
    a, gateway = pair
    others = []
    for _ in range(MAX_WAITING + 3):
        a.say()
        a.custodian.packer.pack(anew=True, urgent=True)
        (own,) = [a.store.load(one.key) for one in a.store.carried() if one.own]
        assert own is not None
        others.append(own)
        gateway.custodian.receive(own.on_its_way(hops=1, copies=1, age_s=0), a.address.source)
    sent: list[tuple[str, str]] = []

    def send(kind: str, data: Message, letter_id: str) -> None:
        gateway.outbox.add(kind, data, "bulk", letter_id)
        sent.append((letter_id, bundle_of_letter(data).head.id))  # type: ignore[arg-type]

    handing = HandingIn(
        Counter(
            gateway.store,
            gateway.outbox,
            lambda: gateway.linked,
            send,
            gateway.outbox.summary().waiting.bytes + (64 << 20),
        )
    )
    assert handing.run() == 0, "there is no link"
    gateway.linked = True
    assert handing.run() == MAX_WAITING
    assert handing.run() == 0
    gateway.outbox.receipt({"bulk": 3})
    assert handing.run() == 3
    assert len(gateway.store.carried()) == MAX_WAITING
    assert gateway.custodian.receive(others[0], a.address.source) == "held", "it is not taken again"
    gateway.outbox.receipt({"bulk": MAX_WAITING + 3})
    assert handing.run() == 0
    assert gateway.store.carried() == []
    assert sorted(bundle for _, bundle in sent) == sorted(parcel.head.id for parcel in others)


def handed_over(a: Traveller, gateway: Traveller) -> tuple[Traveller, Parcel]:
    """A device's letter, packed, and the one that took it over and meets the platform."""
    a.say()
    a.custodian.packer.pack()
    (own,) = [a.store.load(one.key) for one in a.store.carried() if one.own]
    assert own is not None
    gateway.custodian.receive(own.on_its_way(hops=1, copies=1, age_s=0), a.address.source)
    return gateway, own


def test_a_letter_that_came_to_nothing_is_written_again(pair: tuple[Traveller, Traveller]) -> None:
    gateway, _ = handed_over(*pair)
    gateway.linked = True
    ids: list[str] = []
    counter = Counter(
        gateway.store, gateway.outbox, lambda: True, lambda _kind, _data, letter_id: ids.append(letter_id), 64 << 20
    )
    assert HandingIn(counter).run() == 1
    assert HandingIn(counter).run() == 1, "a crash before it was stored"
    assert len(set(ids)) == 2


def test_custody_does_not_end_with_a_letter_that_is_given_up_while_receipts_are_noted(
    pair: tuple[Traveller, Traveller], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, own = handed_over(*pair)

    def send(kind: str, data: Message, letter_id: str) -> None:
        gateway.outbox.add(kind, data, "bulk", letter_id)

    handing = HandingIn(Counter(gateway.store, gateway.outbox, lambda: True, send, 64 << 20))
    assert handing.run() == 1

    def then_given_up(look: Callable[[str], list[Any]]) -> Callable[[str], list[Any]]:
        def looked(kind: str) -> list[Any]:
            found = look(kind)
            for letter in gateway.outbox.load("bulk", Run(1, 1)):
                assert gateway.outbox.give_up(letter, "evicted")
            return found

        return looked

    for method in ("ids", "waiting"):
        monkeypatch.setattr(gateway.outbox, method, then_given_up(getattr(gateway.outbox, method)))
    assert handing.run() == 1, "it is handed in again"
    assert [one.key for one in gateway.store.carried()] == [key_of(own)]
