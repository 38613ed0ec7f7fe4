"""Contender: paho-mqtt in one process behind Mosquitto, the same validation, a dict as table."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from bench.counter import Counter
from schemas.events import Event
from schemas.letters import read_state
from schemas.registry import Heartbeat


def main() -> None:
    """Subscribe, say so, and count until ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--counter", type=Path, required=True)
    arguments = parser.parse_args()
    counter = Counter(arguments.counter)
    table: dict[str, Event[Heartbeat]] = {}
    count = 0

    def on_connect(client: mqtt.Client, *_: Any) -> None:
        client.subscribe("cw/1/+/+/state/heartbeat", qos=0)

    def on_subscribe(*_: Any) -> None:
        print('{"ready": true}', flush=True)

    def on_message(_client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        nonlocal count
        event = read_state(bytes(message.payload), "heartbeat")
        table[event.source] = event
        count += 1
        counter.value = count

    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.on_connect = on_connect
    client.on_subscribe = on_subscribe
    client.on_message = on_message
    client.connect("127.0.0.1", arguments.port)
    client.loop_forever(retry_first_connection=False)


if __name__ == "__main__":
    main()
