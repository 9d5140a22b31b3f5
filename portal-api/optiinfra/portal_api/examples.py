"""Answers as they look, for the OpenAPI document; a test reads each with its model."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from pydantic import ConfigDict


@cache
def examples() -> dict[str, dict[str, Any]]:
    """All of them, by name; taken from real answers."""
    text = (files("optiinfra.portal_api") / "data" / "examples.json").read_text("utf-8")
    found: dict[str, dict[str, Any]] = json.loads(text)
    return found


def shown_as(name: str) -> ConfigDict:
    """The configuration of a model that has this example."""
    return ConfigDict(json_schema_extra={"examples": [examples()[name]]})
