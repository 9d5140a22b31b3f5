"""Fills a database with logs of finished changes, as the coordinator would have written them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from optiinfra.coordinator.ledger import Ledger
from optiinfra.events import facts as f
from optiinfra.events.envelope import Event
from optiinfra.schemas.approval_rules import ApprovalRule
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.recommendation import Recommendation, Risk, SpotMigration, SpotReplacement
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.vote import VOTERS
from optiinfra.storage.postgres.append import SagaWrite, saga_row
from optiinfra.storage.postgres.chain import Link
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.journal import chained
from tests.factories import recommendation, rollout, step_result, vote

RULES = Rules(approvals=(ApprovalRule(name="all", max_risk=Risk.LOW),), max_moving=1_000_000)
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
LOG_COLUMNS = (
    "event_id", "tenant", "chain", "version", "type", "subject", "source", "at", "said_at",
    "correlation", "causation", "body", "prev_hash", "hash",
)  # fmt: skip
SAGA_COLUMNS = (
    "change_id", "tenant", "deployment", "state", "version", "hash", "body", "moving_since",
    "opened_at", "updated_at",
)  # fmt: skip
_A_COPY = 250


def proposal(number: int) -> Recommendation:
    """About 1 KB; of a kind that needs no gate."""
    plain = recommendation(number)
    assert isinstance(plain.spec, SpotMigration)
    spec = SpotReplacement(
        replicas=plain.spec.replicas, to=plain.spec.to, reclaim_at=BEGAN + timedelta(days=999)
    )
    return recommendation(
        number,
        deployment=f"d-{number % 1_000}",
        rollout=rollout(1.0).model_copy(update={"gates": ()}),
        spec=spec,
        risk_reasons=("x" * 200,),
    )


def played(number: int) -> SagaWrite:
    """One change from its proposal to its end, decided by the real saga."""
    one, at = proposal(number), BEGAN + timedelta(seconds=number)
    ledger = Ledger(at, RULES)

    def hear(*facts: f.Fact) -> None:
        for index, fact in enumerate(facts):
            name = derived_id(one.id, ledger.saga(one.id).version, index)
            ledger.take(
                Event(
                    id=name, source="bench", tenant="acme", time=at, fact=fact, correlation=one.id
                )
            )

    hear(f.RecommendationProposed(recommendation=one))
    hear(*(vote(one.id, agent) for agent in sorted(VOTERS)))
    while (saga := ledger.saga(one.id)).step is not None and not saga.state.is_terminal:
        hear(f.ExecutionStaged(change=one.id, result=step_result(saga.step, saga.fence)))
    return ledger.writes()[one.id]


def logged(first: int, count: int) -> Iterator[tuple[list[Link], SagaWrite, datetime]]:
    for number in range(first, first + count):
        write, at = played(number), BEGAN + timedelta(seconds=number)
        yield list(chained(write, at)), write, at


async def fill(database: Database, events: int) -> int:
    """At least `events` events; gives how many. About 20 make one change."""
    done = number = 0
    while done < events:
        log: list[tuple[object, ...]] = []
        sagas: list[tuple[object, ...]] = []
        for links, write, at in logged(number, _A_COPY):
            log += links
            sagas.append(saga_row(write, links[-1], at)[:-1])
        async with database.transaction() as connection:
            await connection.copy_records_to_table("event_log", records=log, columns=LOG_COLUMNS)
            await connection.copy_records_to_table("sagas", records=sagas, columns=SAGA_COLUMNS)
        done += len(log)
        number += _A_COPY
    async with database.connection() as connection:
        await connection.execute("ANALYZE")
    return done
