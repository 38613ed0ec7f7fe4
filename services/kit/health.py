"""`/healthz`, `/readyz` and `/metrics` of a service, on one small asyncio server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from services.kit.errors import SettingsError

log = structlog.get_logger()

REQUEST_TIMEOUT_S = 5.0
_MAX_REQUEST_BYTES = 8_192


class Health:
    """Serves three GET pages. `ready` says what the service still waits for, empty if nothing."""

    def __init__(self, ready: Callable[[], list[str]]) -> None:
        self._ready = ready
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Listen; port 0 takes a free one.

        Raises:
            SettingsError: if the port is taken.
        """
        try:
            self._server = await asyncio.start_server(self._answer, host, port, limit=_MAX_REQUEST_BYTES)
        except OSError as error:
            raise SettingsError(
                f"serve health pages on {host}:{port}: {error.strerror}; "
                "end what listens there or change http.health_ports in settings.toml"
            ) from error
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                status, kind, body = self._page(head.split(b" ")[1].decode("latin-1") if head.count(b" ") else "")
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
                    "Connection: close\r\n\r\n".encode()
                    + body
                )
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            log.debug("health.request_dropped", error=repr(error))
        finally:
            writer.close()

    def _page(self, path: str) -> tuple[str, str, bytes]:
        if path == "/healthz":
            return "200 OK", "application/json", b'{"status":"ok"}'
        if path == "/readyz":
            waiting = self._ready()
            status = "503 Service Unavailable" if waiting else "200 OK"
            return status, "application/json", json.dumps({"ready": not waiting, "waiting_for": waiting}).encode()
        if path == "/metrics":
            return "200 OK", CONTENT_TYPE_LATEST, generate_latest()
        return "404 Not Found", "application/json", b'{"error":"pages are /healthz, /readyz and /metrics"}'
