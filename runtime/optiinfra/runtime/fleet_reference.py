"""Writes the keys of fleet and policy files as tables into docs/: run it when a model changes."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from optiinfra.runtime.fleet import Fleet
from optiinfra.schemas.base import Value
from optiinfra.schemas.rules import Rules

BEGIN, END = "<!-- keys: begin -->", "<!-- keys: end -->"
_ABOUT = {
    "deployments[].slo.ttft_p95_s": "time to first token, 95th percentile, s",
    "deployments[].slo.tpot_p95_s": "time per output token, 95th percentile, s",
    "deployments[].slo.error_rate": "part of the requests that may fail",
    "clouds.kubernetes.hub_token.name": "of the Secret",
    "clouds.kubernetes.hub_token.key": "which of its keys holds the token",
}
"""Words for models that stand in the room of schemas."""


def rows(model: type[Value] = Fleet, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Key, type, default and words of every key, in the order of the file.

    The keys of a policy stand in a document of their own.
    """
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        inner, many = _inner(field.annotation)
        about = field.description or _ABOUT.get(key, "")
        yield key, _type(field.annotation), _default(field), about
        if inner is not None and inner is not Rules:
            yield from rows(inner, f"{key}[]." if many else f"{key}.")


def table(model: type[Value]) -> str:
    """The rows as Markdown."""
    lines = ["| key | type | default | what it says |", "|---|---|---|---|"]
    lines += [
        f"| `{key}` | {kind} | {default} | {about} |" for key, kind, default, about in rows(model)
    ]
    return "\n".join(lines)


def written(text: str, model: type[Value] = Fleet) -> str:
    """The document with a fresh table between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(model)}\n{END}{after}"


def main(arguments: Sequence[str]) -> int:
    """Rewrites the files that are named; a `policy.md` gets the keys of policies."""
    for path in map(Path, arguments):
        model = Rules if path.name == "policy.md" else Fleet
        path.write_text(written(path.read_text(), model))
    return 0


def _inner(annotation: Any) -> tuple[type[Value] | None, bool]:
    """The model inside an annotation, and whether there may be many of it."""
    if isinstance(annotation, type) and issubclass(annotation, Value):
        return annotation, False
    many = get_origin(annotation) is tuple
    for part in get_args(annotation):
        found, deeper = _inner(part)
        if found is not None:
            return found, many or deeper
    return None, many


def _type(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _type(next(part for part in parts if part is not type(None)))
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin is tuple:
        return f"list of {_type(parts[0])}"
    if origin is dict:
        return f"{_type(parts[0])} → {_type(parts[1])}"
    if origin is not None:
        return _type(parts[0])
    return _simple(annotation)


def _simple(annotation: Any) -> str:
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(f"`{one.value}`" for one in annotation)
    if isinstance(annotation, type) and issubclass(annotation, Value):
        return "mapping"
    names = {str: "text", float: "number", int: "whole number", bool: "`true` or `false`"}
    return names.get(
        annotation, {"HttpUrl": "URL", "Path": "path"}.get(annotation.__name__, "text")
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**needed**"
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined or default is None or default in ((), {}):
        return "none"
    return "see below" if isinstance(default, Value) else f"`{_plain(default)}`"


def _plain(value: Any) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(_plain(one) for one in value)}]"
    if isinstance(value, dict):
        return ", ".join(f"{_plain(key)}: {_plain(one)}" for key, one in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
