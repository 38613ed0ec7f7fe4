"""One valid JSON document for any message of the contract, made from its own schema."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

_STRINGS = (
    "01J00000000000000000000000",
    "a" * 64,
    "A" * 43 + "=",
    "cam-1",
    "profile@1",
    "1.0.0",
    "wrong_digest",
    "/fleets/harbour/devices/cam-1",
    "causeway.event.v1",
    "01J00000000000000000000000:1",
    "aaaa.bbbb.cccc",
    "mqtts://127.0.0.1:8883",
    "AAAA",
    "a" * 32,
    "a" * 16,
    "models/digits/1.0.0/model.onnx",
    "1.root.json",
    "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
    "causeway:///01J00000000000000000000000/harbour/cam-1",
    "x",
    "",
)


def example(model: type[BaseModel], *, full: bool) -> bytes:
    """A document that fits the model.

    Args:
        model: of the contract.
        full: with every optional field, else with none.
    """
    schema = model.model_json_schema(by_alias=True)
    return json.dumps(_value(schema, schema.get("$defs", {}), full=full)).encode()


def _value(schema: dict[str, Any], known: dict[str, Any], *, full: bool) -> Any:
    for choice in ("anyOf", "oneOf", "allOf"):
        if choice in schema:
            schema = schema[choice][0]
    if "$ref" in schema:
        return _value(known[schema["$ref"].rsplit("/", 1)[1]], known, full=full)
    if "const" in schema or "enum" in schema:
        return schema.get("const") or schema["enum"][0]
    made: dict[str, Callable[[], Any]] = {
        "object": lambda: _object(schema, known, full=full),
        "array": lambda: [_value(schema["items"], known, full=full)] if full or schema.get("minItems") else [],
        "string": lambda: _string(schema),
        "integer": lambda: schema.get("minimum", 1),
        "number": lambda: schema.get("minimum", 1),
        "boolean": lambda: True,
    }
    return made[schema["type"]]() if schema.get("type") in made else None


def _object(schema: dict[str, Any], known: dict[str, Any], *, full: bool) -> dict[str, Any]:
    wanted = schema.get("properties", {}) if full else {n: schema["properties"][n] for n in schema.get("required", ())}
    found = {name: _value(part, known, full=full) for name, part in wanted.items()}
    values = schema.get("additionalProperties")
    if full and isinstance(values, dict) and values:
        found[_string(schema.get("propertyNames", {}))] = _value(values, known, full=full)
    return found


def _string(schema: dict[str, Any]) -> str:
    if schema.get("format") == "date-time":
        return "2026-01-02T03:04:05Z"
    if "enum" in schema:
        return str(schema["enum"][0])
    pattern, shortest = schema.get("pattern", ""), schema.get("minLength", 0)
    for text in _STRINGS:
        if re.search(pattern, text) and shortest <= len(text) <= schema.get("maxLength", 1 << 30):
            return text
    raise AssertionError(f"no example fits the pattern {pattern!r}; add one to _STRINGS")
