"""What operators have the courier do with IN, one at a time between batches: only the intake writes there."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nats.errors import Error as NatsError

from schemas.errors import ContractError
from services.courier.up.chain import Entry
from services.courier.up.marks import Marks
from services.courier.up.ordering import Verdict
from services.courier.up.verifying import Opened
from services.kit.errors import PlatformError, RefusedError
from services.kit.pipeline import PipelineError
from services.kit.puller import PullError

T = TypeVar("T")
MAX_WAITING = 32


@dataclass(frozen=True, slots=True)
class Desk:
    """What an errand may use while it runs.

    Attributes:
        marks: of every lane.
        open: verifies a letter by its envelope and subject.
        admit: orders and stores one letter; None if its device is suspected of having two bodies.
        append: stores messages at the end of IN.
        save: makes changed marks durable.
    """

    marks: Marks
    open: Callable[[bytes, str], Opened]
    admit: Callable[[Opened], Awaitable[Verdict | None]]
    append: Callable[[Sequence[Entry]], Awaitable[list[int]]]
    save: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Errand:
    """Something to do, and its result."""

    work: Callable[[Desk], Awaitable[Any]]
    done: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Errands:
    """A queue of few."""

    def __init__(self) -> None:
        self._queue: deque[Errand] = deque()
        self._listener: Callable[[], None] = lambda: None

    def on_put(self, listener: Callable[[], None]) -> None:
        """Have `listener` called when there is something to do."""
        self._listener = listener

    def first(self) -> Errand | None:
        """The oldest errand that somebody still waits for."""
        while self._queue and self._queue[0].done.done():
            self._queue.popleft()
        return self._queue[0] if self._queue else None

    async def ask(self, work: Callable[[Desk], Awaitable[T]]) -> T:
        """Have it done, once IN is known.

        Raises:
            RefusedError: if too many wait already.
            PlatformError, ContractError, nats.errors.Error: what became of it.
        """
        if len(self._queue) >= MAX_WAITING:
            raise RefusedError(f"wait for {len(self._queue)} other requests: too many; try again")
        errand = Errand(work)
        self._queue.append(errand)
        self._listener()
        result: T = await errand.done
        return result

    async def run(self, errand: Errand, desk: Desk) -> None:
        """Do it.

        Raises:
            PipelineError: if it is not known what became of a write; IN must be read again.
        """
        try:
            result = await errand.work(desk)
        except PipelineError as error:
            _fail(errand, error)
            raise
        except (PlatformError, ContractError, PullError, NatsError, TimeoutError) as error:
            _fail(errand, error)
        except asyncio.CancelledError:
            errand.done.cancel()
            raise
        else:
            if not errand.done.done():
                errand.done.set_result(result)


def _fail(errand: Errand, error: Exception) -> None:
    if not errand.done.done():
        errand.done.set_exception(error)
