"""Upgrades without what makes them harmless, to see that what was said before is read no more."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import ValidationError

from optiinfra.coordinator.saga.evolve import fold
from optiinfra.coordinator.saga.state import Saga
from optiinfra.events import facts as f
from optiinfra.events.envelope import Event, decode, encode
from optiinfra.events.newer import decode_newer
from optiinfra.schemas.base import Value
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.vote import Vote
from tests.factories import event, vote
from tests.unit.test_golden_logs import LOGS, events, states_of


class Adds(f.VoteCast):
    weight: int = 1


class Demands(f.VoteCast):
    weight: int


class Drops(Value):
    kind: Literal["vote.cast"] = "vote.cast"


class Renames(Value):
    kind: Literal["vote.given"] = "vote.given"
    vote: Vote


def folded(path: Path, release: type[Value]) -> dict[str, Any]:
    """The states to which a recorded log folds, its votes read as `release` has them."""
    chains: dict[str, list[tuple[f.Fact, datetime]]] = {}
    for row in events(path):
        if json.loads(row["body"])["kind"] == "vote.cast":
            read = release.model_validate_json(row["body"])
            fact: f.Fact = f.VoteCast.model_validate(read.model_dump(include={"kind", "vote"}))
        else:
            fact = f.FACT.validate_json(row["body"])
        chains.setdefault(row["chain"], []).append((fact, datetime.fromisoformat(row["at"])))
    return {
        chain: json.loads(fold(Saga(change=chain), log).model_dump_json())
        for chain, log in chains.items()
        if not chain.startswith("tenant-")
    }


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.name)
@pytest.mark.parametrize(
    ("release", "refusal"),
    [
        (Adds, None),
        (Demands, "weight\n  Field required"),
        (Drops, "vote\n  Extra inputs are not permitted"),
        (Renames, "kind\n  Input should be 'vote.given'"),
    ],
)
def test_a_release_that_does_more_than_add_cannot_read_what_was_recorded(
    path: Path, release: type[Value], refusal: str | None
) -> None:
    if refusal is not None:
        with pytest.raises(ValidationError, match=refusal):
            folded(path, release)
        return
    recorded: dict[str, Any] = json.loads(gzip.decompress(states_of(path).read_bytes()))
    states = folded(path, release)
    assert {change: state["state"] for change, state in states.items()} == {
        change: state["state"] for change, state in recorded.items()
    }


@pytest.mark.parametrize(("read", "reads"), [(decode_newer, True), (decode, False)])
def test_a_strict_reader_refuses_what_a_newer_release_has_added(
    read: Callable[..., Event],
    reads: bool,  # noqa: FBT001
) -> None:
    said = event(vote("a" * 32, "cost"))
    subject, headers, body = encode(said)
    newer = json.dumps({**json.loads(body), "weight": 2}).encode()
    if reads:
        assert read(subject, headers, newer) == said
    else:
        with pytest.raises(Rejected, match="weight: Extra inputs are not permitted"):
            read(subject, headers, newer)
