"""The log that the API's benchmark reads: changes that ended, and some that wait for people."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from bench.event_log import LOG_COLUMNS, SAGA_COLUMNS
from bench.fleet import deployments
from optiinfra.coordinator.saga.state import Saga
from optiinfra.events import facts as f
from optiinfra.events.envelope import Event
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.deployment import Market, Provider
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.money import Interval
from optiinfra.schemas.outcome import Outcome
from optiinfra.schemas.recommendation import (
    Placement,
    Recommendation,
    Risk,
    RolloutPlan,
    SpotMigration,
    StagePlan,
)
from optiinfra.schemas.rollout import Arms
from optiinfra.schemas.telemetry import Known, Unknown, UnknownReason
from optiinfra.schemas.vote import VOTERS, AgentName, Verdict, Vote
from optiinfra.storage.postgres.chain import GENESIS
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.journal import link_of

TENANT = "bench"
EVENTS_A_CHANGE = 20
RECOMMENDATION_COLUMNS = (
    "id", "tenant", "deployment", "proposer", "kind", "risk", "version_hash", "body",
    "proposed_at",
)  # fmt: skip
OUTCOME_COLUMNS = ("change_id", "tenant", "kind", "body", "at")
WAITING = 30
"""About so many changes people are asked."""
A_COPY = 200
UNKNOWN = Unknown(reason=UnknownReason.MISSING, detail="not asked")


def new_id() -> str:
    return uuid4().hex


def now() -> datetime:
    return datetime.now(UTC)


def proposal(number: int, deployment: str) -> Recommendation:
    to = Placement(
        provider=Provider.AWS, instance_type="g5.xlarge", region="us-east-1", market=Market.SPOT
    )
    stages = tuple(StagePlan(share=s, soak_s=0, hold_limit_s=60) for s in (0.1, 0.5, 1.0))
    return Recommendation(
        id=derived_id("bench", number),
        tenant=TENANT,
        deployment=deployment,
        proposer=AgentName.COST,
        title=f"Move replica {number} to spot",
        spec=SpotMigration(replicas=(f"r{number}",), to=to),
        risk=Risk.HIGH,
        rollout=RolloutPlan(stages=stages),
        rollback_seconds=5.0,
        proposed_at=now() - timedelta(seconds=10_000_000 - number),
    )


def vote(change: str, agent: str, number: int = 1) -> f.VoteCast:
    cast = Vote(
        change=change, agent=agent, round=number, verdict=Verdict.APPROVE,
        reasons=("measured headroom is enough",), cast_at=now(),
    )  # fmt: skip
    return f.VoteCast(vote=cast)


def end_of(number: int, changes: int) -> ChangeState:
    """One in five has completed; people are asked about the last ones."""
    if number >= changes - WAITING:
        return ChangeState.AWAITING_APPROVAL
    return ChangeState.COMPLETED if number % 5 == 0 else ChangeState.REJECTED


def story(one: Recommendation, end: ChangeState) -> Iterator[f.Fact]:
    """What the log of a change holds, at its usual length."""
    yield f.RecommendationProposed(recommendation=one)
    yield f.ChangeOpened(change=one.id, deployment=one.deployment, rules_version="1")
    for agent in sorted(VOTERS):
        yield vote(one.id, agent)
    last = list(_last(one, end))
    for look in range(EVENTS_A_CHANGE - 5 - len(last)):
        yield f.GateClosed(
            change=one.id, stage=look % 3, look=1 + look // 3, verdict="pass", reasons=("within",)
        )
    yield from last


def _last(one: Recommendation, end: ChangeState) -> Iterator[f.Fact]:
    if end is ChangeState.COMPLETED:
        yield f.ChangeCompleted(change=one.id, arms=Arms())
        yield f.OutcomeRecorded(outcome=outcome(one))
    elif end is ChangeState.REJECTED:
        yield f.ChangeRejected(change=one.id, by="person:ana", reason="bench")
    else:
        yield f.ApprovalRequested(
            change=one.id, version_hash=one.version_hash, risk=one.risk,
            expires_at=now() + timedelta(days=1),
        )  # fmt: skip


def outcome(one: Recommendation) -> Outcome:
    return Outcome(
        change=one.id, deployment=one.deployment, kind=one.spec.kind,
        terminal=ChangeState.COMPLETED,
        predicted_usd_per_month=Interval(low=500.0, mid=700.0, high=900.0),
        realised_usd_per_month=Known(value=600.0), usd_per_hour_before=Known(value=20.0),
        usd_per_hour_after=UNKNOWN, ttft_p95_s=UNKNOWN, tpot_p95_s=UNKNOWN, quality_mean=UNKNOWN,
        features={}, at=one.proposed_at + timedelta(minutes=30),
    )  # fmt: skip


async def fill_log(database: Database, events: int, replicas: int) -> None:
    """`events` events of changes, hash-chained as the coordinator writes them."""
    changes, names = events // EVENTS_A_CHANGE, deployments(replicas)
    for first in range(0, changes, A_COPY):
        numbers = range(first, min(first + A_COPY, changes))
        await copy(
            database,
            [
                (proposal(number, names[number % len(names)]), end_of(number, changes))
                for number in numbers
            ],
        )
    async with database.connection() as connection:
        await connection.execute("ANALYZE")


async def copy(database: Database, changes: list[tuple[Recommendation, ChangeState]]) -> None:
    log: list[tuple[object, ...]] = []
    sagas: list[tuple[object, ...]] = []
    recommendations: list[tuple[object, ...]] = []
    outcomes: list[tuple[object, ...]] = []
    for one, end in changes:
        prev, version = GENESIS, 0
        for version, fact in enumerate(story(one, end), 1):
            said = Event(
                id=new_id(), source="bench", tenant=TENANT, time=one.proposed_at, fact=fact
            )
            link = link_of(said, one.id, version, prev, one.proposed_at)
            prev = link.hash
            log.append(tuple(getattr(link, name) for name in LOG_COLUMNS))
            if isinstance(fact, f.OutcomeRecorded):
                told = fact.outcome
                outcomes.append((one.id, TENANT, told.kind, told.model_dump_json(), told.at))
        saga = Saga(change=one.id, version=version, state=end, recommendation=one)
        sagas.append(
            (one.id, TENANT, one.deployment, end.value, version, prev, saga.model_dump_json(),
             None, one.proposed_at, one.proposed_at)
        )  # fmt: skip
        recommendations.append(
            (one.id, TENANT, one.deployment, one.proposer.value, one.spec.kind, one.risk.value,
             one.version_hash, one.model_dump_json(), one.proposed_at)
        )  # fmt: skip
    rows = {
        "event_log": (LOG_COLUMNS, log),
        "sagas": (SAGA_COLUMNS, sagas),
        "recommendations": (RECOMMENDATION_COLUMNS, recommendations),
        "outcomes": (OUTCOME_COLUMNS, outcomes),
    }
    async with database.transaction() as connection:
        for table, (columns, records) in rows.items():
            await connection.copy_records_to_table(table, records=records, columns=columns)
