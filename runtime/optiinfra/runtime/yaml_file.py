"""Reads a YAML file into a model, and says in one line a key what is wrong with it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from optiinfra.schemas.base import Value
from optiinfra.schemas.errors import Rejected


@dataclass(frozen=True, slots=True)
class FileKind:
    """What a file is called, the model that it fills, and the document that lists its keys."""

    name: str
    model: type[Value]
    document: str
    needs: str
    """A key that even the smallest file has, or should have."""
    checked_by: str = "optiinfra config check"

    @property
    def hint(self) -> str:
        return f"{self.document} lists every key; `{self.checked_by}` checks the file"


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001 - the signature of PyYAML
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} stands twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def content_of(path: Path, kind: FileKind) -> dict[str, Any]:
    """The mapping that the file holds. Raises `Rejected` when it cannot be read as one."""
    try:
        content: Any = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a safe one
    except FileNotFoundError as missing:
        raise Rejected(
            f"there is no {kind.name} {path}", hint=f"write one; {kind.document} shows how"
        ) from missing
    except (OSError, UnicodeDecodeError) as unreadable:
        raise Rejected(
            f"the {kind.name} {path} cannot be read: {unreadable}", hint="check path and rights"
        ) from unreadable
    except yaml.YAMLError as broken:
        told = " ".join(str(broken).split())
        raise Rejected(f"{path} is not YAML: {told}", hint="correct that line") from broken
    if not isinstance(content, dict):
        raise Rejected(f"{path} must hold a mapping with the key {kind.needs!r}", hint=kind.hint)
    return content


def wrong(path: Path, kind: FileKind, invalid: ValidationError) -> Rejected:
    """One line that names each bad key and what to do."""
    errors = invalid.errors(include_url=False, include_input=False)
    places = [error["loc"] for error in errors]
    lines = [_told(error, kind.model) for error in errors if not _is_echo(error["loc"], places)]
    return Rejected(f"{path}: {'; '.join(lines)}", hint=kind.hint)


def _is_echo(where: tuple[int | str, ...], places: list[tuple[int | str, ...]]) -> bool:
    """Whether an error only repeats that something below its place is wrong."""
    return any(len(one) > len(where) and one[: len(where)] == where for one in places if where)


def _told(error: ErrorDetails, model: type[Value]) -> str:
    """One error as `key: what is wrong, and what to do`."""
    where = ".".join(str(part) for part in error["loc"]) or "file"
    match error["type"]:
        case "missing":
            return f"{where}: this key is needed"
        case "extra_forbidden":
            return f"{where}: there is no such key{_meant(error['loc'], model)}"
        case "value_error":
            said = error["msg"].removeprefix("Value error, ")
            return said if where == "file" else f"{where}: {said}"
        case _:
            return f"{where}: {error['msg']}"


def _meant(where: tuple[int | str, ...], root: type[Value]) -> str:
    """The key that was probably meant, or those that there are."""
    model = _model_at(root, where[:-1])
    names = list(model.model_fields) if model else []
    near = get_close_matches(str(where[-1]), names, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; there are {', '.join(names)}" if names else ""


def _model_at(model: type[Value], where: tuple[int | str, ...]) -> type[Value] | None:
    """The model that a path inside the file leads to."""
    for part in where:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        found = _models_in(field.annotation) if field else []
        if not found:
            return None
        model = found[0]
    return model


def _models_in(annotation: Any) -> list[type[Value]]:
    if isinstance(annotation, type) and issubclass(annotation, Value):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]
