"""Keeps trust fresh: asks for packs, has the worker verify them, and reloads the keyring."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from edge_runtime.cancelling import end_if_cancelled
from edge_runtime.errors import OutboxError, TrustError, WorkerError
from edge_runtime.folder import EdgeFolder
from edge_runtime.identity import Identity
from edge_runtime.letters.inbox import Inbox
from edge_runtime.logs import Log
from edge_runtime.ports import Jobs
from edge_runtime.trust.keyring import Keyring
from schemas.depot import MAX_TRUST_BYTES, TrustAnnouncement, TrustState, Want
from schemas.events import utc

log = Log(__name__)

REFRESH_TIMEOUT_S = 60.0
ASK_AGAIN_S = 2.0
"""Least time between two questions."""
_LAST_PACK = "trust_pack"
_NOT_JUDGED = frozenset({"crashed", "timeout"})
"""Reasons of the worker's end, which say nothing of the pack."""


@dataclass(frozen=True, slots=True)
class Treasury:
    """What the keeper works with."""

    folder: EdgeFolder
    inbox: Inbox
    keyring: Keyring
    jobs: Jobs
    identity: Callable[[], Identity]
    now: Callable[[], datetime]
    want: Callable[[bytes], bool]
    """Sends a `want` parcel; False if it cannot be sent now."""
    refreshed: Callable[[], None]
    """Called after each pack that was looked at, whatever came of it."""
    system: Callable[[], datetime] = lambda: utc(time.time())
    """The clock as it is, without what service keys have proven."""


class TrustKeeper:
    """Handles one pack at a time; of several that wait, the newest."""

    def __init__(self, treasury: Treasury, models: Callable[[], list[str]]) -> None:
        """`models`: those whose releases this device follows."""
        self._treasury = treasury
        self._models = models
        self._pack: bytes | None = None
        self._wake = asyncio.Event()
        self._asked = float("-inf")
        self._asking: asyncio.TimerHandle | None = None
        self.error: TrustError | None = None
        """Why the last pack was refused."""
        self._unexpected = ""

    def state(self) -> TrustState:
        """Versions held, for hello."""
        return self._treasury.keyring.state(self._models())

    def offer(self, pack: bytes) -> None:
        """A pack has come; `run` looks at it."""
        if len(pack) > MAX_TRUST_BYTES:
            log.warning("trust.oversized", bytes=len(pack))
            return
        self._pack = pack
        self._wake.set()

    def ask(self) -> None:
        """Ask the depot, now or as soon as it may be asked again."""
        wait = self._asked + ASK_AGAIN_S - time.monotonic()
        self._ask_in(max(0.0, wait))

    def announced(self, announcement: TrustAnnouncement) -> None:
        """There is a newer timestamp: ask at a random moment within the window, so that not all ask at once."""
        if announcement.timestamp > self.state().timestamp:
            self._ask_in(random.uniform(0, announcement.spread_s))  # noqa: S311

    async def run(self) -> None:
        """Look at packs until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            pack, self._pack = self._pack, None
            if pack is not None:
                await self.look(pack)

    async def refresh(self, pack: bytes | None) -> None:
        """Verify a pack (None: what is held, against the floors of the identity) and take it over.

        Raises:
            TrustError: with the reason; nothing has changed then.
        """
        treasury, identity = self._treasury, self._treasury.identity()
        try:
            result = await treasury.jobs.call(
                "trust.refresh",
                {
                    "folder": str(treasury.folder.trust),
                    "pack": None if pack is None else base64.b64encode(pack).decode(),
                    "root_sha256": identity.root_sha256,
                    "platform": identity.platform,
                    "floors": identity.tuf_floors.model_dump() if identity.tuf_floors else None,
                    "now": treasury.now().isoformat(),
                    "system": treasury.system().isoformat(),
                    "proven": {keyid: at.isoformat() for keyid, at in treasury.inbox.time_floors().items()},
                },
                timeout_s=REFRESH_TIMEOUT_S,
            )
        except WorkerError as error:
            raise TrustError(str(error), reason=error.reason) from error
        treasury.keyring.reload()
        treasury.inbox.keep_floors(treasury.keyring.keys.keys())
        log.info("trust.refreshed", changed=result.get("changed"), **(result.get("trust") or {}))

    async def look(self, pack: bytes) -> bool:
        """Take a pack over, or note in `error` why not; False if it could not be judged, so that it must come again."""
        judged = True
        digest = hashlib.sha256(pack).hexdigest()
        try:
            # The depot answers every hello; a pack that was looked at before needs no worker.
            if not self._treasury.keyring.ready or self._treasury.inbox.fact(_LAST_PACK) != digest:
                await self.refresh(pack)
                self._treasury.inbox.remember(_LAST_PACK, digest)
            self.error = None
        except TrustError as error:
            self.error = error
            log.error("trust.refused", reason=error.reason, message=str(error))
            judged = error.reason not in _NOT_JUDGED
        except OutboxError as error:
            log.error("inbox.failed", reason=error.reason, message=str(error))
            judged = False
        except Exception as error:  # noqa: BLE001 - the next pack is looked at all the same
            self._failed(error)
            judged = False
        end_if_cancelled()
        try:
            self._treasury.refreshed()
        except Exception as error:  # noqa: BLE001 - as above
            self._failed(error)
        return judged

    def _failed(self, error: Exception) -> None:
        """As nobody expected; the pack is looked at again when it comes again, with an answer to hello."""
        self.error = TrustError(f"look at a trust pack: {error!r}; the log says where")
        if str(self.error) != self._unexpected:
            log.unexpected("trust.failed", error)
        self._unexpected = str(self.error)

    def _ask_in(self, delay_s: float) -> None:
        if self._asking is None:
            self._asking = asyncio.get_running_loop().call_later(delay_s, self._ask_now)

    def _ask_now(self) -> None:
        self._asking = None
        if self._treasury.want(Want(trust=self.state()).write()):
            self._asked = time.monotonic()
