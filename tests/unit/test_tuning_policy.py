"""When a study ends in a proposal, and how the performance and resource agents vote on it."""

from __future__ import annotations

from typing import Any

import pytest

from optiinfra.agents.performance.tuning_policy import (
    Tuning,
    common_cause,
    proposal,
    vote_on_tuning,
)
from optiinfra.agents.resource.policy import ResourcePolicy
from optiinfra.agents.resource.policy import vote_on_tuning as resource_votes
from optiinfra.schemas.deployment import SLO
from optiinfra.schemas.recommendation import BatchTuning, KvCacheTuning, Recommendation, Risk
from optiinfra.schemas.telemetry import Known, Reading, Unknown, UnknownReason
from optiinfra.schemas.tuning import TrialOutcome, TuningTrial
from optiinfra.schemas.vote import AgentName, Verdict
from optiinfra.serving.bottleneck import Finding
from optiinfra.serving.bottleneck_table import Cause
from tests.factories import AT, recommendation, rollout
from tests.telemetry import deployment

SEEN = SLO(ttft_p95_s=1.0, tpot_p95_s=0.1)
UNMEASURED = Unknown(reason=UnknownReason.MISSING, detail="not read")


def trial(seqs: int, rate: float, **changes: Any) -> TuningTrial:
    given: dict[str, Any] = {
        "knobs": {"max_num_seqs": seqs, "max_num_batched_tokens": 2048},
        "outcome": TrialOutcome.COMPLETE,
        "tokens_per_s": Known(value=rate),
        "ttft_p95_s": Known(value=4.0),
        "tpot_p95_s": Known(value=0.05),
        "kv_usage_peak": Known(value=0.3),
        "served": 100,
    }
    return TuningTrial(**{**given, **changes})


NOW = trial(2, 480.0)


def finding(cause: Cause) -> Finding:
    return Finding(cause=cause, row=4, evidence=())


def studied(best: TuningTrial | None, *others: TuningTrial) -> Recommendation | str:
    return proposal(
        deployment(slo=SEEN), finding(Cause.SCHEDULER_CAP), [NOW, *others], best, Tuning(),
        id="0" * 32, rollout=rollout(), rollback_s=30.0, now=AT,
    )  # fmt: skip


def test_the_cause_is_what_most_replicas_share() -> None:
    capped, full = finding(Cause.SCHEDULER_CAP), finding(Cause.KV_CAPACITY)
    assert common_cause([full, capped, capped, finding(Cause.NONE)]) is capped
    assert common_cause([finding(Cause.NONE), finding(Cause.UNKNOWN)]) is None
    assert common_cause([]) is None


def test_the_best_is_proposed_with_its_curve_and_only_what_it_turns() -> None:
    best, other = trial(32, 2400.0), trial(8, 1500.0)
    made = studied(best, other, best)
    assert isinstance(made, Recommendation)
    assert made.spec == BatchTuning(max_num_seqs=32)
    assert made.curve == (NOW, best, other)
    assert (made.proposer, made.risk) == (AgentName.PERFORMANCE, Risk.MEDIUM)
    assert "5.0 times the tokens/s" in made.title
    gain = next(one for one in made.evidence if one.name == "throughput_gain")
    assert gain.reading == Known(value=5.0)


@pytest.mark.parametrize(
    ("best", "reason"),
    [
        (None, "none of 1 configurations"),
        (NOW, "none of 1 configurations"),
        (trial(8, 510.0), "1.06 times as fast, 1.10 is wanted"),
        (trial(8, 900.0, knobs={**NOW.knobs, "max_num_batched_tokens": 4096,
                                "kv_cache_dtype": "fp8"}), "no single change turns"),
    ],
)  # fmt: skip
def test_too_little_is_not_proposed(best: TuningTrial | None, reason: str) -> None:
    assert reason in str(studied(best))


def test_without_the_present_speed_there_is_no_gain() -> None:
    failed = trial(2, 0.0, outcome=TrialOutcome.FAILED, reason="it ended")
    made = proposal(
        deployment(), finding(Cause.SCHEDULER_CAP), [failed], trial(8, 900.0), Tuning(),
        id="0" * 32, rollout=rollout(), rollback_s=30.0, now=AT,
    )  # fmt: skip
    assert made == "the present configuration could not be measured: it ended"


def asked(then: TuningTrial, now: TuningTrial = NOW, spec: Any = None) -> Recommendation:
    return recommendation(spec=spec or BatchTuning(max_num_seqs=32), curve=(now, then))


def test_both_agents_approve_what_was_measured_to_serve_more() -> None:
    proposed = asked(trial(32, 2400.0))
    ours, theirs = vote_on_tuning(proposed, SEEN), resource_votes(proposed, ResourcePolicy())
    assert ours.verdict is theirs.verdict is Verdict.APPROVE
    assert "5.0 times the tokens/s" in ours.reasons[0]
    assert {"ttft_p95_s_then", "throughput_gain"} <= {one.name for one in ours.evidence}
    assert {"kv_usage_peak_then"} <= {one.name for one in theirs.evidence}


def test_what_was_not_measured_gets_no_vote() -> None:
    bare = recommendation(spec=KvCacheTuning(dtype="fp8"))
    assert vote_on_tuning(bare, SEEN).verdict is Verdict.ABSTAIN
    assert resource_votes(bare, ResourcePolicy()).verdict is Verdict.ABSTAIN


@pytest.mark.parametrize("name", ["ttft_p95_s", "tpot_p95_s", "tokens_per_s"])
def test_an_unknown_latency_or_throughput_is_no_approval(name: str) -> None:
    proposed = asked(trial(32, 2400.0, **{name: UNMEASURED}))
    assert vote_on_tuning(proposed, SEEN).verdict is Verdict.ABSTAIN


@pytest.mark.parametrize(
    ("name", "value", "verdict"),
    [
        ("ttft_p95_s", 4.3, Verdict.REJECT),
        ("ttft_p95_s", 4.1, Verdict.APPROVE),
        ("tpot_p95_s", 0.09, Verdict.APPROVE),
        ("tpot_p95_s", 0.11, Verdict.REJECT),
    ],
)
def test_a_latency_may_not_be_worse_and_over_its_objective(
    name: str, value: float, verdict: Verdict
) -> None:
    proposed = asked(trial(32, 2400.0, **{name: Known(value=value)}))
    assert vote_on_tuning(proposed, SEEN).verdict is verdict


def test_a_slower_configuration_is_rejected_by_both() -> None:
    proposed = asked(trial(32, 240.0))
    assert vote_on_tuning(proposed, SEEN).verdict is Verdict.REJECT
    assert resource_votes(proposed, ResourcePolicy()).verdict is Verdict.REJECT


@pytest.mark.parametrize(
    ("peak", "rate", "verdict"),
    [
        (Known(value=0.97), 2400.0, Verdict.REJECT),
        (UNMEASURED, 2400.0, Verdict.ABSTAIN),
        (Known(value=0.3), None, Verdict.ABSTAIN),
    ],
)
def test_the_resource_agent_looks_at_memory(
    peak: Reading, rate: float | None, verdict: Verdict
) -> None:
    changes: dict[str, Any] = {"kv_usage_peak": peak}
    if rate is None:
        changes["tokens_per_s"] = UNMEASURED
    proposed = asked(trial(32, rate or 0.0, **changes))
    assert resource_votes(proposed, ResourcePolicy()).verdict is verdict
