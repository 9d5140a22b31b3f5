"""From stored and fresh readings to what a gate looks at: who said what, when, in which arm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from optiinfra.agents.application.gate import GateSight
from optiinfra.agents.application.policy import ApplicationPolicy
from optiinfra.agents.application.records import ANSWER_OK, GATE, TWIN, is_current
from optiinfra.agents.application.sequential import Arm, Observation, coverage_of, sessions
from optiinfra.events.commands import GateRequested
from optiinfra.schemas.answers import ANSWER_SCORE, GOLDEN, LIVE, SOURCE
from optiinfra.schemas.rollout import Arms
from optiinfra.schemas.telemetry import Known, Sample


@dataclass(frozen=True, slots=True)
class GateReadings:
    """What one look has read: stored rows and those of its own golden run.

    `until` is when the stored rows were read, `at` the end of the golden run.
    """

    until: datetime
    at: datetime
    stored: Sequence[Sample] = ()
    fresh: Sequence[Sample] = ()
    unreached: Mapping[str, str] = field(default_factory=dict)


def gate_labels(request: GateRequested) -> dict[str, str]:
    """The labels of a look's golden prompts, without the arm."""
    return {
        "purpose": GATE,
        "change": request.change,
        "stage": str(request.stage),
        "look": str(request.look),
        "since": request.since.isoformat(),
    }


def prompts_asked(stored: Iterable[Sample], request: GateRequested) -> Counter[str]:
    """How often each golden prompt was put to the canary in the rollout's other looks.

    A look that is answered again (its request came twice) asks the same prompts again.
    """
    this_look = str(request.stage), str(request.look)
    return Counter(
        row.labels["unit"]
        for row in stored
        if _is_gate_row(row, request.change)
        and row.metric == ANSWER_SCORE
        and row.labels["arm"] == Arm.CANARY.name
        and (row.labels["stage"], row.labels["look"]) != this_look
    )


def gate_sight(
    policy: ApplicationPolicy, request: GateRequested, readings: GateReadings
) -> GateSight:
    """What the readings say about both arms, from the first stage of the change to now.

    Evidence of all stages counts, since arms persist. Golden pairs are labelled with the change
    and the arm. Live answers count from when their replica belonged to its arm: a baseline's from
    the start of the rollout, a canary's from the start of the stage in which it was first asked
    golden prompts as one.
    """
    rows = _merged(readings)
    golden = [(row, Arm[row.labels["arm"]]) for row in rows if _is_gate_row(row, request.change)]
    live = _live(rows, request, golden)
    spoken_live, spoken_golden = _spoken(live), _spoken(golden)
    closed = sessions(
        spoken_live,
        window_s=policy.session_window_s,
        until=readings.until - timedelta(seconds=policy.settle_s),
    )
    return GateSight(
        at=readings.at,
        since=request.since,
        has_both_arms=bool(request.arms.canary and request.arms.baseline),
        units=[*closed, *spoken_golden],
        coverage=coverage_of([*spoken_live, *spoken_golden]),
        coverage_apart=(coverage_of(spoken_live), coverage_of(spoken_golden)),
        failures=_failures([*live, *golden]),
        unreached=readings.unreached,
        twins=_twins(golden),
    )


def _merged(readings: GateReadings) -> list[Sample]:
    """Both kinds of rows, golden ones once even where they have been stored already."""
    kept: dict[tuple[str | None, ...], Sample] = {}
    live = []
    for row in (*readings.fresh, *readings.stored):
        labels = row.labels
        if labels.get(SOURCE) != GOLDEN:
            live.append(row)
            continue
        names = ("unit", "purpose", "change", "stage", "look", "arm", TWIN)
        kept.setdefault((row.metric, row.replica, *map(labels.get, names)), row)
    return [*live, *kept.values()]


def _is_gate_row(row: Sample, change: str) -> bool:
    labels = row.labels
    return labels.get("purpose") == GATE and labels.get("change") == change


def _arms(arms: Arms) -> dict[str, Arm]:
    return {
        **dict.fromkeys(arms.baseline, Arm.BASELINE),
        **dict.fromkeys(arms.canary, Arm.CANARY),
    }


def _live(
    rows: Iterable[Sample], request: GateRequested, golden: Iterable[tuple[Sample, Arm]]
) -> list[tuple[Sample, Arm]]:
    """Live rows of replicas while they belonged to their arm of today."""
    arms = _arms(request.arms)
    starts = _starts(request, golden)
    return [
        (row, arms[row.replica])
        for row in rows
        if row.labels.get(SOURCE) == LIVE and row.replica in arms and row.at >= starts[row.replica]
    ]


def _starts(request: GateRequested, golden: Iterable[tuple[Sample, Arm]]) -> dict[str, datetime]:
    starts = dict.fromkeys(request.arms.baseline, request.rollout_since)
    starts |= dict.fromkeys(request.arms.canary, request.since)
    for row, arm in golden:
        if arm is Arm.CANARY and row.replica in request.arms.canary:
            since = datetime.fromisoformat(row.labels["since"])
            starts[row.replica] = min(starts[row.replica], since)
    return starts


def _spoken(said: Iterable[tuple[Sample, Arm]]) -> list[Observation]:
    """Scores of what was an answer; failures break a floor instead."""
    return [_observed(row, arm) for row, arm in _answers(said)]


def _answers(said: Iterable[tuple[Sample, Arm]]) -> list[tuple[Sample, Arm]]:
    return [(row, arm) for row, arm in said if row.metric == ANSWER_SCORE and _ok(row)]


def _ok(row: Sample) -> bool:
    return row.labels.get("ok") == "true"


def _observed(row: Sample, arm: Arm) -> Observation:
    """Golden answers are paired prompt by prompt and look by look: each is its own stratum."""
    labels = row.labels
    score = row.reading.value if isinstance(row.reading, Known) else None
    if not is_current(labels["scorer"]):
        score = None
    parts = [labels[SOURCE], labels["stratum"]]
    if labels[SOURCE] == GOLDEN:
        parts += [labels["unit"], labels["stage"], labels["look"]]
    return Observation(row.at, arm, ":".join(parts), f"{parts[0]}:{labels['unit']}", score)


def _twins(golden: Iterable[tuple[Sample, Arm]]) -> list[tuple[float, float]]:
    """Scores of both answers of the baseline to one prompt in one look, where both are known."""
    firsts: dict[tuple[datetime, str], float] = {}
    seconds: dict[tuple[datetime, str], float] = {}
    for row, arm in _answers(golden):
        one = _observed(row, arm)
        if arm is Arm.BASELINE and one.score is not None:
            side = seconds if TWIN in row.labels else firsts
            side[one.at, one.stratum] = one.score
    return [(firsts[key], seconds[key]) for key in sorted(firsts.keys() & seconds.keys())]


def _failures(said: Iterable[tuple[Sample, Arm]]) -> dict[Arm, list[bool]]:
    found: dict[Arm, list[bool]] = {arm: [] for arm in Arm}
    ordered = sorted(said, key=lambda one: (one[0].at, one[0].labels.get("unit", "")))
    for row, arm in ordered:
        if row.metric == ANSWER_OK:
            found[arm].append(not _ok(row))
    return found
