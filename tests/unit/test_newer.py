"""Events of newer releases, as an older subscriber reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from optiinfra.events import asyncapi
from optiinfra.events.envelope import MAX_BODY_BYTES, decode, encode
from optiinfra.events.newer import decode_newer, without_additions
from optiinfra.events.subjects import BY_PREFIX
from optiinfra.schemas.errors import Rejected
from tests.factories import event
from tests.payloads import PAYLOADS


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object below `value`, those that hold others first."""
    if isinstance(value, dict):
        yield value
    children = value.values() if isinstance(value, dict) else value
    for child in children if isinstance(value, (dict, list)) else ():
        yield from objects(child)


@pytest.mark.parametrize("prefix", PAYLOADS)
def test_a_field_that_a_newer_release_adds_anywhere_is_left_out(prefix: str) -> None:
    said = event(PAYLOADS[prefix])
    subject, headers, body = encode(said)
    grown = json.loads(body)
    grown["added_later"] = {"of": ["any", "shape"]}
    with pytest.raises(Rejected, match="added_later"):
        decode(subject, headers, json.dumps(grown).encode())
    assert decode_newer(subject, headers, json.dumps(grown).encode()) == said


def test_so_are_fields_deep_inside_also_beneath_a_choice_of_kinds() -> None:
    said = event(PAYLOADS["recommendation.proposed"])
    subject, headers, body = encode(said)
    grown = json.loads(body)
    recommendation = grown["recommendation"]
    recommendation["spec"]["added"] = 1
    recommendation["spec"]["to"]["added"] = 2
    for stage in recommendation["rollout"]["stages"]:
        stage["added"] = 3
    assert decode_newer(subject, headers, json.dumps(grown).encode()) == said


def test_what_is_known_is_read_as_it_is() -> None:
    said = event(PAYLOADS["vote.cast"])
    subject, headers, body = encode(said)
    assert decode_newer(subject, headers, body) == said
    assert without_additions(body) is None


@pytest.mark.parametrize(
    "body",
    [
        b'{"kind": "change.repainted", "added": 1}',
        b'{"kind": "change.resumed", "added": 1}',
        b"not json",
        b"[" * 100_000,
        b'{"kind": "change.resumed", "x": "' + b"x" * MAX_BODY_BYTES + b'"}',
    ],
)
def test_what_is_wrong_otherwise_is_refused_as_ever(body: bytes) -> None:
    subject, headers, _ = encode(event(PAYLOADS["change.resumed"]))
    with pytest.raises(Rejected):
        decode_newer(subject, headers, body)


@pytest.mark.parametrize("prefix", PAYLOADS)
def test_the_published_schemas_leave_room_for_what_is_added(prefix: str) -> None:
    schema = asyncapi.schema_of(BY_PREFIX[prefix].payload)
    assert [one for one in objects(schema) if one.get("additionalProperties") is False] == []
