"""Whatever happens to an outbox: what a program handed over arrives, or is named in the ledger, which arrives."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edge_runtime.errors import OutboxError
from edge_runtime.letters import outbox, shelf
from edge_runtime.letters.outbox import Entry, Outbox
from edge_runtime.letters.retention import Amount
from edge_runtime.letters.sending import Run
from edge_runtime.letters.store import View
from edge_runtime.settings import LaneLimits, OutboxLimits
from schemas.courier import Losses
from schemas.events import LANES, Untyped
from tests.support.outbox import Bench

LIMITS = OutboxLimits(bulk=LaneLimits(max_age_s=5_000))
MOST = Amount(14, 1 << 20)
lanes = st.sampled_from(LANES)
keys = st.sampled_from([None, None, "a", "b"])


class Courier:
    """Takes what comes in order, like the real one, and remembers it all."""

    def __init__(self) -> None:
        self.marks: dict[tuple[str, str], int] = {}
        self.places: dict[tuple[str, str, int], str] = {}
        self.taken: list[str] = []
        self.reports: dict[str, Losses] = {}

    def take(self, letter) -> None:
        lane = (letter.epoch, letter.lane)
        mark = max(self.marks.get(lane, 0), letter.floor - 1)
        if letter.sequence != mark + 1:
            return
        self.marks[lane] = letter.sequence
        assert self.places.setdefault((*lane, letter.sequence), letter.id) == letter.id, "a number spent twice"
        self.taken.append(letter.id)
        if letter.kind == "losses":
            self.reports[letter.id] = Losses.read(letter.data.encode())

    def receipt(self, epoch: str) -> dict[str, int]:
        return {lane: self.marks.get((epoch, lane), 0) for lane in LANES}


class Life(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.bench = Bench(Path(self.folder.name), LIMITS)
        self.courier = Courier()
        self.added: set[str] = set()
        self.renewed = self.failed = False
        self.vanished: set[str] = set()
        self.other: Outbox | None = None
        self.ahead, outbox.RELEASE_AHEAD = outbox.RELEASE_AHEAD, 0
        self.narrow()

    def narrow(self, outbox: Outbox | None = None) -> None:
        inner = (outbox or self.bench.outbox)._store
        for name in ("_disk_room", "_memory_room"):
            room = getattr(inner, name)
            bounds = replace(room.bounds, total=MOST, lanes=dict.fromkeys(LANES, MOST))
            setattr(inner, name, replace(room, bounds=bounds))

    @property
    def outbox(self) -> Outbox:
        return self.bench.outbox

    @rule(lane=lanes, key=keys, count=st.integers(1, 3))
    def add(self, lane, key, count) -> None:
        entries = [Entry("sample", Untyped(), lane, latest=key) for _ in range(count)]
        with contextlib.suppress(OutboxError):  # full of more urgent ones
            self.added.update(self.outbox.add_many(entries))

    @rule(lane=lanes, key=keys)
    def another_process_adds(self, lane, key) -> None:
        other = self.bench.another()
        self.narrow(other)
        with contextlib.suppress(OutboxError):
            self.added.add(other.add("sample", Untyped(), lane, latest=key))
        other.close()

    @precondition(lambda self: self.other is None and not self.full)
    @rule()
    def the_disk_fails_for_another_process(self) -> None:
        self.other = self.bench.another()
        self.narrow(self.other)
        self.other.database.read("PRAGMA query_only=1")

    @precondition(lambda self: self.other is not None)
    @rule(lane=lanes, key=keys)
    def another_process_adds_in_memory(self, lane, key) -> None:
        assert self.other is not None
        with contextlib.suppress(OutboxError):
            self.added.add(self.other.add("sample", Untyped(), lane, latest=key))

    @precondition(lambda self: self.other is not None and not self.full)
    @rule()
    def the_disk_mends_for_another_process(self) -> None:
        assert self.other is not None
        self.other.database.read("PRAGMA query_only=0")
        self.other._store.bring_back()
        assert self.other.storage == "disk"
        self.other.close()
        self.other = None

    @rule(lane=lanes, count=st.integers(1, 6), answered=st.booleans())
    def send(self, lane, count, answered) -> None:
        run = self.outbox.run_above(lane, self.outbox.lanes().get(lane, (0, 0))[1])
        if run is not None:
            for letter in self.outbox.load(lane, Run(run.first, min(run.last, run.first + count - 1))):
                self.courier.take(letter)
        if answered:
            self.outbox.receipt(self.courier.receipt(self.outbox.epoch))

    @rule(seconds=st.sampled_from([1, 400, 3_000, 90_000]))
    def time_passes(self, seconds) -> None:
        self.bench.now += seconds
        self.outbox.trim()

    @rule()
    def report(self) -> None:
        self.outbox.report_losses()

    @precondition(lambda self: not self.full)
    @rule(clean=st.booleans())
    def restart(self, clean) -> None:
        old = self.outbox
        if clean:
            old.close()
        self.bench.open()
        self.narrow()
        old.close()

    @rule()
    def renew(self) -> None:
        self.outbox.renew_epoch()
        self.renewed = True

    @precondition(lambda self: not self.full)
    @rule()
    def disk_fails(self) -> None:
        self.failed = True
        self.outbox.database.read("PRAGMA query_only=1")

    @precondition(lambda self: self.full)
    @rule()
    def disk_mends(self) -> None:
        self.outbox.database.read("PRAGMA query_only=0")
        self.outbox.trim()
        assert self.outbox.storage == "disk"

    @precondition(lambda self: self.outbox.storage == "memory")
    @rule()
    def process_dies_with_what_it_had_in_memory(self) -> None:
        annex, self.outbox._store.annex = self.outbox._store.annex, None
        self.vanished.update(row["id"] for row in annex.letters() if row["state"] == "waiting")
        self.vanished.update(row[0] for row in annex.connection.execute("SELECT id FROM lost"))
        annex.connection.close()
        self.outbox.database.close()
        self.bench.open()
        self.narrow()

    @property
    def full(self) -> bool:
        return bool(self.outbox.database.read("PRAGMA query_only")[0][0])

    @invariant()
    def every_number_is_accounted_for(self) -> None:
        assert not self.outbox.mend(), "nothing of this version's own is taken for torn"
        with self.outbox._store.looking() as view:
            self._check(view)

    def _check(self, view: View) -> None:
        for lane in LANES:
            for part in view.parts(lane):
                rows = part.connection.execute(
                    "SELECT sequence FROM letters WHERE epoch = ? AND lane = ? AND sequence BETWEEN ? AND ?",
                    (part.epoch, lane, part.first, part.last),
                )
                held = {row[0] for row in rows}
                lost = {
                    number
                    for first, last in part.connection.execute(
                        "SELECT first, last FROM losses WHERE epoch = ? AND lane = ?", (part.epoch, lane)
                    )
                    for number in range(first, last + 1)
                }
                assert not held & lost
                missing = set(range(part.first, part.last + 1)) - held - lost
                assert all(number <= self.courier.marks.get((part.epoch, lane), 0) for number in missing)
        for connection in view.all:
            counted = connection.execute("SELECT state, count(*), sum(bytes) FROM letters GROUP BY state").fetchall()
            for state, letters, size in counted:
                assert shelf.amount(connection, state) == Amount(letters, size)
            assert shelf.amount(connection, "waiting").fits(MOST)

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        try:
            if self.full:
                self.disk_mends()
            if self.other is not None:
                self.the_disk_mends_for_another_process()
            self.deliver_all()
            self.judge()
        finally:
            outbox.RELEASE_AHEAD = self.ahead
            self.outbox.close()
            self.folder.cleanup()

    def deliver_all(self) -> None:
        while self.outbox.report_losses() or self.outbox.summary().waiting.letters:
            for lane in LANES:
                self.drain(lane)

    def drain(self, lane: str) -> None:
        while (run := self.outbox.run_above(lane, self.outbox.lanes().get(lane, (0, 0))[1])) is not None:
            for letter in self.outbox.load(lane, run):
                self.courier.take(letter)
            self.outbox.receipt(self.courier.receipt(self.outbox.epoch))

    def judge(self) -> None:
        told = [loss for report in self.courier.reports.values() for loss in report.losses]
        numbers = [(loss.epoch, loss.lane, n) for loss in told for n in range(loss.first, loss.last + 1)]
        assert len(numbers) == len(set(numbers)), "a loss was told twice"
        names = {name.id for loss in told for name in loss.names}
        assert self.added <= set(self.courier.taken) | names | self.vanished, "a letter is gone without a word"
        if not self.renewed:
            unnamed = sum(loss.letters - len(loss.names) for loss in told)
            assert unnamed >= len(self.vanished - set(self.courier.taken) - names), "a letter is not even counted"
            assert len(self.courier.taken) == len(set(self.courier.taken)), "a letter was taken twice"
        assert all(loss.letters == len(loss.names) for loss in told if loss.reason != "disk")
        if self.failed:
            return  # what was sent could not be noted for the other process
        denied = {name.id for loss in told if not loss.maybe_arrived for name in loss.names}
        assert not denied & set(self.courier.taken), "the ledger denies what arrived"
        replaced = {name.id for loss in told if loss.reason == "superseded" for name in loss.names}
        assert not replaced & set(self.courier.taken), "a letter was replaced after it was sent"


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
