"""Brings stored letters to their handlers: one slot in order, different slots at the same time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from edge_runtime.errors import EdgeError, OutboxError
from edge_runtime.letters.inbox import Inbox
from edge_runtime.logs import Log
from edge_runtime.ports import LetterHandler
from schemas.events import DownLetter

log = Log(__name__)

SlotKey = tuple[str, str]
Failed = Callable[[DownLetter[Any], str, Exception], None]


class Dispatcher:
    """Runs handlers and notes in the inbox what is handled."""

    def __init__(self, inbox: Inbox, failed: Failed) -> None:
        """`failed` is told of letters whose handler raised; they count as handled."""
        self._inbox = inbox
        self._failed = failed
        self._handlers: dict[str, list[LetterHandler]] = {}
        self._lines: dict[SlotKey, deque[DownLetter[Any]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._present: set[str] = set()

    def register(self, handlers: Iterable[LetterHandler]) -> None:
        """Add handlers; a kind may have several, which are called in turn."""
        for handler in handlers:
            for kind in handler.kinds:
                self._handlers.setdefault(kind, []).append(handler)

    def submit(self, letter: DownLetter[Any], kind: str) -> None:
        """Queue a stored letter; a letter that is queued already is not queued again."""
        if letter.id in self._present:
            return
        self._present.add(letter.id)
        key = (kind, letter.slot)
        if key in self._lines:
            self._lines[key].append(letter)
            return
        self._lines[key] = deque([letter])
        task = asyncio.create_task(self._serve(key), name=f"letters {kind} {letter.slot}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Stop; what is not handled is dispatched again at the next start."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, key: SlotKey) -> None:
        line = self._lines[key]
        while line:
            letter = line.popleft()
            await self._handle(letter, key[0])
            self._present.discard(letter.id)
        del self._lines[key]

    async def _handle(self, letter: DownLetter[Any], kind: str) -> None:
        handlers = self._handlers.get(kind, [])
        if not handlers:
            self._tell(letter, kind, EdgeError(f"handle {kind}: this agent has no part for it", reason="unsupported"))
        for handler in handlers:
            try:
                await handler.handle(letter)
            except Exception as error:  # whatever a handler does, the next letter is served
                log.exception("letters.handler_failed", kind=kind, letter=letter.id)
                self._tell(letter, kind, error)
        try:
            self._inbox.handled(letter.id)
        except OutboxError as error:
            # It runs again at the next start, which handlers allow for.
            log.error("inbox.failed", reason=error.reason, message=str(error))

    def _tell(self, letter: DownLetter[Any], kind: str, error: Exception) -> None:
        try:
            self._failed(letter, kind, error)
        except Exception:  # the letter is handled all the same, and those behind it in its slot
            log.exception("letters.failure_not_told", kind=kind, letter=letter.id)
