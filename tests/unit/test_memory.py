"""The memory of outcomes: vectors of named numbers, and the prior that similar cases give."""

from __future__ import annotations

from collections.abc import Sequence
from math import isclose, sqrt

from hypothesis import given
from hypothesis import strategies as st

from optiinfra.agents.memory import (
    DIMENSION,
    OutcomeMemory,
    Prior,
    Remembered,
    prior,
    vector_of,
)
from optiinfra.events import facts as f
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.outcome import Outcome
from optiinfra.schemas.rollout import Arms
from optiinfra.schemas.telemetry import Unknown, UnknownReason
from tests.factories import AT, event

FEATURES = st.dictionaries(
    st.text(min_size=1, max_size=12), st.floats(-1e9, 1e9, allow_nan=False), max_size=8
)


def outcome(name: str, terminal: ChangeState, **features: float) -> Outcome:
    unknown = Unknown(reason=UnknownReason.MISSING)
    return Outcome(
        change=derived_id(name),
        deployment="chat",
        kind="spot_migration",
        terminal=terminal,
        realised_usd_per_month=unknown,
        usd_per_hour_before=unknown,
        usd_per_hour_after=unknown,
        ttft_p95_s=unknown,
        tpot_p95_s=unknown,
        quality_mean=unknown,
        features=features,
        at=AT,
    )


class Shelf:
    """Keeps all, and finds the nearest by the cosine."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], tuple[str, Outcome, Sequence[float]]] = {}

    async def put(self, tenant: str, outcome: Outcome, vector: Sequence[float]) -> None:
        self.kept[(tenant, outcome.change)] = (tenant, outcome, vector)

    async def nearest(
        self, tenant: str, kind: str, vector: Sequence[float], limit: int
    ) -> Sequence[Remembered]:
        found = [
            Remembered(one, sum(a * b for a, b in zip(vector, kept, strict=True)))
            for owner, one, kept in self.kept.values()
            if (owner, one.kind) == (tenant, kind)
        ]
        return sorted(found, key=lambda one: -one.likeness)[:limit]


@given(FEATURES)
def test_a_vector_has_the_length_one_and_does_not_depend_on_the_order(
    features: dict[str, float],
) -> None:
    vector = vector_of(features)
    assert len(vector) == DIMENSION
    assert isclose(sqrt(sum(x * x for x in vector)), 1.0, rel_tol=1e-9)
    assert vector_of(dict(reversed(features.items()))) == vector


async def test_the_likest_case_comes_first_and_other_tenants_stay_apart() -> None:
    memory = OutcomeMemory(Shelf())
    near = outcome("near", ChangeState.COMPLETED, saving=100.0, replicas=2.0)
    far = outcome("far", ChangeState.ROLLED_BACK, saving=-5.0, queue=80.0)
    for one in (near, far):
        await memory.hear(event(f.OutcomeRecorded(outcome=one)))
    await memory.hear(event(f.OutcomeRecorded(outcome=near), tenant="other"))
    await memory.hear(
        event(f.ChangeCompleted(change=near.change, arms=Arms(canary=(), baseline=())))
    )
    found = await memory.similar("other", "spot_migration", {"saving": 90.0, "replicas": 2.0})
    assert [one.outcome for one in found] == [near]
    assert found[0].likeness > 0.9
    like_the_bad = await memory.similar("acme", "spot_migration", {"queue": 90.0}, limit=1)
    assert [one.outcome for one in like_the_bad] == [far]


def test_the_prior_counts_what_ended_and_not_what_was_called_off() -> None:
    states = (
        ChangeState.COMPLETED,
        ChangeState.COMPLETED,
        ChangeState.ROLLED_BACK,
        ChangeState.FAILED,
        ChangeState.CANCELLED,
    )
    cases = [Remembered(outcome(str(n), state), 1.0) for n, state in enumerate(states)]
    assert prior(cases) == Prior(worked=2, ended=4)
    assert prior(cases).mean == 0.5
    assert prior([]).mean == 0.5
