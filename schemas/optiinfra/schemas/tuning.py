"""What one configuration of an engine did when it was tried on a staging replica."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from optiinfra.schemas.base import Value
from optiinfra.schemas.telemetry import Known, Reading, Unknown, UnknownReason

KnobValue = bool | int | float | str
_NOT_MEASURED = Unknown(reason=UnknownReason.MISSING, detail="not measured")


class TrialOutcome(StrEnum):
    COMPLETE = "complete"
    """The whole replay was served."""
    PRUNED = "pruned"
    """Stopped early: by then it could no longer become the best."""
    FAILED = "failed"
    """The engine did not start, ended, or lost requests."""


class TuningTrial(Value):
    """One trial: the knobs that were turned, and what clients of the staging replica saw.

    Every trial of one curve serves the same replay. Latencies are those of its requests, s;
    `tokens_per_s` counts output tokens from the first arrival to the last answer.
    """

    knobs: dict[str, KnobValue]
    outcome: TrialOutcome
    tokens_per_s: Reading = _NOT_MEASURED
    ttft_p95_s: Reading = _NOT_MEASURED
    tpot_p95_s: Reading = _NOT_MEASURED
    kv_usage_peak: Reading = _NOT_MEASURED
    """Largest part of the KV cache in use that was seen."""
    served: int = Field(default=0, ge=0)
    failed: int = Field(default=0, ge=0)
    took_s: float = Field(default=0.0, ge=0)
    """Start-up and warm-up included."""
    reason: str = ""
    """Why it failed or was stopped."""

    @property
    def throughput(self) -> float | None:
        """`tokens_per_s` of a whole replay; None where there is none."""
        whole = self.outcome is TrialOutcome.COMPLETE and isinstance(self.tokens_per_s, Known)
        return self.tokens_per_s.value if whole and isinstance(self.tokens_per_s, Known) else None
