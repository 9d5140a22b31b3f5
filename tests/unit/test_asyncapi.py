"""The generated contract: complete, true to what is sent, and up to date in the repository."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from optiinfra.events import asyncapi
from optiinfra.events.envelope import encode
from optiinfra.events.subjects import BY_PREFIX, SUBJECTS
from tests.factories import event
from tests.payloads import PAYLOADS

DOCS = Path(__file__).parents[2] / "docs"


def test_the_documents_in_the_repository_are_those_of_the_subject_table() -> None:
    wanted = asyncapi.files()
    stale = [
        path
        for path, text in wanted.items()
        if not (DOCS / path).exists() or (DOCS / path).read_text(encoding="utf-8") != text
    ]
    assert stale == [], "run: python -m optiinfra.events.asyncapi docs/"
    kept = {f"schemas/{path.name}" for path in (DOCS / "schemas").glob("*.json")}
    assert kept == set(wanted) - {"asyncapi.json"}


@pytest.mark.parametrize("prefix", PAYLOADS)
def test_what_is_sent_is_what_the_schemas_say(prefix: str) -> None:
    _, headers, body = encode(event(PAYLOADS[prefix]))
    schema = asyncapi.schema_of(BY_PREFIX[prefix].payload)
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(json.loads(body))
    traits = asyncapi.document()["components"]["messageTraits"]
    Draft202012Validator(traits["cloudEvent"]["headers"]).validate(headers)


def test_every_subject_has_a_channel_with_its_stream_and_every_reference_leads_somewhere() -> None:
    document = asyncapi.document()
    assert document["asyncapi"] == "3.0.0"
    for row in SUBJECTS:
        channel = document["channels"][row.prefix]
        assert re.sub(r"\{\w+\}", "*", channel["address"]) == row.pattern
        assert channel["x-nats-stream"] == (row.stream.value if row.stream else None)
    files = asyncapi.files()
    for reference in _references(document):
        if reference.startswith("schemas/"):
            assert reference in files
        else:
            found: Any = document
            for part in reference.removeprefix("#/").split("/"):
                found = found[part]


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if "$ref" in value else []
        return own + [one for child in value.values() for one in _references(child)]
    return [one for child in value for one in _references(child)] if isinstance(value, list) else []


def test_writing_removes_what_is_no_longer_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas" / "old.fact.json").write_text("{}")
    (tmp_path / "schemas" / "change.opened.json").write_text("{}")
    assert asyncapi.main([str(tmp_path)]) == 0
    assert "ChangeOpened" in (tmp_path / "schemas" / "change.opened.json").read_text()
    assert not (tmp_path / "schemas" / "old.fact.json").exists()
    assert (tmp_path / "asyncapi.json").exists()
    assert asyncapi.main([]) == 2
    assert "usage" in capsys.readouterr().err
