"""The subject table: every fact has one subject, one stream, one type."""

from __future__ import annotations

from typing import get_args

import pytest

from optiinfra.events import facts as f
from optiinfra.events.subjects import (
    BY_PREFIX,
    SUBJECTS,
    Stream,
    kind_of,
    row_of,
    subject_of,
    subjects_in,
    tenant_of,
)
from optiinfra.schemas.errors import Invariant
from optiinfra.schemas.ids import derived_id
from tests.payloads import CHANGE, PAYLOADS


def test_there_is_an_example_of_every_row() -> None:
    assert set(PAYLOADS) == set(BY_PREFIX)


def test_everything_that_can_be_said_has_a_row_and_nothing_else_has() -> None:
    union = get_args(get_args(f.Fact)[0])
    assert {row.payload for row in SUBJECTS} == set(union)
    assert len({kind_of(row.payload) for row in SUBJECTS}) == len(union)


@pytest.mark.parametrize("prefix", PAYLOADS)
def test_a_fact_is_said_on_the_subject_of_its_row(prefix: str) -> None:
    fact, row = PAYLOADS[prefix], BY_PREFIX[prefix]
    subject = subject_of(fact, "acme")
    assert row_of(fact) is row
    assert subject.startswith(f"{prefix}.acme.")
    tokens, pattern = subject.split("."), row.pattern.split(".")
    assert len(tokens) == len(pattern)
    assert row.type == f"optiinfra.{fact.kind}.v{row.version}"


def test_a_vote_and_an_answer_name_their_agent_in_the_subject() -> None:
    assert subject_of(PAYLOADS["vote.cast"], "acme") == f"vote.cast.acme.{CHANGE}.performance"
    answered = subject_of(PAYLOADS["gate.answered"], "acme")
    assert answered == f"gate.answered.acme.{CHANGE}.application"


def test_the_tenant_is_read_back_from_a_subject() -> None:
    assert tenant_of(subject_of(PAYLOADS["change.opened"], "acme")) == "acme"


def test_a_fact_of_one_tenant_is_not_said_for_another() -> None:
    with pytest.raises(Invariant, match="acme"):
        subject_of(PAYLOADS["metrics.cost"], "other")


def test_a_row_refuses_a_fact_that_is_not_its_own() -> None:
    heartbeat = PAYLOADS["agent.heartbeat"]
    for prefix in (
        "change.opened", "sample.answer", "recommendation.proposed", "vote.cast", "gate.answered",
    ):  # fmt: skip
        with pytest.raises(Invariant):
            BY_PREFIX[prefix].key(heartbeat)


def test_each_stream_holds_its_own_subjects_and_heartbeats_lie_in_none() -> None:
    listed = [pattern for stream in Stream for pattern in subjects_in(stream)]
    assert len(listed) == len(set(listed)) == len(SUBJECTS) - 1
    assert BY_PREFIX["agent.heartbeat"].stream is None
    assert subjects_in(Stream.DLQ) == ("dlq.*.*",)


def test_the_change_of_a_fact_is_found_wherever_it_stands() -> None:
    without = {
        "metrics.performance", "metrics.resource", "metrics.cost", "metrics.quality",
        "sample.answer", "telemetry.gap", "quality.assessed", "agent.registered", "agent.lost",
        "agent.heartbeat", "switch.turned", "policy.changed", "dlq",
    }  # fmt: skip
    for prefix, fact in PAYLOADS.items():
        assert f.change_of(fact) == (None if prefix in without else CHANGE)


def test_every_change_ends_with_one_of_the_terminal_facts() -> None:
    assert set(f.TERMINAL_FACTS) <= {kind_of(row.payload) for row in SUBJECTS}
    assert all(state.is_terminal for state in f.TERMINAL_FACTS.values())


def test_ids_are_the_same_for_the_same_parts() -> None:
    assert derived_id("a", 1) == derived_id("a", 1) != derived_id("a", 2)
