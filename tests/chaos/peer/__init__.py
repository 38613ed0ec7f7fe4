"""The same plan against plain MQTT: QoS 1 and persistent sessions on Mosquitto, with the libraries as they come.

No outbox, no ledger of losses, no standby: what a careful program gets from MQTT itself. Each sender hands its letters
to paho, each receiver acknowledges by hand once its SQLite ledger has committed.
"""
