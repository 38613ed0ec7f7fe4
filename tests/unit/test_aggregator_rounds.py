"""What an update comes to, and when a round opens, closes and fails."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.aggregator import Artifact, Update
from schemas.registry import Capabilities
from services.aggregator.entries import Accepted, Closed, Ended, Opened, Refused, Started, effect_key, read_entry
from services.aggregator.fold import JobFold
from services.aggregator.rounds import (
    PATIENCE_S,
    Close,
    Finish,
    Open,
    Wait,
    absent,
    admit,
    candidates,
    plan,
    summarise,
)
from services.aggregator.store import record_of
from services.kit.api.aggregator import JobRequest
from services.kit.devices import DeviceRecord

T0 = datetime(2026, 1, 1, tzinfo=UTC)
BASE = Artifact(sha256="a" * 64, length=100, recipe="b" * 64, pieces=1)
NEXT = Artifact(sha256="c" * 64, length=100, recipe="d" * 64, pieces=1)
LENGTH = 4


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def request(**changes: Any) -> JobRequest:
    fields: dict[str, Any] = {
        "job": "digits-1",
        "fleet": "harbour",
        "dataset": "digits",
        "estimator": "classifier@1",
        "rounds": 2,
        "min_updates": 2,
        "round_deadline_s": 10,
        "max_attempts": 2,
    }
    return JobRequest(**fields | changes)


def opened(number: int = 1, attempt: int = 1, devices: tuple[str, ...] = ("cam-1", "cam-2", "cam-3"), s: float = 0):
    return Opened(
        round=number,
        attempt=attempt,
        base=BASE,
        invited={device: f"invitation-{device}-{attempt}" for device in devices},
        opens=at(s),
        deadline=at(s + 10),
    )


class Job:
    """A job whose ledger is a list."""

    def __init__(self, **changes: Any) -> None:
        self.fold = JobFold(request(**changes))
        self.ledger: list[Any] = []
        self.add(Started(at=T0))

    def add(self, *entries: Any) -> None:
        for entry in entries:
            self.ledger.append(entry)
            self.fold.apply(read_entry(entry.model_dump_json().encode()), len(self.ledger))

    def take(self, device: str, letter: str, update: Update) -> str:
        verdict = admit(self.fold, device, letter, update, LENGTH)
        if verdict.entry is not None:
            self.add(verdict.entry)
            if isinstance(verdict.entry, Refused):
                return verdict.entry.reason
        return verdict.outcome


def update(fill: float = 0.5, **changes: Any) -> Update:
    raw = np.full(LENGTH, fill, "<f4").tobytes()
    fields: dict[str, Any] = {
        "job": "digits-1",
        "round": 1,
        "attempt": 1,
        "base": BASE.sha256,
        "samples": 30,
        "sha256": hashlib.sha256(raw).hexdigest(),
        "length": len(raw),
        "vector": base64.b64encode(raw).decode(),
        "metrics": {"loss": 0.5, "accuracy": 0.75},
    }
    return Update(**fields | changes)


def closed(number: int = 1, attempt: int = 1) -> Closed:
    return Closed(round=number, attempt=attempt, weights=NEXT, updates=2, invited=3, samples=60, at=at(5), took_s=5)


def test_the_first_update_of_a_device_counts_and_another_digest_is_a_conflict() -> None:
    job = Job()
    job.add(opened())
    assert job.take("cam-1", "letter-1", update()) == "accepted"
    assert job.take("cam-1", "letter-1", update()) == "duplicate"
    assert job.take("cam-1", "letter-2", update()) == "duplicate"
    assert job.take("cam-1", "letter-3", update(0.25)) == "conflict"
    assert job.take("cam-1", "letter-3", update(0.25)) == "duplicate"
    assert job.fold.accepted["cam-1"].letter == "letter-1"
    assert [type(entry) for entry in job.ledger[2:]] == [Accepted, Refused]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"round": 2}, "unknown_round"),
        ({"attempt": 2}, "unknown_round"),
        ({"base": "e" * 64}, "stale_base"),
        ({"samples": 0}, "no_samples"),
        ({"vector": None}, "no_vector"),
        ({"length": 12}, "wrong_length"),
        ({"vector": base64.b64encode(bytes(12)).decode(), "length": 12}, "wrong_length"),
        ({"sha256": "f" * 64}, "wrong_digest"),
        ({"outcome": "refused", "reason": "battery", "vector": None}, "battery"),
    ],
)
def test_an_update_that_does_not_fit_is_refused_with_its_reason(changes: dict[str, Any], reason: str) -> None:
    job = Job()
    job.add(opened())
    assert job.take("cam-1", "letter-1", update(**changes)) == reason
    assert not job.fold.accepted


@pytest.mark.parametrize("fill", [float("nan"), float("inf"), 8.5])
def test_a_weight_out_of_range_refuses_the_update(fill: float) -> None:
    job = Job()
    job.add(opened())
    assert job.take("cam-1", "letter-1", update(fill)) == "out_of_range"


def test_a_stranger_and_a_latecomer_are_refused() -> None:
    job = Job()
    assert job.take("cam-1", "letter-0", update()) == "not_open"
    job.add(opened())
    assert job.take("cam-9", "letter-1", update()) == "not_invited"
    job.add(opened(attempt=2, s=10))
    assert job.take("cam-1", "letter-2", update()) == "stale_attempt"
    job.add(closed(attempt=2))
    verdict = admit(job.fold, "cam-1", "letter-3", update(), LENGTH)
    assert isinstance(verdict.entry, Refused)
    assert (verdict.entry.reason, verdict.earlier_round) == ("stale_round", True)


def test_a_round_closes_when_everyone_has_answered() -> None:
    job = Job()
    assert plan(job.fold, T0) == Open(1, 1, frozenset())
    job.add(opened())
    for number, device in enumerate(("cam-1", "cam-2")):
        assert plan(job.fold, at(1)) == Wait()
        job.take(device, f"letter-{number}", update())
    assert plan(job.fold, at(1)) == Wait()
    job.take("cam-3", "letter-3", update(outcome="refused", reason="battery"))
    assert plan(job.fold, at(1)) == Close(1, 1)
    job.add(closed())
    assert plan(job.fold, at(1)) == Open(2, 1, frozenset())
    assert (job.fold.weights, job.fold.history[0].weights) == (NEXT, NEXT)
    job.add(opened(2), closed(2))
    assert plan(job.fold, at(1)) == Finish("done")
    job.add(Ended(state="done", at=at(2)))
    assert plan(job.fold, at(3)) == Wait()


def test_a_round_does_not_wait_long_for_a_device_that_is_away() -> None:
    job = Job()
    job.add(opened())
    job.take("cam-1", "letter-1", update())
    job.take("cam-2", "letter-2", update())
    away = frozenset({"cam-3"})
    assert plan(job.fold, at(PATIENCE_S / 2), away) == Wait()
    assert plan(job.fold, at(PATIENCE_S), frozenset()) == Wait()
    assert plan(job.fold, at(PATIENCE_S), away) == Close(1, 1)


def test_with_too_few_at_the_deadline_the_round_is_tried_again_and_what_came_stays() -> None:
    job = Job()
    job.add(opened())
    job.take("cam-1", "letter-1", update())
    assert plan(job.fold, at(9)) == Wait()
    assert plan(job.fold, at(10)) == Open(1, 2, frozenset({"cam-1"}))
    job.add(opened(attempt=2, devices=("cam-2", "cam-3"), s=10))
    job.take("cam-2", "letter-2", update(attempt=2))
    assert plan(job.fold, at(20)) == Close(1, 2)


def test_after_the_last_attempt_in_vain_the_job_fails_and_can_be_started_again() -> None:
    job = Job()
    job.add(opened(), opened(attempt=2, s=10))
    ending = plan(job.fold, at(20))
    assert isinstance(ending, Finish)
    assert ending.state == "failed"
    assert ending.reason is not None
    assert "0 of 2 updates after 2 attempts" in ending.reason
    job.add(Ended(state="failed", reason=ending.reason, at=at(20)), Started(at=at(30)))
    assert plan(job.fold, at(30)) == Open(1, 3, frozenset())


STEPS = st.lists(
    st.tuples(st.sampled_from(["cam-1", "cam-2", "cam-3"]), st.integers(0, 5), st.sampled_from([0.1, 0.2, 9.0])),
    max_size=30,
)


@given(STEPS)
def test_whatever_arrives_each_letter_and_each_device_has_one_effect(steps: list[tuple[str, int, float]]) -> None:
    job = Job()
    job.add(opened())
    for device, letter, fill in [*steps, *steps]:
        job.take(device, f"{device}-{letter}", update(fill))
    effects = [effect_key("digits-1", entry) for entry in job.ledger]
    assert len(effects) == len(set(effects))
    letters = [entry.letter for entry in job.ledger if isinstance(entry, Accepted | Refused)]
    assert len(letters) == len(set(letters))


@given(STEPS)
def test_a_restart_at_any_point_folds_to_the_same_state(steps: list[tuple[str, int, float]]) -> None:
    job = Job()
    job.add(opened(), closed(), opened(2))
    for device, letter, fill in steps:
        job.take(device, f"{device}-{letter}", update(fill, round=2))
    again = record_of(job.fold).fold()
    for sequence, entry in enumerate(job.ledger, start=1):
        if sequence > again.base_sequence:
            again.apply(entry, sequence)
    assert record_of(again) == record_of(job.fold)
    assert (again.sequence, again.letters) == (job.fold.sequence, job.fold.letters)


def test_metrics_are_weighted_by_samples() -> None:
    job = Job()
    job.add(opened())
    job.take("cam-1", "1", update(samples=30, metrics={"loss": 1.0, "accuracy": 0.5}))
    job.take("cam-2", "2", update(samples=10, metrics={"loss": 2.0}))
    summary = summarise(job.fold.accepted.values())
    assert (summary.samples, summary.loss, summary.accuracy) == (40, 1.25, 0.5)


def device(name: str, **changes: Any) -> DeviceRecord:
    fields: dict[str, Any] = {
        "fleet": "harbour",
        "device": name,
        "public_key": "",
        "seal_key": "",
        "capabilities": Capabilities(
            os="Linux", arch="x", python="3", agent="1", cpu_count=1, ram_mb=1, disk_mb=1, datasets={"digits": 5}
        ),
        "enrol_id": "",
        "bus_key": "",
        "jwt_issued": 0,
        "jwt_expires": 0,
        "enrolled_at": "",
        "online": True,
    }
    return DeviceRecord(**fields | changes)


def test_those_who_have_the_data_are_invited_or_those_who_are_named() -> None:
    without = device("cam-4").capabilities.model_copy(update={"datasets": {}})
    records = [
        device("cam-2"),
        device("cam-1"),
        device("cam-3", standing="revoked"),
        device("cam-4", capabilities=without),
        device("cam-5", fleet="other"),
    ]
    assert candidates(records, request()) == ["cam-1", "cam-2"]
    assert candidates(records, request(devices=["cam-4", "cam-3", "cam-1"])) == ["cam-1", "cam-4"]
    assert absent([device("cam-1"), device("cam-2", online=False), records[2]], "harbour") == {"cam-2", "cam-3"}
