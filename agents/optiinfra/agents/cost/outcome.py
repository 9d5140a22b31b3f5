"""What a finished change turned out to save: predicted against realised."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from optiinfra.agents.base.readings import Telemetry
from optiinfra.agents.cost.job import Captured, Hands
from optiinfra.events.facts import OutcomeRecorded
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.money import HOURS_PER_MONTH
from optiinfra.schemas.outcome import Outcome
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.telemetry import Known, Reading, Sample, Unknown, UnknownReason

OUTCOME_METRICS = {
    "ttft_p95_s": "ttft_p95_s",
    "tpot_p95_s": "tpot_p95_s",
    "quality_mean": "quality_mean",
}
"""Field of the outcome: metric that is read for it."""
_WINDOW = timedelta(minutes=5)


async def outcome(
    change: str, terminal: ChangeState, hands: Hands, telemetry: Telemetry
) -> OutcomeRecorded | None:
    """The outcome of a change that this agent has executed; None for any other.

    Realised is the hourly spend captured before the first step less the spend read back now, at
    730 h a month; unknown when either is.
    """
    kept = await hands.intents.captured(change)
    if not kept or kept.get("executor") != "cost":
        return None
    before = Captured.model_validate(kept)
    proposal, now = before.recommendation, hands.clock()
    fleet = await hands.fleet(proposal.tenant, proposal.deployment)
    after = await hands.pricing.spend(list(fleet.values()))
    latency = {
        field: await _measured(telemetry, proposal, metric, now)
        for field, metric in OUTCOME_METRICS.items()
    }
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
            at=now,
            **latency,
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


async def _measured(
    telemetry: Telemetry, proposal: Recommendation, metric: str, now: datetime
) -> Known | Unknown:
    """The mean over the replicas of each one's newest reading in the last five minutes."""
    samples = await telemetry.window(
        proposal.tenant, proposal.deployment, metric, since=now - _WINDOW, until=now
    )
    return _mean(samples, metric)


def _mean(samples: Sequence[Sample], metric: str) -> Known | Unknown:
    newest = {sample.replica: sample.reading for sample in samples}
    whole = newest.pop(None, None)
    if whole is not None:
        return whole
    values = [reading.value for reading in newest.values() if isinstance(reading, Known)]
    if not values:
        return Unknown(reason=UnknownReason.MISSING, detail=f"no {metric} in the last 5 minutes")
    return Known(value=sum(values) / len(values))
