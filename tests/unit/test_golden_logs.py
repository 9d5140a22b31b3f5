"""Logs of earlier releases: whole, and folded by this one to the states that were recorded."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from optiinfra.coordinator.hindsight import LogHindsight
from optiinfra.coordinator.replayed import Replayed
from optiinfra.coordinator.saga.evolve import fold
from optiinfra.coordinator.saga.state import Saga
from optiinfra.events.facts import FACT, TERMINAL_FACTS, Fact
from optiinfra.events.subjects import SUBJECTS, Stream, kind_of
from optiinfra.storage.postgres.export import checked

RECORDED = Path(__file__).parents[1] / "recorded"
LOGS = sorted(RECORDED.glob("golden_*.jsonl.gz"))
NOT_LOGGED = {"agent.heartbeat", "metrics.measured", "sample.answer", "dead.lettered"}


def lines(path: Path) -> list[bytes]:
    return gzip.decompress(path.read_bytes()).splitlines(keepends=True)


def states_of(path: Path) -> Path:
    return path.with_name(path.name.replace(".jsonl.", ".states.json."))


def events(path: Path) -> Iterator[dict[str, Any]]:
    for line in lines(path):
        content = json.loads(line)
        if content["line"] == "event":
            yield content


def test_there_is_one_of_this_release() -> None:
    assert LOGS


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.name)
def test_the_log_is_whole(path: Path) -> None:
    assert checked(lines(path)).ok


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.name)
def test_this_version_folds_it_to_the_states_that_were_recorded(path: Path) -> None:
    states: dict[str, Any] = json.loads(gzip.decompress(states_of(path).read_bytes()))
    chains: dict[str, list[tuple[Fact, datetime]]] = {}
    for row in events(path):
        if not row["chain"].startswith("tenant-"):
            fact = FACT.validate_json(row["body"])
            chains.setdefault(row["chain"], []).append((fact, datetime.fromisoformat(row["at"])))
    assert set(chains) == set(states)
    for change, log in chains.items():
        folded = json.loads(fold(Saga(change=change), log).model_dump_json())
        recorded = states[change]
        assert {name: folded[name] for name in recorded} == recorded
    assert {state["state"] for state in states.values()} >= set(TERMINAL_FACTS.values())


def test_a_replay_folds_it_to_the_same_ends() -> None:
    states = json.loads(gzip.decompress(states_of(LOGS[-1]).read_bytes()))
    replayed = Replayed()
    for row in events(LOGS[-1]):
        replayed.take({**row, "fact": json.loads(row["body"])})
    ends = {change: saga.state.value for change, saga in replayed.changes.items()}
    assert ends == {change: state["state"] for change, state in states.items()}


def test_how_a_change_stood_is_told_after_each_of_its_events() -> None:
    states = json.loads(gzip.decompress(states_of(LOGS[-1]).read_bytes()))
    log = [{**row, "fact": json.loads(row["body"])} for row in events(LOGS[-1])]
    told = list(LogHindsight().standings(log))
    assert [one.change if one else None for one in told] == [
        row["chain"] if row["chain"] in states else None for row in log
    ]
    last = {one.change: one for one in told if one is not None}
    for change, state in states.items():
        assert last[change].state.value == state["state"]
        assert last[change].deployment == state["recommendation"]["deployment"]
        if state["end_reason"]:
            assert last[change].why == (state["waiting"] or state["end_reason"])


def test_the_newest_holds_every_kind_of_fact_that_is_logged() -> None:
    kinds = {json.loads(row["body"])["kind"] for row in events(LOGS[-1])}
    logged = {
        kind_of(row.payload) for row in SUBJECTS if row.stream in (Stream.CHANGES, Stream.TIMERS)
    }
    assert logged - NOT_LOGGED - kinds == set()
