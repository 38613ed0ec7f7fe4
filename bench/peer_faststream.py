"""Contender: a FastStream MQTT subscriber behind Mosquitto, the same validation, a dict as table.

Written as FastStream's documentation shows: the handler names the model and FastStream decodes and validates. With
`--bytes` FastStream neither decodes nor injects, and the handler validates the raw message in one step as ours does.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from faststream import FastStream
from faststream.mqtt import MQTTBroker, MQTTMessage

from bench.counter import Counter
from schemas.events import Event
from schemas.letters import read_state
from schemas.registry import Heartbeat

TOPIC = "cw/1/+/+/state/heartbeat"


def build(port: int, counter: Counter, *, as_bytes: bool) -> FastStream:
    """The application."""
    broker = MQTTBroker(f"mqtt://127.0.0.1:{port}", client_id="faststream", logger=None, apply_types=not as_bytes)
    table: dict[str, Event[Heartbeat]] = {}
    count = 0

    def keep(event: Event[Heartbeat]) -> None:
        nonlocal count
        table[event.source] = event
        count += 1
        counter.value = count

    async def as_it_is(message: MQTTMessage) -> bytes:
        return message.body  # a decoder that is not a coroutine would run in a thread for each message

    if as_bytes:

        @broker.subscriber(TOPIC, decoder=as_it_is)
        async def on_message(message: bytes) -> None:
            keep(read_state(message, "heartbeat"))

    else:

        @broker.subscriber(TOPIC)
        async def on_heartbeat(event: Event[Heartbeat]) -> None:
            keep(event)

    application = FastStream(broker, logger=None)

    @application.after_startup
    async def ready() -> None:
        print('{"ready": true}', flush=True)

    return application


def main() -> None:
    """Subscribe, say so, and count until ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--counter", type=Path, required=True)
    parser.add_argument("--bytes", action="store_true")
    arguments = parser.parse_args()
    asyncio.run(build(arguments.port, Counter(arguments.counter), as_bytes=arguments.bytes).run())


if __name__ == "__main__":
    main()
