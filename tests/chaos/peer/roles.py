"""The three programs of the peer: `python -m tests.chaos.peer.roles site|consumer|poster CONFIG`.

A program strikes out of its ledger what a crash left in doubt, since at QoS 1 a repetition would be a double.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import paho.mqtt.client as mqtt
from pydantic import BaseModel
from ulid import ULID

from tests.chaos.ledger import Entry, Ledger
from tests.chaos.pace import Go, Numbers
from tests.chaos.peer.client import QOS, make_client
from tests.chaos.peer.letters import down_topic, read, up_topic, write

TICK_S = (0.2, 0.8)
BURST = 100
POST_BURST = 200
POLL_S = 0.05


class PeerConfig(BaseModel):
    """What each role is told; ledgers are in `folder`, by device or role."""

    folder: Path
    go: Path
    ready: Path
    host: str
    port: int
    letters: dict[str, int]
    """By device: up for a site, down for the poster."""


def site(config: PeerConfig) -> None:
    """Devices of one place: each sends and takes through one client."""
    threads = [threading.Thread(target=_device, args=(config, *item)) for item in config.letters.items()]
    for thread in threads:
        thread.start()
    config.ready.touch()
    for thread in threads:
        thread.join()


def consumer(config: PeerConfig) -> None:
    """Takes everything up."""
    make_client("consumer", config.host, config.port, "up/#", _taker(config.folder / "consumer.db"))
    config.ready.touch()
    threading.Event().wait()


def poster(config: PeerConfig) -> None:
    """Posts down, in turn to each device; waits for each batch's PUBACKs, as the platform's poster for JetStream."""
    client = make_client("poster", config.host, config.port, None, None)
    ledger = Ledger(config.folder / "poster.db")
    ledger.abandon()
    acknowledged, published = [0], 0

    def on_publish(*_: object) -> None:
        acknowledged[0] += 1

    client.on_publish = on_publish
    numbers = {device: number for (device, _), number in ledger.highest().items()}
    devices, total = list(config.letters), sum(config.letters.values())
    config.ready.touch()
    go = _begin(config)
    while True:
        sent = sum(numbers.values())
        entries = []
        for index in range(sent, sent + min(go.due(total, time.time()) - sent, POST_BURST)):
            device = devices[index % len(devices)]
            numbers[device] = numbers.get(device, 0) + 1
            entries.append(Entry(device, "down", numbers[device], str(ULID())))
        _publish(client, ledger, entries, lambda entry: down_topic(entry.device))
        published += len(entries)
        while acknowledged[0] < published:
            time.sleep(POLL_S)
        time.sleep(TICK_S[0])


def _device(config: PeerConfig, name: str, letters: int) -> None:
    path = config.folder / f"{name}.db"
    client = make_client(name, config.host, config.port, down_topic(name), _taker(path))
    ledger = Ledger(path)
    ledger.abandon()
    numbers = Numbers({lane: number for (_, lane), number in ledger.highest().items()})
    go = _begin(config)
    while True:
        due = min(go.due(letters, time.time()) - numbers.sent, BURST)
        entries = [Entry(name, lane, number, str(ULID())) for lane, number in numbers.take(max(0, due))]
        _publish(client, ledger, entries, up_topic)
        time.sleep(random.uniform(*TICK_S))


def _publish(client: mqtt.Client, ledger: Ledger, entries: Iterable[Entry], topic: Callable[[Entry], str]) -> None:
    for entry in entries:
        ledger.intend([entry])
        # Not connected is no refusal: paho queues it, without a bound unless told otherwise.
        client.publish(topic(entry), write(entry), qos=QOS)
        ledger.handed(entry)


def _taker(path: Path) -> Callable[[bytes], None]:
    """Commits to a ledger that belongs to the thread which takes."""
    opened: list[Ledger] = []

    def take(raw: bytes) -> None:
        if not opened:
            opened.append(Ledger(path))
        opened[0].take(read(raw), "")

    return take


def _begin(config: PeerConfig) -> Go:
    while (go := Go.read(config.go)) is None:
        time.sleep(TICK_S[0])
    return go


if __name__ == "__main__":
    roles = {"site": site, "consumer": consumer, "poster": poster}
    roles[sys.argv[1]](PeerConfig.model_validate_json(Path(sys.argv[2]).read_bytes()))
