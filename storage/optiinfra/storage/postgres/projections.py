"""Tables for reading that follow from facts: recommendations, votes, approvals, timers, ledger."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from optiinfra.events import facts as f
from optiinfra.events.envelope import Event
from optiinfra.storage.postgres.database import Connection

Row = tuple[str, tuple[Any, ...]]
"""A statement and its arguments."""


async def project(connection: Connection, events: Iterable[tuple[Event, datetime]]) -> None:
    """Applies events, each with the time at which the log took it in; a repeat changes nothing.

    Everything follows from the log alone, so that folding it again gives the same tables.
    """
    rows: dict[str, list[tuple[Any, ...]]] = {}
    timers: dict[tuple[str, str], Row] = {}
    for event, at in events:
        handler = _HANDLERS.get(type(event.fact))
        if handler is not None:
            statement, arguments = handler(event, event.fact, at)
            rows.setdefault(statement, []).append(arguments)
        _note_timers(timers, event, at)
    for statement, arguments in timers.values():
        rows.setdefault(statement, []).append(arguments)
    for statement, several in rows.items():
        await connection.executemany(statement, several)


def _note_timers(timers: dict[tuple[str, str], Row], event: Event, at: datetime) -> None:
    """What is left to do to each timer in the end; most are set and void within a few events."""
    match event.fact:
        case f.TimerSet() as fact:
            arguments = (fact.change, fact.name.value, fact.key, event.tenant, fact.fire_at)
            timers[fact.change, fact.name.value] = (_SET_TIMER, (*arguments, event.id, at))
        case f.TimerFired() as fact:
            named = (fact.change, fact.name.value)
            pending = timers.get(named)
            if pending is None or pending[1][2] == fact.key:
                timers[named] = (_END_TIMER, (*named, fact.key))
        case fact if fact.kind in f.TERMINAL_FACTS:
            change = f.change_of(fact)
            assert change is not None
            for named in [one for one in timers if one[0] == change]:
                del timers[named]
            timers[change, ""] = (_END_TIMERS, (change,))


def _proposed(event: Event, fact: f.RecommendationProposed, at: datetime) -> Row:
    proposal = fact.recommendation
    return _PROPOSED, (
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


def _voted(event: Event, fact: f.VoteCast, at: datetime) -> Row:
    vote = fact.vote
    return _VOTED, (
        event.id,
        vote.change,
        vote.agent,
        vote.round,
        vote.verdict.value,
        vote.model_dump_json(),
        vote.cast_at,
    )


def _decided(event: Event, fact: f.ApprovalGranted | f.ApprovalDenied, at: datetime) -> Row:
    approval = fact.approval
    return _DECIDED, (
        event.id,
        approval.change,
        approval.granted,
        approval.by.kind,
        approval.by.name,
        approval.version_hash,
        approval.reason,
        approval.at,
    )


def _outcome(event: Event, fact: f.OutcomeRecorded, at: datetime) -> Row:
    outcome = fact.outcome
    body = outcome.model_dump_json()
    return _OUTCOME, (outcome.change, event.tenant, outcome.kind, body, outcome.at)


def _switched(event: Event, fact: f.SwitchTurned, at: datetime) -> Row:
    return _SWITCHED, (fact.tenant, fact.stopped, fact.by, fact.reason, fact.at)


def _registered(event: Event, fact: f.AgentRegistered, at: datetime) -> Row:
    return _REGISTERED, (
        fact.tenant,
        fact.agent,
        fact.instance,
        fact.version,
        json.dumps(list(fact.capabilities)),
        fact.at,
        at,
    )


def _lost(event: Event, fact: f.AgentLost, at: datetime) -> Row:
    return _LOST, (fact.tenant, fact.agent, fact.instance)


_HANDLERS: dict[type, Callable[[Event, Any, datetime], Row]] = {
    f.RecommendationProposed: _proposed,
    f.VoteCast: _voted,
    f.ApprovalGranted: _decided,
    f.ApprovalDenied: _decided,
    f.OutcomeRecorded: _outcome,
    f.SwitchTurned: _switched,
    f.AgentRegistered: _registered,
    f.AgentLost: _lost,
}
_PROPOSED = """
INSERT INTO recommendations (id, tenant, deployment, proposer, kind, risk, version_hash, body,
    proposed_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8::text::jsonb, $9) ON CONFLICT DO NOTHING
"""
_VOTED = """
INSERT INTO votes (event_id, change_id, agent, round, verdict, body, cast_at)
VALUES ($1, $2, $3, $4, $5, $6::text::jsonb, $7) ON CONFLICT DO NOTHING
"""
_DECIDED = """
INSERT INTO approvals (event_id, change_id, granted, by_kind, by_name, version_hash, reason, at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING
"""
_SET_TIMER = """
INSERT INTO timers (change_id, name, key, tenant, fire_at, event_id, set_at)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (change_id, name) DO UPDATE SET key = $3, fire_at = $5, event_id = $6, set_at = $7,
    scheduled = false
"""
_END_TIMER = "DELETE FROM timers WHERE change_id = $1 AND name = $2 AND key = $3"
_END_TIMERS = "DELETE FROM timers WHERE change_id = $1"
_OUTCOME = """
INSERT INTO outcomes (change_id, tenant, kind, body, at) VALUES ($1, $2, $3, $4::text::jsonb, $5)
ON CONFLICT DO NOTHING
"""
_SWITCHED = """
INSERT INTO switches (tenant, stopped, by, reason, at) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (tenant) DO UPDATE SET stopped = $2, by = $3, reason = $4, at = $5
"""
_REGISTERED = """
INSERT INTO agents (tenant, agent, instance, version, capabilities, status, registered_at,
    last_seen_at)
VALUES ($1, $2, $3, $4, $5::text::jsonb, 'alive', $6, $7)
ON CONFLICT (tenant, agent, instance) DO UPDATE SET version = $4,
    capabilities = $5::text::jsonb, status = 'alive', last_seen_at = $7
"""
_LOST = "UPDATE agents SET status = 'lost' WHERE tenant = $1 AND agent = $2 AND instance = $3"
