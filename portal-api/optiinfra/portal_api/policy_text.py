"""A policy as people write it: YAML text, and the line on which a key of it stands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import ValidationError

from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.rules import Rules

MOST_CHARACTERS = 32_000
_DEEPEST = 50
"""More brackets inside one another take the reader seconds, and no policy has them."""
_NAME = re.compile(r" \([^@\s]*\)")
"""Findings name a part behind its number: `approvals.0 (night).kinds`."""
_NUMBER = re.compile(r"[0-9]{1,6}")


class NotYaml(Rejected):
    """The text holds no mapping; `line` is where that shows, from 1."""

    def __init__(self, message: str, line: int | None) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class PolicyText:
    """What the text says, and the nodes that know where they stand."""

    content: dict[str, Any]
    root: yaml.MappingNode

    def line_of(self, finding: str) -> int | None:
        """The line, from 1, of the key that a finding begins with, or of what is around it.

        None for a finding about the whole.
        """
        where = _NAME.sub("", finding.partition(": ")[0])
        node: yaml.Node = self.root
        line = None
        for part in where.split("."):
            found = _inside(node, part)
            if found is not None:
                line, node = found[0].start_mark.line + 1, found[1]
        return line


def read_policy(text: str) -> PolicyText:
    """Reads it as the policy file is read. Raises `NotYaml`."""
    _require_shallow(text)
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        content: Any = loader.construct_document(root) if root else None
    except yaml.MarkedYAMLError as broken:
        mark = broken.problem_mark or broken.context_mark
        told = broken.problem or broken.context or "it cannot be read"
        raise NotYaml(f"this is not YAML: {told}", mark.line + 1 if mark else None) from broken
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as broken:
        told = " ".join(str(broken).split())
        raise NotYaml(f"this cannot be read as YAML: {told}", None) from broken
    if not isinstance(root, yaml.MappingNode):
        raise NotYaml("a policy is a mapping, as `max_moving: 1`", 1)
    for key in _twice(root, set()):
        raise NotYaml(f"the key {key.value!r} stands twice", key.start_mark.line + 1)
    return PolicyText(content, root)


def _require_shallow(text: str) -> None:
    depth = 0
    for place, character in enumerate(text):
        depth += (character in "[{") - (character in "]}")
        if depth > _DEEPEST:
            line = text.count("\n", 0, place) + 1
            raise NotYaml(f"brackets stand inside one another, more than {_DEEPEST} deep", line)


def written(policy: dict[str, Any]) -> str:
    """A recorded policy as YAML, without what is as the defaults are.

    One of another release, which this one cannot read, is written whole.
    """
    try:
        rules = Rules.model_validate(policy)
    except ValidationError:
        content = policy
    else:
        content = {"name": rules.name, **rules.model_dump(mode="json", exclude_defaults=True)}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _inside(node: yaml.Node, part: str) -> tuple[yaml.Node, yaml.Node] | None:
    """Where a part of a path stands in a node, and what it leads to."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value == part:
                return key, value
    if isinstance(node, yaml.SequenceNode) and _NUMBER.fullmatch(part):
        items = node.value[int(part) :]
        return (items[0], items[0]) if items else None
    return None


def _twice(node: yaml.Node, seen: set[int]) -> Iterator[yaml.ScalarNode]:
    """Keys of a mapping that stand in it before; a node that has two names is looked at once."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _twice(item, seen)
    if isinstance(node, yaml.MappingNode):
        known: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in known:
                    yield key
                known.add(key.value)
            yield from _twice(value, seen)
