"""What this device answered to rounds, on disk: neither a crash nor a repeated letter makes it train twice."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ValidationError

from edge_runtime.folder import write_durable
from schemas.aggregator import Update

MAX_KEPT = 32
"""Rounds; the oldest files go first."""


class Answer(BaseModel):
    """The newest answer to one round of one job.

    Attributes:
        letter: id of the round letter that it answers.
        sent: whether the outbox has it. A crash just before this is noted sends the same bytes again, which the
            aggregator counts as a duplicate.
    """

    letter: str
    update: Update
    sent: bool = False


class Answers:
    """One small file per round."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, job: str, number: int) -> Answer | None:
        """The answer to a round; None if there is none, or if its file is damaged (then it is made again)."""
        return _read(self._path(job, number))

    def put(self, answer: Answer) -> None:
        """Store an answer, durable when this returns, and forget the oldest ones."""
        path = self._path(answer.update.job, answer.update.round)
        write_durable(path, answer.model_dump_json().encode())
        for old in self._newest_first()[MAX_KEPT:]:
            old.unlink(missing_ok=True)

    def unsent(self) -> list[Answer]:
        """Answers that a crash kept from the outbox, oldest first."""
        found = (_read(path) for path in reversed(self._newest_first()))
        return [answer for answer in found if answer is not None and not answer.sent]

    def _path(self, job: str, number: int) -> Path:
        return self._folder / f"{job}.{number}.json"

    def _newest_first(self) -> list[Path]:
        return sorted(self._folder.glob("*.*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)


def _read(path: Path) -> Answer | None:
    try:
        return Answer.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
