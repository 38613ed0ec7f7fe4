"""The audit against a real nats-server: what it could not read is not taken for lost."""

from __future__ import annotations

import asyncio
import signal

import pytest

from causeway.audit.collect import read_stream
from services.kit.bus import connect
from services.kit.puller import SCAN_BATCH, PullError
from services.kit.streams import IN, ensure_owned
from tests.support.platform import LivePlatform

COUNT = SCAN_BATCH + 1


async def test_a_server_that_answers_no_more_is_told_from_the_end_of_what_it_holds(live: LivePlatform) -> None:
    courier = await connect(live.state, live.settings, "courier")
    auditor = await connect(live.state, live.settings, "auditor")
    server = live.processes["nats-server"]
    try:
        assert [each async for each in read_stream(auditor, IN.name)] == []
        await ensure_owned(courier.js, "courier")
        for _ in range(COUNT - 1):
            await courier.nc.publish("cw.in.event.home.cam-1", b"{}")
        await courier.js.publish("cw.in.event.home.cam-1", b"{}")
        assert len([each async for each in read_stream(auditor, IN.name)]) == COUNT
        reading = read_stream(auditor, IN.name)
        await anext(reading)
        server.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(20):
            with pytest.raises(PullError, match="no answer"):
                _ = [each async for each in reading]
    finally:
        server.send_signal(signal.SIGCONT)
        await courier.close()
        await auditor.close()
