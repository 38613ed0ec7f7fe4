"""Reaching a broker, being refused by it, losing it: against a server that says what the test wants."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edge_runtime.link import link as module
from edge_runtime.link import mqtt
from edge_runtime.link.dialling import Endpoint, explain, reach
from edge_runtime.link.link import Callbacks, Dial, Link
from edge_runtime.link.mqtt import PacketReader
from tests.support.platform import until

ENDED = datetime(2001, 1, 1, tzinfo=UTC)
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def certificate(folder: Path) -> tuple[str, ssl.SSLContext]:
    """One for 127.0.0.1 that ended in 2001, and a server's context with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(ENDED - timedelta(days=365))
        .not_valid_after(ENDED)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    file = folder / "broker.pem"
    no_password = serialization.NoEncryption()
    file.write_bytes(
        pem + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, no_password)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return pem.decode(), context


@asynccontextmanager
async def broker(talk: Talk, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Listens; yields its port."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await talk(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until_closed(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    while await reader.read(1_000):
        pass


class Ears:
    """A link's callbacks, written down."""

    def __init__(self, port: int) -> None:
        self.ups = self.downs = self.drained = 0
        self.heard: list[tuple[str, bytes]] = []
        endpoint = Endpoint("127.0.0.1", port, tls=False, ca_pem=None)
        self.link = Link(
            Callbacks(
                dial=lambda: Dial(endpoint, "client", "password", ("a/+", "b"), ("gone", b"bye")),
                up=self._up,
                down=self._down,
                message=lambda topic, payload: self.heard.append((topic, payload)),
                drained=lambda: None,
            )
        )

    def _up(self) -> None:
        self.ups += 1

    def _down(self) -> None:
        self.downs += 1


@asynccontextmanager
async def running(ears: Ears) -> AsyncIterator[None]:
    task = asyncio.create_task(ears.link.run())
    try:
        yield
    finally:
        ears.link.close()
        async with asyncio.timeout(10):
            await task


class Server:
    """A broker that accepts, remembers, and answers pings if it is told to."""

    def __init__(self, code: int = 0, granted: bytes = b"\x00\x00", *, pongs: bool = True) -> None:
        self.code, self.granted, self.pongs = code, granted, pongs
        self.types: list[int] = []
        self.published: list[tuple[str, bytes]] = []
        self.writers: list[asyncio.StreamWriter] = []

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        packets = PacketReader()
        while data := await reader.read(65_536):
            for packet in packets.feed(data):
                self.types.append(packet.type)
                if packet.type == 0x10:
                    writer.write(bytes([0x20, 2, 0, self.code]))
                elif packet.type == 0x80:
                    writer.write(bytes([0x90, 2 + len(self.granted), 0, 1]) + self.granted)
                elif packet.type == 0xC0 and self.pongs:
                    writer.write(b"\xd0\x00")
                elif packet.type == mqtt.PUBLISH:
                    self.published.append(mqtt.read_publish(packet))
                elif packet.type == 0xE0:
                    return


async def test_messages_pass_both_ways_and_the_end_is_said() -> None:
    server = Server()
    async with broker(server.talk) as port:
        ears = Ears(port)
        async with running(ears):
            await until(lambda: ears.link.connected, "the link")
            assert ears.link.publish("cw/x", b"up")
            server.writers[0].write(mqtt.publish("a/b", b"down") + mqtt.publish("b", b""))
            await until(lambda: len(ears.heard) == 2, "both messages")
            await until(lambda: server.published, "what was sent")
            assert ears.link.measured().round_trip_s is not None
        assert ears.heard == [("a/b", b"down"), ("b", b"")]
        assert server.published == [("cw/x", b"up")]
        await until(lambda: server.types[-1] == 0xE0, "the goodbye")
        assert (ears.ups, ears.downs) == (1, 1)
        assert not ears.link.publish("cw/x", b"late")


@pytest.mark.parametrize(
    ("server", "why"),
    [(Server(code=5), "not authorised"), (Server(code=99), "code 99"), (Server(granted=b"\x00\x80"), "subscription")],
)
async def test_a_refusal_is_told_apart_from_an_unreachable_server(server, why) -> None:
    async with broker(server.talk) as port:
        ears = Ears(port)
        async with running(ears):
            await until(lambda: ears.link.problem, "the problem")
            assert why in ears.link.problem
            assert ears.link.refused
    ears = Ears(port)
    async with running(ears):
        await until(lambda: ears.link.problem, "the problem")
        assert "Connection refused" in ears.link.problem
        assert not ears.link.refused


async def test_a_server_that_hangs_up_is_dialled_again(monkeypatch) -> None:
    monkeypatch.setattr(module, "MIN_DELAY_S", 0.01)
    server = Server()
    async with broker(server.talk) as port:
        ears = Ears(port)
        async with running(ears):
            await until(lambda: ears.link.connected, "the link")
            server.writers[0].close()
            await until(lambda: ears.ups == 2, "the next connection")
            assert ears.downs == 1
            assert ears.link.connections == 2


async def test_what_nobody_expected_of_a_connection_ends_neither_dialling_nor_the_agent(monkeypatch, caplog) -> None:
    monkeypatch.setattr(module, "MIN_DELAY_S", 0.01)
    async with broker(Server().talk) as port:
        ears = Ears(port)
        given = ears.link._callbacks
        errors = iter([UnicodeError("label empty"), UnicodeError("label empty"), None, None])
        ups = iter([ValueError("torn fact")])

        def dial() -> Dial:
            error = next(errors, None)
            if error is not None:
                raise error
            return given.dial()

        def up() -> None:
            error = next(ups, None)
            if error is not None:
                raise error
            given.up()

        ears.link._callbacks = replace(given, dial=dial, up=up)
        async with running(ears):
            await until(lambda: ears.link.problem, "the problem")
            assert "label empty" in ears.link.problem
            await until(lambda: ears.ups, "a connection all the same")
            assert ears.downs == 1, "of the one that failed when it was up"
    said = [str(record.exc_info[1]) for record in caplog.records if record.getMessage() == "link.failed"]
    assert said == ["label empty", "torn fact"]


async def test_a_connection_that_fails_once_it_is_up_is_dialled_ever_later(monkeypatch) -> None:
    monkeypatch.setattr(module, "MIN_DELAY_S", 0.01)
    paused: list[int] = []
    async with broker(Server().talk) as port:
        ears = Ears(port)
        pause = ears.link._pause

        async def noted(failures: int) -> None:
            paused.append(failures)
            await pause(failures)

        def up() -> None:
            if len(paused) < 3:
                raise ValueError("torn fact")

        ears.link._callbacks = replace(ears.link._callbacks, up=up)
        monkeypatch.setattr(ears.link, "_pause", noted)
        async with running(ears):
            await until(lambda: ears.link.connections == 4, "a connection all the same")
            ears.link.reconnect()
            await until(lambda: len(paused) > 3, "its end")
    assert paused[:4] == [1, 2, 3, 0]


async def test_a_link_that_is_cancelled_ends_though_cleaning_up_fails() -> None:
    async with broker(Server().talk) as port:
        ears = Ears(port)

        def down() -> None:
            ears.link._callbacks = replace(ears.link._callbacks, down=lambda: None)
            raise RuntimeError("nothing can be cleaned up")

        ears.link._callbacks = replace(ears.link._callbacks, down=down)
        task = asyncio.create_task(ears.link.run())
        await until(lambda: ears.link.connected, "the link")
        task.cancel()
        await asyncio.wait({task}, timeout=5)
        ended = task.cancelled()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert ended


async def test_a_server_that_answers_nothing_more_is_left_in_the_end(monkeypatch) -> None:
    monkeypatch.setattr(module, "WATCH_S", 0.02)
    monkeypatch.setattr("edge_runtime.link.liveness.PING_S", 0.1)
    monkeypatch.setattr("edge_runtime.link.liveness.MAX_UNANSWERED_S", 0.5)
    monkeypatch.setattr(module, "MIN_DELAY_S", 0.01)
    server = Server(pongs=False)
    async with broker(server.talk) as port:
        ears = Ears(port)
        async with running(ears):
            await until(lambda: ears.downs, "the loss")
            assert 0xC0 in server.types
            assert "nothing was heard" in ears.link.problem or ears.ups > 1


async def test_pings_keep_an_idle_connection_and_measure_it(monkeypatch) -> None:
    monkeypatch.setattr(module, "WATCH_S", 0.02)
    monkeypatch.setattr("edge_runtime.link.liveness.PING_S", 0.1)
    monkeypatch.setattr("edge_runtime.link.liveness.MIN_SILENCE_S", 0.3)
    server = Server()
    async with broker(server.talk) as port:
        ears = Ears(port)
        async with running(ears):
            await until(lambda: server.types.count(0xC0) >= 8, "eight pings")
            assert (ears.ups, ears.downs) == (1, 0)
            assert ears.link.measured().round_trip_s < 1.0


async def test_a_server_that_is_silent_from_the_start_is_given_up(monkeypatch) -> None:
    monkeypatch.setattr(module, "PHASE_TIMEOUT_S", 0.1)
    async with broker(until_closed) as port:
        ears = Ears(port)
        async with running(ears):
            await until(lambda: ears.link.problem, "the problem")
            assert "no answer within" in ears.link.problem


async def test_a_certificate_ends_by_proven_time_and_not_by_a_clock_that_may_be_anywhere(tmp_path) -> None:
    ca, context = certificate(tmp_path)
    async with broker(until_closed, context) as port:
        endpoint = Endpoint("127.0.0.1", port, tls=True, ca_pem=ca)
        (await reach(endpoint, None)).close()
        (await reach(endpoint, ENDED - timedelta(days=1))).close()
        with pytest.raises(ssl.SSLCertVerificationError) as failure:
            await reach(endpoint, ENDED + timedelta(days=1))
        assert "it ended at 2001" in explain(endpoint, failure.value)


async def test_another_authoritys_certificate_is_refused(tmp_path) -> None:
    _, context = certificate(tmp_path)
    other, _ = certificate(tmp_path)
    async with broker(until_closed, context) as port:
        with pytest.raises(ssl.SSLCertVerificationError):
            await reach(Endpoint("127.0.0.1", port, tls=True, ca_pem=other), None)


async def test_a_device_that_is_told_to_stop_does_not_wait_for_a_dead_network(monkeypatch) -> None:
    accepted = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set()
        await until_closed(reader, writer)

    async with broker(silent) as port:
        ears = Ears(port)
        task = asyncio.create_task(ears.link.run())
        async with asyncio.timeout(10):
            await accepted.wait()
        task.cancel()
        async with asyncio.timeout(5):
            await asyncio.gather(task, return_exceptions=True)
