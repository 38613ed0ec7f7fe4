"""Writes the reference pages in `docs/` anew, of both commands and of all settings: `python -m causeway.reference`."""

from __future__ import annotations

import argparse
import ast
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from typer.cli import get_docs_for_click
from typer.main import get_command

from causeway.cli.main import app
from edge_runtime.cli import make_parser
from edge_runtime.settings import (
    CarrierSettings,
    EdgeSettings,
    LaneLimits,
    NeighbourSettings,
    OutboxLimits,
    OwnerLimits,
)
from services.courier.settings import CourierSettings
from services.kit.settings import BusSettings, HttpSettings, Settings, StoreSettings
from services.registry.settings import RegistrySettings

_TABLES: list[tuple[str, str, type[BaseModel]]] = [
    (
        "The platform: `settings.toml`",
        "Overridden by `CAUSEWAY_NAME`. Unknown names are refused, in the file and in the environment.",
        Settings,
    ),
    ("`[bus]`", "Overridden by `CAUSEWAY_BUS__NAME`.", BusSettings),
    ("`[store]`", "Overridden by `CAUSEWAY_STORE__NAME`.", StoreSettings),
    ("`[http]`", "Overridden by `CAUSEWAY_HTTP__NAME`.", HttpSettings),
    ("`[registry]`", "Overridden by `CAUSEWAY_REGISTRY_NAME`.", RegistrySettings),
    ("`[courier]`", "Overridden by `CAUSEWAY_COURIER_NAME`.", CourierSettings),
    ("A device: `edge.toml`", "Unknown names are refused.", EdgeSettings),
    ("`[outbox]` of a device", "", OutboxLimits),
    ("`[limits]` of a device", "The platform may only tighten them.", OwnerLimits),
    ("`[outbox.control]`, `[outbox.normal]` and `[outbox.bulk]` of a device", "", LaneLimits),
    ("`[carriers]` of a device", "", CarrierSettings),
    ("`[neighbours]` of a device", "", NeighbourSettings),
]


def cli_page() -> str:
    """Every command with its options and an example."""
    command = get_command(app)
    page = get_docs_for_click(obj=command, ctx=typer.Context(command), name="causeway")
    return f"{page.strip()}\n"


def edge_cli_page() -> str:
    """Every verb of a device's command with its options; not argparse's own text, which differs between Pythons."""
    return "\n".join(["# `causeway-edge`", *_verb(make_parser())]) + "\n"


def _verb(parser: argparse.ArgumentParser) -> Iterator[str]:
    verbs = next((a for a in parser._actions if isinstance(a, argparse._SubParsersAction)), None)  # noqa: SLF001
    own = [action for action in parser._actions if action is not verbs]  # noqa: SLF001
    options = [action for action in own if action.option_strings]
    places = [action for action in own if not action.option_strings]
    if parser.description:
        yield from ("", parser.description.strip())
    last = "VERB [ARGS]..." if verbs else " ".join(action.dest.upper() for action in places)
    yield from ("", "**Usage**:", "", "```console", f"$ {parser.prog} [OPTIONS] {last}".rstrip(), "```")
    if places:
        yield from ("", "**Arguments**:", "")
        yield from (f"* `{action.dest.upper()}`: {action.help}  [required]" for action in places)
    yield from ("", "**Options**:", "")
    for action in options:
        value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
        yield f"* `{', '.join(action.option_strings)}{value}`: {action.help}"
    if parser.epilog:
        yield from ("", "```text", parser.epilog.strip(), "```")
    helps = {action.dest: action.help for action in verbs._choices_actions} if verbs else {}  # noqa: SLF001
    for name, inner in (verbs.choices if verbs else {}).items():
        yield from ("", f"## `{inner.prog}`", "", f"{str(helps[name]).capitalize()}.")
        yield from _verb(inner)


def settings_page() -> str:
    """Every setting with its type, default and meaning."""
    parts = ["# Settings", "", "Written by `python -m causeway.reference` from the code."]
    for title, note, model in _TABLES:
        parts += ["", f"## {title}", ""]
        parts += [note, ""] if note else []
        parts += ["| name | type | default | meaning |", "|---|---|---|---|"]
        meanings = _meanings(model)
        parts += [_row(name, field, meanings.get(name, "")) for name, field in model.model_fields.items()]
    return "\n".join(parts) + "\n"


def _row(name: str, field: FieldInfo, meaning: str) -> str:
    kind = getattr(field.annotation, "__name__", None)
    if kind is None or kind in {"Optional", "Union", "Literal", "Annotated"}:
        kind = str(field.annotation).replace("typing.", "").replace("pathlib.", "")
    if field.default is PydanticUndefined:
        default = "required" if field.is_required() else "see below"
    elif isinstance(field.default, BaseModel):
        default = "see its table"
    else:
        default = f"`{str(field.default) if isinstance(field.default, Path) else field.default!r}`"
    return f"| `{name}` | {kind.replace('|', 'or')} | {default} | {meaning.replace('|', 'or')} |"


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """The string below each field, which Python itself does not keep."""
    body = ast.parse(inspect.getsource(model)).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found


PAGES = {"cli.md": cli_page, "edge-cli.md": edge_cli_page, "settings.md": settings_page}


def main() -> None:
    """Write the pages into the folder named, or `docs`."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    for name, page in PAGES.items():
        (folder / name).write_text(page())


if __name__ == "__main__":
    main()
