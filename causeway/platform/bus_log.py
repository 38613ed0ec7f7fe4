"""nats-server's log without MQTT client ids: it names a connection by its client id, which lets anyone take it over."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from typing import BinaryIO

from services.kit.folder import StateFolder

BUS = "nats-server"
MAX_LINE_BYTES = 1 << 20

MAX_BYTES = 64 << 20
"""Then the file becomes `.1`, in place of the one before."""

# Ours are of letters, digits, '-' and '_'; nats-server quotes them, and quotes the quotes inside other names.
_CLIENT_ID = re.compile(rb'((?:mid:[0-9]+ - |client ID:? )\\*"|clientID=)[A-Za-z0-9_-]+')


def redact(line: bytes) -> bytes:
    """The line with the number of the connection and without its client id."""
    return _CLIENT_ID.sub(rb"\1(hidden)", line)


def bus_log(state: StateFolder) -> BinaryIO:
    """A pipe for nats-server to write to; a thread copies it, redacted, into `nats-server.log` until it ends."""
    reading, writing = os.pipe()
    path = state.logs / f"{BUS}.log"
    threading.Thread(target=_copy, args=(os.fdopen(reading, "rb"), path), name="bus-log", daemon=True).start()
    return os.fdopen(writing, "wb")


def _copy(source: BinaryIO, path: Path) -> None:
    lost = 0
    with source:
        while line := source.readline(MAX_LINE_BYTES):
            # Reading goes on when the disk is full: a full pipe would stop the server itself.
            try:
                _append(path, redact(line) if not lost else b"%d lines lost\n%b" % (lost, redact(line)))
                lost = 0
            except OSError:
                lost += 1


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)
        full = file.tell() > MAX_BYTES
    if full:
        path.replace(path.with_name(f"{path.name}.1"))
