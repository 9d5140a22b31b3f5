"""What is stored of each scored answer, and how it is read back.

What other agents read too is named in `schemas.answers`, all else here only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean, pstdev

from optiinfra.agents.application import scoring
from optiinfra.agents.application.golden import Reply
from optiinfra.agents.application.policy import Baseline
from optiinfra.agents.application.scoring import Score
from optiinfra.schemas.answers import ANSWER_SCORE, GOLDEN, LIVE, SOURCE, TURNED_AWAY
from optiinfra.schemas.sampling import AnswerSample
from optiinfra.schemas.telemetry import Known, Reading, Sample, Unit, Unknown, UnknownReason

ANSWER_OK = "answer_ok"
"""One per answer: 1 when the engine gave one, 0 when it failed or the answer is no answer."""
QUALITY_BASELINE = "quality_baseline"

TWIN = "twin"
"""The label of a golden prompt's second answer by the baseline, in the same look of a gate."""

GATE, BASELINE = "gate", "baseline"
"""What golden prompts were asked for."""
_CUT = "length"
_LEAST_FORMAT = 0.5
"""Below this an answer is garbage (loops, unreadable), not merely a worse one."""


@dataclass(frozen=True, slots=True)
class Assessment:
    """What one answer is worth; `fault` is empty for an answer that is one."""

    score: Score
    fault: str = ""
    is_refusal: bool = False


def assess_live(sample: AnswerSample) -> Assessment:
    """Scores a tapped answer by what its own prompt says."""
    if not sample.ok:
        return Assessment(Score("none", None, "the engine failed"), "failed")
    context = scoring.context_of(sample.prompt)
    score = scoring.overall(context, sample.answer, is_cut=sample.finish_reason == _CUT)
    return _assessment(score, sample.prompt, sample.answer)


def assess_golden(reply: Reply) -> Assessment:
    """Scores the reply to a golden prompt, also by its known answer."""
    if not reply.ok:
        return Assessment(Score("none", None, "the engine failed"), "failed")
    item = reply.ask.item
    score = scoring.overall(
        item.context or scoring.context_of(item.prompt),
        reply.text,
        reference=item.answer,
        is_cut=reply.finish_reason == _CUT,
    )
    return _assessment(score, item.prompt, reply.text)


def _assessment(score: Score, prompt: str, answer: str) -> Assessment:
    form = scoring.well_formed(prompt, answer)
    is_broken = form.value is not None and form.value < _LEAST_FORMAT
    return Assessment(
        score,
        fault=form.reason if is_broken else "",
        is_refusal=scoring.non_refusal(answer).value == 0.0,
    )


def live_samples(sample: AnswerSample) -> tuple[Sample, Sample]:
    """The two rows of a tapped answer; sessions are units, what names no stratum is one."""
    labels = {SOURCE: LIVE, "unit": sample.unit, "stratum": sample.stratum or LIVE}
    return _rows(assess_live(sample), sample.replica, sample.at, labels)


def golden_samples(reply: Reply, at: datetime, labels: Mapping[str, str]) -> tuple[Sample, ...]:
    """The two rows of a reply, none when the replica was not reached.

    `at` is when the run was over; the rows' `window_s` reaches back to when the prompt was put.
    `labels` say what the run was for: purpose, and in a gate also change, stage, look and arm.
    """
    if reply.unreached is not None:
        return ()
    item = reply.ask.item
    named = {**labels, SOURCE: GOLDEN, "unit": item.id, "stratum": item.stratum}
    if reply.turned_away:
        named[TURNED_AWAY] = "true"
    score, fine = _rows(assess_golden(reply), reply.ask.replica, at, named)
    asked = {"window_s": reply.asked_ago_s}
    return score.model_copy(update=asked), fine.model_copy(update=asked)


def _rows(
    assessed: Assessment, replica: str, at: datetime, labels: dict[str, str]
) -> tuple[Sample, Sample]:
    score, fault = assessed.score, assessed.fault
    labels = {**labels, "scorer": score.scorer, "ok": "false" if fault else "true"}
    if fault:
        labels["fault"] = fault
    if assessed.is_refusal:
        labels["refusal"] = "true"
    is_ok = Known(value=0.0 if fault else 1.0)
    return (
        Sample(
            metric=ANSWER_SCORE, unit=Unit.SCORE, reading=reading_of(score), at=at,
            replica=replica, labels=labels,
        ),
        Sample(
            metric=ANSWER_OK, unit=Unit.FRACTION, reading=is_ok, at=at,
            replica=replica, labels=labels,
        ),
    )  # fmt: skip


def reading_of(score: Score) -> Reading:
    """A score as a reading; what is missing stays unknown, with the reason."""
    if score.value is None:
        return Unknown(reason=UnknownReason.MISSING, detail=score.reason)
    return Known(value=score.value)


def baseline_of(scores: Sequence[tuple[float, float]], scorer: str, at: datetime) -> Baseline:
    """From pairs of scores, two answers to each prompt; `scores` is not empty."""
    means = [(one + two) / 2 for one, two in scores]
    squares = [(one - two) ** 2 for one, two in scores]
    return Baseline(
        at=at,
        scorer=scorer,
        units=len(scores),
        mean=fmean(means),
        stdev=pstdev(means),
        pair_stdev=fmean(squares) ** 0.5,
    )


def baseline_sample(baseline: Baseline) -> Sample:
    """The row that a baseline is stored as; its error is the 95 % half-width of the mean."""
    return Sample(
        metric=QUALITY_BASELINE,
        unit=Unit.SCORE,
        reading=Known(value=baseline.mean, error=1.96 * baseline.stdev / baseline.units**0.5),
        at=baseline.at,
        labels={
            "scorer": baseline.scorer,
            "units": str(baseline.units),
            "stdev": f"{baseline.stdev:.6f}",
            "pair_stdev": f"{baseline.pair_stdev:.6f}",
        },
    )


def stored_baseline(row: Sample) -> Baseline | None:
    """The baseline of a row; None when it is unknown or was scored by another version."""
    scorer = row.labels.get("scorer", "")
    if not isinstance(row.reading, Known) or not is_current(scorer):
        return None
    return Baseline(
        at=row.at,
        scorer=scorer,
        units=int(row.labels["units"]),
        mean=row.reading.value,
        stdev=float(row.labels["stdev"]),
        pair_stdev=float(row.labels["pair_stdev"]),
    )


def is_current(scorer: str) -> bool:
    """Whether a score comes from the formulas of today; others are never compared with them."""
    return scorer.endswith(f"/{scoring.VERSION}")
