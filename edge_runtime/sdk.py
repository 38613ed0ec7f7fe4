"""The runtime inside a host program.

Example::

    with EdgeDevice("edge.toml") as device:
        device.register("cam-1.token")
        device.start_heartbeat()
        outputs = device.infer("digits", {"x": image})
        device.send("sample", {"label": int(outputs["label"][0])})
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError

from edge_runtime.agent import Agent, lane_of
from edge_runtime.enrol import TIMEOUT_S, enrol
from edge_runtime.errors import ConfigError, EnrolError, OutboxError
from edge_runtime.folder import EdgeFolder
from edge_runtime.identity import load_identity, read_token, require_enrolled
from edge_runtime.letters.outbox import Entry, Outbox, Storage
from edge_runtime.logs import Log
from edge_runtime.settings import EdgeSettings, load_settings
from schemas.events import Message
from schemas.letters import UP_DATA
from schemas.wording import problems

log = Log(__name__)

STOP_TIMEOUT_S = 30.0


class EdgeDevice:
    """One device, used from a program of its owner. Methods may be called from any thread.

    Args:
        config: settings file, or settings with absolute paths.
    """

    def __init__(self, config: str | Path | EdgeSettings) -> None:
        self._settings = config if isinstance(config, EdgeSettings) else load_settings(Path(config).absolute())
        self._folder = EdgeFolder(self._settings.state)
        self._outbox: Outbox | None = None
        self._agent: Agent | None = None
        self._thread: threading.Thread | None = None
        self._ended: Future[None] | None = None
        self._lock = threading.Lock()
        self._models: Any = None

    @property
    def registered(self) -> bool:
        """Whether this device is enrolled."""
        identity = load_identity(self._folder.identity)
        return identity is not None and identity.credentials is not None

    def register(self, token: str | Path, *, timeout_s: float = TIMEOUT_S) -> None:
        """Enrol with a token file; blocks until the platform has answered. Does nothing if this device is enrolled.

        Raises:
            EnrolError: with the reason and what to do.
        """
        if not self.registered:
            read = read_token(Path(token), datetime.now(UTC))
            asyncio.run(enrol(self._settings, read, timeout_s=timeout_s))

    def start_heartbeat(self) -> None:
        """Run the agent in a thread of its own, until `close`; returns once it runs.

        Raises:
            ConfigError: if the device is not enrolled, or another agent runs on its folder.
        """
        if self._thread is not None:
            return
        started: Future[Agent] = Future()
        self._ended = Future()
        self._thread = threading.Thread(
            target=self._live, args=(started, self._ended), name="causeway-edge", daemon=True
        )
        self._thread.start()
        try:
            agent = started.result()
        except BaseException:
            self._thread.join()
            self._thread = None
            raise
        with self._lock:
            if self._outbox is not None:
                # From now on letters are with the agent, which also sends those that the disk does not take.
                self._outbox.hand_over(agent.outbox)
                self._outbox = None
            self._agent = agent

    def infer(self, model: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run the active version of a model on arrays by input name; returns arrays by output name.

        Raises:
            EdgeError: if there is no such model, or its inputs do not fit.
        """
        # Imported here, since it brings numpy and ONNX Runtime into this process.
        from edge_runtime.inference import ModelStore  # noqa: PLC0415

        if self._models is None:
            self._models = ModelStore(self._folder.slots)
        outputs: dict[str, Any] = self._models.infer(model, inputs).outputs
        return outputs

    @property
    def storage(self) -> Storage:
        """Where letters go: to disk, or to memory while the disk is full, read-only or broken.

        Raises:
            ConfigError: if the device is not enrolled.
        """
        with self._lock:
            return self._letters().storage

    @property
    def problem(self) -> str | None:
        """Why nothing is sent although `start_heartbeat` was called: the agent has ended by itself. Else None."""
        ended = self._ended
        error = ended.exception() if ended is not None and ended.done() else None
        if error is None:
            return None
        return (
            f"send the letters of this device: its agent ended with {error!r}; "
            "they are kept; close this EdgeDevice and start anew"
        )

    def send(self, kind: str, data: Message | Mapping[str, Any], *, latest: str | None = None) -> str:
        """Store a letter in the outbox, connected or not; durable when this returns (but see `storage`).

        Args:
            kind: `sample`, say.
            data: what it says.
            latest: a key of your own; only the newest letter of a kind and key is worth sending. Earlier ones that
                were not sent yet are given up, which the platform is told.

        Returns:
            The letter's ULID.

        Raises:
            OutboxError: if it was not stored; `unknown_kind` and `malformed` for a letter that nobody could read,
                `outbox_full` if only more urgent ones are left to make room.
            ConfigError: if the device is not enrolled.
        """
        return self._store([(kind, data)], latest)[0]

    def send_many(self, kind: str, data: Sequence[Message | Mapping[str, Any]]) -> list[str]:
        """Store letters together, all or none: one wait for the disk instead of one each. Raises as `send`."""
        return self._store([(kind, one) for one in data], None)

    def close(self) -> None:
        """Stop the agent and close the files.

        Raises:
            EdgeError: what the agent ended with, if it ended by itself.
        """
        with self._lock:
            agent, self._agent = self._agent, None
            if self._outbox is not None:
                self._outbox.close()
                self._outbox = None
        if agent is not None:
            agent.stop()
        if self._thread is not None:
            self._thread.join(STOP_TIMEOUT_S)
        ended, self._ended, self._thread = self._ended, None, None
        if ended is not None and ended.done():
            ended.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _store(self, letters: Sequence[tuple[str, Message | Mapping[str, Any]]], latest: str | None) -> list[str]:
        entries = []
        for kind, data in letters:
            message = _message(kind, data)
            entries.append(Entry(kind, message, lane_of(kind, message), latest=latest))
        with self._lock:
            ids = self._letters().add_many(entries)
            if self._agent is not None:
                self._agent.wake()
        return ids

    def _letters(self) -> Outbox:
        ended = self._ended is not None and self._ended.done()
        if self._agent is not None and not ended:
            return self._agent.outbox
        if self._outbox is None:
            require_enrolled(self._folder.identity)
            self._outbox = Outbox(self._folder.outbox, self._settings.outbox, time.time)
        return self._outbox

    def _live(self, started: Future[Agent], ended: Future[None]) -> None:
        try:
            asyncio.run(self._serve(started))
            ended.set_result(None)
        except BaseException as error:
            if started.done():
                # At once: whoever waits may only do so when the program ends.
                log.exception("agent.ended")
                ended.set_exception(error)
            else:
                started.set_exception(error)

    async def _serve(self, started: Future[Agent]) -> None:
        agent = Agent(self._settings)
        await agent.run(lambda: started.set_result(agent))


def _message(kind: str, data: Message | Mapping[str, Any]) -> Message:
    model = UP_DATA.get(kind)
    if model is None or kind == "enrol":
        known = ", ".join(sorted(set(UP_DATA) - {"enrol"}))
        raise OutboxError(f"send a letter {kind!r}: there is no such kind; known are {known}", reason="unknown_kind")
    if isinstance(data, Message):
        return data
    try:
        return model.model_validate(dict(data) if isinstance(data, Mapping) else data)
    except ValidationError as error:
        raise OutboxError(f"send a letter {kind}: {problems(error, 'data')}", reason="malformed") from error


__all__ = ["ConfigError", "EdgeDevice", "EnrolError", "OutboxError"]
