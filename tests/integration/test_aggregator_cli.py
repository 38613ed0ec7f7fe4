"""`causeway train` as a person types it, on the real platform."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from typer.testing import CliRunner, Result

from causeway.cli.train import app
from services.kit.errors import UnreachableError
from tests.support.learning_world import World
from tests.support.platform import LivePlatform, until


async def typed(live: LivePlatform, *arguments: str) -> Result:
    command = [*arguments, "--state", str(live.state.root)]
    return await asyncio.to_thread(CliRunner().invoke, app, command)


async def test_a_job_from_its_first_word_to_its_last_round(live: LivePlatform, tmp_path: Path) -> None:
    async with World.start(live, tmp_path / "shards") as world:
        await world.add_devices(2)
        live.start_service("aggregator")
        choose = (
            "--device",
            "cam-1",
            "--device",
            "cam-2",
            "--min-updates",
            "2",
            "-p",
            "epochs=2",
            "--fleet",
            "harbour",
        )
        start = ("start", "digits-1", "--dataset", "digits", "--rounds", "2", *choose, "--watch", "--json")

        async def answer() -> None:
            async def there() -> bool:
                try:
                    return bool(await world.call("list"))
                except UnreachableError:
                    return False

            await until(there, "the job to be created")
            await world.answer_all_until_done()

        watched, _ = await asyncio.gather(typed(live, *start), answer())
        assert watched.exit_code == 0, watched.output
        views = [json.loads(line) for line in watched.stdout.splitlines()]
        assert views[0]["state"] == "running"
        assert views[0]["parameters"] == {"epochs": 2}
        assert (views[-1]["state"], len(views[-1]["history"])) == ("done", 2)

        shown = await typed(live, "watch", "digits-1")
        assert shown.exit_code == 0
        assert "digits-1: done" in shown.stdout
        assert "2 of 2" in shown.stdout
        listed = await typed(live, "list", "--json")
        assert [job["job"] for job in json.loads(listed.stdout)] == ["digits-1"]
        again = await typed(live, "resume", "digits-1")
        assert again.exit_code == 4
        assert "all its rounds are closed" in again.stderr.replace("\n", " ")


async def test_what_cannot_be_done_is_said_with_its_exit_code(live: LivePlatform, tmp_path: Path) -> None:
    nobody = await typed(live, "list")
    assert nobody.exit_code == 5
    async with World.start(live, tmp_path / "shards"):
        live.start_service("aggregator")
        missing = await typed(live, "show", "nope")
        assert missing.exit_code == 3
        assert "causeway train list" in missing.stderr
        empty = await typed(live, "start", "digits-1", "--dataset", "digits")
        assert empty.exit_code == 4
        assert "causeway device list" in empty.stderr.replace("\n", " ")
        malformed = await typed(live, "start", "digits-2", "--dataset", "digits", "-p", "lr")
        assert malformed.exit_code == 2
        assert "NAME=VALUE" in malformed.stderr
        dotted = await typed(live, "start", "digits.3", "--dataset", "digits")
        assert dotted.exit_code == 2
