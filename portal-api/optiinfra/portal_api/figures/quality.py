"""How good answers are: the stored baseline, and the scores of a window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import AwareDatetime, BaseModel

from optiinfra.portal_api.examples import shown_as
from optiinfra.portal_api.figures.measured import Measured, known, unknown
from optiinfra.portal_api.figures.seen import Seen
from optiinfra.schemas.answers import ANSWER_SCORE
from optiinfra.schemas.deployment import QualityFloor
from optiinfra.schemas.telemetry import Unit
from optiinfra.storage.metric_rows import MetricRow

BASELINE = "quality_baseline"
METRICS = (ANSWER_SCORE,)
_SOURCES: tuple[Literal["live", "golden"], ...] = ("live", "golden")


class BaselineView(BaseModel):
    """The golden prompts' scores, answered twice each by the deployment as it is."""

    mean: float
    stdev: float
    units: int
    scorer: str
    at: AwareDatetime


class AnswersOf(BaseModel):
    """Answers of one kind in the window; one without a score is missing, never 0."""

    source: Literal["live", "golden"]
    count: int
    scored: int
    mean: Measured
    failed: int
    refused: int


class QualityView(BaseModel):
    model_config = shown_as("quality")

    deployment: str
    at: AwareDatetime
    window_s: float
    floor: QualityFloor
    baseline: BaselineView | None
    answers: list[AnswersOf]


class AnswerView(BaseModel):
    """One scored answer as it is stored: its text is not kept."""

    model_config = shown_as("answer")

    id: str
    at: AwareDatetime
    replica: str | None
    score: Measured
    source: str | None
    stratum: str | None
    unit: str | None
    scorer: str | None
    ok: bool | None
    fault: str | None
    refusal: bool


def quality(seen: Seen, floor: QualityFloor, baselines: Sequence[MetricRow]) -> QualityView:
    """Of one deployment; the newest baseline counts."""
    return QualityView(
        deployment=seen.deployment,
        at=seen.span.until,
        window_s=seen.span.seconds,
        floor=floor,
        baseline=_baseline(baselines),
        answers=[_answers(seen, source) for source in _SOURCES],
    )


def _baseline(rows: Sequence[MetricRow]) -> BaselineView | None:
    known_rows = [row for row in rows if row.value is not None]
    if not known_rows:
        return None
    row = max(known_rows, key=lambda one: one.at)
    return BaselineView(
        mean=row.value or 0.0,
        stdev=float(row.labels["stdev"]),
        units=int(row.labels["units"]),
        scorer=row.labels["scorer"],
        at=row.at,
    )


def _answers(seen: Seen, source: Literal["live", "golden"]) -> AnswersOf:
    rows = seen.of(ANSWER_SCORE, source=source)
    scored = sum(row.known for row in rows)
    count = scored + sum(row.unknown for row in rows)
    mean = unknown("no answer was scored", Unit.SCORE)
    if scored:
        mean = known(sum(row.total for row in rows) / scored, Unit.SCORE)
    return AnswersOf(
        source=source,
        count=count,
        scored=scored,
        mean=mean,
        failed=_counted(seen, source, ok="false"),
        refused=_counted(seen, source, refusal="true"),
    )


def _counted(seen: Seen, source: str, **labels: str) -> int:
    rows = seen.of(ANSWER_SCORE, source=source, **labels)
    return sum(row.known + row.unknown for row in rows)


def answer_view(row: MetricRow) -> AnswerView:
    labels = row.labels
    if row.value is None:
        score = unknown(labels.get("__detail") or row.unknown_reason or "unknown", row.unit)
    else:
        score = known(row.value, row.unit)
    return AnswerView(
        id=row.event_id,
        at=row.at,
        replica=row.replica,
        score=score,
        source=labels.get("source"),
        stratum=labels.get("stratum"),
        unit=labels.get("unit"),
        scorer=labels.get("scorer"),
        ok={"true": True, "false": False}.get(labels.get("ok", "")),
        fault=labels.get("fault"),
        refusal=labels.get("refusal") == "true",
    )
