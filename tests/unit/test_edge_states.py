from __future__ import annotations

from datetime import UTC, datetime

import pytest

from edge_runtime.letters.pigeonholes import MAX_HOLES, Pigeonholes
from edge_runtime.letters.states import MAX_GOT_IDS, StateDesk
from edge_runtime.link.link import Urgency
from schemas.aggregator import Progress
from schemas.errors import MessageError
from schemas.ids import Address
from schemas.letters import read_state

DEVICE = Address("home", "cam-1")


class FakeLink:
    def __init__(self) -> None:
        self.open = self.free = True
        self.sent: list[tuple[str, bytes]] = []

    def room(self, urgency: Urgency, size: int = 0) -> bool:
        assert urgency is Urgency.SIGNAL
        return self.free

    def publish(self, topic: str, payload: bytes, urgency: Urgency) -> bool:
        if self.open:
            self.sent.append((topic.rsplit("/", 1)[1], payload))
        return self.open

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.sent]


@pytest.fixture
def link() -> FakeLink:
    return FakeLink()


def desk(link: FakeLink) -> StateDesk:
    return StateDesk(link, lambda: DEVICE, lambda: datetime.now(UTC), lambda: link.open)  # type: ignore[arg-type]


def progress(epoch: int) -> Progress:
    return Progress(job="digits", round=1, epoch=epoch, epochs=9)


async def test_of_what_cannot_be_sent_the_newest_waits(link) -> None:
    states, link.open = desk(link), False
    assert [states.send("progress", progress(epoch)) for epoch in range(5)] == [False] * 5
    assert not states.send("progress", progress(8), key="other")
    link.open = True
    states.flush()
    assert [read_state(raw, "progress").data.epoch for _, raw in link.sent] == [4, 8]
    states.flush()
    assert len(link.sent) == 2


async def test_a_congested_link_is_no_reason_to_queue_heartbeats(link) -> None:
    states, link.free = desk(link), False
    for epoch in range(3):
        states.send("progress", progress(epoch))
    assert link.sent == []
    link.free = True
    states.flush()
    assert link.kinds() == ["progress"]


async def test_a_new_session_makes_an_old_heartbeat_worthless(link) -> None:
    states, link.open = desk(link), False
    states.send("heartbeat", progress(1))
    states.send("progress", progress(1))
    states.new_session()
    link.open = True
    states.flush()
    assert link.kinds() == ["progress"]


async def test_got_is_never_coalesced(link) -> None:
    states, link.open = desk(link), False
    ids = [f"01J{number:023d}" for number in range(2 * MAX_GOT_IDS + 50)]
    for letter_id in ids:
        states.got(letter_id)
    states.flush()
    assert link.sent == []
    assert states.pending_gots() == ids
    link.open = True
    states.flush()
    assert [i for _, raw in link.sent for i in read_state(raw, "got").data.ids] == ids


async def test_hello_needs_no_answer_before(link) -> None:
    states = StateDesk(link, lambda: DEVICE, lambda: datetime.now(UTC), lambda: False)  # type: ignore[arg-type]
    assert states.send_now("progress", progress(1))
    assert link.kinds() == ["progress"]


async def test_what_is_too_large_is_told_at_once(link) -> None:
    states, link.open = desk(link), False
    with pytest.raises(MessageError):
        states.send("progress", progress(1).model_copy(update={"note": "x" * 5_000}))


def test_the_holes_are_bounded() -> None:
    holes = Pigeonholes()
    for number in range(MAX_HOLES + 10):
        holes.put("progress", str(number), b"")
    assert len(holes) == MAX_HOLES
    assert holes.replaced == 10
    left: list[str] = []
    holes.empty(lambda kind, _: len(left) < 3 and not left.append(kind))
    assert len(holes) == MAX_HOLES - 3
