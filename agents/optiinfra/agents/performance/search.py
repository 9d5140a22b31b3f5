"""A Bayesian search (Optuna) over the few knobs that bind, within a budget and under limits."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import TYPE_CHECKING

from optiinfra.agents.performance.knobs import Point, SearchSpace, nearest
from optiinfra.schemas.errors import Conflict
from optiinfra.schemas.telemetry import Known, Reading
from optiinfra.schemas.tuning import KnobValue, TrialOutcome, TuningTrial

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

SMALL_GAIN = 0.02
"""Relative gain that counts as none."""
PATIENCE = 3
"""Trials without a gain after which only neighbours are tried any more."""
NEARLY = 0.1
"""Relative excess over the limits up to which a faster trial's neighbours are worth trying too."""
CATCH_UP = 2.0
"""How much faster than the best one a trial may be in what is left of the replay: large batches
start slowly. `bench/tuning.py` measures how often that gives up what would have become the best."""
CLOSE = 0.1
"""How far behind the best one, as it was measured, a trial may come in and still be whole: both
were measured once, and the best may have been lucky."""
_DRAWS = 24


@dataclass(frozen=True, slots=True)
class Limits:
    """What a trial may be at most; None sets no limit."""

    ttft_p95_s: float | None = None
    tpot_p95_s: float | None = None
    kv_usage: float | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """What a search may cost: trials, and seconds of the staging replica."""

    trials: int
    seconds: float


