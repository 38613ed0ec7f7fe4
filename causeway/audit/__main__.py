"""Command line of the audit: prints the comparison as JSON; exit 1 if anything was lost or applied twice."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from causeway.audit.collect import read_effects, read_in, read_outbox
from causeway.audit.compare import Audit, compare
from services.kit.bus import connect
from services.kit.errors import PlatformError
from services.kit.folder import StateFolder
from services.kit.permissions import AUDITOR
from services.kit.settings import load_settings


async def audit(state: StateFolder, outboxes: dict[str, Path]) -> Audit:
    """Collect and compare; `outboxes` by `fleet/device`."""
    bus = await connect(state, load_settings(state), AUDITOR)
    try:
        stored = await read_in(bus)
        effects = await read_effects(bus)
    finally:
        await bus.close()
    issued, dropped = [], []
    for device, path in outboxes.items():
        letters, gaps = read_outbox(path, device)
        issued += letters
        dropped += gaps
    return compare(issued, dropped, [letter for letter in stored if letter.device in outboxes], effects)


def main() -> int:
    """Run the audit."""
    parser = argparse.ArgumentParser(prog="python -m causeway.audit", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="state folder of the platform")
    parser.add_argument("outboxes", nargs="+", metavar="FLEET/DEVICE=OUTBOX.DB", help="a device and its outbox")
    arguments = parser.parse_args()
    outboxes = {name: Path(path) for name, _, path in (item.partition("=") for item in arguments.outboxes)}
    try:
        result = asyncio.run(audit(StateFolder(arguments.state.absolute()), outboxes))
    except PlatformError as error:
        print(f"audit: {error}", file=sys.stderr)
        return 2
    print(result.model_dump_json(indent=2))
    return 1 if result.letters_lost or result.letters_applied_twice else 0


if __name__ == "__main__":
    sys.exit(main())
