"""The first word of a conversation, over the link or in a bundle."""

from __future__ import annotations

from edge_runtime.clock import FlooredClock
from edge_runtime.letters.inbox import Inbox
from edge_runtime.letters.outbox import Outbox
from edge_runtime.logs import Log
from edge_runtime.version import AGENT
from schemas.courier import Clock, Hello
from schemas.depot import TrustState

log = Log(__name__)

MAX_HELD_IDS = 64


def greeting(session: str, outbox: Outbox, inbox: Inbox, clock: FlooredClock, trust: TrustState) -> Hello:
    """What this device holds and has issued."""
    lanes = outbox.lanes()
    return Hello(
        session=session,
        epoch=outbox.epoch,
        sent={lane: issued for lane, (issued, _) in lanes.items()},
        marks={lane: mark for lane, (_, mark) in lanes.items()},
        held=_held(inbox),
        trust=trust,
        agent=AGENT,
        clock=Clock(synchronised=clock.synchronised(), floor=inbox.time_floor()),
    )


def _held(inbox: Inbox) -> list[str]:
    """Without them the courier sends again what is held, and is told again."""
    try:
        return inbox.newest_ids(MAX_HELD_IDS)
    except Exception:  # a hello must not fail for it
        log.exception("hello.without_held")
        return []
