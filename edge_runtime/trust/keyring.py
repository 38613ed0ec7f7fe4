"""Which service said this: checks letters against the keys of the verified services document. Light, for the agent."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from edge_runtime.errors import TrustError
from edge_runtime.trust.record import TrustRecord, cached_files, read_record
from schemas.depot import TrustState
from schemas.envelope import Envelope, Verifier
from schemas.errors import EnvelopeError
from schemas.trust import ServiceKey


class Keyring:
    """The service keys that the last good refresh brought; empty before the first.

    Args:
        folder: the trust folder (`EdgeFolder.trust`).

    Raises:
        TrustError: `damaged_record` if the record cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._record: TrustRecord | None = None
        self._cached = False
        self._keys: dict[str, ServiceKey] = {}
        self._verifiers: dict[str, Verifier] = {}
        self.reload()

    def reload(self) -> None:
        """Take over what a refresh wrote."""
        record = read_record(self._folder)
        self._record = record
        self._cached = record is not None and bool(cached_files(self._folder, record))
        listed = record.services.keys if record else []
        verifiers = {key.keyid: key.verifier() for key in listed}
        # A key goes by the digest of its bytes; an entry that claims another name could shadow one.
        self._keys = {key.keyid: key for key in listed if verifiers[key.keyid].keyid == key.keyid}
        self._verifiers = {keyid: verifiers[keyid] for keyid in self._keys}

    @property
    def ready(self) -> bool:
        """Whether any key is known yet."""
        return bool(self._keys)

    @property
    def keys(self) -> dict[str, ServiceKey]:
        """Every key by its id."""
        return dict(self._keys)

    def verify(self, envelope: Envelope, kind: str) -> ServiceKey:
        """Find out who signed, and whether that key may sign this kind.

        Raises:
            TrustError: `unknown_key` (ask for trust, then decide), `bad_signature` or `key_not_allowed`.
        """
        try:
            keyid = envelope.verify(self._verifiers)
        except EnvelopeError as error:
            raise TrustError(f"verify {kind} letter: {error}", reason=error.reason) from error
        key = self._keys[keyid]
        if kind not in key.kinds:
            raise TrustError(
                f"verify {kind} letter: it is signed by the key of {key.service} ({keyid[:12]}), "
                f"which may sign {', '.join(key.kinds) or 'nothing'} only",
                reason="key_not_allowed",
            )
        return key

    def state(self, models: Iterable[str] = ()) -> TrustState:
        """Versions for hello and want; 0 for what is not on disk.

        Args:
            models: models whose releases are wanted too, where they are not held yet.
        """
        if self._record is None or not self._cached:
            return TrustState(root=0, roles=dict.fromkeys(models, 0))
        accepted = self._record.accepted
        missing = {model: 0 for model in models if model not in accepted.roles}
        return accepted.model_copy(update={"roles": {**accepted.roles, **missing}})

    def age_s(self, now: datetime) -> float | None:
        """Seconds since the last good refresh; None before the first."""
        if self._record is None:
            return None
        return max(0.0, (now - self._record.refreshed).total_seconds())
