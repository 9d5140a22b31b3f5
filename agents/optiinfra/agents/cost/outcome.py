"""What a finished change turned out to save: predicted against realised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from statistics import fmean, pstdev

from optiinfra.agents.base.readings import Telemetry
from optiinfra.agents.collectors.stored import LATENCIES, stored_window
from optiinfra.agents.moving.job import Hands
from optiinfra.agents.moving.move import Captured
from optiinfra.events.facts import OutcomeRecorded
from optiinfra.schemas.answers import ANSWER_SCORE
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.deployment import Deployment, ReplicaState
from optiinfra.schemas.money import HOURS_PER_MONTH
from optiinfra.schemas.outcome import Outcome
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.telemetry import Known, Reading, Sample, Unknown, UnknownReason
from optiinfra.schemas.vote import AgentName

_WINDOW = timedelta(minutes=5)
_STALE_S = 60.0


async def outcome(
    change: str,
    terminal: ChangeState,
    hands: Hands,
    *,
    telemetry: Telemetry,
    deployments: Mapping[tuple[str, str], Deployment],
) -> OutcomeRecorded | None:
    """The outcome of a change that this agent has executed; None for any other.

    Realised is the hourly spend captured before the first step less the spend read back now, at
    730 h a month; unknown when either is.
    """
    kept = await hands.intents.captured(change)
    if not kept or kept.get("executor") != AgentName.COST:
        return None
    before = Captured.model_validate(kept)
    proposal, now = before.recommendation, hands.clock()
    deployment = deployments.get((proposal.tenant, proposal.deployment))
    if deployment is None:
        return None
    fleet = await hands.fleet(proposal.tenant, proposal.deployment)
    after = await hands.pricing.spend(list(fleet.values()))
    window = await stored_window(
        telemetry,
        deployment,
        (*LATENCIES, ANSWER_SCORE),
        since=now - _WINDOW,
        until=now,
        stale_s=_STALE_S,
    )
    serving = [one.id for one in fleet.values() if one.state is ReplicaState.SERVING]
    return OutcomeRecorded(
        outcome=Outcome(
            change=change,
            deployment=proposal.deployment,
            kind=proposal.spec.kind,
            terminal=terminal,
            predicted_usd_per_month=proposal.saving_usd_per_month,
            realised_usd_per_month=_realised(before.spend, after),
            usd_per_hour_before=before.spend,
            usd_per_hour_after=after,
            features=features(proposal),
            ttft_p95_s=window.quantile("ttft_s", 0.95, serving).reading,
            tpot_p95_s=window.quantile("tpot_s", 0.95, serving).reading,
            quality_mean=_mean(window.series[ANSWER_SCORE]),
            at=now,
        )
    )


def features(proposal: Recommendation) -> dict[str, float]:
    """The numbers by which similar proposals are found again; unknown ones are left out."""
    known = {
        row.name: row.reading.value for row in proposal.evidence if isinstance(row.reading, Known)
    }
    known["risk_rank"] = float(proposal.risk.rank)
    known["stages"] = float(len(proposal.rollout.stages))
    if proposal.saving_usd_per_month is not None:
        forecast = proposal.saving_usd_per_month
        known["predicted_usd_per_month"] = forecast.mid
        known["predicted_width_usd_per_month"] = forecast.high - forecast.low
    return known


def _realised(before: Reading, after: Reading) -> Known | Unknown:
    if isinstance(before, Unknown):
        return before
    if isinstance(after, Unknown):
        return after
    return Known(
        value=(before.value - after.value) * HOURS_PER_MONTH,
        error=(before.error + after.error) * HOURS_PER_MONTH,
    )


def _mean(samples: Sequence[Sample]) -> Known | Unknown:
    """The mean score of the answers in the window, ± its standard error."""
    scores = [sample.reading.value for sample in samples if isinstance(sample.reading, Known)]
    if not scores:
        return Unknown(reason=UnknownReason.NO_TRAFFIC, detail="no answer scored in 5 minutes")
    return Known(value=fmean(scores), error=pstdev(scores) / len(scores) ** 0.5)
