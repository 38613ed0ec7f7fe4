"""Where an operator sees what was refused: the counter, the log, REJECTS."""

from __future__ import annotations

import json

from tests.support.courier_world import stored
from tests.support.platform import LivePlatform
from tests.support.raw_device import RawDevice


def count(live: LivePlatform, service: str, kind: str, reason: str) -> float:
    """What `/metrics` says of refusals."""
    series = f'causeway_rejected_total{{kind="{kind}",reason="{reason}",service="{service}"}} '
    found = [line for line in live.metrics(service).splitlines() if line.startswith(series)]
    return float(found[0].rsplit(" ", 1)[1]) if found else 0.0


def logged(live: LivePlatform, service: str, device: str, reason: str) -> bool:
    """Whether one line of a service's log names both."""
    lines = map(json.loads, filter(lambda line: line.startswith("{"), live.log(service).splitlines()))
    return any(
        line.get("reason") == reason and device in f"{line.get('subject')} {line.get('device')}" for line in lines
    )


def kept(live: LivePlatform, service: str, device: str, reason: str) -> list[bytes]:
    """What REJECTS holds of a device for a reason."""
    return [
        body
        for subject, headers, body in stored(live, "REJECTS")
        if subject == f"cw.rejects.{service}"
        and headers["Causeway-Reason"] == reason
        and f".{device}" in headers["Causeway-Subject"]
    ]


def good_ones_still_work(cam: RawDevice) -> None:
    cam.send()
    cam.settle()
