"""Puts beside a proposal how changes like it turned out before."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from optiinfra.agents.cost.outcome import features
from optiinfra.agents.memory import OutcomeMemory, Remembered, prior
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.telemetry import Known, Reading, Unit, Unknown, UnknownReason
from optiinfra.schemas.vote import Evidence

_NEAREST = 20
_SOURCE = "outcome memory"


async def with_experience(proposal: Recommendation, memory: OutcomeMemory) -> Recommendation:
    """The proposal with two more rows of evidence; its id and its forecast stay as they are."""
    kind = proposal.spec.kind
    cases = await memory.similar(proposal.tenant, kind, features(proposal), _NEAREST)
    rows = (_worked(cases), _realised(cases))
    return proposal.model_copy(update={"evidence": (*proposal.evidence, *rows)})


def _worked(cases: Sequence[Remembered]) -> Evidence:
    found = prior(cases)
    return Evidence(
        name="similar_changes_worked",
        unit=Unit.FRACTION,
        reading=Known(value=found.mean) if found.ended else _none_yet(),
        samples=found.ended,
        source=_SOURCE,
    )


def _realised(cases: Sequence[Remembered]) -> Evidence:
    """Median of realised over predicted saving: 1 means that forecasts of this kind come true."""
    ratios = [
        case.outcome.realised_usd_per_month.value / case.outcome.predicted_usd_per_month.mid
        for case in cases
        if case.outcome.predicted_usd_per_month is not None
        and case.outcome.predicted_usd_per_month.mid > 0
        and isinstance(case.outcome.realised_usd_per_month, Known)
    ]
    return Evidence(
        name="realised_over_predicted_saving",
        unit=Unit.FRACTION,
        reading=Known(value=median(ratios)) if ratios else _none_yet(),
        samples=len(ratios),
        source=_SOURCE,
    )


def _none_yet() -> Reading:
    return Unknown(reason=UnknownReason.MISSING, detail="none like it has ended yet")
