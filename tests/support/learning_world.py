"""A job's surroundings in tests: devices that really train, a depot, and an operator who asks the aggregator."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

from causeway.data.shard import ShardPlan, digits, split, write_shards
from edge_runtime.learning import trainer
from schemas.aggregator import Round, Update
from services.aggregator.entries import Entry, read_entry
from services.kit import rpc
from services.kit.api.aggregator import JobName, JobRequest, JobView
from services.kit.artifacts import open_store
from services.kit.bus import Bus, on_bus
from services.kit.mailbox import LETTER_ID
from services.kit.puller import scan
from tests.support.fleet import StandInDevice, StandInFleet
from tests.support.platform import LivePlatform, until
from tests.support.records import put_records

JOB = "digits-1"


class World:
    """A fleet of stand-in devices that really train, a depot, and the aggregator to be tested."""

    def __init__(self, live: LivePlatform, fleet: StandInFleet, operator: Bus, folder: Path) -> None:
        self.live = live
        self.fleet = fleet
        self.operator = operator
        self.folder = folder
        self.store = open_store(live.state, live.settings)
        self.answered: set[str] = set()
        self.raws: dict[str, tuple[StandInDevice, bytes]] = {}

    @classmethod
    @asynccontextmanager
    async def start(cls, live: LivePlatform, folder: Path) -> AsyncIterator[Self]:
        fleet = await StandInFleet.start(live)
        try:
            async with on_bus(live.state, live.settings, "operator") as operator:
                live.start_service("depot")
                yield cls(live, fleet, operator, folder)
        finally:
            await fleet.close()

    async def add_devices(self, count: int) -> None:
        x, y = digits()
        parts = split(y, ShardPlan(shards=count))
        await asyncio.to_thread(write_shards, x, y, parts, self.folder)
        for number in range(1, count + 1):
            device = await self.fleet.add(f"cam-{number}")
            await put_records(self.live.state, self.fleet.registry, device.record.model_copy(update={"online": True}))

    def request(self, **changes: Any) -> JobRequest:
        fields: dict[str, Any] = {
            "job": JOB,
            "fleet": "harbour",
            "dataset": "digits",
            "estimator": "classifier@1",
            "devices": [address.device for address in self.fleet.devices],
            "rounds": 3,
            "min_updates": len(self.fleet.devices),
            "round_deadline_s": 60,
        }
        return JobRequest(**fields | changes)

    async def call(self, verb: str, request: Any = None) -> Any:
        return await rpc.call(self.operator, "aggregator", verb, request)

    async def begin(self, **changes: Any) -> None:
        await self.call("create", self.request(**changes))
        await self.call("start", JobName(job=changes.get("job", JOB)))

    async def show(self) -> JobView:
        return JobView.model_validate(await self.call("show", JobName(job=JOB)))

    async def invitations(self) -> list[Any]:
        return [letter for letter in await self.fleet.mailbox("round") if letter.id not in self.answered]

    async def train(self, letter: Any, **changes: Any) -> Update:
        invitation: Round = letter.data
        base, name = self.folder / "base", letter.recipient.rsplit("/", 1)[1]
        await self.store.fetch(invitation.base.sha256, base)
        output = self.folder / "vector"
        params = {
            "estimator": invitation.estimator,
            "parameters": invitation.parameters,
            "base": str(base),
            "dataset": str(self.folder / f"shard-{name.split('-')[1]}.npz"),
            "output": str(output),
            "seed": invitation.round,
        }
        result = trainer.run(params)
        fields = {
            "job": invitation.job,
            "round": invitation.round,
            "attempt": invitation.attempt,
            "base": invitation.base.sha256,
            "samples": result["samples"],
            "sha256": result["sha256"],
            "length": result["length"],
            "vector": base64.b64encode(output.read_bytes()).decode(),
            "metrics": result["metrics"],
        }
        return Update.model_validate(fields | changes)

    async def answer(self, letter: Any, **changes: Any) -> str:
        """Train and send; returns the id of the update's letter."""
        self.answered.add(letter.id)
        device = next(d for a, d in self.fleet.devices.items() if a.source == letter.recipient)
        raw = await self.fleet.send(device, "update", await self.train(letter, **changes))
        update_id: str = json.loads(base64.b64decode(json.loads(raw)["payload"]))["id"]
        self.raws[update_id] = (device, raw)
        return update_id

    async def send_again(self, update_id: str) -> None:
        device, raw = self.raws[update_id]
        await self.fleet.put(device, "update", raw)

    async def answer_all_until_done(self) -> JobView:
        async def done() -> JobView | None:
            for letter in await self.invitations():
                await self.answer(letter)
            view = await self.show()
            return view if view.state == "done" else None

        return await until(done, "the job to be done")

    async def ledger(self, job: str = JOB) -> list[Entry]:
        """The ledger as an auditor reads it."""
        async with on_bus(self.live.state, self.live.settings, "auditor") as auditor:
            messages = [message async for message in scan(auditor, "ROUNDS", subject=f"cw.rounds.{job}")]
            for message in messages:
                entry = json.loads(message.data)
                assert (message.headers or {}).get(LETTER_ID) == entry.get("letter")
            return [read_entry(message.data) for message in messages]
