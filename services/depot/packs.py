"""What a device is sent so that it believes what holds now. Pure: versions in, bytes out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

import zstandard

from schemas.depot import MAX_TRUST_BYTES, MAX_TRUST_EXPANDED_BYTES, TrustPack, TrustState
from services.depot.metadata import SERVICES_FILE, TARGETS, TIMESTAMP_FILE, Head, file_of, model_of, role_of

FEW_MODELS = 16
"""Up to so many models a device is sent the releases of all; above, those that it holds or asks for."""
CACHED_ANSWERS = 256
_HEADROOM = 4_096
"""For the frame of JSON around the files."""

Read = Callable[[str], bytes]


class Packs:
    """Makes packs and keeps the last answers, since a fleet mostly holds the same versions.

    Args:
        read: bytes of a metadata file by its name; `services.json` gives the services document.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self._answers: OrderedDict[tuple[int, str], bytes] = OrderedDict()

    def answer(self, head: Head, held: TrustState) -> bytes:
        """The pack, as zstd, that brings a device from what it holds to `head`.

        A pack has bounds: when not all releases fit, the device takes what comes, and asks again with 0 for the models
        that it still misses.
        """
        relevant = held.model_dump_json()
        key = (head.timestamp, relevant)
        if key in self._answers:
            self._answers.move_to_end(key)
            return self._answers[key]
        raw = self._make(head, held)
        self._answers[key] = raw
        if len(self._answers) > CACHED_ANSWERS:
            self._answers.popitem(last=False)
        return raw

    def lacks_nothing(self, head: Head, held: TrustState) -> bool:
        """Whether a device that holds these versions has all that its pack would bring."""
        return next(_core(head, held), None) is None and next(_roles(head, held), None) is None

    def _make(self, head: Head, held: TrustState) -> bytes:
        names = [*_core(head, held), *_roles(head, held)]
        while True:
            raw, used = self._pack(head, names)
            if len(raw) <= MAX_TRUST_BYTES or used <= 1:
                return raw
            names = names[: used // 2]

    def _pack(self, head: Head, names: list[str]) -> tuple[bytes, int]:
        files: dict[str, str] = {}
        room = MAX_TRUST_EXPANDED_BYTES - _HEADROOM
        for name in names[:256]:
            text = self._read(name).decode()
            # Quotes and line breaks grow by one byte each in JSON.
            room -= len(text) + text.count('"') + text.count("\n") + text.count("\\") + len(name) + 8
            if room < 0:
                break
            files[name] = text
        pack = TrustPack(head=head.state(), files=files)
        return zstandard.ZstdCompressor(level=9).compress(pack.write()), len(files)


def _core(head: Head, held: TrustState) -> Iterator[str]:
    for version in range(held.root + 1, head.root + 1):
        yield file_of("root", version)
    # A device that holds the wrong version, even a higher one, is told what holds.
    if held.timestamp != head.timestamp:
        yield TIMESTAMP_FILE
    if held.snapshot != head.snapshot:
        yield file_of("snapshot", head.snapshot)
    if held.targets != head.targets:
        yield file_of(TARGETS, head.targets)
        yield SERVICES_FILE


def _roles(head: Head, held: TrustState) -> Iterator[str]:
    wanted = {role_of(model) for model in held.roles}
    if len(head.roles) <= FEW_MODELS:
        wanted |= {role for role in head.roles if model_of(role) is not None}
    for role in sorted(wanted & set(head.roles)):
        if held.roles.get(model_of(role) or "") != head.roles[role]:
            yield file_of(role, head.roles[role])
