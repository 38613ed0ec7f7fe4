"""The broker that several benches compare with: Mosquitto, configured by each as it needs it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench.processes import listens, running, until
from bench.report import BenchError


@asynccontextmanager
async def mosquitto(folder: Path, port: int, *lines: str) -> AsyncIterator[int]:
    """Mosquitto with these lines of configuration; yields its process id once it listens on `port`.

    Raises:
        BenchError: if it is not installed, or ends or does not listen in time, with its log.
    """
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise BenchError(
            "start the peer: mosquitto is not installed; on Debian and Ubuntu: `apt-get install mosquitto`, "
            "or leave it out with --no-peer where the bench has that"
        )
    config, log = folder / "mosquitto.conf", folder / "mosquitto.log"
    config.write_text("\n".join(("allow_anonymous true", "set_tcp_nodelay true", *lines, "")))
    async with running([program, "-c", str(config)], log) as broker:
        try:
            await until(lambda: listens("127.0.0.1", port), "mosquitto to listen", process=broker)
        except BenchError as error:
            raise BenchError(f"{error}; its log:\n{log.read_text()[-2000:]}") from error
        yield broker.pid
