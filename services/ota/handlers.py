"""Requests and reports in, letters and events out. The shell around `rollout`."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import structlog
from ulid import ULID

from schemas.errors import MessageError
from schemas.ids import Address
from schemas.ota import Assign
from services.kit import rpc
from services.kit.api.depot import ReleaseRequest, ReleaseView
from services.kit.api.ota import CreateRequest, RolloutRequest
from services.kit.devices import DeviceBook
from services.kit.errors import NotFoundError, RefusedError
from services.kit.intake import Arrival
from services.kit.mailbox import Draft, Mailbox
from services.kit.rpc import Nothing
from services.kit.service import Service, utc_now
from services.ota import rollout as core
from services.ota.metrics import REPORTS, count_rollouts
from services.ota.rollout import Action, AssignTo, Head, OpenWave, Rollout, Turn
from services.ota.settings import MAX_ROLLOUTS, PIPELINE, QUIET_START_S
from services.ota.store import ConflictError, RolloutStore
from services.ota.views import event, view

log = structlog.get_logger()

ABORTED = "aborted by an operator"


class Rollouts:
    """Everything that the ota service does; one decision at a time."""

    def __init__(self, service: Service, store: RolloutStore, mailbox: Mailbox, book: DeviceBook) -> None:
        self._service = service
        self._store = store
        self._mailbox = mailbox
        self._book = book
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._judge_from = 0.0
        self._unposted: set[str] = set()

    async def start(self) -> None:
        """Load what is stored and post again what a crash may have kept back; also after a reconnect."""
        async with self._lock:
            self._judge_from = asyncio.get_running_loop().time() + QUIET_START_S
            await self._store.load()
            self._unposted = {rollout.head.rollout for rollout in self._store.all()}
        self._wake.set()

    async def create(self, request: CreateRequest) -> dict[str, Any]:
        """Verb `create`."""
        asked = ReleaseRequest(model=request.model, version=request.version)
        answer = await rpc.call(self._service.bus, "depot", "show", asked)
        release = ReleaseView.model_validate(answer)
        _check_release(release, request.fleet)
        rollout = self._new(request, release)
        async with self._lock:
            self._check_free(rollout.head)
            await self._make_room()
            await self._store.create(rollout)
            await self._service.announce("rollout-created", event(rollout))
        self._wake.set()
        return view(rollout)

    async def list_rollouts(self, _: Nothing) -> list[dict[str, Any]]:
        """Verb `list`: newest first, with counts and without devices; `show` has those."""
        return [view(rollout, devices=False) for rollout in reversed(self._store.all())]

    async def show(self, request: RolloutRequest) -> dict[str, Any]:
        """Verb `show`."""
        return view(self._find(request.rollout))

    async def abort(self, request: RolloutRequest) -> dict[str, Any]:
        """Verb `abort`."""
        async with self._lock:
            rollout = core.abort(self._find(request.rollout), ABORTED)
            await self._store.save(rollout)
            await self._service.announce("rollout-aborted", event(rollout))
        return view(rollout)

    async def on_report(self, arrival: Arrival) -> None:
        """A verified `report` letter.

        Raises:
            MessageError: `unknown_rollout` or `unknown_device`; such a report is set aside.
        """
        report, address = arrival.letter.data, arrival.address
        async with self._lock:
            rollout = self._store.get(report.rollout)
            if rollout is None:
                raise MessageError(f"report of {address}: no rollout {report.rollout}", reason="unknown_rollout")
            if rollout.head.fleet != address.fleet or address.device not in rollout.turns:
                raise MessageError(
                    f"report of {address}: it is not part of rollout {report.rollout}", reason="unknown_device"
                )
            after = core.apply_report(rollout, address.device, report, arrival.letter.id, arrival.stored_at)
            if after is rollout:
                return
            await self._store.save(after)
        REPORTS.labels(report.outcome).inc()
        self._wake.set()

    async def work(self, interval_s: float) -> None:
        """Move every rollout on, after each change and at least every `interval_s`; does not return."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await self._wake.wait()
            self._wake.clear()
            for rollout in self._store.all():
                if rollout.head.state == "running":
                    await self._move(rollout.head.rollout)
            count_rollouts(self._store.all())

    async def _move(self, key: str) -> None:
        try:
            async with self._lock:
                if key in self._unposted:
                    await self._post_unheard(self._find(key))
                while actions := self._plan(self._find(key)):
                    for action in actions:
                        await self._do(self._find(key), action)
        except ConflictError as error:
            log.info("rollout.decided_again", rollout=key, reason=str(error))
        except Exception:  # what is not stored is planned again at the next turn, the other rollouts go on
            log.exception("rollout.retried", rollout=key)

    def _plan(self, rollout: Rollout) -> list[Action]:
        judge = asyncio.get_running_loop().time() >= self._judge_from
        return core.plan(rollout, utc_now(), judge_silence=judge)

    async def _do(self, rollout: Rollout, action: Action) -> None:
        after = core.carry_out(rollout, action)
        if isinstance(action, AssignTo):
            # Taken back once the letters are in their mailboxes, whatever happens in between.
            self._unposted.add(rollout.head.rollout)
        await self._store.save(after)
        log.info("rollout.moved", rollout=after.head.rollout, action=type(action).__name__, wave=after.head.wave)
        if isinstance(action, AssignTo):
            await self._post_unheard(after)
        elif isinstance(action, OpenWave):
            await self._service.announce("rollout-wave", event(after))
        elif after.head.state != "running":
            await self._service.announce(f"rollout-{after.head.state}", event(after))

    async def _post_unheard(self, rollout: Rollout) -> None:
        now = utc_now()
        unheard = [t for t in rollout.turns.values() if t.state in {"assigned", "silent"} and not t.applied]
        drafts = [draft for turn in unheard if (draft := self._draft(rollout, turn)).expires > now]
        for start in range(0, len(drafts), PIPELINE):
            await asyncio.gather(*(self._mailbox.post(draft, now) for draft in drafts[start : start + PIPELINE]))
        self._unposted.discard(rollout.head.rollout)

    def _draft(self, rollout: Rollout, turn: Turn) -> Draft:
        head = rollout.head
        begin_by = rollout.begin_by(turn.wave)
        assert begin_by is not None
        assign = Assign(
            model=head.model,
            target=head.target,
            version=head.version,
            sha256=head.sha256,
            length=head.length,
            seq=head.seq,
            action="install",
            rollout=head.rollout,
            wave=turn.wave,
            gates=head.gates,
            deadline=begin_by,
        )
        return Draft(
            kind="assign",
            address=Address(head.fleet, turn.device),
            data=assign,
            letter_id=turn.letter,
            slot=head.model,
            revision=self._store.revision(head.rollout, turn.device),
            expires=begin_by,
        )

    def _new(self, request: CreateRequest, release: ReleaseView) -> Rollout:
        key = str(ULID())
        placed = core.split(self._devices(request), request.waves, request.canary, key)
        head = Head(
            rollout=key,
            model=request.model,
            version=release.version,
            target=release.target,
            sha256=release.artifact.sha256,
            length=release.artifact.length,
            seq=release.custom.seq,
            fleet=request.fleet,
            gates=request.gates,
            waves=max(placed.values()) + 1,
            deadline_s=request.deadline_s,
            max_failed_ratio=request.max_failed_ratio,
        )
        return Rollout(head, {d: Turn(device=d, wave=wave, letter=str(ULID())) for d, wave in placed.items()})

    def _devices(self, request: CreateRequest) -> list[str]:
        enrolled = {
            record.device
            for record in self._book.all()
            if record.fleet == request.fleet and record.standing == "enrolled"
        }
        if request.devices is not None and (unknown := sorted(set(request.devices) - enrolled)):
            raise NotFoundError(
                f"roll {request.model} out: not enrolled in fleet {request.fleet}: {', '.join(unknown[:10])}; "
                "see `causeway device list`"
            )
        devices = sorted(enrolled if request.devices is None else set(request.devices))
        if not devices:
            raise RefusedError(
                f"roll {request.model} out: fleet {request.fleet} has no enrolled device; "
                "enrol one with `causeway device enrol`"
            )
        return devices

    def _check_free(self, head: Head) -> None:
        for other in self._store.all():
            if (other.head.state, other.head.model, other.head.fleet) == ("running", head.model, head.fleet):
                raise RefusedError(
                    f"roll {head.model} {head.version} out: rollout {other.head.rollout} of {other.head.version} "
                    f"still runs in {head.fleet}; wait for it, or end it with `causeway rollout abort`"
                )

    async def _make_room(self) -> None:
        rollouts = self._store.all()
        if len(rollouts) < MAX_ROLLOUTS:
            return
        over = [rollout.head.rollout for rollout in rollouts if rollout.head.state != "running"]
        if not over:
            raise RefusedError(
                f"create a rollout: {len(rollouts)} run already; abort one with `causeway rollout abort`"
            )
        await self._store.remove(over[0])

    def _find(self, key: str) -> Rollout:
        rollout = self._store.get(key)
        if rollout is None:
            raise NotFoundError(f"there is no rollout {key}; see `causeway rollout list`")
        return rollout


def _check_release(release: ReleaseView, fleet: str) -> None:
    named = f"roll {release.model} {release.version} out to {fleet}"
    if release.custom.fleets and fleet not in release.custom.fleets:
        raise RefusedError(f"{named}: it is signed for fleets {', '.join(release.custom.fleets)} only")
    if release.revoked:
        raise RefusedError(f"{named}: it was revoked")
    if release.custom.seq < release.floor:
        raise RefusedError(f"{named}: its seq {release.custom.seq} is below the model's floor {release.floor}")
