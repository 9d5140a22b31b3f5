"""Tables for reading that follow from facts: recommendations, votes, approvals, timers, ledger."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from optiinfra.events import facts as f
from optiinfra.events.envelope import Event
from optiinfra.storage.postgres.database import Connection


async def project(connection: Connection, events: Sequence[Event]) -> None:
    """Applies events to the tables; a repeated event changes nothing."""
    for event in events:
        handler = _HANDLERS.get(type(event.fact))
        if handler is not None:
            await handler(connection, event, event.fact)


async def _proposed(connection: Connection, event: Event, fact: f.RecommendationProposed) -> None:
    proposal = fact.recommendation
    await connection.execute(
        "INSERT INTO recommendations (id, tenant, deployment, proposer, kind, risk, version_hash,"
        " body, proposed_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8::text::jsonb, $9)"
        " ON CONFLICT DO NOTHING",
        proposal.id,
        proposal.tenant,
        proposal.deployment,
        proposal.proposer.value,
        proposal.spec.kind,
        proposal.risk.value,
        proposal.version_hash(),
        proposal.model_dump_json(),
        proposal.proposed_at,
    )


async def _voted(connection: Connection, event: Event, fact: f.VoteCast) -> None:
    vote = fact.vote
    await connection.execute(
        "INSERT INTO votes (event_id, change_id, agent, round, verdict, body, cast_at)"
        " VALUES ($1, $2, $3, $4, $5, $6::text::jsonb, $7) ON CONFLICT DO NOTHING",
        event.id,
        vote.change,
        vote.agent,
        vote.round,
        vote.verdict.value,
        vote.model_dump_json(),
        vote.cast_at,
    )


async def _decided(
    connection: Connection, event: Event, fact: f.ApprovalGranted | f.ApprovalDenied
) -> None:
    approval = fact.approval
    await connection.execute(
        "INSERT INTO approvals (event_id, change_id, granted, by_kind, by_name, version_hash,"
        " reason, at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING",
        event.id,
        approval.change,
        approval.granted,
        approval.by.kind,
        approval.by.name,
        approval.version_hash,
        approval.reason,
        approval.at,
    )


async def _timer_set(connection: Connection, event: Event, fact: f.TimerSet) -> None:
    await connection.execute(
        "INSERT INTO timers (change_id, name, key, tenant, fire_at) VALUES ($1, $2, $3, $4, $5)"
        " ON CONFLICT (change_id, name) DO UPDATE SET key = $3, fire_at = $5",
        fact.change,
        fact.name.value,
        fact.key,
        event.tenant,
        fact.fire_at,
    )


async def _timer_fired(connection: Connection, event: Event, fact: f.TimerFired) -> None:
    await connection.execute(
        "DELETE FROM timers WHERE change_id = $1 AND name = $2 AND key = $3",
        fact.change,
        fact.name.value,
        fact.key,
    )


async def _ended(connection: Connection, event: Event, fact: Any) -> None:
    await connection.execute("DELETE FROM timers WHERE change_id = $1", fact.change)


async def _outcome(connection: Connection, event: Event, fact: f.OutcomeRecorded) -> None:
    outcome = fact.outcome
    await connection.execute(
        "INSERT INTO outcomes (change_id, tenant, kind, body, at)"
        " VALUES ($1, $2, $3, $4::text::jsonb, $5) ON CONFLICT DO NOTHING",
        outcome.change,
        event.tenant,
        outcome.kind,
        outcome.model_dump_json(),
        outcome.at,
    )


async def _switched(connection: Connection, event: Event, fact: f.SwitchTurned) -> None:
    await connection.execute(
        "INSERT INTO switches (tenant, stopped, by, reason, at) VALUES ($1, $2, $3, $4, $5)"
        " ON CONFLICT (tenant) DO UPDATE SET stopped = $2, by = $3, reason = $4, at = $5",
        fact.tenant,
        fact.stopped,
        fact.by,
        fact.reason,
        fact.at,
    )


async def _registered(connection: Connection, event: Event, fact: f.AgentRegistered) -> None:
    await connection.execute(
        "INSERT INTO agents (tenant, agent, instance, version, capabilities, status,"
        " registered_at, last_seen_at)"
        " VALUES ($1, $2, $3, $4, $5::text::jsonb, 'alive', $6, clock_timestamp())"
        " ON CONFLICT (tenant, agent, instance) DO UPDATE SET version = $4,"
        " capabilities = $5::text::jsonb, status = 'alive', last_seen_at = clock_timestamp()",
        fact.tenant,
        fact.agent,
        fact.instance,
        fact.version,
        _json_array(fact.capabilities),
        fact.at,
    )


async def _lost(connection: Connection, event: Event, fact: f.AgentLost) -> None:
    await connection.execute(
        "UPDATE agents SET status = 'lost' WHERE tenant = $1 AND agent = $2 AND instance = $3",
        fact.tenant,
        fact.agent,
        fact.instance,
    )


def _json_array(values: Sequence[str]) -> str:
    return json.dumps(list(values))


_HANDLERS: dict[type, Callable[[Connection, Event, Any], Awaitable[None]]] = {
    f.RecommendationProposed: _proposed,
    f.VoteCast: _voted,
    f.ApprovalGranted: _decided,
    f.ApprovalDenied: _decided,
    f.TimerSet: _timer_set,
    f.TimerFired: _timer_fired,
    f.OutcomeRecorded: _outcome,
    f.SwitchTurned: _switched,
    f.AgentRegistered: _registered,
    f.AgentLost: _lost,
    **dict.fromkeys(
        (
            f.ChangeVetoed,
            f.ChangeRejected,
            f.ChangeCompleted,
            f.ChangeRolledBack,
            f.ChangeFailed,
            f.ChangeCancelled,
            f.RecommendationExpired,
            f.RecommendationSuperseded,
        ),
        _ended,
    ),
}
