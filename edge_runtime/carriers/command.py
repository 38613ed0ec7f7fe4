"""`causeway-edge bundle`: the stick in a person's hand. Works beside a running agent and without one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge_runtime.carriers.folder import FolderCarrier
from edge_runtime.carriers.reports import Exported, Imported
from edge_runtime.carriers.station import Ground, open_station, piece_folder
from edge_runtime.clock import FlooredClock
from edge_runtime.condition.status import read_status
from edge_runtime.errors import ConfigError
from edge_runtime.folder import EdgeFolder
from edge_runtime.identity import require_enrolled
from edge_runtime.letters.inbox import Inbox
from edge_runtime.letters.outbox import Outbox
from edge_runtime.settings import EdgeSettings
from edge_runtime.trust.keyring import Keyring


@dataclass(frozen=True, slots=True)
class Told:
    """What to say to the person.

    Attributes:
        facts: the same for scripts.
        whole: whether everything went over.
        refused: whether something there is not what it claims to be.
    """

    text: str
    facts: dict[str, Any]
    whole: bool
    refused: bool = False


def export(settings: EdgeSettings, folder: Path) -> Told:
    """Write what waits into a folder.

    Raises:
        ConfigError: if the device is not enrolled, or its settings do not allow carriers.
        FolderError: if the folder cannot be written.
        OutboxError: if the device's own disk does not do its part.
    """
    with _carrier(settings, folder) as carrier:
        done = carrier.export(urgent=True)
    return Told(_exported(done, folder), asdict(done), done.problem is None)


def take(settings: EdgeSettings, folder: Path) -> Told:
    """Take over what a folder holds. Raises as `export`."""
    with _carrier(settings, folder) as carrier:
        done = carrier.take()
    runs = _agent_runs(EdgeFolder(settings.state))
    return Told(_imported(done, runs=runs), asdict(done) | {"agent_runs": runs}, not done.no_room, bool(done.refused))


@contextmanager
def _carrier(settings: EdgeSettings, directory: Path) -> Iterator[FolderCarrier]:
    if not settings.carriers.enabled:
        raise ConfigError("bundle: carriers.enabled is false in the settings of this device; set it to true")
    folder = EdgeFolder(settings.state)
    identity = require_enrolled(folder.identity)
    inbox = Inbox(folder.inbox, time.time)
    clock = FlooredClock(inbox.time_floor)
    outbox = Outbox(folder.outbox, settings.outbox, lambda: clock.now().timestamp())
    keyring = Keyring(folder.trust)
    station = open_station(
        Ground(
            folder=folder,
            settings=settings.carriers,
            outbox=outbox,
            inbox=inbox,
            keyring=keyring,
            clock=clock,
            identity=lambda: identity,
            trust=lambda: keyring.state(folder.models()),
        )
    )
    try:
        yield FolderCarrier(station.custodian, piece_folder(folder, settings.carriers), directory)
    finally:
        station.close()
        outbox.close()
        inbox.close()


def _agent_runs(folder: EdgeFolder) -> bool:
    try:
        return bool(read_status(folder.status)["running"])
    except ConfigError:
        return False


def _exported(exported: Exported, folder: Path) -> str:
    text = (
        f"wrote {_counted(exported.fragments, 'fragment')} of {_counted(exported.bundles, 'bundle')} "
        f"({exported.bytes} bytes) to {folder}"
    )
    if exported.present:
        text += f"; {exported.present} were there already"
    if exported.problem:
        text += f"\nthis device's own letters are not among them: {exported.problem}"
    return text + "\nnext: causeway bundle import FOLDER, on the platform's machine"


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _imported(imported: Imported, *, runs: bool) -> str:
    text = (
        f"took {_counted(imported.arrived, 'fragment')} for this device ({_counted(imported.complete, 'bundle')} "
        f"complete), {imported.carried} to carry for others, {_counted(imported.pieces, 'piece')} of updates "
        f"({imported.piece_bytes} bytes)"
    )
    lines = [text]
    lines += [f"refused: {reason}" for reason in imported.reasons]
    if (more := imported.refused - len(imported.reasons)) > 0:
        lines.append(f"refused: {_counted(more, 'more file')}")
    if imported.refused:
        lines.append("what was refused lies there as before; delete it if nobody needs it")
    if imported.left:
        lines.append(
            f"not looked at: {_counted(imported.left, 'file')}, since there are too many; import again, which looks at "
            "others, or take a folder with less in it"
        )
    if imported.no_room:
        lines.append(
            f"{imported.no_room} found no room: see carriers.max_bytes and carriers.max_piece_bytes in the settings"
        )
    if imported.complete and not runs:
        lines.append("next: causeway-edge run acts on it; the agent does not run now")
    return "\n".join(lines)
