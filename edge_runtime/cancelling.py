"""For loops that go on after any error: an end that was asked for is none of these."""

from __future__ import annotations

import asyncio


def end_if_cancelled() -> None:
    """Call it where an error was caught: one that was raised while cleaning up hides the cancellation behind it.

    Raises:
        asyncio.CancelledError: if the current task was cancelled.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
