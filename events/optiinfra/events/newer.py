"""Reads events of newer releases: fields that were added to known kinds are left out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from optiinfra.events.envelope import MAX_BODY_BYTES, Event, decode
from optiinfra.events.facts import FACT
from optiinfra.schemas.errors import Rejected

_ADDED = "extra_forbidden"


def decode_newer(subject: str, headers: Mapping[str, str] | None, body: bytes) -> Event:
    """The event of a message, without what this version does not know of its kind.

    For subscribers, who may be older than who speaks. Roles are strict: what they do not know
    they must not act on. Raises `Rejected` as `decode` does, also for a kind that is not known.
    """
    try:
        return decode(subject, headers, body)
    except Rejected:
        known = without_additions(body) if len(body) <= MAX_BODY_BYTES else None
        if known is None:
            raise
    return decode(subject, headers, known)


def without_additions(body: bytes) -> bytes | None:
    """The body without fields that its kind does not have; None when it has no such field.

    Whatever else is wrong with it stays: an error within an item may show as another around it.
    """
    try:
        FACT.validate_json(body)
    except ValidationError as invalid:
        errors = invalid.errors(include_url=False, include_input=False, include_context=False)
    except (ValueError, RecursionError):
        return None
    else:
        return None
    added = [error["loc"] for error in errors if error["type"] == _ADDED]
    if not added:
        return None
    value = json.loads(body)
    for path in added:
        _remove(value, path)
    return json.dumps(value).encode()


def _remove(value: Any, path: Sequence[int | str]) -> None:
    """Takes the field at `path` out; a path names the tags of unions as well as fields."""
    *parents, name = path
    for part in parents:
        if part in value if isinstance(value, dict) else isinstance(part, int):
            value = value[part]
    if isinstance(value, dict):
        value.pop(name, None)
