"""Tables for reading that follow from facts: recommendations, votes, approvals, timers, ledger."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from optiinfra.events import facts as f
from optiinfra.events.envelope import Event
from optiinfra.storage.postgres.database import Connection
from optiinfra.storage.postgres.together import Part, columns

Row = tuple[Any, ...]


def projected(events: Iterable[tuple[Event, datetime]]) -> list[Part]:
    """What events of changes do to the tables, each with the time at which the log took it in.

    Everything follows from the log alone, so that folding it again gives the same tables; a
    repeated event changes nothing. Every table has its part, with or without rows: the server keeps
    one plan for all batches.
    """
    rows: dict[_Table, list[Row]] = {}
    timers: dict[tuple[str, str], tuple[_Table, Row]] = {}
    for event, at in events:
        found = _OF_CHANGES.get(type(event.fact))
        if found is not None:
            table, row = found
            rows.setdefault(table, []).append(row(event, event.fact))
        _note_timers(timers, event, at)
    for table, made in timers.values():
        rows.setdefault(table, []).append(made)
    return [Part(one.name, one.text, columns(rows.get(one, ()), one.width)) for one in _TABLES]


async def project_in_turn(connection: Connection, events: Iterable[tuple[Event, datetime]]) -> None:
    """Applies events that belong to no change: in their order, as the last one counts."""
    for event, at in events:
        handler = _OF_TENANTS.get(type(event.fact))
        if handler is not None:
            statement, arguments = handler(event.fact, at)
            await connection.execute(statement, *arguments)


@dataclass(frozen=True, slots=True)
class _Table:
    """One way to write to one table, with rows of `width` values."""

    name: str
    width: int
    text: str


def _note_timers(
    timers: dict[tuple[str, str], tuple[_Table, Row]], event: Event, at: datetime
) -> None:
    """What is left to do to each timer in the end; most are set and void within a few events."""
    match event.fact:
        case f.TimerSet() as fact:
            row = (fact.change, fact.name.value, fact.key, event.tenant, fact.fire_at)
            timers[fact.change, fact.name.value] = (_TIMER_SET, (*row, event.id, at))
        case f.TimerFired() as fact:
            named = (fact.change, fact.name.value)
            if named not in timers or timers[named][1][2] == fact.key:
                timers[named] = (_TIMER_ENDED, (*named, fact.key))
        case fact if fact.kind in f.TERMINAL_FACTS:
            change = f.change_of(fact) or ""
            for named in [one for one in timers if one[0] == change]:
                del timers[named]
            timers[change, ""] = (_TIMERS_ENDED, (change,))


def _proposed(event: Event, fact: f.RecommendationProposed) -> Row:
    proposal = fact.recommendation
    return (
        proposal.id,
        proposal.tenant,
        proposal.deployment,
        proposal.proposer.value,
        proposal.spec.kind,
        proposal.risk.value,
        proposal.version_hash,
        proposal.model_dump_json(),
        proposal.proposed_at,
    )


def _voted(event: Event, fact: f.VoteCast) -> Row:
    vote = fact.vote
    return (
        event.id,
        vote.change,
        vote.agent,
        vote.round,
        vote.verdict.value,
        vote.model_dump_json(),
        vote.cast_at,
    )


def _decided(event: Event, fact: f.ApprovalGranted | f.ApprovalDenied) -> Row:
    approval = fact.approval
    return (
        event.id,
        approval.change,
        approval.granted,
        approval.by.kind,
        approval.by.name,
        approval.version_hash,
        approval.reason,
        approval.at,
    )


def _outcome(event: Event, fact: f.OutcomeRecorded) -> Row:
    outcome = fact.outcome
    body = outcome.model_dump_json()
    return (outcome.change, event.tenant, outcome.kind, body, outcome.at)


def _switched(fact: f.SwitchTurned, at: datetime) -> tuple[str, Row]:
    return _SWITCHED, (fact.tenant, fact.stopped, fact.by, fact.reason, fact.at)


def _policy_changed(fact: f.PolicyChanged, at: datetime) -> tuple[str, Row]:
    return _POLICY_CHANGED, (
        fact.tenant,
        fact.number,
        fact.version,
        fact.sha256,
        json.dumps(fact.policy, ensure_ascii=False),
        fact.by,
        fact.written_at,
        fact.at,
    )


def _registered(fact: f.AgentRegistered, at: datetime) -> tuple[str, Row]:
    return _REGISTERED, (
        fact.tenant,
        fact.agent,
        fact.instance,
        fact.version,
        json.dumps(list(fact.capabilities)),
        fact.at,
        at,
    )


def _lost(fact: f.AgentLost, at: datetime) -> tuple[str, Row]:
    return _LOST, (fact.tenant, fact.agent, fact.instance)


_RECOMMENDATIONS = _Table(
    "proposed",
    9,
    """
