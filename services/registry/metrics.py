"""The registry's metrics. No label ever holds a device's name."""

from __future__ import annotations

from collections import Counter as Tally

import numpy as np
from prometheus_client import Counter, Gauge

from services.registry.store import Devices
from services.registry.table import Table

ANSWERS = Counter(
    "causeway_enrol_answers", "Answers to enrol letters: welcome, or the reason of a refusal.", ["answer"]
)
REFUSALS = frozenset({"letter.refused", "piece.refused"})
"""Events by which a device says that it did not take what it was sent."""
REFUSAL_REASONS = frozenset(
    {
        "bad_envelope",
        "bad_signature",
        "expired",
        "key_not_allowed",
        "malformed",
        "oversized",
        "replayed",
        "unknown_key",
        "unsupported_version",
        "wrong_digest",
        "wrong_generation",
        "wrong_kind",
        "wrong_platform",
        "wrong_recipient",
    }
)
"""Their reasons; any other word of a device becomes `other`, so that no device makes labels."""
REFUSED_THERE = Counter(
    "causeway_device_refusals", "Letters and pieces that devices refused, as they report it.", ["event", "reason"]
)
GIVEN_UP = Counter(
    "causeway_letters_given_up",
    "Letters that devices gave up, as they report it, by reason; `arrived` is maybe for those that may have been sent.",
    ["reason", "arrived"],
)
REVOKED = Counter("causeway_revocations", "Devices revoked.")
QUARANTINED = Counter("causeway_quarantines", "Devices put into quarantine, since two of them use one key.")

# The name that users of the platform look for; a gauge in spite of its ending.
_CONNECTED = Gauge("devices_connected_total", "Devices that are online.")
_DEVICES = Gauge("causeway_devices", "Devices by standing.", ["standing"])
_WAITING = Gauge("causeway_device_outbox_letters", "Letters that wait for a receipt on the devices that are online.")
_DROPPED = Gauge("causeway_device_outbox_dropped", "Letters that the devices which are online had to drop.")


def observe(devices: Devices, table: Table) -> None:
    """Take the gauges."""
    _CONNECTED.set(table.online_count)
    standings = Tally(record.standing for record in devices.all())
    for standing in ("enrolled", "revoked", "quarantined"):
        _DEVICES.labels(standing).set(standings[standing])
    _WAITING.set(float(np.nansum(table.column("outbox_letters"))))
    _DROPPED.set(float(np.nansum(table.column("outbox_dropped"))))
