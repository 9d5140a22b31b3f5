"""Errors of documents that people wrote, in words that say what to do."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from optiinfra.schemas.base import Value
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.wrong_keys import in_words
from tests.factories import recommendation


def told(model: type[Value], content: dict[str, Any]) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(content)
    return in_words(caught.value, model)


def test_each_bad_key_has_its_own_line() -> None:
    found = told(Rules, {"max_movin": 2, "approvals": [{"decision": "perhaps"}], "xyzzy": 1})
    assert "approvals.0.name: this key is needed" in found
    assert "max_movin: there is no such key; did you mean 'max_moving'?" in found
    assert any(line.startswith("xyzzy: there is no such key; there are name, ") for line in found)
    assert any(line.startswith("approvals.0.decision: Input should be") for line in found)


def test_another_shape_is_told_in_words_of_the_file() -> None:
    assert told(Rules, {"approvals": 5}) == ["approvals: this must be a list"]
    assert told(Rules, {"approvals": ["all"]}) == ["approvals.0: this must have keys of its own"]


def test_what_the_whole_document_breaks_names_no_key() -> None:
    (line,) = told(Rules, {"approvals": [{"name": "a"}, {"name": "a"}]})
    assert line == "approvals: the name 'a' stands twice; rename one"


def test_a_key_of_one_kind_among_several_is_named_without_a_guess() -> None:
    content = recommendation().model_dump(mode="json")
    content["spec"]["replica"] = "chat-1"
    assert told(Recommendation, content) == ["spec.spot_migration.replica: there is no such key"]
