"""`python -m edge_runtime.worker`: runs one job per line of standard input until the input ends."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from queue import SimpleQueue
from typing import Any, BinaryIO

from edge_runtime.errors import EdgeError
from edge_runtime.worker.jobs import MAX_LINE_BYTES, load
from schemas.errors import ContractError

log = logging.getLogger(__name__)


def main() -> None:
    """Serve until the agent closes the pipe or dies."""
    # Ctrl-C reaches the whole group; the agent decides when its worker ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, answers = _take_over_streams()
    lines: SimpleQueue[bytes] = SimpleQueue()
    # A thread, so that the end of the agent ends a running job too.
    threading.Thread(target=_read, args=(requests, lines), daemon=True).start()
    while True:
        answers.write(answer(lines.get()))
        answers.flush()


def answer(line: bytes) -> bytes:
    """Run the job that a line asks for and write what came of it as a line."""
    request = json.loads(line)
    try:
        done: dict[str, Any] = {"ok": load(request["target"])(request["params"])}
    except (EdgeError, ContractError) as error:
        done = _failure(error.reason, str(error))
    except (Exception, SystemExit) as error:  # a job's bug must reach the caller and not end the worker
        log.exception("job %s failed", request["target"])
        done = _failure("crashed", f"{type(error).__name__}: {error}")
    try:
        written = json.dumps(done | {"id": request["id"]}).encode()
    except (TypeError, ValueError) as error:
        written = json.dumps(
            _failure("crashed", f"the job's answer is not JSON: {error}") | {"id": request["id"]}
        ).encode()
    if len(written) >= MAX_LINE_BYTES:
        told = f"the job's answer of {len(written)} bytes exceeds {MAX_LINE_BYTES}: leave it in a file"
        written = json.dumps(_failure("oversized", told) | {"id": request["id"]}).encode()
    return written + b"\n"


def _failure(reason: str, message: str) -> dict[str, Any]:
    return {"error": {"reason": reason, "message": message[:2_000]}}


def _take_over_streams() -> tuple[BinaryIO, BinaryIO]:
    # The pipes move to descriptors that no job knows or inherits; what a job prints goes to standard error.
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, answers


def _read(requests: BinaryIO, lines: SimpleQueue[bytes]) -> None:
    while True:
        line = requests.readline(MAX_LINE_BYTES + 1)
        if not line.endswith(b"\n"):
            # End of input, or a line beyond the bound that the agent never writes.
            os._exit(0 if not line else 2)
        lines.put(line)


if __name__ == "__main__":
    main()
