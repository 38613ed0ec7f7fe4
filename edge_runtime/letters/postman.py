"""Sends what the outbox holds, in order and within a window, until it is receipted. The shell around `sending`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from edge_runtime.clock import FlooredClock
from edge_runtime.errors import OutboxError
from edge_runtime.identity import Identity
from edge_runtime.letters.outbox import Outbox, Stored
from edge_runtime.letters.sending import (
    Flight,
    Grant,
    RoundTrip,
    Run,
    Turns,
    cut_short,
    is_in_doubt,
    plan,
    recalled,
    receipted,
    sample_s,
    under_way,
)
from edge_runtime.letters.signing import signed
from edge_runtime.letters.trouble import Trouble
from edge_runtime.link.link import Link, Urgency
from edge_runtime.logs import Log
from schemas.errors import ContractError
from schemas.events import LANES, Lane
from schemas.topics import Channel, Topic

log = Log(__name__)

LETTER_LIFE = timedelta(days=7)
"""From its sending: how long a copy on its way is worth anything."""
POLL_S = 1.0
"""How soon a letter of another process on the same outbox is noticed."""
LOAD_LETTERS = 8
"""Read from the outbox at a time; a slow link takes one now and then."""
_ALL: Literal["all"] = "all"
_URGENCY: dict[Lane, Urgency] = {"control": Urgency.CONTROL, "normal": Urgency.REST, "bulk": Urgency.REST}


@dataclass(frozen=True, slots=True)
class Post:
    """What the postman works with."""

    outbox: Outbox
    link: Link
    identity: Callable[[], Identity]
    clock: FlooredClock
    granted: Callable[[], Grant] = Grant
    """What the state of link and device allows."""
    silent: Callable[[], None] = lambda: None
    """Told when receipts stay away time and again."""
    only: str | None = None
    """The one kind that may be sent: a device with nothing but a token may only enrol."""


class Postman:
    """Idle until `begin`, then sends; `stop` when the link is down."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._flights: dict[Lane, Flight] = {}
        self._active = False
        self._wake = asyncio.Event()
        self._turns = Turns()
        self._highest: dict[Lane, int] = {}
        self._stuck: str | None = None
        self._trouble = {part: Trouble(f"postman {part}") for part in (*LANES, _ALL)}
        self.round_trip = RoundTrip()
        self.sent = 0
        """Letters given to the link since the start, repetitions included."""
        self.sent_again = 0
        self.problem: str | None = None

    def begin(self, marks: Mapping[Lane, int], answered_s: float | None = None) -> None:
        """Start from the courier's marks; a lane that it does not name is at 0.

        Args:
            marks: by lane.
            answered_s: how long hello took, there and back, if that is known.
        """
        self._flights = {lane: Flight(mark=marks.get(lane, 0), sent=marks.get(lane, 0)) for lane in LANES}
        self._highest = dict.fromkeys(LANES, 0)
        path_s = self._post.link.measured().round_trip_s
        if path_s is not None:
            # Another connection may go another way; what was learned of a slow one would make waits long for nothing.
            self.round_trip = RoundTrip().with_sample(max(path_s, answered_s or 0.0))
        self._active = True
        self._wake.set()

    def stop(self) -> None:
        """Send nothing until the next `begin`."""
        self._active = False

    def wake(self) -> None:
        """There may be something to send."""
        self._wake.set()

    def receipt(self, marks: Mapping[Lane, int]) -> None:
        """Take in marks; lanes that are not named keep theirs."""
        now = time.monotonic()
        for lane, mark in marks.items():
            before = self._flights.get(lane, Flight())
            took_s = sample_s(before, mark, now)
            if took_s is not None:
                self.round_trip = self.round_trip.with_sample(took_s)
            if mark < before.mark:
                log.warning("letters.mark_went_back", lane=lane, mark=mark, was=before.mark)
            self._flights[lane] = receipted(before, mark, now)
        self._wake.set()

    def resend_from(self, lane: Lane, sequence: int) -> None:
        """Send again what is still here from `sequence` on; without a link it waits for a bundle.

        Raises:
            OutboxError: if the disk does not do its part.
        """
        if self._active:
            self._flights[lane] = recalled(self._flights[lane], sequence, time.monotonic())
            self._wake.set()
        else:
            outbox = self._post.outbox
            outbox.receipt({lane: min(outbox.lanes().get(lane, (0, 0))[1], sequence - 1)})

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            self._wake.clear()
            timeout = POLL_S
            if self._active and not self._rests(_ALL):
                due = self._try()
                if due is not None:
                    timeout = min(POLL_S, max(0.01, due - time.monotonic()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._wake.wait()

    def _try(self) -> float | None:
        """Send what may be sent, whatever fails; returns when to look again."""
        try:
            due = self._pump()
        except OutboxError as error:
            if self.problem != str(error):
                log.error("outbox.failed", reason=error.reason, message=str(error))
            self.problem = str(error)
            return None
        except Exception as error:  # noqa: BLE001 - it would come again at every start
            self._failed(_ALL, error)
            due = None
        else:
            self._trouble[_ALL].passed()
        self.problem = next((trouble.problem for trouble in self._trouble.values() if trouble.problem), None)
        return due

    def _rests(self, part: Lane | Literal["all"]) -> bool:
        return time.monotonic() < self._trouble[part].until

    @contextlib.contextmanager
    def _contained(self, lane: Lane) -> Iterator[None]:
        """What nobody expected in one lane stops no other; no letter is passed over for it."""
        try:
            yield
        except OutboxError:
            raise
        except Exception as error:  # noqa: BLE001 - a torn row, say
            self._failed(lane, error)

    def _failed(self, part: Lane | Literal["all"], error: Exception) -> None:
        self._trouble[part].failed(error, time.monotonic())
        try:
            self._post.outbox.mend()  # what is torn now stood well when the file was opened
        except Exception:  # the disk's, or what it could not put right either
            log.exception("outbox.not_mended")

    def _pump(self) -> float | None:
        """Send what may be sent; returns when to look again."""
        granted, moving = self._post.granted(), self._post.link.measured().backlog_bytes > 0
        self._post.link.use_congestion(granted.congestion)
        runs: dict[Lane, Run] = {}
        dues = []
        for lane in LANES:
            if lane == "bulk" and (granted.bulk == "held" or (granted.bulk == "yields" and runs)):
                continue
            if self._rests(lane):
                continue
            with self._contained(lane):
                run, due = self._planned(lane, granted.window, moving=moving)
                if run is not None:
                    runs[lane] = run
                if due is not None:
                    dues.append(due)
        sent: dict[Lane, int] = {lane: run.first - 1 for lane, run in runs.items()}
        try:
            self._send(runs, sent)
        finally:
            for lane, run in runs.items():
                if sent[lane] < run.last:
                    self._flights[lane] = cut_short(self._flights[lane], sent[lane])
        for lane in runs:
            if not self._rests(lane):
                self._trouble[lane].passed()
        return min(dues, default=None)

    def _planned(self, lane: Lane, window: int, *, moving: bool) -> tuple[Run | None, float | None]:
        now, flight = time.monotonic(), self._flights[lane]
        if moving:
            flight = under_way(flight, now)
        held = self._post.outbox.run_above(lane, flight.mark)
        decision = plan(flight, held, now, self.round_trip.wait_s, window)
        if is_in_doubt(flight, decision.flight):
            self._post.silent()
        self._flights[lane] = decision.flight
        if held is None:
            self._trouble[lane].passed()
        return decision.run, decision.due

    def _send(self, runs: Mapping[Lane, Run], sent: dict[Lane, int]) -> None:
        """Control first, then the others in turns; `sent` says up to where the link took each."""
        letters = {lane: self._letters(lane, run) for lane, run in runs.items()}
        with self._contained("control"):
            for letter in letters.pop("control", ()):
                if not self._post.link.room(Urgency.CONTROL) or not self._send_one(letter):
                    break
                sent["control"] = letter.sequence
        next_of: dict[Lane, Stored] = {}
        while True:
            for lane in [lane for lane in letters if lane not in next_of]:
                loaded = None
                with self._contained(lane):
                    loaded = next(letters[lane], None)
                if loaded is None:
                    del letters[lane]
                else:
                    next_of[lane] = loaded
            if not next_of:
                break
            lane = self._turns.next(next_of)
            letter = next_of.pop(lane)
            if not self._post.link.room(Urgency.REST, len(letter.data) * 4 // 3):
                break  # not a lighter one in its place: that would never let a heavy one pass
            taken = False
            with self._contained(lane):
                taken = self._send_one(letter)
            if not taken:
                del letters[lane]
                continue
            self._turns = self._turns.charged(lane, len(letter.data), letters)
            sent[lane] = letter.sequence

    def _letters(self, lane: Lane, run: Run) -> Iterator[Stored]:
        first = run.first
        while first <= run.last:
            loaded = self._post.outbox.load(lane, Run(first, min(run.last, first + LOAD_LETTERS - 1)))
            if not loaded:
                return
            yield from loaded
            first = loaded[-1].sequence + 1

    def _send_one(self, letter: Stored) -> bool:
        urgency = _URGENCY[letter.lane]
        if self._post.only not in {None, letter.kind}:
            return False
        identity, clock = self._post.identity(), self._post.clock
        try:
            raw = signed(letter, identity, clock.now(), clock.life(LETTER_LIFE))
        except ContractError as error:
            self._give_up(letter, error)
            return False
        if not self._post.link.publish(Topic(identity.address, Channel.LETTER, letter.kind).mqtt, raw, urgency):
            return False
        self.sent += 1
        self.sent_again += letter.sequence <= self._highest[letter.lane]
        self._highest[letter.lane] = max(self._highest[letter.lane], letter.sequence)
        return True

    def _give_up(self, letter: Stored, error: ContractError) -> None:
        """`Outbox.add` lets nothing in that cannot be sent; a file that is older, or was changed, may hold it."""
        if self._post.outbox.give_up(letter, "unsendable"):
            self._wake.set()  # for those behind it
        elif letter.id == self._stuck:
            return  # said already; it waits for the disk
        self._stuck = letter.id
        log.error("letters.unsendable", letter=letter.id, kind=letter.kind, reason=str(error))
