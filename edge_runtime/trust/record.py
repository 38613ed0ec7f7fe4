"""The accepted trust, in one durable file: versions, service keys, and which cache folder holds the metadata.

The file is the commit point of a refresh. It outlives the cache: if a power cut takes the cache, an old mirror's
metadata is still refused by the versions written here. Light: the resident agent imports it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, Field

from edge_runtime.errors import TrustError
from edge_runtime.folder import write_durable
from schemas.depot import TrustState
from schemas.errors import ContractError
from schemas.events import Message
from schemas.ids import Count, Digest, Identifier
from schemas.trust import ServicesDocument

RECORD_FILE = "services.json"

FileName = Annotated[str, Field(pattern=r"^([0-9]+\.)?[A-Za-z0-9_-]+\.json$", max_length=80)]


class TrustRecord(Message):
    """What the last good refresh came to.

    Attributes:
        accepted: versions below which nothing is believed any more.
        cache: folder beside this file that holds the metadata.
        files: sha256 of every file in it.
        floors: highest floor seen per model; a release below it is never installed.
        refreshed: the device's clock at the refresh.
    """

    v: int = 1
    root_sha256: Digest
    accepted: TrustState
    cache: Annotated[str, Field(pattern=r"^cache-[0-9]{1,12}$")]
    files: Annotated[dict[FileName, Digest], Field(max_length=512)]
    services: ServicesDocument
    floors: Annotated[dict[Identifier, Count], Field(max_length=1_024, default_factory=dict)]
    refreshed: AwareDatetime


def read_record(folder: Path) -> TrustRecord | None:
    """The record of a trust folder; None before the first refresh.

    Raises:
        TrustError: `damaged_record`; the versions in it are what protects from old metadata, so it is not made anew.
    """
    path = folder / RECORD_FILE
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TrustError(f"read trust record {path}: {error.strerror}", reason="damaged_record") from error
    try:
        sealed = json.loads(raw)
        body = sealed["record"]
        if hashlib.sha256(body.encode()).hexdigest() != sealed["sha256"]:
            raise TrustError(_damaged(path, "its digest does not fit"), reason="damaged_record")
        return TrustRecord.read(body.encode())
    except (ValueError, KeyError, TypeError, AttributeError, ContractError) as error:
        raise TrustError(_damaged(path, repr(error)), reason="damaged_record") from error


def write_record(folder: Path, record: TrustRecord) -> None:
    """Put a record into effect; durable when this returns."""
    body = record.write().decode()
    sealed = {"sha256": hashlib.sha256(body.encode()).hexdigest(), "record": body}
    write_durable(folder / RECORD_FILE, json.dumps(sealed).encode())


def cached_files(folder: Path, record: TrustRecord) -> dict[str, bytes]:
    """The metadata that the record names; empty if any of it is missing or changed, so that all of it is asked for."""
    files: dict[str, bytes] = {}
    for name, digest in record.files.items():
        try:
            raw = (folder / record.cache / name).read_bytes()
        except OSError:
            return {}
        if hashlib.sha256(raw).hexdigest() != digest:
            return {}
        files[name] = raw
    return files


def _damaged(path: Path, why: str) -> str:
    return f"read trust record {path}: {why}; enrol the device anew with a fresh token (`causeway device enrol`)"
