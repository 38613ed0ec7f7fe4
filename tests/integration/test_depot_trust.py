"""The depot over the real bus: trust for devices and services."""

from __future__ import annotations

import asyncio
from typing import Any

from services.kit import rpc
from services.kit.api.depot import TrustAnswer
from services.kit.bus import connect
from tests.support.platform import LivePlatform


async def ask(live: LivePlatform, verb: str, request: Any = None) -> Any:
    bus = await connect(live.state, live.settings, "operator")
    try:
        return await rpc.call(bus, "depot", verb, request)
    finally:
        await bus.close()


async def test_it_tells_what_holds(live: LivePlatform) -> None:
    await asyncio.to_thread(live.start_service, "depot")
    answer = TrustAnswer.model_validate(await ask(live, "trust"))
    assert answer.floors.targets == answer.head.targets == 1
    assert await ask(live, "list") == []
