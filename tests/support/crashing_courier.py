"""A courier that dies at its n-th word to the bus, for tests of what it leaves behind.

`python -m tests.support.crashing_courier STATE` imports everything once and then forks a courier per line of standard
input, `{"at": n, "sent": bool, "count": FILE}`: it dies without another word at its n-th publish (every JetStream
request and acknowledgement is one), before it or once the server has it. It answers with the process id, and with the
exit status when the courier is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from nats.aio.client import Client

from services.courier.app import wire
from services.kit.service import main
from tests.support.platform import LivePlatform

DEAD = 137


def crash(at: int, *, sent: bool, count: Path) -> None:
    """Have this process die at its `at`-th publish, and always note how many there were."""
    publish = Client.publish
    seen = 0
    noted = os.open(count, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)

    async def counted(self: Client, *arguments: Any, **more: Any) -> None:
        nonlocal seen
        seen += 1
        number = seen
        os.pwrite(noted, str(seen).encode(), 0)
        if number == at and not sent:
            os._exit(DEAD)
        await publish(self, *arguments, **more)
        if number == at:
            await self.flush(2)
            os._exit(DEAD)

    Client.publish = counted  # type: ignore[method-assign]


def serve(state: str) -> None:
    """Fork a courier for each line."""
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            crash(order["at"], sent=order["sent"], count=Path(order["count"]))
            sys.argv = ["courier", "--state", state]
            try:
                main("courier", wire)
            finally:
                sys.stderr.flush()
            os._exit(0)
        _say(child)
        _, status = os.waitpid(child, 0)
        _say(os.waitstatus_to_exitcode(status))


def _say(value: int) -> None:
    sys.stdout.write(f"{value}\n")
    sys.stdout.flush()


class Couriers:
    """The test's side: one courier at a time."""

    def __init__(self, live: LivePlatform) -> None:
        self._log = (live.state.logs / "courier.log").open("ab")
        self.count = live.state.root / "publishes"
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.support.crashing_courier", str(live.state.root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self._running: int | None = None

    def start(self, at: int = 0, *, sent: bool = False) -> None:
        """Fork one that dies at its `at`-th publish; 0: never."""
        assert self._server.stdin is not None
        order = {"at": at, "sent": sent, "count": str(self.count)}
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        self._running = self._read()

    @property
    def alive(self) -> bool:
        """Whether it has not died yet."""
        if self._running is None:
            return False
        try:
            return b"\nState:\tZ" not in Path(f"/proc/{self._running}/status").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return False

    def stop(self, number: int) -> int:
        """Send a signal if it still runs, and say how it ended."""
        if self._running is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._running, number)
        self._running = None
        return self._read()

    def close(self) -> None:
        """End the forking process."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(10)
        self._server.stdout.close()
        self._log.close()

    def _read(self) -> int:
        assert self._server.stdout is not None
        return int(self._server.stdout.readline())


if __name__ == "__main__":
    serve(sys.argv[1])
