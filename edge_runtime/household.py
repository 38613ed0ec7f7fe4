"""The agent's own letters: welcome (renewed credentials), config (the twin) and recall."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edge_runtime.identity import Identity
from edge_runtime.letters.inbox import Inbox
from edge_runtime.letters.outbox import Outbox
from edge_runtime.logs import Log
from schemas.events import DownLetter, Lane
from schemas.registry import Capabilities, Enrol, Recall, Twin, Welcome

log = Log(__name__)

TWIN = "twin"
OFFER = "offer_told"
"""Fact: what `offer` said when the platform was last told."""
_OFFERED = {"os", "python", "agent", "cpu_count", "gpus", "runtimes", "runners", "estimators"}


@dataclass(frozen=True, slots=True)
class Household:
    """What these letters change."""

    inbox: Inbox
    outbox: Outbox
    identity: Callable[[], Identity]
    welcomed: Callable[[Identity], None]
    """Keep a renewed identity and connect with it."""
    twin_changed: Callable[[Twin], None]
    resend_from: Callable[[Lane, int], None]
    now: Callable[[], Any]


class HouseholdHandler:
    """Implements `ports.LetterHandler`."""

    kinds = frozenset({"welcome", "config", "recall"})

    def __init__(self, household: Household) -> None:
        self._household = household

    async def handle(self, letter: DownLetter[Any]) -> None:
        """Act on one letter.

        Raises:
            EnrolError: if a renewal was refused; the present credentials stay in use.
        """
        data = letter.data
        if isinstance(data, Welcome):
            self._welcome(data)
        elif isinstance(data, Twin):
            self._twin(data)
        elif isinstance(data, Recall):
            self._recall(data)

    def _welcome(self, welcome: Welcome) -> None:
        household = self._household
        asked = household.outbox.ids("enrol")
        # Only the newest question counts; an older answer would bring older credentials.
        if not asked or welcome.enrol_id != asked[-1]:
            log.info("welcome.ignored", enrol_id=welcome.enrol_id)
            return
        household.welcomed(household.identity().welcomed(welcome, household.now()))
        if welcome.twin is not None:
            self._twin(welcome.twin)

    def _twin(self, twin: Twin) -> None:
        self._household.inbox.remember(TWIN, twin.model_dump_json(exclude_none=True))
        self._household.twin_changed(twin)

    def _recall(self, recall: Recall) -> None:
        if recall.epoch == self._household.outbox.epoch:
            log.warning("letters.recalled", lane=recall.lane, first=recall.from_sequence)
            self._household.resend_from(recall.lane, recall.from_sequence)


def stored_twin(inbox: Inbox) -> Twin | None:
    """The platform's wishes as of the last letter."""
    return inbox.recall(TWIN, Twin.model_validate_json, None)


def offer(capabilities: Capabilities) -> str:
    """What the platform must hear of anew once it changes; of data sets the names, their lengths are in heartbeats."""
    told = capabilities.model_dump(mode="json", include=_OFFERED)
    return json.dumps(told | {"datasets": sorted(capabilities.datasets)}, sort_keys=True)


def enrol_letter(identity: Identity, capabilities: Capabilities) -> Enrol:
    """With the token's proof while there is a token; a renewal otherwise."""
    token = identity.token
    return Enrol(
        token=token.token if token else None,
        public_key=base64.b64encode(identity.public_key).decode(),
        seal_key=base64.b64encode(identity.seal_key).decode(),
        proof=identity.proof(token.secret) if token else None,
        capabilities=capabilities,
    )
