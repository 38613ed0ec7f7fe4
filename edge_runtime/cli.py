"""`causeway-edge`: enrol a device, run its agent, ask how it is.

Exit codes: 1 failed or not running, 2 usage, 3 not found, 4 refused or in quarantine, 5 unreachable.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from edge_runtime import logs
from edge_runtime.errors import ConfigError, EdgeError, EnrolError
from edge_runtime.folder import EdgeFolder
from edge_runtime.settings import EdgeSettings, load_settings
from edge_runtime.version import VERSION

USAGE, NOT_FOUND, REFUSED, UNREACHABLE, FAILED = 2, 3, 4, 5, 1
_OF_REASON = {"no_folder": USAGE, "nothing_there": NOT_FOUND}
STATUS_POLL_S = 0.2
MAX_WAIT_S = 86_400.0
DEFAULT_CONFIG = Path("edge.toml")
_EXAMPLES = """examples:
  causeway-edge enrol cam-1.token        become device cam-1; the operator made the token
  causeway-edge run                      serve until stopped
  causeway-edge status --wait 10         wait until it is connected, then say how it is doing
  causeway-edge status --json            the same for scripts
  causeway-edge explain                  what it decides at present (heartbeats, bulk, way of letters), and why
  causeway-edge bundle export /media/usb  give what waits to whoever takes the stick to the platform
  causeway-edge bundle import /media/usb  take over what came back, updates included

Settings are read from edge.toml in the working folder, or from --config; without a file, defaults apply.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    try:
        settings = _settings(options.config)
        logs.configure(settings.log_level)
        verbs = {"enrol": _enrol, "run": _run, "status": _status, "explain": _explain, "bundle": _bundle}
        code = verbs[options.verb](settings, options)
        sys.stdout.flush()
    except EdgeError as error:
        print(f"causeway-edge: {error}", file=sys.stderr)
        code = exit_code(error)
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        # Whoever reads has seen enough, as `head`; and Python is not to say so once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILED
    raise SystemExit(code)


def exit_code(error: EdgeError) -> int:
    """What the shell is told."""
    if isinstance(error, EnrolError):
        if error.reason == "unreachable":
            return UNREACHABLE
        return USAGE if error.reason == "token_unreadable" else REFUSED
    return USAGE if isinstance(error, ConfigError) else _OF_REASON.get(error.reason, FAILED)


def make_parser() -> argparse.ArgumentParser:
    """Every verb with its options; `docs/edge-cli.md` is written from it."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="causeway-edge", description=__doc__, epilog=_EXAMPLES, formatter_class=shape)
    parser.add_argument("--version", action="version", version=f"causeway-edge {VERSION}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", type=Path, help="settings file (default: edge.toml, if there is one)")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="enrol | run | status | explain | bundle")
    enrol = verbs.add_parser("enrol", parents=[common], help="become a device of a platform, with a token")
    enrol.add_argument("token", type=Path, help="file that `causeway device enrol` wrote")
    enrol.add_argument("--again", action="store_true", help="enrol anew with the same keys")
    enrol.add_argument(
        "--timeout",
        type=_seconds,
        default=60.0,
        metavar="S",
        help="wait at most S seconds for the welcome (default: 60)",
    )
    enrol.add_argument("--json", action="store_true", help="print the result as JSON")
    verbs.add_parser("run", parents=[common], help="run the agent until stopped")
    status = verbs.add_parser("status", parents=[common], help="show how the agent on this device is doing")
    status.add_argument(
        "--wait", type=_seconds, default=0.0, metavar="S", help="wait at most S seconds for a connection"
    )
    status.add_argument("--json", action="store_true", help="print everything as JSON")
    explain = verbs.add_parser("explain", parents=[common], help="say what the device decides at present, and why")
    explain.add_argument("--json", action="store_true", help="print everything as JSON")
    _bundle_verbs(verbs, common)
    return parser


def _bundle_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    bundle = verbs.add_parser("bundle", help="exchange letters and updates by a stick or another folder")
    directions = bundle.add_subparsers(dest="direction", required=True, metavar="export | import")
    for direction, text in (
        ("export", "write what waits on this device, and what it carries, into a folder"),
        ("import", "take over what a folder holds for this device, and what it may carry"),
    ):
        verb = directions.add_parser(direction, parents=[common], help=text)
        verb.add_argument("folder", type=Path, help="a mounted stick, or any folder; `causeway` in it is used")
        verb.add_argument("--json", action="store_true", help="print the result as JSON")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= MAX_WAIT_S:
        raise argparse.ArgumentTypeError(f"expected seconds from 0 to {MAX_WAIT_S:g}, as 10, got {text[:60]!r}")
    return value


def _settings(config: Path | None) -> EdgeSettings:
    if config is not None:
        return load_settings(config.absolute())
    if DEFAULT_CONFIG.is_file():
        return load_settings(DEFAULT_CONFIG.absolute())
    settings = EdgeSettings()
    return settings.model_copy(update={"state": Path.cwd() / settings.state})


def _enrol(settings: EdgeSettings, options: argparse.Namespace) -> int:
    from edge_runtime.enrol import enrol  # noqa: PLC0415 - `status` must answer at once
    from edge_runtime.identity import read_token  # noqa: PLC0415

    token = read_token(options.token, datetime.now(UTC))
    identity = asyncio.run(enrol(settings, token, again=options.again, timeout_s=options.timeout))
    assert identity.credentials is not None
    expires = identity.credentials.expires.isoformat()
    if options.json:
        print(
            json.dumps(
                {"fleet": identity.fleet, "device": identity.device, "platform": identity.platform, "expires": expires}
            )
        )
    else:
        print(f"enrolled {identity.address}; credentials until {expires} are renewed by themselves")
        print("next: causeway-edge run" + (f" --config {options.config}" if options.config else ""))
    return 0


def _run(settings: EdgeSettings, _options: argparse.Namespace) -> int:
    asyncio.run(_serve(settings))
    return 0


async def _serve(settings: EdgeSettings) -> None:
    from edge_runtime.agent import Agent  # noqa: PLC0415 - `status` must answer at once

    agent = Agent(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.stop)
    await agent.run()


def _explain(settings: EdgeSettings, options: argparse.Namespace) -> int:
    from edge_runtime.explain import as_text, explanation  # noqa: PLC0415 - `status` must answer at once

    found = explanation(settings)
    print(json.dumps(found, indent=2) if options.json else as_text(found))
    return 0


def _bundle(settings: EdgeSettings, options: argparse.Namespace) -> int:
    from edge_runtime.carriers import command  # noqa: PLC0415 - `status` must answer at once

    verb = command.export if options.direction == "export" else command.take
    told = verb(settings, options.folder.absolute())
    print(json.dumps(told.facts) if options.json else told.text)
    if told.refused:
        return REFUSED
    return 0 if told.whole else FAILED


def _status(settings: EdgeSettings, options: argparse.Namespace) -> int:
    from edge_runtime.condition.status import as_text, read_status  # noqa: PLC0415

    path, deadline = EdgeFolder(settings.state).status, time.monotonic() + options.wait
    while True:
        try:
            status = read_status(path)
        except ConfigError:
            if time.monotonic() >= deadline:
                raise
        else:
            if (status["running"] and status.get("connected")) or time.monotonic() >= deadline:
                break
        time.sleep(STATUS_POLL_S)
    print(json.dumps(status, indent=2) if options.json else as_text(status))
    if status["running"] and status.get("suspended"):
        return REFUSED
    healthy = status["running"] and (status.get("connected") or not options.wait)
    return 0 if healthy else FAILED
