"""A paho client as its documentation advises: a fixed id, a persistent session, QoS 1, acknowledged by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

KEEPALIVE_S = 30
"""As the runtime's own."""
MAX_RECONNECT_S = 15
QOS = 1


def make_client(
    name: str, host: str, port: int, topic: str | None, take: Callable[[bytes], None] | None
) -> mqtt.Client:
    """Connect, and keep connecting; `take` commits a message before it is acknowledged."""
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, clean_session=False, manual_ack=True)
    client.reconnect_delay_set(1, MAX_RECONNECT_S)

    def on_connect(client: mqtt.Client, *_: Any) -> None:
        # At every connection: a server that lost its sessions does not remember subscriptions either.
        if topic is not None:
            client.subscribe(topic, qos=QOS)

    def on_message(client: mqtt.Client, _user: Any, message: mqtt.MQTTMessage) -> None:
        if take is not None:
            take(bytes(message.payload))
        client.ack(message.mid, message.qos)

    client.on_connect = on_connect
    client.on_message = on_message
    client.connect_async(host, port, KEEPALIVE_S)
    # loop_start gives up if the first attempt fails; loop_forever can be told not to.
    threading.Thread(target=lambda: client.loop_forever(retry_first_connection=True), daemon=True).start()
    return client
