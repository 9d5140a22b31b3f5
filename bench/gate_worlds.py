"""Rollouts as the quality gate meets them, with recorded score noise: `bench.gate` judges them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.score_noise import recorded
from optiinfra.agents.application.golden import load_golden

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SUPPORTED, UNSUPPORTED = recorded("supported"), recorded("unsupported")
SAMPLES_A_DAY = 1000
"""Canary samples in which a drift comes round once."""
GOLDEN_PROMPTS = len(load_golden().items)
"""How many there are in the set that ships."""
FROZEN_ANSWERS = 400
"""Baseline answers that a gate with a frozen baseline would have scored beforehand."""


@dataclass(frozen=True)
class World:
    """One kind of rollout.

    `drop` is the true relative drop of the canary's mean score. In a `graded` one every answer
    scores that much less; else a part of the answers turns unsupported, the others stay as good as
    they were. `share` of the live traffic goes to the canary; without a share the arms are asked
    golden prompts A/A/B, and `redrawn` is the part of the answers that comes out differently, as
    good as before, each time a prompt is asked. Scores of both arms drift together by ± `drift`.
    """

    name: str
    drop: float
    samples: int
    share: float | None = 0.1
    graded: bool = False
    drift: float = 0.0
    redrawn: float = 0.0


@dataclass(frozen=True)
class Rollout:
    """One rollout: means of both arms pair by pair, and the answers behind them.

    The first `baseline_by[i]` and `canary_by[i]` answers had been scored at pair i. `frozen` is
    the mean of the baseline before the rollout, None for golden prompts; the first `new_pairs` are
    no repetitions of a prompt.
    """

    baseline: Floats
    canary: Floats
    baseline_answers: Floats
    canary_answers: Floats
    baseline_by: Ints
    canary_by: Ints
    frozen: float | None
    new_pairs: int


def play(rng: np.random.Generator, world: World) -> Rollout:
    """One rollout in `world`, of `world.samples` canary samples."""
    if world.share is None:
        return _golden(rng, world)
    return _traffic(rng, world, world.share)


def _traffic(rng: np.random.Generator, world: World, share: float) -> Rollout:
    """Live units at random to the arms, paired as `sequential.pairs_of` pairs them.

    A pair closes with the first unit of the other arm, so that pairs are independent of one
    another: either k ≥ 1 baseline units and a canary one, or m ≥ 1 canary units and a baseline one.
    """
    pairs = world.samples
    canary_first = rng.random(pairs) < share
    k = np.where(canary_first, 1, rng.geometric(share, pairs))
    m = np.where(canary_first, rng.geometric(1 - share, pairs), 1)
    wave = _wave(rng, world, pairs)
    baseline = _drawn(rng, SUPPORTED, int(k.sum())) * np.repeat(wave, k)
    canary = _canary(rng, world, _drawn(rng, SUPPORTED, int(m.sum()))) * np.repeat(wave, m)
    return Rollout(
        baseline=_means(baseline, k),
        canary=_means(canary, m),
        baseline_answers=baseline,
        canary_answers=canary,
        baseline_by=k.cumsum(),
        canary_by=m.cumsum(),
        frozen=float(_drawn(rng, SUPPORTED, FROZEN_ANSWERS).mean() * wave[0]),
        new_pairs=pairs,
    )


def _golden(rng: np.random.Generator, world: World) -> Rollout:
    """Every prompt twice to the baseline and once to the canary; the set comes round.

    What the canary gets wrong it gets wrong each time that it is asked.
    """
    prompts = world.samples
    usual, spoilt = _drawn(rng, SUPPORTED, GOLDEN_PROMPTS), np.zeros(GOLDEN_PROMPTS)
    wrong = rng.random(GOLDEN_PROMPTS) < _wrong_share(world)
    spoilt[wrong] = _drawn(rng, UNSUPPORTED, int(wrong.sum()))
    which = np.arange(prompts) % GOLDEN_PROMPTS

    def asked() -> Floats:
        differs = rng.random(prompts) < world.redrawn
        return np.where(differs, _drawn(rng, SUPPORTED, prompts), usual[which])

    first, second = asked(), asked()
    canary = np.where(wrong[which], spoilt[which], asked())
    counted = np.arange(1, prompts + 1)
    return Rollout(
        baseline=(first + second) / 2,
        canary=canary,
        baseline_answers=np.stack([first, second], axis=1).ravel(),
        canary_answers=canary,
        baseline_by=2 * counted,
        canary_by=counted,
        frozen=None,
        new_pairs=min(prompts, GOLDEN_PROMPTS),
    )


def _drawn(rng: np.random.Generator, scores: Floats, count: int) -> Floats:
    """Recorded scores, with replacement."""
    return scores[rng.integers(0, len(scores), count)]


def _canary(rng: np.random.Generator, world: World, answers: Floats) -> Floats:
    if world.graded:
        return answers * (1 - world.drop)
    wrong = rng.random(len(answers)) < _wrong_share(world)
    return np.where(wrong, _drawn(rng, UNSUPPORTED, len(answers)), answers)


def _wrong_share(world: World) -> float:
    """The part of the answers that has to turn unsupported for the mean to fall by the drop."""
    mean = float(SUPPORTED.mean())
    return world.drop * mean / (mean - float(UNSUPPORTED.mean()))


def _wave(rng: np.random.Generator, world: World, pairs: int) -> Floats:
    """What both arms' scores are multiplied by: at most 1, ± drift about its middle."""
    turns = np.arange(pairs) / SAMPLES_A_DAY + rng.random()
    return np.asarray((1 + world.drift * np.sin(2 * np.pi * turns)) / (1 + world.drift))


def _means(values: Floats, counts: Ints) -> Floats:
    starts = np.concatenate([[0], counts.cumsum()[:-1]])
    return np.asarray(np.add.reduceat(values, starts) / counts)
