"""The MQTT connection: one client at a time, reconnected with full jitter. Knows topics and bytes, no meanings."""

from __future__ import annotations

import asyncio
import random
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edge_runtime.errors import ConfigError
from edge_runtime.logs import Log

log = Log(__name__)

KEEPALIVE_S = 30
CONNECT_TIMEOUT_S = 10.0
MIN_DELAY_S = 1.0
"""The server holds back the same client id within a second of a drop."""
MAX_DELAY_S = 15.0
MAX_REFUSED_DELAY_S = 300.0
MAX_INCOMING = 512
MAX_INCOMING_BYTES = 12 << 20
"""What may wait for the event loop: a window of pieces, and room for letters. Whatever is lost here comes again."""
BACKLOG_BYTES = 512 * 1024
"""Bytes that may wait for the socket; beyond it only what is urgent is taken."""
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


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
        return cls(parts.hostname, port or (8883 if tls else 1883), tls, ca_pem, hostname)


@dataclass(frozen=True, slots=True)
class Dial:
    """Everything that one connection needs."""

    endpoint: Endpoint
    client_id: str = field(repr=False)
    password: str = field(repr=False)
    filters: tuple[str, ...]
    will: tuple[str, bytes] | None


@dataclass(frozen=True, slots=True)
class Callbacks:
    """What the link tells; all of them run in the event loop."""

    dial: Callable[[], Dial]
    """Asked before each connection, since credentials change and every session has its own last will."""
    up: Callable[[], None]
    """Connected and subscribed."""
    down: Callable[[], None]
    message: Callable[[str, bytes], None]
    drained: Callable[[], None]
    """The backlog is short again."""


class Link:
    """Keeps a connection up until closed. paho's thread does the network; everything else happens in the event loop."""

    def __init__(self, callbacks: Callbacks) -> None:
        self._callbacks = callbacks
        self._loop = asyncio.get_running_loop()
        self._attempt: _Attempt | None = None
        self._closing = False
        self._wake = asyncio.Event()
        self.problem: str | None = None
        """Why there is no connection; None while there is one."""
        self.refused = False
        """Whether the server answered the last attempt with a no."""
        self.incoming = Incoming()

    @property
    def connected(self) -> bool:
        """Whether publishes are taken."""
        return self._attempt is not None and self._attempt.ready

    @property
    def congested(self) -> bool:
        """Whether only urgent messages should be given."""
        return self._attempt is not None and self._attempt.backlog > BACKLOG_BYTES

    def publish(self, topic: str, payload: bytes) -> bool:
        """Hand a message to the network at QoS 0; False if there is no connection."""
        attempt = self._attempt
        return attempt is not None and attempt.ready and attempt.publish(topic, payload)

    async def run(self) -> None:
        """Connect, and again after each loss, until `close`."""
        failures = 0
        while not self._closing:
            attempt = _Attempt(self._callbacks.dial(), self._loop, self._callbacks, self.incoming)
            self._attempt = attempt
            try:
                await attempt.connect()
                failures, self.problem, self.refused = 0, None, False
                log.info("link.up", host=attempt.dial.endpoint.host, port=attempt.dial.endpoint.port)
                self._callbacks.up()
                await attempt.lost
            except _RefusedError as error:
                failures += 1
                self.problem, self.refused = str(error), True
                log.error("link.refused", reason=str(error))
            except OSError as error:
                failures += 1
                self.refused = False
                self.problem = _explain(attempt.dial.endpoint, error)
                log.warning("link.unreachable", reason=self.problem)
            finally:
                was_ready, attempt.ready = attempt.ready, False
                await asyncio.to_thread(attempt.close)
                if was_ready:
                    self.problem = self.problem or "the connection was lost"
                    log.warning("link.down")
                    self._callbacks.down()
            await self._pause(failures)

    def reconnect(self) -> None:
        """Drop the connection and make a new one, with new credentials for one."""
        self._wake.set()
        if self._attempt is not None:
            self._attempt.give_up()

    def close(self) -> None:
        """Let `run` end."""
        self._closing = True
        self.reconnect()

    async def _pause(self, failures: int) -> None:
        if self._closing:
            return
        ceiling = MAX_REFUSED_DELAY_S if self.refused else MAX_DELAY_S
        spread = min(ceiling, MIN_DELAY_S * 2 ** min(failures, 12))
        self._wake.clear()
        try:
            async with asyncio.timeout(MIN_DELAY_S + random.uniform(0, spread)):  # noqa: S311
                await self._wake.wait()
        except TimeoutError:
            return


class Incoming:
    """Counts what waits between paho's thread and the event loop.

    Attributes:
        dropped: messages that found no room since the start.
    """

    def __init__(self, messages: int = MAX_INCOMING, size: int = MAX_INCOMING_BYTES) -> None:
        self._lock = threading.Lock()
        self._max_messages = messages
        self._max_size = size
        self._messages = 0
        self._size = 0
        self._full = False
        self.dropped = 0

    def enter(self, size: int) -> bool:
        """Take room for a message; False if there is none, so that it is dropped."""
        with self._lock:
            if self._messages >= self._max_messages or self._size + size > self._max_size:
                self.dropped += 1
                told, self._full = self._full, True
            else:
                self._messages += 1
                self._size += size
                return True
        if not told:
            log.error("link.overrun", waiting=self._max_messages, bytes=self._max_size, dropped=self.dropped)
        return False

    def leave(self, size: int) -> None:
        """A message was taken."""
        with self._lock:
            self._messages -= 1
            self._size -= size
            self._full = self._full and self._messages > 0


