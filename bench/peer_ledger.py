"""Contender: an MQTT QoS 1 subscriber behind Mosquitto that stores each message in SQLite before it acknowledges it."""

from __future__ import annotations

import argparse
import queue
import sqlite3
import threading
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from bench.counter import Counter

BATCH = 256


def main() -> None:
    """Subscribe, say so, and store until ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--counter", type=Path, required=True)
    parser.add_argument("--database", type=Path, required=True)
    arguments = parser.parse_args()
    counter = Counter(arguments.counter)
    waiting: queue.Queue[mqtt.MQTTMessage] = queue.Queue()

    def on_connect(client: mqtt.Client, *_: Any) -> None:
        client.subscribe("cw/1/+/+/letter/+", qos=1)

    def on_subscribe(*_: Any) -> None:
        print('{"ready": true}', flush=True)

    def on_message(_client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        waiting.put(message)

    client = mqtt.Client(CallbackAPIVersion.VERSION2, "ledger", clean_session=False, manual_ack=True)
    client.on_connect = on_connect
    client.on_subscribe = on_subscribe
    client.on_message = on_message
    threading.Thread(
        target=store, args=(client, waiting, arguments.database, counter), name="store", daemon=True
    ).start()
    client.connect("127.0.0.1", arguments.port)
    client.loop_forever(retry_first_connection=False)


def store(client: mqtt.Client, waiting: queue.Queue[mqtt.MQTTMessage], path: Path, counter: Counter) -> None:
    """One transaction for what waits, durable before the acknowledgements."""
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE letters (topic TEXT, body BLOB)")
    count = 0
    while True:
        batch = [waiting.get()]
        while len(batch) < BATCH and not waiting.empty():
            batch.append(waiting.get())
        database.execute("BEGIN")
        database.executemany("INSERT INTO letters VALUES (?, ?)", [(m.topic, m.payload) for m in batch])
        database.execute("COMMIT")
        for message in batch:
            client.ack(message.mid, message.qos)
        count += len(batch)
        counter.value = count


if __name__ == "__main__":
    main()
