"""Stages of a change and the gates between them."""

from __future__ import annotations

from enum import StrEnum

from pydantic import AwareDatetime, Field

from optiinfra.schemas.base import Value
from optiinfra.schemas.ids import ChangeId, ReplicaId
from optiinfra.schemas.telemetry import Reading, Unit
from optiinfra.schemas.vote import AgentName


class StepKind(StrEnum):
    """What an executor is asked for: carry a stage, finish (release what was replaced), undo."""

    APPLY = "apply"
    FINISH = "finish"
    ROLLBACK = "rollback"


class Step(Value):
    """One thing that is executed at most once, named (change, kind, stage, attempt)."""

    kind: StepKind
    stage: int = Field(ge=0)
    attempt: int = Field(default=1, ge=1)
    share: float = Field(ge=0, le=1)


class GateVerdict(StrEnum):
    PASS = "pass"  # noqa: S105 - a verdict, not a secret
    HOLD = "hold"
    ROLL_BACK = "roll_back"


class GateMetric(Value):
    """One line of a gate: what was observed against what was allowed."""

    name: str
    unit: Unit
    observed: Reading
    threshold: float
    window_s: float = Field(ge=0)
    samples: int = Field(default=0, ge=0)
    verdict: GateVerdict
    detail: str = ""


class ArmEvidence(Value):
    """What one arm has brought to the test; its coverage is `scored` of `answers`."""

    answers: int = Field(ge=0)
    """Answers that came and were no failures."""
    scored: int = Field(ge=0)
    """Those of them that have a score; the others are missing, never 0."""
    units: int = Field(ge=0)
    """Scored units: a session is one, and each golden answer."""

    @property
    def coverage(self) -> float | None:
        return self.scored / self.answers if self.answers else None


class SequentialEvidence(Value):
    """The betting test's record: e-values of both rules, and the confidence sequence.

    `e_rollback` is the highest that K has been, `e_promote` is K' now; `difference_low` and
    `difference_high` bound the canary's mean score minus the baseline's. `twins` golden prompts
    were answered twice by the baseline (A/A), with `twin_stdev` between the two answers' scores.
    """

    pairs: int = Field(ge=0)
    e_rollback: float = Field(ge=0)
    e_promote: float = Field(ge=0)
    alpha: float = Field(gt=0, lt=1)
    beta: float = Field(gt=0, lt=1)
    margin: float = Field(gt=0, lt=1)
    mean_baseline: float | None = None
    mean_canary: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    baseline: ArmEvidence | None = None
    canary: ArmEvidence | None = None
    twins: int = Field(default=0, ge=0)
    twin_stdev: float | None = Field(default=None, ge=0)


class GateAnswer(Value):
    """One assessor's answer to one look."""

    change: ChangeId
    stage: int = Field(ge=0)
    look: int = Field(ge=1)
    assessor: AgentName
    verdict: GateVerdict
    metrics: tuple[GateMetric, ...] = ()
    quality: SequentialEvidence | None = None
    reason: str
    at: AwareDatetime


class Arms(Value):
    """Which replicas carry the change and which serve as the concurrent baseline."""

    canary: tuple[ReplicaId, ...] = ()
    baseline: tuple[ReplicaId, ...] = ()


class StepResult(Value):
    """What the target looked like when it was read back after a step."""

    step: Step
    fence: int = Field(ge=1)
    arms: Arms
    applied: bool
    """False when the read-back showed that it had been applied before."""
    usd_per_hour: float | None = None
    detail: str = ""
    at: AwareDatetime