class _RefusedError(Exception):
    """The server answered and said no."""


class _Attempt:
    """One client, one connection."""

    def __init__(self, dial: Dial, loop: asyncio.AbstractEventLoop, callbacks: Callbacks, incoming: Incoming) -> None:
        self.dial = dial
        self.ready = False
        self.backlog = 0
        self.lost: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._callbacks = callbacks
        self._incoming = incoming
        self._subscribed: asyncio.Future[None] = loop.create_future()
        self._sizes: dict[int, int] = {}
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2, dial.client_id, clean_session=True, reconnect_on_failure=False
        )
        client.username_pw_set("device", dial.password)
        if dial.endpoint.tls:
            client.tls_set_context(_tls(dial.endpoint))
        if dial.will is not None:
            client.will_set(dial.will[0], dial.will[1], qos=0)
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        self._client = client

    async def connect(self) -> None:
        """Connect and subscribe.

        Raises:
            OSError: if the server cannot be reached or does not answer.
            _RefusedError: if it does not want this device.
        """
        endpoint = self.dial.endpoint
        await asyncio.to_thread(self._client.connect, endpoint.host, endpoint.port, KEEPALIVE_S)
        self._client.loop_start()
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            done, _ = await asyncio.wait({self._subscribed, self.lost}, return_when=asyncio.FIRST_COMPLETED)
        if self._subscribed not in done:
            raise ConnectionResetError("the server closed the connection before it answered")
        self._subscribed.result()
        self.ready = True

    def publish(self, topic: str, payload: bytes) -> bool:
        info = self._client.publish(topic, payload, qos=0)
        if info.rc != mqtt.MQTT_ERR_SUCCESS:
            return False
        if not info.is_published():
            self._sizes[info.mid] = len(payload)
            self.backlog += len(payload)
        return True

    def give_up(self) -> None:
        if not self.lost.done():
            self.lost.set_result(None)

    def close(self) -> None:
        """Blocks until paho's thread has ended."""
        self._client.disconnect()
        self._client.loop_stop()

    # paho calls these in its own thread.

    def _on_connect(self, client: mqtt.Client, _user: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._loop.call_soon_threadsafe(self._refuse, str(reason))
        else:
            client.subscribe([(topic, 0) for topic in self.dial.filters])

    def _on_subscribe(self, _client: mqtt.Client, _user: Any, _mid: int, reasons: Any, _properties: Any) -> None:
        refused = [reason for reason in reasons if reason.is_failure]
        if refused:
            self._loop.call_soon_threadsafe(self._refuse, f"subscription: {refused[0]}")
        else:
            self._loop.call_soon_threadsafe(self._accept)

    def _on_message(self, _client: mqtt.Client, _user: Any, message: mqtt.MQTTMessage) -> None:
        payload = bytes(message.payload)
        if self._incoming.enter(len(payload)):
            self._loop.call_soon_threadsafe(self._take, message.topic, payload)

    def _on_disconnect(self, _client: mqtt.Client, _user: Any, *_details: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.give_up)

    def _on_publish(self, _client: mqtt.Client, _user: Any, mid: int, *_details: Any) -> None:
        self._loop.call_soon_threadsafe(self._written, mid)

    # Back in the event loop.

    def _take(self, topic: str, payload: bytes) -> None:
        self._incoming.leave(len(payload))
        self._callbacks.message(topic, payload)

    def _written(self, mid: int) -> None:
        before = self.backlog
        self.backlog -= self._sizes.pop(mid, 0)
        if before > BACKLOG_BYTES >= self.backlog:
            self._callbacks.drained()

    def _accept(self) -> None:
        if not self._subscribed.done():
            self._subscribed.set_result(None)

    def _refuse(self, reason: str) -> None:
        if not self._subscribed.done():
            self._subscribed.set_exception(
                _RefusedError(
                    f"the server refused this device's credentials ({reason}): they expired or were revoked; "
                    "enrol anew with a token from the operator (`causeway-edge enrol --again TOKEN`)"
                )
            )


class _NamedContext(ssl.SSLContext):
    """Checks the certificate against a given name instead of the address."""

    expected: str

    def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        """As the base, under the expected name."""
        return super().wrap_socket(*arguments, **(options | {"server_hostname": self.expected}))


def _tls(endpoint: Endpoint) -> ssl.SSLContext:
    context = _NamedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.expected = endpoint.hostname or endpoint.host
    if endpoint.ca_pem:
        context.load_verify_locations(cadata=endpoint.ca_pem)
    else:
        context.load_default_certs()
    return context


def _explain(endpoint: Endpoint, error: OSError) -> str:
    where = f"connect to {endpoint.host}:{endpoint.port}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{where}: its certificate is not the platform's ({error.verify_message}); check url and tls_hostname"
    if isinstance(error, TimeoutError):
        return f"{where}: no answer within {CONNECT_TIMEOUT_S:g} s"
    return f"{where}: {error.strerror or error}"
