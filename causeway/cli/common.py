"""What every command shares: the state folder, one exit code per kind of error, JSON or a table."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import typer
from nats.errors import Error as NatsError
from pydantic import BaseModel, ValidationError
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from causeway.sdk import Orchestrator
from schemas.errors import ContractError
from schemas.ids import DIGEST
from schemas.wording import problems
from services.kit.errors import NotFoundError, PlatformError, RefusedError, SettingsError, UnreachableError

T = TypeVar("T")

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_REFUSED = 4
EXIT_UNREACHABLE = 5

_EXITS: tuple[tuple[type[Exception], int], ...] = (
    (SettingsError, EXIT_USAGE),
    (NotFoundError, EXIT_NOT_FOUND),
    (RefusedError, EXIT_REFUSED),
    (UnreachableError, EXIT_UNREACHABLE),
    (ContractError, EXIT_USAGE),
)

State = Annotated[
    Path,
    typer.Option("--state", help="State folder of the platform.", envvar="CAUSEWAY_STATE", show_default=".causeway"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else.")]

_ID_LENGTH = 26
_SHORT = 12
_DIGEST = re.compile(DIGEST)

DEFAULT_STATE = Path(".causeway")

console = Console()
errors = Console(stderr=True)


@contextmanager
def explained() -> Iterator[None]:
    """Turn our errors into one sentence on standard error and the right exit code."""
    try:
        yield
    except ValidationError as error:
        fail(problems(error), EXIT_USAGE)
    except (PlatformError, ContractError) as error:
        code = next((code for kind, code in _EXITS if isinstance(error, kind)), EXIT_FAILED)
        fail(str(error), EXIT_USAGE if getattr(error, "code", None) == "malformed" else code)
    except (TimeoutError, ConnectionError, NatsError) as error:
        fail(f"talk to the platform: {error or type(error).__name__}; is it up? `causeway up`", EXIT_UNREACHABLE)
    except OSError as error:
        where = "" if error.filename is None else f" {error.filename}"
        fail(f"use{where}: {error.strerror or error}; check the path, the space and your rights", EXIT_FAILED)


def fail(sentence: str, code: int) -> NoReturn:
    """End the program with a sentence on standard error."""
    errors.print("[red]causeway:[/]", end=" ")
    errors.print(sentence, soft_wrap=True, highlight=False, markup=False)
    raise typer.Exit(code) from None


def run(state: Path, work: Callable[[Orchestrator], Awaitable[T]], goes_on: str = "") -> T:
    """Do `work` in a session with the platform; errors end the program as `explained` says.

    Args:
        state: folder of the platform.
        work: what to do.
        goes_on: what Ctrl-C does not end, and how to see it again.
    """

    async def session() -> T:
        async with Orchestrator(state) as platform:
            return await work(platform)

    with explained():
        try:
            return asyncio.run(session())
        except KeyboardInterrupt:
            if goes_on:
                errors.print(f"interrupted; {goes_on}", soft_wrap=True, highlight=False, markup=False)
            raise typer.Exit(130) from None


def print_json(value: BaseModel | Sequence[BaseModel] | object) -> None:
    """Print JSON; models by their fields."""
    typer.echo(json.dumps(_plain(value), indent=2, default=str))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; an absent value is a dash."""
    # Not as the table's own title, which wraps at the table's width: ids in it are there to be copied.
    console.print(title, style="italic", markup=False, highlight=False, soft_wrap=True)
    shown = Table(header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.show_edge = False
    cells = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    for index, column in enumerate(columns):
        longest = max((len(row[index]) for row in cells), default=0)
        # What is short stays whole, and so does the first column: ids in it are there to be copied.
        whole = longest <= (_ID_LENGTH if index == 0 else _SHORT)
        shown.add_column(column, overflow="fold", no_wrap=whole)
    for cell in cells:
        shown.add_row(*cell)
    console.print(shown)


def counted(number: int, thing: str) -> str:
    """`1 task`, `2 tasks`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def short(value: object) -> str:
    """A value for people: flat figures as `name value`, digests cut."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {short(item)}" for name, item in value.items())
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] if _DIGEST.fullmatch(text) else text


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
