"""Reaching the broker: its address, TCP, TLS. Nothing here blocks, so that a device which is told to stop stops."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

from edge_runtime.errors import ConfigError
from edge_runtime.link import sockets
from schemas.events import utc

PHASE_TIMEOUT_S = 45.0
"""For each of TCP, TLS, CONNECT and SUBSCRIBE: one round trip each, of 4 s at worst, with room for lost packets."""
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the broker listens."""

    host: str
    port: int
    tls: bool
    ca_pem: str | None
    hostname: str | None = None
    """Name in the server's certificate, where it is not `host`."""

    @classmethod
    def parse(cls, url: str, ca_pem: str | None, hostname: str | None) -> Endpoint:
        """Read `mqtts://host:port`.

        Raises:
            ConfigError: if it is no such address, or plain MQTT over a network, where the password could be read.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"read the broker's address {url!r}: {error}") from error
        if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname:
            raise ConfigError(f"read the broker's address {url!r}: expected mqtts://host:port")
        tls = parts.scheme == "mqtts"
        if not tls and parts.hostname not in _LOOPBACK:
            raise ConfigError(f"connect to {url}: plain MQTT is for 127.0.0.1 only; use mqtts://")
        _check_name(parts.hostname, f"read the broker's address {url!r}")
        if hostname:
            _check_name(hostname, f"read tls_hostname {hostname!r}")
        return cls(parts.hostname, port or (8883 if tls else 1883), tls, ca_pem, hostname)


def _check_name(name: str, operation: str) -> None:
    try:
        encoded = name.encode("idna")
    except UnicodeError as error:
        reason = str(error.__cause__ or error)
        raise ConfigError(f"{operation}: {name!r} is no name of a host: {reason}; write it as name.example") from error
    if 0 in encoded:
        raise ConfigError(f"{operation}: {name!r} is no name of a host; write it as name.example")


async def reach(endpoint: Endpoint, certainly_past: datetime | None) -> socket.socket:
    """A connected, non-blocking socket, with TLS if the endpoint has it.

    Args:
        endpoint: the broker.
        certainly_past: a moment that is over for sure; a certificate that ended before it is refused. The device's own
            clock would not do: it may stand in 1970 or in 2040.

    Raises:
        OSError: if the server cannot be reached, does not answer or is not the platform's.
    """
    connection = await _tcp(endpoint)
    if not endpoint.tls:
        return connection
    secured = connection
    try:
        secured = _context(endpoint).wrap_socket(
            connection, server_hostname=endpoint.hostname or endpoint.host, do_handshake_on_connect=False
        )
        async with asyncio.timeout(PHASE_TIMEOUT_S):
            await _handshake(secured)
        _check_end(secured, certainly_past)
    except BaseException:
        secured.close()
        raise
    return secured


def explain(endpoint: Endpoint, error: OSError) -> str:
    """One line for people."""
    where = f"connect to {endpoint.host}:{endpoint.port}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{where}: its certificate is not the platform's ({error.verify_message}); check url and tls_hostname"
    if isinstance(error, TimeoutError):
        return f"{where}: no answer within {PHASE_TIMEOUT_S:g} s"
    return f"{where}: {error.strerror or error}"


async def _tcp(endpoint: Endpoint) -> socket.socket:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    failure: OSError = OSError(f"{endpoint.host} has no address")
    for family, kind, protocol, _, address in found:
        connection = socket.socket(family, kind, protocol)
        try:
            connection.setblocking(False)
            async with asyncio.timeout(PHASE_TIMEOUT_S):
                await loop.sock_connect(connection, address)
            sockets.tune(connection)
        except TimeoutError as error:
            connection.close()
            failure = error
        except OSError as error:
            connection.close()
            # asyncio names the address in place of the reason.
            failure = OSError(error.errno, os.strerror(error.errno)) if error.errno else error
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    raise failure


async def _handshake(connection: ssl.SSLSocket) -> None:
    while True:
        try:
            connection.do_handshake()
        except ssl.SSLWantReadError:
            await _ready(connection, for_writing=False)
        except ssl.SSLWantWriteError:
            await _ready(connection, for_writing=True)
        else:
            return


async def _ready(connection: socket.socket, *, for_writing: bool) -> None:
    loop, number = asyncio.get_running_loop(), connection.fileno()
    ready: asyncio.Future[None] = loop.create_future()
    add, remove = (loop.add_writer, loop.remove_writer) if for_writing else (loop.add_reader, loop.remove_reader)

    def done() -> None:
        if not ready.done():
            ready.set_result(None)

    add(number, done)
    try:
        await ready
    finally:
        remove(number)


def _context(endpoint: Endpoint) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= _NO_CHECK_TIME
    if endpoint.ca_pem:
        context.load_verify_locations(cadata=endpoint.ca_pem)
    else:
        context.load_default_certs()
    return context


def _check_end(connection: socket.socket, certainly_past: datetime | None) -> None:
    assert isinstance(connection, ssl.SSLSocket)
    certificate = connection.getpeercert() or {}
    end = utc(ssl.cert_time_to_seconds(str(certificate["notAfter"])))
    if certainly_past is not None and end < certainly_past:
        error = ssl.SSLCertVerificationError(1, "certificate has expired")
        error.verify_message = f"it ended at {end.isoformat()}"
        raise error
