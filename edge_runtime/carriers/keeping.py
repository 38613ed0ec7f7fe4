"""Keeps the works of the carriers going, whatever happens in one of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from edge_runtime.cancelling import end_if_cancelled
from edge_runtime.logs import Log

log = Log(__name__)

AGAIN_S = 2.0
"""Before a work begins anew; twice as long after each error that follows."""
MAX_AGAIN_S = 300.0


async def keep(name: str, work: Callable[[], Awaitable[None]], problems: dict[str, str]) -> None:
    """Run a work that ends by itself only through an error that nobody expected; then it begins anew.

    Args:
        name: of the work.
        work: carried out again and again.
        problems: has the last error under `name` until the work is tried again.
    """
    pause_s = AGAIN_S
    while True:
        began = time.monotonic()
        try:
            await work()
        except Exception as error:
            log.exception("carriers.unexpected", work=name)
            problems[name] = f"{name}: {error!r}; the log says where; it is tried again"
            end_if_cancelled()
        else:
            return
        if time.monotonic() - began > MAX_AGAIN_S:
            pause_s = AGAIN_S
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, MAX_AGAIN_S)
        del problems[name]
