"""`docs/guarantees.md`: every promise names tests, and every test that it names is there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from nats.js.api import DiscardPolicy

from optiinfra.events.topology import STREAMS, TopologyLimits

TESTS = Path(__file__).resolve().parents[1]
DOCUMENT = TESTS.parent / "docs" / "guarantees.md"
_NAMED = re.compile(r"`((?:unit|integration|faults|contract|e2e)/\w+\.py)::(test_\w+)`")
_DAY_S = 86_400


def _rows(first_cell: str) -> Iterator[list[str]]:
    """The cells of all rows of the tables that begin with such a column."""
    inside = False
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif cells[0] == first_cell:
            inside = True
        elif inside and set(cells[0]) != {"-"}:
            yield cells


@cache
def _tests_in(file: str) -> frozenset[str]:
    path = TESTS / file
    if not path.exists():
        return frozenset()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(one.name for one in tree.body if isinstance(one, kinds))


def test_every_test_that_is_named_exists() -> None:
    named = _NAMED.findall(DOCUMENT.read_text(encoding="utf-8"))
    assert len(named) > 50
    assert [f"{file}::{name}" for file, name in named if name not in _tests_in(file)] == []


def test_every_promise_names_a_test_and_nothing_else_is_quoted_as_one() -> None:
    promises = list(_rows("promise"))
    assert len(promises) > 25
    assert [words for words, held_by in promises if not _NAMED.search(held_by)] == []
    assert [row[0] for row in _rows("fault") if not _NAMED.search(row[3])] == []
    text = DOCUMENT.read_text(encoding="utf-8")
    assert len(re.findall(r"::test_", text)) == len(_NAMED.findall(text))


def test_each_promise_has_been_seen_to_fall_and_each_such_test_is_named() -> None:
    fallen = {row[0]: row[4] for row in _rows("fault")}
    assert [fault for fault, words in fallen.items() if not _NAMED.search(words)] == []
    seen = {name for words in fallen.values() for _, name in _NAMED.findall(words)}
    files = [f"faults/{path.name}" for path in (TESTS / "faults").glob("test_sabotage*.py")]
    sabotage = {one for file in files for one in _tests_in(file) if one.startswith("test_")}
    assert seen >= sabotage, f"not told yet: {sorted(sabotage - seen)}"


def test_the_table_of_retention_is_that_of_the_streams() -> None:
    limits = TopologyLimits()
    specs = {spec.stream.value: spec for spec in STREAMS}
    rows = list(_rows("stream"))
    assert len(rows) == 3
    for streams, kept_for, when_full in rows:
        for name in re.findall(r"`(\w+)`", streams):
            spec = specs[name]
            assert spec.age is not None
            assert kept_for == f"{getattr(limits, spec.age) / _DAY_S:.0f} d", name
            refuses = when_full.startswith("refuses")
            if name != "CHANGES_REPLAY":  # a mirror takes what its origin took
                assert refuses == (spec.discard is DiscardPolicy.NEW), name
