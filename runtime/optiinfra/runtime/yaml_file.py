"""Reads a YAML file into a model, and says in one line a key what is wrong with it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from optiinfra.schemas.base import Value
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.wrong_keys import in_words


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
    return Rejected(f"{path}: {'; '.join(in_words(invalid, kind.model))}", hint=kind.hint)
