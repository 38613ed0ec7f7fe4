"""How every device is doing: one row per device, a column per number, held in memory. Pure.

This is the hot path of the platform: nothing of a heartbeat outlives its batch but its numbers and the last raw one of
each device, which is parsed again when somebody asks for it.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from schemas.courier import Hello
from schemas.errors import TopicError
from schemas.events import MAX_STATE_BYTES, Event, event_type
from schemas.ids import Address
from schemas.registry import Gone, Heartbeat
from schemas.topics import STATES, Channel, Topic, parse_subject
from services.kit.devices import Standing

COLUMNS = (
    "uptime_s",
    "load",
    "cpu_ratio",
    "ram_used_mb",
    "ram_free_mb",
    "disk_free_mb",
    "battery_percent",
    "temp_c",
    "trust_age_s",
    "restarts",
    "outbox_letters",
    "outbox_dropped",
)
"""Numbers of a heartbeat; NaN where the device has no such reading."""

MAX_BAD = 64
"""Bad words of one batch that are shown to the caller; all are counted."""

_BEFORE_ENROLMENT = frozenset({"hello", "got"})
_FIRST_ROWS = 1_024
_HEARTBEAT_TYPE = event_type("heartbeat")
_READERS = {
    "heartbeat": TypeAdapter(Event[Heartbeat]).validator,
    "hello": TypeAdapter(Event[Hello]).validator,
    "gone": TypeAdapter(Event[Gone]).validator,
}
_read_heartbeat = _READERS["heartbeat"].validate_json

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bad:
    """A word that does not fit the contract."""

    subject: str
    kind: str
    payload: bytes
    reason: str
    message: str


@dataclass(slots=True)
class Absorbed:
    """What became of a batch."""

    heartbeats: int = 0
    passed_over: Tally[str] = field(default_factory=Tally)
    """First words of devices that are not enrolled yet (`unknown`), or may not speak, by standing."""
    bad: Tally[tuple[str, str]] = field(default_factory=Tally)
    """How many words did not fit, by kind and reason."""
    shown: list[Bad] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Sight:
    """One device, as last seen; times in seconds since the epoch."""

    online: bool
    last_seen: float | None
    heartbeat: bytes | None


@dataclass(frozen=True, slots=True)
class _Route:
    row: int
    kind: str
    source: str


class Table:
    """Grows by doubling; a device keeps its row."""

    def __init__(self) -> None:
        self._addresses: list[Address] = []
        self._rows: dict[Address, int] = {}
        self._barred: dict[Address, Standing] = {}
        self._routes: dict[str, _Route] = {}
        self._sessions: list[str] = []
        self._raw: list[bytes | None] = []
        self._known = np.zeros(_FIRST_ROWS, np.bool_)
        self._online = np.zeros(_FIRST_ROWS, np.bool_)
        self._seen: Floats = np.full(_FIRST_ROWS, np.nan)
        self._quiet_since: Floats = np.zeros(_FIRST_ROWS)
        self._values: Floats = np.full((len(COLUMNS), _FIRST_ROWS), np.nan)
        self._flipped: set[int] = set()

    def __len__(self) -> int:
        return int(self._known.sum())

    @property
    def online_count(self) -> int:
        """Devices that are online."""
        return int(self._online.sum())

    def know(self, address: Address, *, online: bool, now: float) -> None:
        """Take in a device that may speak; its silence counts from `now`. One that is in already stays as it is."""
        self._barred.pop(address, None)
        row = self._rows.get(address)
        if row is None:
            row = self._add(address)
        if not self._known[row]:
            self._known[row] = True
            self._online[row] = online
            self._quiet_since[row] = now

    def forget(self, address: Address, standing: Standing) -> None:
        """Hear no more of a device, which has this standing."""
        self._barred[address] = standing
        row = self._rows.get(address)
        if row is not None and self._known[row]:
            self._known[row] = False
            self._online[row] = False
            self._flipped.discard(row)
            for kind in STATES:
                self._routes.pop(Topic(address, Channel.STATE, kind).subject, None)

    def absorb(self, batch: Sequence[tuple[str, bytes, float]]) -> Absorbed:
        """Take words as (subject, payload, time at which the stream took it), in order."""
        result = Absorbed()
        routes = self._routes
        rows: list[int] = []
        times: list[float] = []
        values: list[tuple[float | None, ...]] = []
        for subject, payload, time in batch:
            route = routes.get(subject) or self._route(subject)
            if route is None:
                self._stray(result, subject, payload)
                continue
            if route.kind != "heartbeat":
                self._write(rows, times, values)
                self._other(route, subject, payload, time, result)
                continue
            try:
                event = _read_heartbeat(payload)
            except ValidationError as error:
                _refuse(result, Bad(subject, "heartbeat", payload, _reason(payload), _first_problem(error)))
                continue
            if event.source != route.source or event.type != _HEARTBEAT_TYPE or len(payload) > MAX_STATE_BYTES:
                _refuse(result, _mismatch(route, subject, payload, event))
                continue
            data = event.data
            outbox = data.outbox
            row = route.row
            self._sessions[row] = data.session
            self._raw[row] = payload
            rows.append(row)
            times.append(time)
            values.append(
                (
                    data.uptime_s,
                    data.load,
                    data.cpu_ratio,
                    data.ram_used_mb,
                    data.ram_free_mb,
                    data.disk_free_mb,
                    data.battery_percent,
                    data.temp_c,
                    data.trust_age_s,
                    data.restarts,
                    outbox.letters if outbox else None,
                    outbox.dropped if outbox else None,
                )
            )
            result.heartbeats += 1
        self._write(rows, times, values)
        return result

    def sweep(self, horizon: float, silence_s: float) -> int:
        """Count devices as offline that said nothing in the `silence_s` before `horizon`; returns how many."""
        silent = np.flatnonzero(self._online & (self._quiet_since < horizon - silence_s))
        self._set_online(silent, online=False)
        return len(silent)

    def restart(self, now: float) -> None:
        """Count everybody's silence from `now`: the bus was away, so nobody could be heard."""
        np.maximum(self._quiet_since, now, out=self._quiet_since)

    def take_flips(self, limit: int) -> list[Address]:
        """Devices whose presence changed since they were last taken."""
        rows = [self._flipped.pop() for _ in range(min(limit, len(self._flipped)))]
        return [self._addresses[row] for row in rows]

    def put_back(self, address: Address) -> None:
        """Have a flip taken again: it could not be written down."""
        row = self._rows.get(address)
        if row is not None and self._known[row]:
            self._flipped.add(row)

    def sight(self, address: Address) -> Sight:
        """What was last seen of a device."""
        row = self._rows.get(address)
        if row is None or not self._known[row]:
            return Sight(online=False, last_seen=None, heartbeat=None)
        seen = float(self._seen[row])
        return Sight(bool(self._online[row]), None if np.isnan(seen) else seen, self._raw[row])

    def column(self, name: str) -> Floats:
        """A reading of all devices that are online; NaN where one has none."""
        values: Floats = self._values[COLUMNS.index(name)][self._online]
        return values

    def _other(self, route: _Route, subject: str, payload: bytes, time: float, result: Absorbed) -> None:
        row = route.row
        reader = _READERS.get(route.kind)
        if reader is None:
            self._heard(row, time)
            return
        try:
            event = reader.validate_json(payload)
        except ValidationError as error:
            _refuse(result, Bad(subject, route.kind, payload, _reason(payload), _first_problem(error)))
            return
        if event.source != route.source or event.kind != route.kind or len(payload) > MAX_STATE_BYTES:
            _refuse(result, _mismatch(route, subject, payload, event))
        elif route.kind == "hello":
            self._sessions[row] = event.data.session
            self._heard(row, time)
        elif event.data.session == self._sessions[row]:
            # The last will of an older session says nothing of the one that speaks now.
            self._seen[row] = time
            self._set_online(np.array([row]), online=False)

    def _heard(self, row: int, time: float) -> None:
        self._seen[row] = time
        self._quiet_since[row] = max(self._quiet_since[row], time)
        self._set_online(np.array([row]), online=True)

    def _write(self, rows: list[int], times: list[float], values: list[tuple[float | None, ...]]) -> None:
        if not rows:
            return
        # Of several heartbeats of one device the last wins: numpy assigns repeated indices in order.
        index = np.array(rows)
        self._values[:, index] = np.array(values, np.float64).T
        self._seen[index] = times
        self._quiet_since[index] = np.maximum(self._quiet_since[index], times)
        self._set_online(index, online=True)
        rows.clear()
        times.clear()
        values.clear()

    def _set_online(self, index: npt.NDArray[np.int64], *, online: bool) -> None:
        changed = index[self._online[index] != online]
        if len(changed):
            self._online[changed] = online
            self._flipped.update(changed.tolist())

    def _route(self, subject: str) -> _Route | None:
        try:
            topic = parse_subject(subject)
        except TopicError:
            return None
        row = self._rows.get(topic.address)
        if row is None or not self._known[row]:
            return None
        route = self._routes[subject] = _Route(row, topic.kind, topic.address.source)
        return route

    def _stray(self, result: Absorbed, subject: str, payload: bytes) -> None:
        try:
            topic = parse_subject(subject)
        except TopicError as error:
            # A kind that the sender made up must not become a label.
            _refuse(result, Bad(subject, "unknown", payload, error.reason, str(error)))
            return
        standing = self._barred.get(topic.address)
        if topic.kind in _BEFORE_ENROLMENT:
            result.passed_over[standing or "unknown"] += 1
        elif standing is not None:
            message = f"{topic.kind} of {topic.address}, which is {standing}: see `causeway device show`"
            _refuse(result, Bad(subject, topic.kind, payload, standing, message))
        else:
            message = f"{topic.kind} of {topic.address}, which is not enrolled"
            _refuse(result, Bad(subject, topic.kind, payload, "unknown_device", message))

    def _add(self, address: Address) -> int:
        row = len(self._addresses)
        if row == len(self._known):
            self._grow()
        self._addresses.append(address)
        self._rows[address] = row
        self._sessions.append("")
        self._raw.append(None)
        return row

    def _grow(self) -> None:
        size = len(self._known)
        self._known = np.concatenate([self._known, np.zeros(size, np.bool_)])
        self._online = np.concatenate([self._online, np.zeros(size, np.bool_)])
        self._seen = np.concatenate([self._seen, np.full(size, np.nan)])
        self._quiet_since = np.concatenate([self._quiet_since, np.zeros(size)])
        self._values = np.concatenate([self._values, np.full((len(COLUMNS), size), np.nan)], axis=1)


