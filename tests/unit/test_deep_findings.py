"""What the doctor makes of what broker and database say: pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest

from optiinfra.coordinator.saga.state import Saga
from optiinfra.events.condition import ConsumerCondition, StreamCondition
from optiinfra.events.subjects import Stream
from optiinfra.runtime import deep_findings as told
from optiinfra.runtime.findings import Level
from optiinfra.runtime.stuck import finding_on, findings_on_intents, spoken, waits_for
from optiinfra.schemas.approval import Approval, Snooze
from optiinfra.schemas.change import TERMINAL_STATES, ChangeState, Phase
from optiinfra.schemas.rollout import Step, StepKind
from optiinfra.schemas.tenant import person
from optiinfra.schemas.vote import AgentName
from optiinfra.storage.postgres.condition import Backlog, KnownAgent, OpenChange, OpenIntent
from tests.factories import AT, gate_answer, recommendation, vote


def saga(state: ChangeState, **fields: object) -> Saga:
    proposal = recommendation()
    return Saga(change=proposal.id, state=state, recommendation=proposal).model_copy(update=fields)


def opened(body: Saga, **fields: object) -> OpenChange:
    values: dict[str, object] = {
        "id": body.change,
        "tenant": "acme",
        "deployment": "chat",
        "state": body.state.value,
        "body": body.model_dump_json(),
        "quiet_s": 90.0,
        "next_timer": None,
        "overdue_s": 0.0,
        "alone": True,
        "seen_at": AT,
    }
    return OpenChange(**{**values, **fields})  # type: ignore[arg-type]


def consumer(**fields: object) -> ConsumerCondition:
    values: dict[str, object] = {
        "stream": Stream.CHANGES,
        "name": "coordinator",
        "durable": True,
        "waiting": 0,
        "in_hand": 0,
        "redelivered": 0,
        "listeners": 1,
        "delivered": 5,
        "acked_to": 5,
    }
    return ConsumerCondition(**{**values, **fields})  # type: ignore[arg-type]


STEP = Step(kind=StepKind.APPLY, stage=2, share=0.5)
GRANT = Approval(
    change=recommendation().id,
    version_hash=recommendation().version_hash,
    granted=True,
    by=person("ana"),
    at=AT,
)
VOTED = tuple(vote(recommendation().id, name).vote for name in ("application", "performance"))


@pytest.mark.parametrize(
    ("open_saga", "words"),
    [
        (saga(ChangeState.PROPOSED, recommendation=None), "its proposal"),
        (saga(ChangeState.PROPOSED), "its turn at chat"),
        (saga(ChangeState.DEFERRED, waiting="a freeze"), "a freeze"),
        (saga(ChangeState.VOTING, round=1, votes=VOTED), "the votes of resource in round 1"),
        (saga(ChangeState.AWAITING_APPROVAL, needed=2, grants=(GRANT,)), "1 of 2 people"),
        (saga(ChangeState.APPROVED), "its first step"),
        (saga(ChangeState.APPROVED, waiting="the limit"), "the limit"),
        (saga(ChangeState.EXECUTING, phase=Phase.APPLYING, step=STEP), "result of apply 2"),
        (saga(ChangeState.EXECUTING, phase=Phase.SOAKING, step=STEP), "soak after apply 2"),
        (saga(ChangeState.EXECUTING), "the executor's result of a step"),
        (saga(ChangeState.ROLLING_BACK), "everything is as it was"),
    ],
)
def test_each_state_says_what_it_waits_for(open_saga: Saga, words: str) -> None:
    assert words in waits_for(open_saga, AT)


def test_no_open_state_is_left_out() -> None:
    for state in set(ChangeState) - TERMINAL_STATES:
        assert waits_for(saga(state), AT)


def test_who_put_it_off_is_told_until_that_is_over() -> None:
    off = Snooze(by="ana", until=AT + timedelta(hours=1), at=AT)
    waiting = saga(ChangeState.AWAITING_APPROVAL, needed=1, snooze=off)
    assert "ana has put it off until" in finding_on(opened(waiting)).said
    assert "put it off" not in waits_for(waiting, off.until)


def test_a_round_in_which_all_have_voted_waits_for_the_next() -> None:
    votes = tuple(vote(recommendation().id, n).vote for n in AgentName if n != AgentName.COST)
    assert "another asking" in waits_for(saga(ChangeState.VOTING, round=1, votes=votes), AT)


def test_a_gate_names_those_that_have_answered() -> None:
    answer = gate_answer(recommendation().id, AgentName.APPLICATION, stage=2)
    gating = saga(ChangeState.EXECUTING, phase=Phase.GATING, step=STEP)
    assert "so far: none" in waits_for(gating, AT)
    heard = gating.model_copy(update={"answers": (answer,)})
    assert "so far: application" in waits_for(heard, AT)


def test_a_proposal_behind_another_needs_no_timer() -> None:
    proposed = saga(ChangeState.PROPOSED)
    assert finding_on(opened(proposed, alone=False)).level is Level.OK
    assert finding_on(opened(proposed)).level is Level.FAIL
    assert finding_on(opened(proposed, next_timer="turn", overdue_s=-3.0)).level is Level.OK


@pytest.mark.parametrize(
    ("by", "words"), [("stop switch", "switch off"), ("freeze window", "nothing"), ("x", "resume")]
)
def test_a_pause_says_how_it_ends(by: str, words: str) -> None:
    paused = finding_on(opened(saga(ChangeState.EXECUTING, paused_by=by)))
    assert (paused.level, words in paused.todo) == (Level.WARN, True)


@pytest.mark.parametrize(
    ("state", "begun_s", "levels"),
    [
        ("executing", 5.0, [Level.OK]),
        ("rolling_back", 500.0, [Level.WARN]),
        ("failed", 5.0, [Level.WARN]),
    ],
)
def test_a_step_without_a_result(state: str, begun_s: float, levels: list[Level]) -> None:
    found = findings_on_intents([OpenIntent("c", state, "apply 1, attempt 1", begun_s)])
    assert [one.level for one in found] == levels


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-1.0, "0 s"), (59.4, "59 s"), (180.0, "3 min"), (7200.0, "2 h"), (2e5, "2 d")],
)
def test_durations_are_spoken(seconds: float, words: str) -> None:
    assert spoken(seconds) == words


@pytest.mark.parametrize(
    ("before", "now", "level"),
    [
        (consumer(), consumer(delivered=9), Level.OK),
        (consumer(waiting=5), consumer(waiting=5), Level.WARN),
        (consumer(waiting=5), consumer(waiting=5, delivered=6), Level.OK),
        (consumer(in_hand=1), consumer(redelivered=1, in_hand=1), Level.WARN),
        (consumer(listeners=0), consumer(listeners=0), Level.FAIL),
        (consumer(listeners=0), consumer(), Level.OK),
        (consumer(listeners=0, in_hand=2), consumer(listeners=0, in_hand=2), Level.OK),
        (consumer(waiting=900), consumer(waiting=2_000, delivered=9), Level.WARN),
    ],
)
def test_a_consumer_is_judged_by_two_looks(
    before: ConsumerCondition, now: ConsumerCondition, level: Level
) -> None:
    assert told.on_consumer(before, now, 2.0).level is level


def test_a_subscriber_that_is_away_is_no_failure() -> None:
    away = consumer(name="billing", listeners=0)
    assert told.on_consumer(away, away, 2.0).level is Level.WARN


@pytest.mark.parametrize(
    ("condition", "level"),
    [
        (StreamCondition(Stream.CHANGES, 79, 100, True, 0), Level.OK),
        (StreamCondition(Stream.CHANGES, 80, 100, True, 0), Level.WARN),
        (StreamCondition(Stream.CHANGES, 95, 100, True, 0), Level.FAIL),
        (StreamCondition(Stream.METRICS, 100, 100, False, 0), Level.OK),
        (StreamCondition(Stream.DLQ, 100, -1, True, 0), Level.OK),
        (StreamCondition(Stream.CHANGES_REPLAY, 1, 100, False, 5_000), Level.WARN),
    ],
)
def test_only_a_stream_that_refuses_new_messages_may_not_fill(
    condition: StreamCondition, level: Level
) -> None:
    assert told.on_stream(condition).level is level


@pytest.mark.parametrize(
    ("count", "oldest_s", "level"),
    [
        (0, 0.0, Level.OK),
        (9, 1.0, Level.OK),
        (9, 10.0, Level.WARN),
        (9, 60.0, Level.FAIL),
    ],
)
def test_a_backlog_is_judged_by_its_age(count: int, oldest_s: float, level: Level) -> None:
    assert told.on_outbox(Backlog(count, oldest_s)).level is level


@pytest.mark.parametrize(
    ("ahead_s", "words"), [(3600.0, "60 min ahead of"), (-90.0, "90 s behind")]
)
def test_a_clock_that_is_off_is_told(ahead_s: float, words: str) -> None:
    [off] = told.on_clocks(AT, {"the broker": AT + timedelta(seconds=ahead_s)})
    assert (off.level, words in off.said) == (Level.WARN, True)


def test_a_clock_that_tells_nothing_or_the_same_is_fine() -> None:
    [fine] = told.on_clocks(AT, {"the broker": None, "the database": AT})
    assert fine.level is Level.OK


def test_one_living_instance_of_an_agent_is_enough() -> None:
    def seen(name: str, instance: str, silent_s: float, status: str = "alive") -> KnownAgent:
        return KnownAgent("acme", name, instance, status, silent_s)

    known: Sequence[KnownAgent] = (
        seen("cost", "old", 9e5, "lost"),
        seen("cost", "new", 1.0),
        seen("resource", "hung", 99.0),
    )
    levels = {one.what: one for one in told.on_agents(known)}
    assert levels["agent cost of acme"].level is Level.OK
    assert "silent for 99 s" in levels["agent resource of acme"].said
    never = levels["agent application of acme"]
    assert (never.level, "veto" in never.why) == (Level.FAIL, True)
