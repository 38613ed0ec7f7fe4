"""Writes the contract as an AsyncAPI 3 document: `python -m schemas.asyncapi > docs/asyncapi.yaml`."""

from __future__ import annotations

import json
import sys
from typing import Any

from schemas import depot
from schemas.envelope import MAX_LETTER_BYTES, PAYLOAD_TYPE
from schemas.events import MAX_PIECE_BYTES, MAX_STATE_BYTES, Message
from schemas.letters import PARCEL_DATA, down_model, state_model, up_model
from schemas.topics import BROADCASTS, DOWN_LETTERS, DOWN_PARCELS, DOWN_STATES, STATES, UP_LETTERS, UP_PARCELS

_PARAMETERS = {
    "fleet": {"description": "Fleet: 1 to 63 letters, digits, '-' or '_'."},
    "device": {"description": "Device: 1 to 63 letters, digits, '-' or '_'."},
}
_BYTES = {"type": "string", "format": "binary"}


def document() -> dict[str, Any]:
    """The whole contract of the devices' side."""
    channels: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    schemas: dict[str, Any] = {"Envelope": _envelope()}

    def add(channel: str, kind: str, direction: str, message: dict[str, Any]) -> None:
        name = f"{channel}-{kind}"
        address = f"cw/1/{{fleet}}/all/{kind}" if channel == "all" else f"cw/1/{{fleet}}/{{device}}/{channel}/{kind}"
        parameters = {"fleet": _PARAMETERS["fleet"]} if channel == "all" else _PARAMETERS
        messages[name] = {"name": name, **message}
        channels[name] = {
            "address": address,
            "parameters": parameters,
            "messages": {name: {"$ref": f"#/components/messages/{name}"}},
        }
        operations[f"{direction}-{name}"] = {
            "action": direction,
            "channel": {"$ref": f"#/channels/{name}"},
            "messages": [{"$ref": f"#/channels/{name}/messages/{name}"}],
        }

    for kind in sorted(UP_LETTERS):
        add("letter", kind, "send", _letter(up_model(kind), f"Up{kind.title()}", schemas))
    for kind in sorted(STATES):
        add("state", kind, "send", _state(state_model(kind), kind, schemas))
    for kind in sorted(UP_PARCELS):
        add("parcel", kind, "send", _parcel(kind, schemas))
    for kind in sorted(DOWN_LETTERS | DOWN_STATES):
        add("down", kind, "receive", _letter(down_model(kind), f"Down{kind.title()}", schemas))
    for kind in sorted(DOWN_PARCELS):
        add("down", kind, "receive", _parcel(kind, schemas))
    for kind in sorted(BROADCASTS):
        add(
            "all",
            kind,
            "receive",
            {"summary": "Versions to ask for.", "payload": _reference("TrustAnnouncement", schemas)},
        )
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Causeway, the devices' side",
            "version": "1",
            "description": "Topics of protocol version 1 as a device sees them, over MQTT 3.1.1 at QoS 0.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": schemas},
    }


def text() -> str:
    """The document as it is checked in; JSON is YAML."""
    return json.dumps(document(), indent=1, sort_keys=True) + "\n"


def _letter(model: type[Message], name: str, schemas: dict[str, Any]) -> dict[str, Any]:
    _define(model, name, schemas)
    return {
        "summary": f"DSSE envelope, at most {MAX_LETTER_BYTES} bytes; its payload is {name}.",
        "contentType": "application/json",
        "payload": {"$ref": "#/components/schemas/Envelope"},
        "x-signed-payload": {"$ref": f"#/components/schemas/{name}"},
    }


def _state(model: type[Message], kind: str, schemas: dict[str, Any]) -> dict[str, Any]:
    name = f"State{kind.title()}"
    _define(model, name, schemas)
    return {
        "summary": f"CloudEvent, unsigned, at most {MAX_STATE_BYTES} bytes.",
        "contentType": PAYLOAD_TYPE,
        "payload": {"$ref": f"#/components/schemas/{name}"},
    }


def _parcel(kind: str, schemas: dict[str, Any]) -> dict[str, Any]:
    if kind in PARCEL_DATA:
        return {"summary": "What the device asks for.", "payload": _define(PARCEL_DATA[kind], kind.title(), schemas)}
    if kind == "piece":
        summary = f"32 bytes of sha256, then at most {MAX_PIECE_BYTES} bytes."
        return {"summary": summary, "contentType": "application/octet-stream", "payload": _BYTES}
    if kind == "slice":
        summary = "32 bytes of the piece's sha256, offset and length of the piece as uint32 LE, then the part's bytes."
        return {"summary": summary, "contentType": "application/octet-stream", "payload": _BYTES}
    summary = "zstd of JSON: TrustPack."
    _reference("TrustPack", schemas)
    return {"summary": summary, "contentType": "application/zstd", "payload": _BYTES}


def _reference(name: str, schemas: dict[str, Any]) -> dict[str, str]:
    return _define(getattr(depot, name), name, schemas)


def _define(model: type[Message], name: str, schemas: dict[str, Any]) -> dict[str, str]:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(schema.pop("$defs", {}))
    schemas[name] = schema
    return {"$ref": f"#/components/schemas/{name}"}


def _envelope() -> dict[str, Any]:
    signature = {
        "type": "object",
        "required": ["keyid", "sig"],
        "properties": {"keyid": {"type": "string", "maxLength": 128}, "sig": {"type": "string", "maxLength": 88}},
    }
    return {
        "type": "object",
        "description": "DSSE v1.0.2, Ed25519 over the pre-authentication encoding.",
        "required": ["payloadType", "payload", "signatures"],
        "properties": {
            "payloadType": {"const": PAYLOAD_TYPE},
            "payload": {"type": "string", "contentEncoding": "base64", "maxLength": MAX_LETTER_BYTES},
            "signatures": {"type": "array", "minItems": 1, "maxItems": 4, "items": signature},
        },
    }


if __name__ == "__main__":
    sys.stdout.write(text())