def read_heartbeat(payload: bytes) -> Heartbeat:
    """Parse a heartbeat that the table took before."""
    heartbeat: Heartbeat = _read_heartbeat(payload).data
    return heartbeat


def _refuse(result: Absorbed, bad: Bad) -> None:
    result.bad[bad.kind, bad.reason] += 1
    if len(result.shown) < MAX_BAD:
        result.shown.append(bad)


def _mismatch(route: _Route, subject: str, payload: bytes, event: Event[Heartbeat]) -> Bad:
    if len(payload) > MAX_STATE_BYTES:
        return Bad(subject, route.kind, payload, "oversized", f"{len(payload)} bytes exceed {MAX_STATE_BYTES}")
    if event.source != route.source:
        message = f"{route.kind} of {event.source} on the topic of {route.source}"
        return Bad(subject, route.kind, payload, "wrong_source", message)
    reason = "unsupported_version" if event.kind == route.kind else "wrong_kind"
    return Bad(subject, route.kind, payload, reason, f"type {event.type!r} on the topic for {event_type(route.kind)}")


def _reason(payload: bytes) -> str:
    return "oversized" if len(payload) > MAX_STATE_BYTES else "malformed"


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{'.'.join(map(str, problem['loc'])) or 'body'}: {problem['msg']}"
