"""Every number of the demo's summary, computed from a small log that says what it must be."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from optiinfra.agents.actuators.traffic import TrafficCounters
from optiinfra.demo.api import LoggedEvent, logged_event
from optiinfra.demo.scenario import Play
from optiinfra.demo.show import complaints_about
from optiinfra.demo.summary import (
    change_of_play,
    decision_times,
    latency,
    quality,
    summarise,
    terminal_state,
    usd_per_hour,
)
from optiinfra.events import facts as f
from optiinfra.schemas.approval import Approval
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.outcome import Outcome
from optiinfra.schemas.recommendation import Recommendation, Risk, SpotReplacement
from optiinfra.schemas.rollout import (
    Arms,
    GateAnswer,
    GateVerdict,
    SequentialEvidence,
    Step,
    StepKind,
    StepResult,
)
from optiinfra.schemas.telemetry import Known, Unknown, UnknownReason
from optiinfra.schemas.tenant import person, policy
from optiinfra.schemas.vote import AgentName
from tests.factories import AT, recommendation

CHAT = recommendation("chat", spec=recommendation().spec, spend_usd_per_hour=4.0)
ASSIST = recommendation("assist", deployment="assist", spend_usd_per_hour=3.0)
SEARCH = recommendation("search", deployment="search", spend_usd_per_hour=2.0)
SAVED = recommendation(
    "saved",
    spend_usd_per_hour=1.0,
    spec=SpotReplacement(replicas=("chat-new",), to=CHAT.spec.to, reclaim_at=AT),  # type: ignore[union-attr]
)
UNKNOWN = Unknown(reason=UnknownReason.NO_TRAFFIC)


def logged(*facts: tuple[float, f.Fact]) -> list[LoggedEvent]:
    return [
        LoggedEvent(
            position=number + 1,
            id=f"{number:032x}",
            kind=fact.kind,
            at=AT + timedelta(seconds=at_s),
            fact=fact,
        )
        for number, (at_s, fact) in enumerate(facts)
    ]


def staged(of: Recommendation, usd: float | None, *canary: str) -> f.ExecutionStaged:
    step = Step(kind=StepKind.FINISH, stage=0, share=1.0)
    arms = Arms(canary=canary)
    return f.ExecutionStaged(
        change=of.id,
        result=StepResult(step=step, fence=1, arms=arms, applied=True, usd_per_hour=usd, at=AT),
    )


def remembered(of: Recommendation, usd: float | None) -> f.OutcomeRecorded:
    return f.OutcomeRecorded(
        outcome=Outcome(
            change=of.id,
            deployment=of.deployment,
            kind=of.spec.kind,
            terminal=ChangeState.COMPLETED,
            realised_usd_per_month=UNKNOWN,
            usd_per_hour_before=UNKNOWN,
            usd_per_hour_after=UNKNOWN if usd is None else Known(value=usd),
            ttft_p95_s=UNKNOWN,
            tpot_p95_s=UNKNOWN,
            quality_mean=UNKNOWN,
            features={},
            at=AT,
        )
    )


def answered(of: Recommendation, pairs: int, canary: float) -> f.GateAnswered:
    evidence = SequentialEvidence(
        pairs=pairs, e_rollback=1.0, e_promote=25.0, alpha=0.05, beta=0.05, margin=0.05,
        mean_baseline=0.9, mean_canary=canary, difference_low=-0.02, difference_high=0.03,
    )  # fmt: skip
    return f.GateAnswered(
        answer=GateAnswer(
            change=of.id, stage=0, look=1, assessor=AgentName.APPLICATION,
            verdict=GateVerdict.PASS, quality=evidence, reason="fine", at=AT,
        )
    )  # fmt: skip


def granted(of: Recommendation, *, automatic: bool = False) -> f.ApprovalGranted:
    by = policy("rule@demo") if automatic else person("anna")
    return f.ApprovalGranted(
        approval=Approval(change=of.id, granted=True, by=by, version_hash=of.version_hash, at=AT)
    )


def asked(of: Recommendation) -> f.ApprovalRequested:
    return f.ApprovalRequested(
        change=of.id, version_hash=of.version_hash, risk=Risk.LOW, expires_at=AT
    )


def proposed(of: Recommendation) -> f.RecommendationProposed:
    return f.RecommendationProposed(recommendation=of)


STORY = logged(
    (0.0, proposed(CHAT)),
    (1.0, proposed(ASSIST)),
    (1.0, proposed(SEARCH)),
    (2.0, proposed(CHAT)),
    (4.0, asked(CHAT)),
    (5.0, f.ChangeVetoed(change=SEARCH.id, by=("resource",), reasons=("too little",))),
    (9.0, asked(ASSIST)),
    (60.0, granted(CHAT)),
    (61.0, granted(ASSIST)),
    (62.0, answered(CHAT, 48, 0.88)),
    (62.5, answered(ASSIST, 48, 0.3)),
    (63.0, f.ChangeRolledBack(change=ASSIST.id, reason="worse")),
    (63.0, remembered(ASSIST, 3.0)),
    (70.0, answered(CHAT, 96, 0.91)),
    (71.0, staged(CHAT, 1.25, "chat-new")),
    (71.0, f.ChangeCompleted(change=CHAT.id, arms=Arms(canary=("chat-new",)))),
    (71.0, remembered(CHAT, 1.2)),
    (80.0, proposed(SAVED)),
    (80.5, granted(SAVED, automatic=True)),
    (85.0, f.ChangeCompleted(change=SAVED.id, arms=Arms(canary=("chat-newer",)))),
    (85.0, remembered(SAVED, 1.9)),
)


def replica(name: str, counts: Sequence[int]) -> dict[str, Any]:
    latency = {"counts": list(counts), "sum_s": 1.0}
    ends = outcomes(served=sum(counts))
    return {"replica": name, **ends, "latency": dict.fromkeys(("ttft", "tpot"), latency)}


def outcomes(**ends: int) -> dict[str, int]:
    names = ("served", "failed", "truncated", "cancelled", "rejected", "retried", "in_flight")
    return {**dict.fromkeys(names, 0), **ends}


COUNTERS = TrafficCounters.model_validate(
    {
        "at": AT,
        "since": AT,
        "bounds_s": [0.1, 0.2, 0.4],
        "totals": outcomes(served=40, failed=0, truncated=0),
        "deployments": [
            {
                "tenant": "acme",
                "deployment": "chat",
                **outcomes(served=40),
                "replicas": [
                    replica("chat-1", [0, 20, 0, 0]),
                    replica("chat-new", [20, 0, 0, 0]),
                    replica("chat-newer", [0, 0, 0, 20]),
                ],
            }
        ],
        "samples": {"delivered": 0, "dropped": 0, "oversized": 0, "waiting": 0},
    }
)


def test_a_play_is_about_the_first_change_of_its_kind_on_its_deployment() -> None:
    assert change_of_play(STORY, Play.MIGRATION) == CHAT.id
    assert change_of_play(STORY, Play.REGRESSION) == ASSIST.id
    assert change_of_play(STORY, Play.VETO) == SEARCH.id
    assert change_of_play(STORY, Play.RECLAIM) == SAVED.id
    assert change_of_play(STORY[:1], Play.RECLAIM) is None


def test_states_are_those_of_the_terminal_facts() -> None:
    assert terminal_state(STORY, CHAT.id) is ChangeState.COMPLETED
    assert terminal_state(STORY, ASSIST.id) is ChangeState.ROLLED_BACK
    assert terminal_state(STORY, SEARCH.id) is ChangeState.VETOED
    assert terminal_state(STORY[:5], CHAT.id) is None
    assert terminal_state(STORY, None) is None


def test_spend_is_the_first_stated_and_the_last_read_back_of_every_deployment() -> None:
    spend = usd_per_hour(STORY)
    assert spend.before == pytest.approx(4.0 + 3.0 + 2.0)
    assert spend.after == pytest.approx(1.9 + 3.0 + 2.0)
    until_the_step = usd_per_hour(STORY[:15])
    assert until_the_step.after == pytest.approx(1.25 + 3.0 + 2.0)


def test_spend_that_is_unknown_makes_the_sum_unknown() -> None:
    assert usd_per_hour([*STORY, *logged((99.0, remembered(CHAT, None)))]).after is None
    assert usd_per_hour([]).before is None


def test_latency_is_that_of_the_replaced_and_of_the_new_replicas() -> None:
    ttft = latency(STORY, COUNTERS, "ttft", CHAT.id)
    assert ttft.before == pytest.approx(0.195)
    assert ttft.after == pytest.approx(0.095)


def test_latency_beyond_the_last_bound_or_without_a_change_is_unknown() -> None:
    moved = [*STORY, *logged((99.0, staged(CHAT, 1.0, "chat-newer")))]
    assert latency(moved, COUNTERS, "tpot", CHAT.id).after is None
    assert latency(STORY, COUNTERS, "tpot", None).before is None


def test_quality_is_the_last_evidence_of_the_migration() -> None:
    found = quality(STORY, CHAT.id)
    assert (found.before, found.after) == (0.9, 0.91)
    assert found.interval == (-0.02, 0.03)
    assert quality(STORY, SEARCH.id).after is None


def test_a_decision_lasts_until_the_votes_are_counted_not_until_a_person_has_thought() -> None:
    assert decision_times(STORY) == [4.0, 4.0, 8.0, 0.5]


def test_the_summary_has_exactly_the_keys_that_programs_read() -> None:
    found = summarise(STORY, COUNTERS, plays=tuple(Play), audit_ok=True, seed=5)
    shown = found.model_dump(mode="json")
    assert list(shown) == [
        "plays", "requests", "usd_per_hour", "ttft_p95_s", "tpot_p95_s", "quality",
        "decision_s", "events", "audit_ok", "seed",
    ]  # fmt: skip
    assert shown["plays"] == {
        "migration": "completed",
        "regression": "rolled_back",
        "veto": "vetoed",
        "reclaim": "completed",
    }
    assert shown["requests"] == {"served": 40, "failed": 0, "truncated": 0}
    assert shown["decision_s"] == {"median": 4.0, "p95": 8.0}
    assert shown["quality"]["interval"] == [-0.02, 0.03]
    assert (shown["events"], shown["audit_ok"], shown["seed"]) == (len(STORY), True, 5)


def test_what_was_not_played_has_no_state() -> None:
    found = summarise(STORY, COUNTERS, plays=[Play.VETO], audit_ok=True, seed=5)
    assert found.plays[Play.VETO] is ChangeState.VETOED
    assert found.plays[Play.MIGRATION] is None


def test_only_what_did_not_go_as_told_is_complained_about() -> None:
    found = summarise(STORY, COUNTERS, plays=tuple(Play), audit_ok=True, seed=5)
    assert complaints_about(found) == []
    lost = found.model_copy(
        update={
            "requests": found.requests.model_copy(update={"truncated": 1}),
            "plays": {**found.plays, Play.REGRESSION: ChangeState.COMPLETED},
            "audit_ok": False,
        }
    )
    assert len(complaints_about(lost)) == 3
    refused = found.model_copy(update={"plays": {**found.plays, Play.VETO: ChangeState.REJECTED}})
    assert complaints_about(refused) == []


def test_an_event_of_the_api_is_read_with_its_fact() -> None:
    row = {
        "position": 3,
        "id": "0" * 32,
        "kind": "change.completed",
        "at": AT.isoformat(),
        "fact": f.ChangeCompleted(change=CHAT.id, arms=Arms()).model_dump(mode="json"),
    }
    assert logged_event(row).fact == f.ChangeCompleted(change=CHAT.id, arms=Arms())


def test_a_recorded_run_gives_the_summary_that_it_printed() -> None:
    packed = Path(__file__).parents[1] / "recorded" / "demo_seed31.json.gz"
    run = json.loads(gzip.decompress(packed.read_bytes()))
    events = [LoggedEvent.model_validate(event) for event in run["events"]]
    counters = TrafficCounters.model_validate(run["counters"])
    found = summarise(events, counters, plays=tuple(Play), audit_ok=True, seed=31)
    told = run["summary"]
    # The recording keeps only what the summary reads; how many events there were, it says itself.
    assert found.model_dump(mode="json") == {**told, "events": len(events)}
    assert told["requests"]["failed"] == 0