class Search:
    """Ask for a configuration, try it, tell what came of it; until `ask` gives None.

    It looks for the most output tokens/s of those that keep the limits. The start is the present
    configuration and the step that the cause asks for, from which it goes on as long as that helps,
    unless `start` says otherwise. Trials of an
    earlier search may be told before the first `ask`. Nothing is asked twice.
    """

    def __init__(
        self,
        space: SearchSpace,
        limits: Limits,
        budget: Budget,
        *,
        start: Sequence[Mapping[str, KnobValue]] = (),
        seed: int = 0,
    ) -> None:
        self.space, self.budget, self.ended = space, budget, space.reason
        self._limits, self._seed = limits, seed
        wanted = () if space.reason else start or (space.present, space.bold)
        self._line = _line(space) if wanted and not start else None
        self._start = deque(space.point(values) for values in wanted)
        self._tried: dict[Point, TuningTrial] = {}
        self._asked: Point | None = None
        self._looks: dict[Point, list[tuple[float, float]]] = {}

    @property
    def trials(self) -> tuple[TuningTrial, ...]:
        """All that was told, in order."""
        return tuple(self._tried.values())

    @property
    def best(self) -> TuningTrial | None:
        """The fastest whole trial that kept the limits; of several the one tried first."""
        point = self._best_point()
        return None if point is None else self._tried[point]

    def set_limits(self, limits: Limits) -> None:
        """Judge all trials by these limits, those told before too."""
        self._limits = limits

    def ask(self) -> Mapping[str, KnobValue] | None:
        """What to try next: the same until it is told. None: it has `ended`."""
        if self._asked is None and not self.ended:
            self.ended = self._why_ended()
            if not self.ended:
                self._asked = self._next()
        return None if self._asked is None else self.space.values(self._asked)

    def hopeless(self, fraction: float, tokens_per_s: float) -> bool:
        """Whether the trial asked last can be stopped, `fraction` of the output tokens served.

        Yes, if it would come in more than `CLOSE` behind the best even if it served the rest
        `CATCH_UP` times as fast as that one did. Of a best that nobody looked at while it ran, its
        end alone is known.
        """
        if self._asked is None:
            raise Conflict("no trial runs", hint="ask for one first")
        self._looks.setdefault(self._asked, []).append((fraction, tokens_per_s))
        best = self._best_point()
        at_most = None if best is None else self._tried[best].throughput
        if best is None or not at_most:
            return False
        rate = _between(self._looks.get(best, []), fraction)
        rest_s = 1 / at_most - fraction / rate if rate else 0.0
        return fraction > tokens_per_s * (1 / at_most / (1 - CLOSE) - rest_s / CATCH_UP)

    def tell(self, trial: TuningTrial) -> None:
        """What came of a trial. Raises `Conflict` for one that was told already."""
        point = self.space.point(trial.knobs)
        if point in self._tried:
            raise Conflict(f"{trial.knobs} was told already", hint="ask for another one")
        self._tried[point] = trial
        if point == self._asked:
            self._asked = None

    def _why_ended(self) -> str:
        spent_s, count = sum(t.took_s for t in self.trials), len(self._tried)
        if count >= self.budget.trials:
            return f"the budget of {self.budget.trials} trials is spent"
        if spent_s + (spent_s / count if count else 0.0) > self.budget.seconds:
            return f"another trial would not end within the budget of {self.budget.seconds:g} s"
        if count == len(self.space.points):
            return "every configuration was tried"
        best = self._best_point()
        if best is not None and self._is_stale() and not self._left_beside(best):
            return (
                f"no gain above {SMALL_GAIN:.0%} in the last {PATIENCE} trials, and every"
                " configuration beside the best one was tried"
            )
        return ""

    def _next(self) -> Point:
        while self._start:
            point = self._start.popleft()
            if point not in self._tried:
                return point
        best = self._best_point()
        if best is None:
            return self._drawn()
        if (middle := self._middle(best)) is not None:
            return middle
        if (along := self._along(best)) is not None:
            return along
        return self._left_beside(best)[0] if self._is_stale() else self._drawn()

    def _best_point(self) -> Point | None:
        kept = [
            (rate, point)
            for point, trial in self._tried.items()
            if (rate := trial.throughput) is not None and excess(trial, self._limits) == 0
        ]
        return max(kept, key=itemgetter(0))[1] if kept else None

    def _is_stale(self) -> bool:
        """Whether the last `PATIENCE` trials brought no more than `SMALL_GAIN`."""
        before = self.trials[:-PATIENCE]
        known = [self._kept(trial) for trial in before]
        return bool(known) and max(known) * (1 + SMALL_GAIN) >= max(map(self._kept, self.trials))

    def _kept(self, trial: TuningTrial) -> float:
        return (trial.throughput or 0.0) if excess(trial, self._limits) == 0 else 0.0

    def _faster_but_over(self, best: Point) -> list[tuple[float, Point]]:
        """Trials that would be the best but for the limits; first the one least over them."""
        enough = (self._tried[best].throughput or 0.0) * (1 + SMALL_GAIN)
        judged = ((excess(t, self._limits), p, t.throughput) for p, t in self._tried.items())
        return sorted((over, p) for over, p, rate in judged if over and rate and rate > enough)

    def _middle(self, best: Point) -> Point | None:
        """The point halfway to the faster trial that is least over the limits, if untried."""
        for _, over in self._faster_but_over(best)[:1]:
            middle = tuple((a + b) // 2 for a, b in zip(best, over, strict=True))
            if middle in self.space.points and middle not in self._tried:
                return middle
        return None

    def _along(self, best: Point) -> Point | None:
        """The next point on the line of the bold step, while the best one lies on it: a stride
        beyond it, and once that has brought nothing, shorter ones to either side."""
        if self._line is None:
            return None
        present, stride = self._line
        if any(not by and at != was for at, was, by in zip(best, present, stride, strict=True)):
            return None
        while any(stride):
            for ahead in (stride, tuple(-by for by in stride)):
                steps = zip(best, ahead, self.space.knobs, strict=True)
                point = tuple(min(max(0, at + by), len(k.choices) - 1) for at, by, k in steps)
                if point in self.space.points and point not in self._tried:
                    return point
            stride = tuple(int(by / 2) for by in stride)
        return None

    def _left_beside(self, best: Point) -> list[Point]:
        """Untried neighbours of the best one; after them of a faster one `NEARLY` inside."""
        near = [point for over, point in self._faster_but_over(best)[:1] if over <= NEARLY]
        beside = (p for point in (best, *near) for p in self.space.neighbours(point))
        return [point for point in beside if point not in self._tried]

    def _drawn(self) -> Point:
        """What Optuna proposes; if it keeps proposing what is known, the untried point nearest."""
        study, places = self._study(), _places(self.space)
        untried = [p for p in self.space.points if p not in self._tried]
        for _ in range(_DRAWS):
            params = study.ask(places).params
            point = tuple(int(params[knob.name]) for knob in self.space.knobs)
            if point in untried:
                return point
        return nearest(point, untried)

    def _study(self) -> Study:
        """Optuna's view of all trials so far, by today's limits; it keeps them by that name."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=self._seed + len(self._tried), multivariate=True, n_startup_trials=2,
                constraints_func=lambda trial: trial.system_attrs["constraints"],
            )  # fmt: skip
        study = optuna.create_study(direction="maximize", sampler=sampler)
        names, places = [knob.name for knob in self.space.knobs], _places(self.space)
        for point, trial in self._tried.items():
            rate, over = trial.tokens_per_s, [excess(trial, self._limits)]
            study.add_trial(
                optuna.trial.create_trial(
                    params=dict(zip(names, point, strict=True)),
                    distributions=places,
                    value=rate.value if isinstance(rate, Known) else 0.0,
                    system_attrs={"constraints": over},
                )
            )
        return study


def _line(space: SearchSpace) -> tuple[Point, Point]:
    """The present configuration, and from there to the bold one."""
    present, bold = space.point(space.present), space.point(space.bold)
    return present, tuple(b - a for a, b in zip(present, bold, strict=True))


def excess(trial: TuningTrial, limits: Limits) -> float:
    """How far a trial is over the limits, relative and summed up; 0 keeps them all.

    A failed trial, a lost request and a latency that nobody measured are over by 1 each. A trial
    that was stopped early is not judged by latencies.
    """
    over = float(trial.outcome is TrialOutcome.FAILED or trial.failed > 0)
    if trial.outcome is TrialOutcome.COMPLETE:
        over += _over(trial.ttft_p95_s, limits.ttft_p95_s)
        over += _over(trial.tpot_p95_s, limits.tpot_p95_s)
        over += _over(trial.kv_usage_peak, limits.kv_usage)
    return over


def _over(reading: Reading, limit: float | None) -> float:
    if limit is None:
        return 0.0
    return max(0.0, reading.value / limit - 1) if isinstance(reading, Known) else 1.0


def _places(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Values in order, so that a value tells of those beside it."""
    from optuna.distributions import IntDistribution

    return {knob.name: IntDistribution(0, len(knob.choices) - 1) for knob in space.knobs}


def _between(looks: Sequence[tuple[float, float]], fraction: float) -> float | None:
    """The rate at `fraction`, between the looks before and after it; None outside of them."""
    for (before, slow), (after, fast) in pairwise(looks):
        if before <= fraction <= after:
            share = (fraction - before) / (after - before) if after > before else 0.0
            return slow + share * (fast - slow)
    return None
