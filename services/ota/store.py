"""Rollouts in bucket `rollouts`: key `{rollout}` holds the head, key `{rollout}.{device}` one device's turn.

Separate keys, since a value is at most 1 MB and a report should cost one small write. The head is written last when a
rollout is created: turns without a head are what a crash left and are removed at the next load. Every write is a
compare-and-set.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog
from nats.js.errors import KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from services.kit.bus import Bus
from services.kit.errors import PlatformError
from services.ota.rollout import Head, Rollout, Turn
from services.ota.settings import PIPELINE

log = structlog.get_logger()

BUCKET = "rollouts"


class ConflictError(PlatformError):
    """Another instance wrote first; load again and decide again."""

    code = "conflict"


class RolloutStore:
    """A copy of the bucket in memory, written through."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._rollouts: dict[str, Rollout] = {}
        self._revisions: dict[str, int] = {}

    def all(self) -> list[Rollout]:
        """Every rollout, oldest first."""
        return [self._rollouts[key] for key in sorted(self._rollouts)]

    def get(self, rollout: str) -> Rollout | None:
        """One rollout."""
        return self._rollouts.get(rollout)

    def revision(self, rollout: str, device: str) -> int:
        """Revision of a device's turn as stored."""
        return self._revisions[f"{rollout}.{device}"]

    async def load(self) -> None:
        """Read the bucket anew, at start and after a reconnect."""
        heads: dict[str, Head] = {}
        turns: dict[str, dict[str, Turn]] = {}
        revisions: dict[str, int] = {}
        for entry in await self._entries():
            assert entry.value is not None
            assert entry.revision is not None
            revisions[entry.key] = entry.revision
            rollout, _, device = entry.key.partition(".")
            if device:
                turns.setdefault(rollout, {})[device] = Turn.model_validate_json(entry.value)
            else:
                heads[rollout] = Head.model_validate_json(entry.value)
        for orphan in turns.keys() - heads.keys():
            log.info("rollout.unfinished_creation_removed", rollout=orphan)
            await self._purge(orphan)
        self._rollouts = {key: Rollout(head, turns.get(key, {})) for key, head in heads.items()}
        self._revisions = revisions

    async def create(self, rollout: Rollout) -> None:
        """Store a new rollout; it exists once its head is written."""
        key = rollout.head.rollout
        await self._write([(f"{key}.{turn.device}", turn) for turn in rollout.turns.values()])
        await self._write([(key, rollout.head)])
        self._rollouts[key] = rollout

    async def save(self, rollout: Rollout) -> None:
        """Store what changed.

        Raises:
            ConflictError: if another instance wrote first; the copy is loaded anew by then.
        """
        key = rollout.head.rollout
        before = self._rollouts[key]
        changed: list[tuple[str, Head | Turn]] = [
            (f"{key}.{device}", turn) for device, turn in rollout.turns.items() if turn is not before.turns[device]
        ]
        if rollout.head is not before.head:
            changed.append((key, rollout.head))
        try:
            await self._write(changed)
        except KeyWrongLastSequenceError as error:
            await self.load()
            raise ConflictError(f"store rollout {key}: it was changed meanwhile") from error
        self._rollouts[key] = rollout

    async def remove(self, rollout: str) -> None:
        """Forget a rollout."""
        self._rollouts.pop(rollout, None)
        await self._bus.js.purge_stream(f"KV_{BUCKET}", subject=f"$KV.{BUCKET}.{rollout}")
        await self._purge(rollout)

    async def _purge(self, rollout: str) -> None:
        await self._bus.js.purge_stream(f"KV_{BUCKET}", subject=f"$KV.{BUCKET}.{rollout}.>")

    async def _write(self, changed: Sequence[tuple[str, Head | Turn]]) -> None:
        bucket = await self._bus.bucket(BUCKET)
        for start in range(0, len(changed), PIPELINE):
            part = changed[start : start + PIPELINE]
            written = await asyncio.gather(
                *(
                    bucket.update(key, value.model_dump_json().encode(), self._revisions.get(key, 0))
                    for key, value in part
                ),
                return_exceptions=True,
            )
            failures = []
            for (key, _), revision in zip(part, written, strict=True):
                if isinstance(revision, BaseException):
                    failures.append(revision)
                else:
                    self._revisions[key] = revision
            if failures:
                # What was stored of the batch differs from the copy now.
                raise failures[0]

    async def _entries(self) -> list[KeyValue.Entry]:
        watcher = await (await self._bus.bucket(BUCKET)).watchall(ignore_deletes=True)
        found = []
        async for entry in watcher:
            if entry is None:
                break
            found.append(entry)
        await watcher.stop()  # type: ignore[no-untyped-call]
        return found