INSERT INTO recommendations (id, tenant, deployment, proposer, kind, risk, version_hash, body,
    proposed_at)
SELECT a, b, c, d, e, f, g, h::jsonb, i FROM unnest($1::text[], $2::text[], $3::text[],
    $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::timestamptz[])
    AS n(a, b, c, d, e, f, g, h, i)
ON CONFLICT DO NOTHING
""",
)
_VOTES = _Table(
    "voted",
    7,
    """
INSERT INTO votes (event_id, change_id, agent, round, verdict, body, cast_at)
SELECT a, b, c, d, e, f::jsonb, g FROM unnest($1::text[], $2::text[], $3::text[], $4::int[],
    $5::text[], $6::text[], $7::timestamptz[]) AS n(a, b, c, d, e, f, g)
ON CONFLICT DO NOTHING
""",
)
_APPROVALS = _Table(
    "decided",
    8,
    """
INSERT INTO approvals (event_id, change_id, granted, by_kind, by_name, version_hash, reason, at)
SELECT * FROM unnest($1::text[], $2::text[], $3::bool[], $4::text[], $5::text[], $6::text[],
    $7::text[], $8::timestamptz[])
ON CONFLICT DO NOTHING
""",
)
_OUTCOMES = _Table(
    "turned_out",
    5,
    """
INSERT INTO outcomes (change_id, tenant, kind, body, at)
SELECT a, b, c, d::jsonb, e FROM unnest($1::text[], $2::text[], $3::text[], $4::text[],
    $5::timestamptz[]) AS n(a, b, c, d, e)
ON CONFLICT DO NOTHING
""",
)
_TIMER_SET = _Table(
    "timer_set",
    7,
    """
INSERT INTO timers (change_id, name, key, tenant, fire_at, event_id, set_at)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[],
    $6::text[], $7::timestamptz[])
ON CONFLICT (change_id, name) DO UPDATE SET key = excluded.key, fire_at = excluded.fire_at,
    event_id = excluded.event_id, set_at = excluded.set_at, scheduled = false,
    nudged = false
""",
)
_TIMER_ENDED = _Table(
    "timer_ended",
    3,
    """
DELETE FROM timers USING unnest($1::text[], $2::text[], $3::text[]) AS n(change_id, name, key)
WHERE timers.change_id = n.change_id AND timers.name = n.name AND timers.key = n.key
""",
)
_TIMERS_ENDED = _Table(
    "timers_ended",
    1,
    """
DELETE FROM timers USING unnest($1::text[]) AS n(change_id) WHERE timers.change_id = n.change_id
""",
)
_TABLES = (
    _RECOMMENDATIONS,
    _VOTES,
    _APPROVALS,
    _OUTCOMES,
    _TIMER_SET,
    _TIMER_ENDED,
    _TIMERS_ENDED,
)
_OF_CHANGES: dict[type, tuple[_Table, Callable[[Event, Any], Row]]] = {
    f.RecommendationProposed: (_RECOMMENDATIONS, _proposed),
    f.VoteCast: (_VOTES, _voted),
    f.ApprovalGranted: (_APPROVALS, _decided),
    f.ApprovalDenied: (_APPROVALS, _decided),
    f.OutcomeRecorded: (_OUTCOMES, _outcome),
}
_OF_TENANTS: dict[type, Callable[[Any, datetime], tuple[str, Row]]] = {
    f.SwitchTurned: _switched,
    f.PolicyChanged: _policy_changed,
    f.AgentRegistered: _registered,
    f.AgentLost: _lost,
}
_SWITCHED = """
INSERT INTO switches (tenant, stopped, by, reason, at) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (tenant) DO UPDATE SET stopped = $2, by = $3, reason = $4, at = $5
"""
_POLICY_CHANGED = """
INSERT INTO policies (tenant, number, version, sha256, body, by, written_at, at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING
"""
_REGISTERED = """
INSERT INTO agents (tenant, agent, instance, version, capabilities, status, registered_at,
    last_seen_at)
VALUES ($1, $2, $3, $4, $5::text::jsonb, 'alive', $6, $7)
ON CONFLICT (tenant, agent, instance) DO UPDATE SET version = $4,
    capabilities = $5::text::jsonb, status = 'alive', last_seen_at = $7
"""
_LOST = "UPDATE agents SET status = 'lost' WHERE tenant = $1 AND agent = $2 AND instance = $3"
