"""Revisions of receipts: the order in which any courier signed them, by the clock."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ulid import ULID

from schemas.envelope import Signer, parse
from schemas.ids import Address
from schemas.letters import read_down
from services.courier.premises import Premises
from services.courier.receipts.receipts import REVISIONS_PER_S, Receipts
from services.courier.receipts.sessions import Sessions
from services.courier.up.marks import Marks
from services.kit.service import utc_now

CAM = Address("home", "cam-1")


async def receipts() -> Receipts:
    made: dict[str, Any] = {
        "bus": None,
        "key": SimpleNamespace(generation=1, signer=Signer.generate()),
        "platform": str(ULID()),
        "book": SimpleNamespace(get=lambda _: None),
        "settings": SimpleNamespace(receipt_interval_s=0.25),
    }
    signing = Receipts(Premises(**made), Sessions(1))
    await signing.resume(Marks())
    return signing


async def test_revisions_rise_and_never_run_ahead_of_the_clock() -> None:
    # Else what is signed after a restart counts as older, until the clock is there.
    signing, session, epoch = await receipts(), str(ULID()), str(ULID())
    raws = [signing.write(CAM, session, epoch, 60) for _ in range(5_000)]
    now = utc_now().timestamp() * REVISIONS_PER_S
    revisions = [read_down(parse(raw).body, "receipt").revision for raw in (raws[0], raws[-2], raws[-1]) if raw]
    assert revisions[0] < revisions[1] < revisions[2] <= now
    again = (await receipts()).write(CAM, session, epoch, 60)
    assert again is not None
    assert read_down(parse(again).body, "receipt").revision > revisions[2]
