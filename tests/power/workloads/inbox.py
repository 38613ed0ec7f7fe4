"""An inbox that takes letters down, says got, hands them on and forgets them."""

from __future__ import annotations

import random
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ulid import ULID

from edge_runtime.letters.inbox import Inbox
from schemas.events import DownLetter
from schemas.registry import Twin
from tests.power.workloads import promise

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def letter(revision: int, *, own_slot: bool) -> DownLetter[Twin]:
    own = str(ULID())
    return DownLetter[Twin](
        id=own,
        source="/services/registry",
        type="causeway.config.v1",
        time=NOW + timedelta(seconds=revision),
        data=Twin(),
        platform="01J00000000000000000000000",
        recipient="/fleets/home/devices/cam-1",
        expires=NOW + timedelta(hours=1),
        generation=1,
        revision=revision,
        slot=own if own_slot else "-",
    )


def main() -> None:
    rng, now = random.Random(int(sys.argv[2])), NOW.timestamp()
    inbox = Inbox(Path(sys.argv[1]) / "inbox.db", lambda: now)
    for revision in range(1, 41):
        one = letter(revision, own_slot=rng.random() < 0.5)
        inbox.take(one, "config", b"envelope " + one.id.encode(), "a" * 64)
        promise(got=one.model_dump_json())
        if rng.random() < 0.7:
            promise(handling=one.id)
            inbox.handled(one.id)
            promise(handled=one.id)
        if revision % 10 == 0:
            inbox.remember("twin", str(revision))
            promise(fact=revision)
            inbox.trim()
    inbox.close()


if __name__ == "__main__":
    main()
