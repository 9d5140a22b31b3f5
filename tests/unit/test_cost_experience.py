"""The outcome memory beside proposals."""

from __future__ import annotations

from collections.abc import Sequence
from math import isclose, sqrt

from optiinfra.agents.cost.experience import with_experience
from optiinfra.agents.memory import DIMENSION, OutcomeMemory, Remembered, prior, vector_of
from optiinfra.events import facts as f
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.money import Interval
from optiinfra.schemas.outcome import Outcome
from optiinfra.schemas.telemetry import Known, Unknown, UnknownReason
from tests.factories import AT, event, recommendation

UNKNOWN = Unknown(reason=UnknownReason.MISSING)


def ended(name: str, state: ChangeState, realised: float | None = None) -> Outcome:
    return Outcome(
        change=derived_id(name),
        deployment="chat",
        kind="spot_migration",
        terminal=state,
        predicted_usd_per_month=Interval(low=80, mid=100, high=120),
        realised_usd_per_month=UNKNOWN if realised is None else Known(value=realised),
        usd_per_hour_before=UNKNOWN,
        usd_per_hour_after=UNKNOWN,
        ttft_p95_s=UNKNOWN,
        tpot_p95_s=UNKNOWN,
        quality_mean=UNKNOWN,
        features={"stages": 3.0, "risk_rank": 0.0},
        at=AT,
    )


class Shelf:
    """A list that answers with everything of the tenant and kind."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, Outcome]] = []

    async def put(self, tenant: str, outcome: Outcome, vector: Sequence[float]) -> None:
        assert len(vector) == DIMENSION
        self.kept.append((tenant, outcome))

    async def nearest(
        self, tenant: str, kind: str, vector: Sequence[float], limit: int
    ) -> list[Remembered]:
        return [
            Remembered(outcome, 1.0)
            for owner, outcome in self.kept[:limit]
            if (owner, outcome.kind) == (tenant, kind)
        ]


async def test_a_proposal_carries_how_similar_changes_turned_out() -> None:
    memory = OutcomeMemory(Shelf())
    for outcome in (
        ended("a", ChangeState.COMPLETED, 90.0),
        ended("b", ChangeState.COMPLETED, 110.0),
        ended("c", ChangeState.ROLLED_BACK),
    ):
        await memory.hear(event(f.OutcomeRecorded(outcome=outcome)))
    proposal = recommendation()
    found = {row.name: row for row in (await with_experience(proposal, memory)).evidence}
    assert found["similar_changes_worked"].reading == Known(value=3 / 5)
    assert found["similar_changes_worked"].samples == 3
    assert found["realised_over_predicted_saving"].reading == Known(value=1.0)


async def test_without_experience_the_rows_say_unknown() -> None:
    enriched = await with_experience(recommendation(), OutcomeMemory(Shelf()))
    assert all(isinstance(row.reading, Unknown) for row in enriched.evidence)
    assert enriched.id == recommendation().id


async def test_what_is_no_outcome_is_not_remembered() -> None:
    shelf = Shelf()
    await OutcomeMemory(shelf).hear(
        event(f.RecommendationProposed(recommendation=recommendation()))
    )
    assert shelf.kept == []


def test_cancelled_changes_say_nothing_about_success() -> None:
    cases = [Remembered(ended("x", ChangeState.CANCELLED), 1.0)]
    assert prior(cases).ended == 0
    assert prior(cases).mean == 0.5


def test_vectors_are_of_unit_length_and_alike_for_like_numbers() -> None:
    near, far = {"a": 1.0, "b": 2.0}, {"a": -50.0, "c": 9.0}
    one, same, other = vector_of(near), vector_of({**near, "b": 2.1}), vector_of(far)
    assert isclose(sqrt(sum(x * x for x in one)), 1.0)
    alike = sum(x * y for x, y in zip(one, same, strict=True))
    unlike = sum(x * y for x, y in zip(one, other, strict=True))
    assert alike > 0.99 > unlike
    assert any(vector_of({}))
