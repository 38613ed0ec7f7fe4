"""Environment variables that override settings: a misspelt one would change nothing, so it is refused. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import get_origin

from pydantic import BaseModel
from pydantic_settings import BaseSettings

from schemas.wording import nearest
from services.kit.errors import SettingsError

_OTHERS = frozenset({"CAUSEWAY_STATE", "CAUSEWAY_PROFILE"})
"""No settings: of the command line, and of devices."""
_LINK = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_|$)|_PORT_\d+_(TCP|UDP|SCTP)(_|$)")
"""What Kubernetes sets for a service called `causeway-NAME`; also `_PORT`, whose value is an address."""


def variable(settings: type[BaseSettings], place: Iterable[int | str]) -> str:
    """Name of the one that overrides a setting, as `CAUSEWAY_BUS__HOST`."""
    return f"{settings.model_config['env_prefix']}{'__'.join(map(str, place))}".upper()


def check_variables(settings: type[BaseSettings], environment: Mapping[str, str], tables: Iterable[str] = ()) -> None:
    """Refuse a variable of the settings' prefix that is none of them; what follows `__` is looked at with its value.

    Args:
        settings: that are read.
        environment: of this process.
        tables: whose variables are for others to look at, as `CAUSEWAY_COURIER_BATCH`.

    Raises:
        SettingsError: naming it and the nearest that there is.
    """
    fields = settings.model_fields.items()
    known = {variable(settings, (name,)): field.annotation for name, field in fields}
    others = tuple(f"{variable(settings, (table,))}_" for table in tables)
    for name, value in environment.items():
        first, nested_in, _ = name.upper().partition("__")
        if not first.startswith(variable(settings, ())) or first.startswith(others) or name.upper() in _OTHERS:
            continue
        if first in known and (not nested_in or _is_table(known[first])):
            continue
        if _LINK.search(name) or (name.endswith("_PORT") and "://" in value):
            continue
        nested = {variable(settings, (outer, inner)) for outer, field in fields for inner in _names(field.annotation)}
        raise SettingsError(
            f"read {name} of the environment: there is no such setting{nearest(name.upper(), {*known, *nested})}; "
            "correct it or unset it, all are in docs/settings.md"
        )


def variables_of(
    settings: type[BaseSettings], environment: Iterable[str], places: Iterable[Iterable[int | str]]
) -> list[str]:
    """Those that set one of these places, something in it, or a table that it is in."""
    wanted = [f"{variable(settings, place)}__" for place in places]
    levels = ((name, f"{name.upper()}__") for name in environment)
    return [
        name for name, level in levels if any(place.startswith(level) or level.startswith(place) for place in wanted)
    ]


def _is_table(annotation: object) -> bool:
    return get_origin(annotation) is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel))


def _names(table: object) -> Iterable[str]:
    return table.model_fields if isinstance(table, type) and issubclass(table, BaseModel) else ()
