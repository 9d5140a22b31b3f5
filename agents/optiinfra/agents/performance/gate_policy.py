"""Whether a canary keeps the latency objectives beside its concurrent baseline; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optiinfra.agents.performance.policy import PerformancePolicy
from optiinfra.schemas.deployment import SLO
from optiinfra.schemas.rollout import GateMetric, GateVerdict
from optiinfra.schemas.telemetry import Unit, Unknown
from optiinfra.serving.windows import Pooled


@dataclass(frozen=True, slots=True)
class ArmReadings:
    """One arm over the look's window.

    `errors` is the share of finished requests that failed, None where the engine does not expose
    failures: those are then judged by the answers alone.
    """

    ttft: Pooled
    tpot: Pooled
    waiting: Pooled
    errors: Pooled | None


@dataclass(frozen=True, slots=True)
class GateQuestion:
    """Canary and, while it takes a share of the traffic, the concurrent baseline."""

    slo: SLO
    window_s: float
    canary: ArmReadings
    baseline: ArmReadings | None


@dataclass(frozen=True, slots=True)
class GateJudgement:
    verdict: GateVerdict
    metrics: tuple[GateMetric, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class _Line:
    """One quantity of the canary beside the baseline, and what it may be at most."""

    name: str
    unit: Unit
    canary: Pooled
    baseline: Pooled | None
    limit: float
    needed: int
    what: str = "requests"


class _NoBaseline:
    """An arm that does not exist: nothing to compare with."""

    ttft: None = None
    tpot: None = None
    waiting: None = None
    errors: None = None


_NO_BASELINE = _NoBaseline()


def gate(question: GateQuestion, policy: PerformancePolicy) -> GateJudgement:
    """Roll back on one metric that is beyond doubt worse, pass when all hold, else hold.

    Worse is: enough samples, over the objective, and `baseline_ratio` times the concurrent
    baseline where there is one. Over the objective together with the baseline is a hold: the
    change is not what hurts. Anything unknown is a hold.
    """
    metrics = tuple(_judge(line, question, policy) for line in _lines(question, policy))
    worst = _worst(metrics)
    telling = [f"{m.name}: {m.detail}" for m in metrics if m.verdict is worst]
    return GateJudgement(worst, metrics, "; ".join(telling))


def _lines(question: GateQuestion, policy: PerformancePolicy) -> Sequence[_Line]:
    slo, canary, enough = question.slo, question.canary, policy.min_samples
    base = question.baseline or _NO_BASELINE
    lines = [
        _Line("ttft_p95_s", Unit.SECONDS, canary.ttft, base.ttft, slo.ttft_p95_s, enough),
        _Line("tpot_p95_s", Unit.SECONDS, canary.tpot, base.tpot, slo.tpot_p95_s, enough),
        _Line(
            "requests_waiting", Unit.COUNT, canary.waiting, base.waiting,
            policy.max_waiting, policy.min_scrapes, "scrapes",
        ),
    ]  # fmt: skip
    if canary.errors is not None:
        lines.append(
            _Line("error_rate", Unit.FRACTION, canary.errors, base.errors, slo.error_rate, enough)
        )
    return lines


def _judge(line: _Line, question: GateQuestion, policy: PerformancePolicy) -> GateMetric:
    verdict, detail = _verdict(line, policy.baseline_ratio)
    return GateMetric(
        name=line.name,
        unit=line.unit,
        observed=line.canary.reading,
        threshold=line.limit,
        window_s=question.window_s,
        samples=line.canary.samples,
        verdict=verdict,
        detail=detail,
    )


def _verdict(line: _Line, ratio: float) -> tuple[GateVerdict, str]:
    canary = line.canary.reading
    if isinstance(canary, Unknown):
        return GateVerdict.HOLD, f"unknown: {canary.detail or canary.reason}"
    if line.canary.samples < line.needed:
        return GateVerdict.HOLD, f"{line.canary.samples} of {line.needed} {line.what}"
    if canary.value <= line.limit:
        return GateVerdict.PASS, f"{canary.value:.3g} within {line.limit:.3g}"
    over = f"{canary.value:.3g} over {line.limit:.3g}"
    if line.baseline is None:
        return GateVerdict.ROLL_BACK, over
    if isinstance(line.baseline.reading, Unknown) or line.baseline.samples < line.needed:
        return GateVerdict.HOLD, f"{over}, baseline has {line.baseline.samples} {line.what}"
    baseline = line.baseline.reading.value
    if canary.value > baseline * ratio:
        return GateVerdict.ROLL_BACK, f"{over}, baseline {baseline:.3g}"
    return GateVerdict.HOLD, f"{over}, but the baseline is at {baseline:.3g} too"


def _worst(metrics: Sequence[GateMetric]) -> GateVerdict:
    verdicts = {metric.verdict for metric in metrics}
    for verdict in (GateVerdict.ROLL_BACK, GateVerdict.HOLD):
        if verdict in verdicts:
            return verdict
    return GateVerdict.PASS
