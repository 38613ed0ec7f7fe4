"""What is wrong with a message or a setting, in words for people instead of patterns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from schemas.ids import DIGEST, ENTRY_POINT, HOST, IDENTIFIER, IDENTIFIER_RULE, PEER, ULID, VERSION, WORD

MAX_PROBLEMS = 3
_RULES = {
    IDENTIFIER: f"is not an identifier: {IDENTIFIER_RULE}",
    ENTRY_POINT: "is not of the form name@version, as profile@1",
    VERSION: "is not a version: use up to 64 letters, digits, '.', '+' or '-', as 1.2.0",
    ULID: "is not an id of 26 characters, as `list` prints them",
    WORD: "is not a word: use up to 63 small letters, digits, '_' or '.', beginning with a letter, as door.open",
    HOST: "is not a host: use its DNS name or its address, without a port",
    PEER: "is not of the form host:port, as 192.0.2.7:7777",
    DIGEST: "is not a sha256 of 64 hex digits",
}


def problems(error: ValidationError, whole: str = "value") -> str:
    """The first problems in one sentence; `whole` names what is meant where no field is.

    Only what must be a name is quoted, so that no secret gets into a message.
    """
    return sentence(error.errors(include_url=False), whole)


def sentence(found: Sequence[ErrorDetails], whole: str = "value") -> str:
    """As `problems`, for errors that came another way."""
    shown = "; ".join(f"{_place(problem, whole)}: {_problem(problem)}" for problem in found[:MAX_PROBLEMS])
    rest = len(found) - MAX_PROBLEMS
    return f"{shown}; and {rest} more" if rest > 0 else shown


def setting_problems(error: ValidationError, settings: type[BaseModel], others: Iterable[str] = ()) -> str:
    """As `problems`; for each name that there is not, the nearest one and all that there are.

    Args:
        error: of reading a file of settings.
        settings: model of the whole file, whose tables are models themselves.
        others: tables of the file that are read by themselves.
    """
    tables: dict[tuple[int | str, ...], Sequence[str]] = {}
    found: list[ErrorDetails] = []
    for problem in error.errors(include_url=False):
        if problem["type"] == "extra_forbidden":
            place, name = problem["loc"][:-1], str(problem["loc"][-1])
            known = tables.setdefault(place, sorted([*_names(settings, place), *(() if place else others)]))
            problem["ctx"] = problem.get("ctx", {}) | {"nearest": nearest(name, known)}
        found.append(problem)
    told = sentence(found)
    for place in sorted(tables, key=str):
        where = f" in [{'.'.join(map(str, place))}]" if place and len(tables) > 1 else ""
        told += f"; known{where} are {', '.join(tables[place])}"
    return told


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean heartbeat_s?)`, or nothing if no known name is like this one."""
    from difflib import get_close_matches  # noqa: PLC0415 - a device that is well needs none of it

    found = get_close_matches(name, list(known), 1)
    return f" (did you mean {found[0]}?)" if found else ""


def _names(settings: type[BaseModel], place: Sequence[int | str]) -> Iterable[str]:
    """Those of a table."""
    table = settings
    for name in place:
        inner: Any = table.model_fields[str(name)].annotation
        assert issubclass(inner, BaseModel), "only tables of settings refuse names"
        table = inner
    return table.model_fields


def _place(problem: ErrorDetails, whole: str) -> str:
    return ".".join(str(part) for part in problem["loc"] if part != "[key]") or whole


def _problem(problem: ErrorDetails) -> str:
    if problem["type"] == "extra_forbidden":
        return f"there is no such name{problem.get('ctx', {}).get('nearest', '')}"
    rule = _RULES.get(str(problem.get("ctx", {}).get("pattern")))
    return problem["msg"] if rule is None else f"{str(problem['input'])[:60]!r} {rule}"
