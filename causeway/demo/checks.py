"""What the demo expects, and the report that says whether it came true."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from pydantic import BaseModel, Field

MIN_ACCURACY = 0.90
MIN_ROUNDS = 8


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


class Refusals(BaseModel):
    """How devices answered the attacker: the reason in each device's own signed letter, or None."""

    tampered: str | None = None
    forged: str | None = None
    replayed: str | None = None


class DemoReport(BaseModel):
    """`demo-report.json`."""

    devices: int = 0
    rounds: int = 0
    tasks_done: int = 0
    tasks_on_weak_device: int | None = None
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    letters_sent: int = 0
    letters_lost: int | None = None
    letters_applied_twice: int | None = None
    letters_waiting_at_return: int | None = None
    offline_device_caught_up: bool = False
    refused: Refusals = Refusals()
    seconds: dict[str, float] = Field(default_factory=dict)
    unmet: list[str] = Field(default_factory=list)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time one phase."""
        began = monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(monotonic() - began, 2)


def unmet_expectations(report: DemoReport, devices: int) -> list[str]:
    """One sentence for each expectation that did not come true."""
    after = report.accuracy_after
    before = report.accuracy_before
    checks = [
        (report.devices == devices, f"{report.devices} of {devices} devices enrolled"),
        (
            report.rounds >= MIN_ROUNDS,
            f"{report.rounds} rounds of training were closed, expected at least {MIN_ROUNDS}",
        ),
        (report.tasks_done == 12, f"{report.tasks_done} of 12 profiling tasks were done"),
        (report.tasks_on_weak_device == 0, f"the device at 10 % battery got {report.tasks_on_weak_device} tasks"),
        (
            after is not None and after >= MIN_ACCURACY,
            f"accuracy after training is {after}, expected at least {MIN_ACCURACY}",
        ),
        (
            before is not None and after is not None and before < after,
            f"accuracy did not rise: {before} before, {after} after",
        ),
        (report.letters_sent > 0, "no letter was sent"),
        (report.letters_lost == 0, f"{report.letters_lost} letters were lost"),
        (report.letters_applied_twice == 0, f"{report.letters_applied_twice} letters were applied twice"),
        (
            bool(report.letters_waiting_at_return),
            "the device whose link was cut had no letter waiting, so its return proves nothing",
        ),
        (report.offline_device_caught_up, "the device that was offline did not catch up to release 0.2.0"),
        (
            report.refused.tampered == "wrong_digest",
            f"the tampered piece was not refused as such: {report.refused.tampered}",
        ),
        (
            report.refused.forged == "key_not_allowed",
            f"the forged assignment was not refused as such: {report.refused.forged}",
        ),
        (
            report.refused.replayed == "replayed",
            f"the replayed assignment was not refused as such: {report.refused.replayed}",
        ),
    ]
    return [sentence for met, sentence in checks if not met]
