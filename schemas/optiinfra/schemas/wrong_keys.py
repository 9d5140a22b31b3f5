"""What is wrong with a document that people wrote, in one line a key, and what to do."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from optiinfra.schemas.base import Value


def in_words(invalid: ValidationError, model: type[Value]) -> list[str]:
    """Each bad key of what should have been a `model`, as `key: what is wrong, and what to do`."""
    errors = invalid.errors(include_url=False, include_input=False)
    places = [error["loc"] for error in errors]
    return [_told(error, model) for error in errors if not _is_echo(error["loc"], places)]


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
        case "tuple_type" | "list_type" | "set_type" | "frozen_set_type":
            return f"{where}: this must be a list"
        case "dict_type" | "model_type" | "model_attributes_type":
            return f"{where}: this must have keys of its own"
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
