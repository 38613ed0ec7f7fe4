"""What operators ask of the active courier: bundles that people carry."""

from __future__ import annotations

import base64
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel

from schemas.aggregator import Artifact, Round
from schemas.bundles import Parcel, read_parcel
from schemas.envelope import parse
from schemas.errors import ContractError, MessageError
from schemas.ids import Address
from schemas.letters import read_down
from schemas.ota import Assign
from services.courier import metrics
from services.courier.bundles.answers import Answer, Answers
from services.courier.bundles.origins import Origins
from services.courier.bundles.reader import BundleReader
from services.courier.bundles.unpacker import Outcome
from services.courier.down.postman import Postman
from services.kit import rpc
from services.kit.api.courier import (
    BundleDevice,
    BundleExportAnswer,
    BundleExportRequest,
    BundleFrames,
    BundleImportAnswer,
    BundleImportRequest,
    NamedRelease,
)
from services.kit.bus import Bus
from services.kit.rpc import Nothing


class BundleVerbs:
    """Handlers of requests."""

    def __init__(self, reader: BundleReader, answers: Answers, origins: Origins, postman: Postman) -> None:
        self._reader = reader
        self._answers = answers
        self._origins = origins
        self._postman = postman

    async def serve(self, bus: Bus) -> None:
        """Answer from now on."""
        await rpc.serve_from_now(bus, "courier", "bundle_import", BundleImportRequest, self.bring)
        await rpc.serve_from_now(bus, "courier", "bundle_export", BundleExportRequest, self.fetch)
        await rpc.serve_from_now(bus, "courier", "bundle_list", Nothing, self.list_all)

    async def bring(self, request: BundleImportRequest) -> dict[str, Any]:
        """Take one fragment."""
        try:
            parcel = _read(request.frame)
        except ContractError as error:
            return _dump(BundleImportAnswer(state="refused", reason=error.reason, message=str(error)))
        try:
            outcome = await self._reader.bring(parcel, request.waited_s)
        except ContractError as error:
            metrics.BUNDLES.labels("refused").inc()
            return _dump(_imported(parcel, error=error))
        answer = _imported(parcel, outcome)
        if outcome.state in {"known", "stored", "early"}:
            receipt = await self._answers.receipt(outcome.origin)
            answer = answer.model_copy(update={"receipt": _frames(receipt) if receipt else None})
        return _dump(answer)

    async def fetch(self, request: BundleExportRequest) -> dict[str, Any]:
        """One bundle with what waits for a device."""
        answer = await self._answers.write(Address(request.fleet, request.device), request.after, whole=True)
        metrics.ANSWERS.labels("folder").inc()
        releases, artifacts = _named(answer)
        return _dump(
            BundleExportAnswer(
                bundle=_frames(answer),
                letters=len(answer.letters),
                receipts=answer.receipts,
                trust=answer.trust,
                releases=releases,
                artifacts=artifacts,
                next=answer.more,
            )
        )

    async def list_all(self, _: Nothing) -> list[dict[str, Any]]:
        """Devices that something waits for, or that spoke by bundles."""
        carried = set(self._origins.known())
        return [
            _dump(
                BundleDevice(
                    fleet=address.fleet,
                    device=address.device,
                    letters=len(self._postman.waiting(address)),
                    carried=address in carried,
                )
            )
            for address in sorted(carried | set(self._postman.owners()))
        ]


def _read(frame: str) -> Parcel:
    try:
        return read_parcel(base64.b64decode(frame, validate=True))
    except ValueError as error:
        raise MessageError(f"read a fragment: it is not base64: {error}") from error


def _imported(parcel: Parcel, outcome: Outcome | None = None, error: ContractError | None = None) -> BundleImportAnswer:
    head = parcel.head
    error = outcome.error if outcome else error
    # What a head says of its origin counts only once its signature held.
    origin = outcome.origin if outcome else None
    return BundleImportAnswer(
        bundle=head.id,
        fragment=head.fragment.index,
        fragments=head.fragment.count,
        fleet=origin.fleet if origin else None,
        device=origin.device if origin else None,
        state=outcome.state if outcome else "refused",
        **(asdict(outcome.judged) if outcome else {}),
        reason=error.reason if error else None,
        message=str(error) if error else None,
    )


def _named(answer: Answer) -> tuple[list[NamedRelease], list[Artifact]]:
    releases, artifacts = [], []
    for letter, raw in answer.letters:
        if letter.kind not in {"assign", "round"}:
            continue
        data = read_down(parse(raw).body, letter.kind).data
        if isinstance(data, Assign) and data.action != "remove":
            releases.append(NamedRelease(model=data.model, version=data.version, sha256=data.sha256))
        elif isinstance(data, Round):
            artifacts.append(data.base)
    return releases, artifacts


def _frames(answer: Answer) -> BundleFrames:
    frames = [base64.b64encode(parcel.write()).decode() for parcel in answer.parcels]
    return BundleFrames(bundle=answer.bundle, frames=frames)


def _dump(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json", exclude_none=True)
