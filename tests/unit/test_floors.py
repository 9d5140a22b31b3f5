"""Bounds on what votes and gates carry: what breaks them, what is missing, whose words they are."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from optiinfra.coordinator.saga.floor_check import counted_answer, counted_vote
from optiinfra.events import facts as f
from optiinfra.events.facts import TimerName
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.floors import Floor
from optiinfra.schemas.rollout import GateAnswer, GateMetric, GateVerdict
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.telemetry import Known, Reading, Unit, Unknown, UnknownReason
from optiinfra.schemas.vote import VOTERS, AgentName, Evidence, Verdict, Vote
from tests.factories import gate_answer, recommendation, vote
from tests.saga_log import AUTO, GATES, Log

STALE = Unknown(reason=UnknownReason.STALE, detail="no scrape for 90 s")
PROPOSAL = recommendation()


def floor(evidence: str = "ttft_p95_s", **fields: Any) -> Floor:
    bound = {} if "min" in fields else {"max": 0.5}
    return Floor.model_validate({"name": "first-token", "evidence": evidence, **bound, **fields})


def evidence(name: str = "ttft_p95_s", reading: Reading | float = 0.4) -> Evidence:
    known = Known(value=reading) if isinstance(reading, float) else reading
    return Evidence(name=name, unit=Unit.SECONDS, reading=known, source="test")


def metric(name: str = "ttft_p95_s", reading: Reading | float = 0.4) -> GateMetric:
    known = Known(value=reading) if isinstance(reading, float) else reading
    return GateMetric(
        name=name,
        unit=Unit.SECONDS,
        observed=known,
        threshold=1.0,
        window_s=30.0,
        verdict=GateVerdict.PASS,
    )


def cast(*carried: Evidence, agent: str = "performance", **fields: Any) -> Vote:
    return vote("c" * 32, agent).vote.model_copy(update={"evidence": carried, **fields})


def answer(*metrics: GateMetric, verdict: GateVerdict = GateVerdict.PASS) -> GateAnswer:
    made = gate_answer("c" * 32, AgentName.PERFORMANCE, stage=0, verdict=verdict)
    return made.model_copy(update={"metrics": metrics})


def test_a_reading_beyond_a_bound_breaks_it_and_the_numbers_are_told() -> None:
    assert floor().broken([evidence(reading=0.5)]) is None
    told = floor().broken([evidence("tpot_p95_s", 9.0), evidence(reading=0.61)])
    assert told == "floor 'first-token': ttft_p95_s is 0.61, at most 0.5 is allowed"
    least = floor("replicas_after", min=2)
    assert least.broken([evidence("replicas_after", 2.0)]) is None
    told = least.broken([evidence("replicas_after", 1.0)])
    assert told == "floor 'first-token': replicas_after is 1, at least 2 is needed"


def test_what_is_unknown_breaks_nothing_and_is_missed_only_where_it_is_demanded() -> None:
    assert floor().broken([evidence(reading=STALE)]) is None
    assert floor().missing([]) is None
    demanded = floor(required=True)
    assert demanded.missing([evidence()]) is None
    assert "unknown (no scrape for 90 s)" in (demanded.missing([evidence(reading=STALE)]) or "")
    assert "unknown (not carried)" in (demanded.missing([evidence("tpot_p95_s")]) or "")
    bare = Unknown(reason=UnknownReason.NO_TRAFFIC)
    assert "unknown (no_traffic)" in (demanded.missing([evidence(reading=bare)]) or "")


def test_a_floor_is_looked_at_where_it_says_and_with_whom_who_carries_it() -> None:
    both = floor()
    assert both.voters() == both.assessors() == {AgentName.PERFORMANCE}
    assert floor(where="gates").voters() == frozenset()
    assert floor(where="votes").assessors() == frozenset()
    assert floor("offered_rps").voters() == {AgentName.PERFORMANCE, AgentName.RESOURCE}


NONSENSE: dict[str, tuple[dict[str, Any], str]] = {
    "no bound": ({"max": None}, "give max, min or both"),
    "bounds the wrong way round": ({"max": 1, "min": 2}, "min (2) is above max (1)"),
    "evidence that nobody carries": (
        {"evidence": "ttft_p95"},
        "no agent carries evidence called 'ttft_p95'; did you mean 'ttft_p95_s'?",
    ),
    "evidence like no other": ({"evidence": "x"}, "called 'x'; there are ttft_p95_s, "),
    "a vote's that no vote carries": (
        {"evidence": "error_rate", "where": "votes"},
        "no vote carries error_rate, only gates do; set where to 'gates'",
    ),
    "a gate's that no gate carries": (
        {"evidence": "replicas_after", "where": "gates"},
        "no gate carries replicas_after, only votes do; set where to 'votes'",
    ),
}


@pytest.mark.parametrize("case", NONSENSE)
def test_a_floor_that_makes_no_sense_is_refused(case: str) -> None:
    fields, told = NONSENSE[case]
    with pytest.raises(ValidationError) as refused:
        floor(**fields)
    assert told in str(refused.value)


def test_a_vote_counts_as_the_floors_leave_it() -> None:
    rules = Rules(floors=(floor(required=True), floor("tpot_p95_s", name="tokens")))
    good = counted_vote(cast(evidence(), evidence("tpot_p95_s")), PROPOSAL, rules)
    assert (good.by, good.verdict) == ("performance", Verdict.APPROVE)
    assert good.reasons == ("performance: performance says approve",)
    bad = counted_vote(cast(evidence("tpot_p95_s", 1.0)), PROPOSAL, rules)
    assert (bad.by, bad.verdict) == ("policy", Verdict.REJECT)
    assert bad.reasons == ("performance: floor 'tokens': tpot_p95_s is 1, at most 0.5 is allowed",)
    blind = counted_vote(cast(evidence(reading=STALE)), PROPOSAL, rules)
    assert (blind.by, blind.verdict) == ("policy", Verdict.ABSTAIN)
    own = counted_vote(cast(evidence(reading=9.0), verdict=Verdict.ABSTAIN), PROPOSAL, rules)
    assert (own.by, own.verdict) == ("performance", Verdict.ABSTAIN)


def test_a_floor_leaves_others_votes_and_other_changes_alone() -> None:
    rules = Rules(floors=(floor(kinds=("right_sizing",)), floor(name="b", deployments=("x",))))
    assert counted_vote(cast(evidence(reading=9.0)), PROPOSAL, rules).verdict is Verdict.APPROVE
    strangers = cast(evidence(reading=9.0), agent="resource")
    counted = counted_vote(strangers, PROPOSAL, Rules(floors=(floor(),)))
    assert counted.verdict is Verdict.APPROVE


@pytest.mark.parametrize(
    ("fields", "reading", "said", "counts"),
    [
        ({}, 0.4, GateVerdict.PASS, GateVerdict.PASS),
        ({}, 0.6, GateVerdict.PASS, GateVerdict.HOLD),
        ({"breach": "roll_back"}, 0.6, GateVerdict.PASS, GateVerdict.ROLL_BACK),
        ({"breach": "roll_back"}, 0.6, GateVerdict.HOLD, GateVerdict.ROLL_BACK),
        ({}, 0.6, GateVerdict.HOLD, GateVerdict.HOLD),
        ({}, 0.6, GateVerdict.ROLL_BACK, GateVerdict.ROLL_BACK),
        ({"required": True}, STALE, GateVerdict.PASS, GateVerdict.HOLD),
        ({}, STALE, GateVerdict.PASS, GateVerdict.PASS),
        ({"where": "votes"}, 0.6, GateVerdict.PASS, GateVerdict.PASS),
    ],
)
def test_a_floor_makes_a_gates_answer_worse_and_never_better(
    fields: dict[str, Any], reading: Reading | float, said: GateVerdict, counts: GateVerdict
) -> None:
    given = answer(metric(reading=reading), verdict=said)
    counted = counted_answer(given, PROPOSAL, Rules(floors=(floor(**fields),)))
    assert counted.verdict is counts
    assert ("floor 'first-token'" in counted.reason) == (said is not counts)
    if said is counts:
        assert counted is given


def test_the_worst_floor_gives_the_reason() -> None:
    rules = Rules(
        floors=(
            floor(),
            floor("tpot_p95_s", name="tokens", breach="roll_back"),
            floor("error_rate", name="errors", required=True),
        )
    )
    given = answer(metric(reading=0.6), metric("tpot_p95_s", 0.7))
    counted = counted_answer(given, PROPOSAL, rules)
    assert counted.verdict is GateVerdict.ROLL_BACK
    assert counted.reason == "floor 'tokens': tpot_p95_s is 0.7, at most 0.5 is allowed"


# In the saga.


def told(log: Log, *carried: Evidence, number: int = 1) -> Log:
    """All vote yes; performance carries this evidence."""
    for agent in sorted(VOTERS):
        fact = vote(log.change, agent, number=number)
        if agent == AgentName.PERFORMANCE:
            fact = f.VoteCast(vote=fact.vote.model_copy(update={"evidence": carried}))
        log.hear(fact)
    return log


def test_evidence_that_breaks_a_floor_vetoes_in_the_name_of_the_policy() -> None:
    log = told(
        Log(rules=AUTO.model_copy(update={"floors": (floor(),)})).open(), evidence(reading=0.7)
    )
    assert log.saga.state is ChangeState.VETOED
    (veto,) = log.said(f.ChangeVetoed)
    assert veto.by == ("policy",)
    assert veto.reasons == (
        "performance: floor 'first-token': ttft_p95_s is 0.7, at most 0.5 is allowed",
    )
    log.check()


def test_evidence_that_is_demanded_and_unknown_asks_again_and_vetoes_at_last() -> None:
    rules = AUTO.model_copy(update={"floors": (floor(required=True),), "max_vote_rounds": 2})
    log = told(Log(rules=rules).open(), evidence(reading=STALE)).fire(TimerName.REVOTE)
    assert log.kinds() == ["vote.requested"]
    told(log, evidence(reading=STALE), number=2)
    assert log.saga.state is ChangeState.VETOED
    assert log.said(f.ChangeVetoed)[0].by == ("policy",)
    known = told(Log(rules=rules).open(), evidence(reading=0.1))
    assert known.saga.state is ChangeState.EXECUTING


def judged(log: Log, reading: float) -> Log:
    """At an open look all let it pass; performance carries this reading."""
    for assessor in GATES:
        assert log.saga.step is not None
        given = gate_answer(log.change, assessor, stage=log.saga.step.stage, look=log.saga.look)
        if assessor is AgentName.PERFORMANCE:
            given = given.model_copy(update={"metrics": (metric(reading=reading),)})
        log.hear(f.GateAnswered(answer=given))
    return log


def test_a_gate_that_breaks_a_floor_holds_and_looks_again() -> None:
    rules = AUTO.model_copy(update={"floors": (floor(),)})
    log = judged(Log(rules=rules).to_gating(), 0.7)
    (closed,) = log.said(f.GateClosed)
    assert closed.verdict == "hold"
    assert closed.reasons == (
        "performance: floor 'first-token': ttft_p95_s is 0.7, at most 0.5 is allowed",
    )
    log.fire(TimerName.LOOK)
    assert judged(log, 0.3).saga.step is not None
    assert log.said(f.GateClosed)[-1].verdict == "pass"
    log.check()


def test_a_gate_that_breaks_a_strict_floor_is_undone_at_once() -> None:
    rules = AUTO.model_copy(update={"floors": (floor(breach="roll_back"),)})
    log = Log(rules=rules).to_gating()
    given = gate_answer(log.change, AgentName.PERFORMANCE, stage=0, look=1)
    given = given.model_copy(update={"metrics": (metric(reading=0.7),)})
    log.hear(f.GateAnswered(answer=given))
    assert log.saga.state is ChangeState.ROLLING_BACK
    assert "ttft_p95_s is 0.7" in (log.saga.rollback_reason or "")
