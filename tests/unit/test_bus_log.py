from __future__ import annotations

import os
from pathlib import Path

import pytest

from causeway.platform import bus_log as module
from causeway.platform.bus_log import bus_log, redact
from services.kit.folder import StateFolder
from tests.support.platform import eventually

SECRET = b"Cjgont0lA76f9mu-NKZpNzcN3SwSLH_rvvDydea2VnQ"


@pytest.mark.parametrize(
    "line",
    [
        b'[1] [ERR] 127.0.0.1:32927 - mid:52 - "%b" - Publish Violation - User "device", Subject "cw.1.x"',
        rb'[1] [WRN] Replacing old client "127.0.0.1:1 - mid:5 - \"%b\"" since both have the same client ID "%b"',
        b'another session is in use with client ID "%b"',
        b'closing because a remote connection has started with the same client ID: "%b"',
        b"[TRC] CONNECT clientID=%b keepAlive=1m30s",
    ],
)
def test_no_line_of_the_server_shows_a_client_id(line: bytes) -> None:
    filled = line.replace(b"%b", SECRET)
    shown = redact(filled)
    assert SECRET not in shown
    assert shown == filled.replace(SECRET, b"(hidden)")
    for plain in (b"[INF] Server is ready", b"[ERR] 127.0.0.1:1 - mid:3 - TLS handshake error: EOF"):
        assert redact(plain) == plain


def test_the_log_goes_on_in_a_new_file_when_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    state = StateFolder(tmp_path)
    state.logs.mkdir()
    with bus_log(state) as pipe:
        for number in range(30):
            os.write(pipe.fileno(), b"line %d\n" % number)
    path = state.logs / "nats-server.log"

    def both() -> bytes:
        return b"".join(p.read_bytes() for p in (path.with_name("nats-server.log.1"), path) if p.exists())

    eventually(lambda: b"line 29\n" in both(), "the last line")
    assert path.with_name("nats-server.log.1").stat().st_size <= 110
