"""Contender of `bench.reconnect`: Mosquitto with persistent sessions, each of which holds QoS 1 messages.

It gets what its own guarantee needs and no more: its sessions are in its database, since it is ended in order (what it
had not saved when it is killed is gone), clients are anonymous and nothing is signed.
"""

from __future__ import annotations

import socket
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.fleet import fleet, spread
from bench.herd import Plan, peer_topic
from bench.mosquitto import mosquitto
from bench.mqtt import accepted, connect_packet, open_device, publish_qos1_packet
from bench.processes import cpu_s, free_port, memory
from bench.report import BenchError, say
from bench.returning import Person
from services.kit.folder import StateFolder

TIMEOUT_S = 300.0
WINDOW = 100
BODY_BYTES = 1_024
"""About what a signed assignment takes."""
_PUBACK_BYTES = 4


async def measure(state: StateFolder, devices: int, messages: int) -> dict[str, Any]:
    """Subscribe everybody, go away, queue messages, start the broker again, and let all return at once.

    Args:
        state: of a platform, whose certificates the broker uses, so that a handshake costs the same.
        devices: how many clients.
        messages: queued for each.
    """
    people = [("bench", f"d{number:05d}", f"peer{number:012d}", "x") for number in range(devices)]
    ca = str(state.ca / "ca.pem")
    with tempfile.TemporaryDirectory(prefix="causeway-bench-") as name:
        folder = Path(name)
        port, plain = free_port(), free_port()
        lines = _lines(folder, state, port, plain)
        say(f"Mosquitto: {devices} clients subscribe and go")
        async with mosquitto(folder, port, *lines):
            plan = Plan("127.0.0.1", port, ca, 0, None, [], 0, people)
            async with fleet(plan, folder) as subscribers:
                await subscribers.ask(do="go")
                await subscribers.until_in_sync(time.monotonic(), TIMEOUT_S)
            _publish(plain, people, messages)
        say("Mosquitto starts again, and all clients return")
        async with mosquitto(folder, port, *lines) as pid:
            plan = Plan("127.0.0.1", port, ca, messages, None, [], 0, people)
            async with fleet(plan, folder) as readers:
                empty, used, clients = memory(pid).rss_mb, cpu_s(pid), readers.cpu_s()
                begun = time.monotonic()
                await readers.ask(do="go")
                in_sync_s = await readers.until_in_sync(begun, TIMEOUT_S)
                took = spread(await readers.stories(), "in_sync")
                return {
                    "mosquitto_in_sync_s": round(in_sync_s, 2),
                    "mosquitto_p99_s": took["p99"],
                    "mosquitto_kb_per_device": round(1024 * (memory(pid).rss_mb - empty) / devices, 1),
                    "mosquitto_cpu_s": {
                        "mosquitto": round(cpu_s(pid) - used, 2),
                        "devices": round(readers.cpu_s() - clients, 2),
                    },
                }


def _lines(folder: Path, state: StateFolder, port: int, plain: int) -> tuple[str, ...]:
    stored = ("user root", "persistence true", f"persistence_location {folder}/")
    secured = (f"listener {port} 127.0.0.1", f"certfile {state.ca}/server.pem", f"keyfile {state.ca}/server.key")
    return (*stored, "max_queued_messages 0", "max_connections -1", *secured, f"listener {plain} 127.0.0.1")


def _publish(port: int, people: list[tuple[str, str, str, str]], messages: int) -> None:
    """Queue messages, each acknowledged by the broker."""
    link = open_device("127.0.0.1", port)
    with link:
        link.sendall(connect_packet("publisher00000000", "x"))
        accepted(link, "publisher")
        body = b"x" * BODY_BYTES
        packets = [
            publish_qos1_packet(peer_topic(Person(*each)), b"%d " % number + body, 1 + place % WINDOW)
            for number in range(messages)
            for place, each in enumerate(people)
        ]
        for start in range(0, len(packets), WINDOW):
            batch = packets[start : start + WINDOW]
            link.sendall(b"".join(batch))
            _read(link, len(batch) * _PUBACK_BYTES)


def _read(link: socket.socket, count: int) -> None:
    while count:
        data = link.recv(count)
        if not data:
            raise BenchError("mosquitto closed the publisher's connection; see its log")
        count -= len(data)
