"""The demo's figures, with the raw counts, and whether they are as promised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from optiinfra.agents.performance.replay import Played
from optiinfra.events.facts import GateAnswered
from optiinfra.schemas.base import Value
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.telemetry import Known

LEAST_GAIN, LEAST_OF_GRID, MOST_OF_TRIALS = 2.5, 0.95, 1 / 3
MOST_BROKEN, MOST_WORSE = 30, 400
"""Canary answers within which weights that answer worse must have fallen."""
ALPHA = 0.05


class Measured(Value):
    """Saturating replays through the gateway."""

    tokens_per_s: float
    ttft_p95_s: float
    served: int
    failed: int

    @staticmethod
    def of(played: Played) -> Measured:
        rate, ttft = played.tokens_per_s, played.ttft_p95_s
        return Measured(
            tokens_per_s=round(rate.value, 1) if isinstance(rate, Known) else 0.0,
            ttft_p95_s=round(ttft.value, 3) if isinstance(ttft, Known) else float("inf"),
            served=played.served,
            failed=played.failed,
        )


class VariantEnd(Value):
    """How a canary of other weights ended; `samples` are its scored answers until then."""

    verdict: str
    stage: int
    samples: int

    @staticmethod
    def of(state: str, answers: Sequence[GateAnswered]) -> VariantEnd:
        """From the quality gate's answers of one change, in their order."""
        last = answers[-1].answer if answers else None
        scored = sum(_scored(stage) for stage in _last_of_each_stage(answers))
        return VariantEnd(verdict=state, stage=last.stage if last else 0, samples=scored)


def _last_of_each_stage(answers: Sequence[GateAnswered]) -> list[GateAnswered]:
    return list({one.answer.stage: one for one in answers}.values())


def _scored(answered: GateAnswered) -> int:
    quality = answered.answer.quality
    arm = quality.canary if quality is not None else None
    return arm.scored if arm is not None else 0


class Tuned(Value):
    """What the study found, and how its change ended."""

    state: str
    knobs: dict[str, bool | int | float | str]
    trials: int
    staged_gain: float | None


class Grid(Value):
    """The whole grid on staging replicas; its best and ours, the median of all their turns."""

    size: int
    best: str
    best_tokens_per_s: float
    ours_tokens_per_s: float
    walked: dict[str, float]
    """Tokens/s of every configuration, each measured once."""


class Counts(Value):
    """Requests of users and of the two replays; `gateway` is what the gateway counted itself."""

    served: int
    failed: int
    truncated: int
    gateway: dict[str, int]


class Accuracy(Value):
    """Right answers of the same questions before and after, and McNemar's exact p-value."""

    before: float
    after: float
    asked: int
    p_value: float


class Summary(Value):
    """Everything that one run found."""

    tuned: Tuned
    before: Measured
    after: Measured
    grid: Grid | None
    requests: Counts
    accuracy: Accuracy
    variants: dict[str, tuple[VariantEnd, ...]]
    audit_ok: bool

    @property
    def gain(self) -> float:
        return self.after.tokens_per_s / max(self.before.tokens_per_s, 1e-9)

    def line(self) -> dict[str, object]:
        """The last line of `--json`."""
        grid = self.grid
        return {
            "tokens_per_s": {
                "before": self.before.tokens_per_s,
                "after": self.after.tokens_per_s,
                "grid_best": grid.best_tokens_per_s if grid else None,
            },
            "trials": {"ours": self.tuned.trials, "grid": grid.size if grid else None},
            "ttft_p95_s": {"before": self.before.ttft_p95_s, "after": self.after.ttft_p95_s},
            "requests": self.requests.model_dump(),
            "accuracy": self.accuracy.model_dump(),
            "variants": {
                name: _variant(ends, name) for name, ends in self.variants.items()
            },
            "tuning": self.tuned.model_dump(),
            "grid": grid.model_dump() if grid else None,
            "audit_ok": self.audit_ok,
            "complaints": list(self.complaints()),
        }  # fmt: skip

    def complaints(self) -> Iterator[str]:
        """What is not as promised."""
        if self.tuned.state != ChangeState.COMPLETED:
            yield f"the tuning ended {self.tuned.state}"
        if self.gain < LEAST_GAIN:
            yield f"{self.gain:.2f} times the tokens/s, {LEAST_GAIN} are promised"
        if self.after.ttft_p95_s > self.before.ttft_p95_s:
            yield "TTFT p95 is worse than before"
        yield from self._grid_complaints()
        lost = self.requests.failed + self.requests.truncated
        if lost or self.requests.gateway["failed"] or self.requests.gateway["truncated"]:
            yield f"requests were lost: {self.requests.model_dump()}"
        if self.accuracy.p_value < ALPHA:
            yield f"answers changed: {self.accuracy.model_dump()}"
        yield from _variant_complaints(self.variants)
        if not self.audit_ok:
            yield "the event log's hash chains do not hold"

    def _grid_complaints(self) -> Iterator[str]:
        grid = self.grid
        if grid is None:
            return
        share = grid.ours_tokens_per_s / max(grid.best_tokens_per_s, 1e-9)
        if share < LEAST_OF_GRID:
            yield f"{share:.0%} of the grid's best, {LEAST_OF_GRID:.0%} are promised"
        if self.tuned.trials > MOST_OF_TRIALS * grid.size:
            yield f"{self.tuned.trials} trials of {grid.size}, a third is promised"


def _variant(ends: Sequence[VariantEnd], name: str) -> dict[str, object]:
    """The first run as the figure, all runs beside it."""
    told: dict[str, object] = dict(ends[0].model_dump()) if ends else {}
    return {**told, "as_promised": sum(_holds(name, one) for one in ends), "runs": len(ends)}


def _holds(name: str, end: VariantEnd) -> bool:
    fell = end.verdict == ChangeState.ROLLED_BACK and end.samples > 0  # a veto proves nothing here
    match name:
        case "broken":
            return fell and end.samples <= MOST_BROKEN
        case "worse":
            return fell and end.samples <= MOST_WORSE
        case _:
            return end.verdict == ChangeState.COMPLETED


def _variant_complaints(variants: Mapping[str, Sequence[VariantEnd]]) -> Iterator[str]:
    for name, ends in variants.items():
        held = sum(_holds(name, one) for one in ends)
        wanted = len(ends) if name != "worse" else len(ends) - len(ends) // 10
        if held < wanted:
            yield f"{name}: as promised in {held} of {len(ends)} runs: {[str(e) for e in ends]}"
