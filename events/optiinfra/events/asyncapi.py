"""Writes AsyncAPI 3, and the JSON Schemas of all payloads in the subject table and of policies."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from optiinfra.events.envelope import CONTENT_TYPE
from optiinfra.events.subjects import SUBJECTS, Subject, kind_of
from optiinfra.schemas.base import Value
from optiinfra.schemas.rules import Rules

SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"
VERSION = "1.0.0"
"""Of the contract; additions raise the second number, a break would raise the first."""

_HEADERS: dict[str, Any] = {
    "type": "object",
    "required": ["ce-specversion", "ce-id", "ce-type", "ce-source", "ce-time", "ce-tenant"],
    "properties": {
        "Nats-Msg-Id": {"type": "string", "description": "The same as ce-id; drops repeats."},
        "content-type": {"const": CONTENT_TYPE},
        "ce-specversion": {"const": "1.0"},
        "ce-id": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
        "ce-type": {"type": "string", "description": "optiinfra.<kind>.v<version>"},
        "ce-source": {"type": "string", "description": "The role that said it."},
        "ce-subject": {"type": "string"},
        "ce-time": {"type": "string", "format": "date-time"},
        "ce-tenant": {"type": "string"},
        "ce-correlationid": {"type": "string", "description": "The change it belongs to."},
        "ce-causationid": {"type": "string", "description": "The event it follows from."},
        "traceparent": {"type": "string", "description": "W3C trace context."},
    },
}


def schema_of(payload: type[Value]) -> dict[str, Any]:
    """The JSON Schema of a payload, as it is written to the bus; later releases may add fields."""
    schema = _open(payload.model_json_schema(mode="serialization"))
    return {"$schema": SCHEMA_DIALECT, "$id": f"{kind_of(payload)}.json", **schema}


def _open(schema: Any) -> Any:
    """The schema without the refusal of fields that it does not know."""
    if isinstance(schema, list):
        return [_open(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: _open(value)
        for name, value in schema.items()
        if (name, value) != ("additionalProperties", False)
    }


def policy_schema() -> dict[str, Any]:
    """The JSON Schema of a policy file, for editors and checks outside."""
    return {"$schema": SCHEMA_DIALECT, "$id": "policy.json", **Rules.model_json_schema()}


def document() -> dict[str, Any]:
    """The AsyncAPI document; payloads are referred to as `schemas/<kind>.json`."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "OptiInfra events",
            "version": VERSION,
            "description": "What OptiInfra says on NATS JetStream, as CloudEvents 1.0 in binary "
            "mode: the envelope in headers, the fact alone in the body. Delivered at least once.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": CONTENT_TYPE,
        "channels": {row.prefix: _channel(row) for row in SUBJECTS},
        "operations": {f"say.{row.prefix}": _operation(row) for row in SUBJECTS},
        "components": {
            "messages": {kind_of(row.payload): _message(row) for row in SUBJECTS},
            "messageTraits": {"cloudEvent": {"headers": _HEADERS}},
            "parameters": {
                "tenant": {"description": "The tenant's name."},
                "id": {"description": "What it is about: a change, a deployment, an agent."},
                "agent": {"description": "The agent that says it; the body names the same."},
                "consumer": {"description": "The consumer that could not handle it."},
            },
        },
    }


def _channel(row: Subject) -> dict[str, Any]:
    kind, tokens = kind_of(row.payload), ("tenant", *row.tokens)
    return {
        "address": ".".join((row.prefix, *(f"{{{name}}}" for name in tokens))),
        "description": row.about,
        "messages": {kind: {"$ref": f"#/components/messages/{kind}"}},
        "parameters": {name: {"$ref": f"#/components/parameters/{name}"} for name in tokens},
        "x-nats-stream": row.stream.value if row.stream else None,
        "x-publishers": [role.value for role in row.publishers],
    }


def _operation(row: Subject) -> dict[str, Any]:
    return {
        "action": "send",
        "channel": {"$ref": f"#/channels/{row.prefix}"},
        "summary": row.about,
        "tags": [{"name": role.value} for role in row.publishers],
    }


def _message(row: Subject) -> dict[str, Any]:
    kind = kind_of(row.payload)
    return {
        "name": row.type,
        "title": row.payload.__name__,
        "summary": " ".join((row.payload.__doc__ or row.about).split()),
        "contentType": CONTENT_TYPE,
        "traits": [{"$ref": "#/components/messageTraits/cloudEvent"}],
        "payload": {"$ref": f"schemas/{kind}.json"},
    }


def files() -> dict[str, str]:
    """Every generated file: path below the folder of documents, and text."""
    made = {"asyncapi.json": document()}
    for row in SUBJECTS:
        made[f"schemas/{kind_of(row.payload)}.json"] = schema_of(row.payload)
    made["schemas/policy.json"] = policy_schema()
    return {
        path: json.dumps(value, indent=2, ensure_ascii=False) + "\n" for path, value in made.items()
    }


def write(folder: Path) -> list[Path]:
    """Writes all files below `folder`, and removes schemas that no subject has any more."""
    wanted = files()
    (folder / "schemas").mkdir(parents=True, exist_ok=True)
    for old in (folder / "schemas").glob("*.json"):
        if f"schemas/{old.name}" not in wanted:
            old.unlink()
    for path, text in wanted.items():
        (folder / path).write_text(text, encoding="utf-8")
    return [folder / path for path in wanted]


def main(arguments: list[str]) -> int:
    """`python -m optiinfra.events.asyncapi docs/`"""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m optiinfra.events.asyncapi FOLDER\n")
        return 2
    sys.stdout.write(f"{len(write(Path(arguments[0])))} files written\n")
    return 0


if __name__ == "__main__":  # pragma: no cover
    sys.exit(main(sys.argv[1:]))
