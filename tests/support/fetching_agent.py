"""An agent that fetches one artifact at once: `python -m tests.support.fetching_agent EDGE_TOML ARTIFACT FILE`."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_runtime import logs
from edge_runtime.agent import Agent
from edge_runtime.parcels.fetching import PieceFetcher
from edge_runtime.ports import Context
from edge_runtime.settings import load_settings
from schemas.aggregator import Artifact
from schemas.events import DownLetter

log = logs.Log("edge_runtime.fetching_agent")


class Fetch:
    """The only part of this agent."""

    kinds: frozenset[str] = frozenset()

    def __init__(self, context: Context, artifact: Artifact, destination: Path) -> None:
        self._context = context
        self._artifact = artifact
        self._destination = destination
        self._task: asyncio.Task[None] | None = None

    async def resume(self) -> None:
        self._task = asyncio.create_task(self._fetch())

    async def handle(self, letter: DownLetter[Any]) -> None:
        raise AssertionError(letter)

    async def close(self) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _fetch(self) -> None:
        fetcher = self._context.parcels
        assert isinstance(fetcher, PieceFetcher)
        await fetcher.fetch(self._artifact, self._destination)
        log.info("fetched", unsolicited=fetcher.unsolicited, refused=fetcher.refused)


async def main(config: Path, artifact: Artifact, destination: Path) -> None:
    """Run until SIGTERM."""

    def parts(context: Context) -> Sequence[Fetch]:
        return [Fetch(context, artifact, destination)]

    agent = Agent(load_settings(config), parts)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, agent.stop)
    await agent.run()


if __name__ == "__main__":
    logs.configure("INFO")
    asyncio.run(main(Path(sys.argv[1]), Artifact.model_validate_json(sys.argv[2]), Path(sys.argv[3])))
