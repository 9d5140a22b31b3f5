"""What a person decides or asks for: audit row and outbox row in one transaction, then said."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import asyncpg

from optiinfra.events.commands import ControlRequested
from optiinfra.events.envelope import Event
from optiinfra.events.facts import ApprovalDenied, ApprovalGranted, Fact, SwitchTurned
from optiinfra.events.subjects import row_of
from optiinfra.schemas.approval import Approval
from optiinfra.schemas.change import ChangeState, ControlVerb, Phase
from optiinfra.schemas.errors import Conflict, Denied, NotFound, OptiInfraError
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.tenant import person
from optiinfra.storage.postgres.access import Principal
from optiinfra.storage.postgres.audit import Attempt, audit
from optiinfra.storage.postgres.database import Connection, Database
from optiinfra.storage.postgres.outbox import mark_sent

SOURCE = "portal-api"
PUBLISH_TIMEOUT_S = 2.0
"""How long a caller waits for the bus; afterwards the outbox relay says it."""


class Stale(Conflict):
    """The decision was made on another version than the one that stands."""


class Publishes(Protocol):
    """What is needed of the bus."""

    async def publish_many(self, events: Sequence[Event]) -> list[int | OptiInfraError]: ...


@dataclass(frozen=True, slots=True)
class Accepted:
    """A wish that is written down; `repeated` when the same one had been written before."""

    event_id: str
    at: datetime
    repeated: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """A person's word on the version of a recommendation that was shown."""

    change: str
    granted: bool
    version_hash: str
    reason: str
    key: str | None = None
    """The caller's name for the request; only audited, as a decision is idempotent by itself."""


class Decisions:
    """Writes wishes down; what the bus does not take now, the outbox relay publishes later."""

    def __init__(self, database: Database, publisher: Publishes) -> None:
        self._database = database
        self._publisher = publisher

    async def decide(self, who: Principal, decision: Decision) -> Accepted:
        """Approves or rejects; each person has one word on a version, and repeating it changes
        nothing. Several people may give theirs, as the policy may want two.

        Raises `NotFound`, `Stale` when another version stands, `Conflict` when nobody is asked or
        this person has said the contrary, `Denied` when this is the proposer, who approves.
        """
        verb = "approve" if decision.granted else "reject"
        attempt = Attempt(
            f"recommendation.{verb}",
            decision.change,
            {"version": decision.version_hash, "reason": decision.reason, "key": decision.key},
        )
        event_id = derived_id("decision", decision.change, decision.version_hash, person(who.name))
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(_AWAITED, decision.change, who.tenant)
            if row is None:
                raise NotFound(f"there is no recommendation {decision.change}")
            _require_another(row, who, decision)
            known = await _known(connection, event_id)
            event = known or _decided(who, decision, event_id, row["now"])
            if known is None:
                _require_awaited(row, decision)
                known = await _write(connection, event, who, attempt)
        if known is not None:
            _require_same_word(known, decision)
        return await self._say(known or event, repeated=known is not None)

    async def control(
        self, who: Principal, wish: tuple[str, ControlVerb], reason: str, key: str
    ) -> Accepted:
        """Asks for something of a running change; `key` names the request when it is repeated.

        Raises `NotFound`, and `Conflict` when the change's state does not allow it.
        """
        change, verb = wish
        attempt = Attempt(f"change.{verb.value}", change, {"reason": reason})
        event_id = derived_id("request", who.tenant, who.token_id, attempt.action, change, key)
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(_RUNNING, change, who.tenant)
            if row is None:
                raise NotFound(f"there is no change {change}")
            fact = ControlRequested(
                change=change, verb=verb, by=str(person(who.name)), reason=reason
            )
            event = _event(who, fact, event_id, row["now"])
            known = await _known(connection, event_id)
            if known is None:
                _require_allowed(row, verb)
                known = await _write(connection, event, who, attempt)
        _require_same_request(known, event)
        return await self._say(known or event, repeated=known is not None)

    async def turn_switch(
        self, who: Principal, *, stopped: bool, reason: str, key: str
    ) -> Accepted:
        """Turns the tenant's stop switch; on halts every new stage within a second."""
        action = "switch.stop" if stopped else "switch.release"
        event_id = derived_id("request", who.tenant, who.token_id, action, key)
        async with self._database.transaction() as connection:
            now: datetime = await connection.fetchval("SELECT clock_timestamp()")
            fact = SwitchTurned(
                tenant=who.tenant, stopped=stopped, by=str(person(who.name)), reason=reason, at=now
            )
            event = _event(who, fact, event_id, now)
            known = await _write(connection, event, who, Attempt(action, "all", {"reason": reason}))
        _require_same_request(known, event)
        return await self._say(known or event, repeated=known is not None)

    async def note(self, who: Principal, attempt: Attempt, *, allowed: bool) -> None:
        """Audits what leaves no event: an attempt that was denied, a sign-in."""
        async with self._database.connection() as connection:
            await audit(connection, who, attempt, allowed=allowed)

    async def _say(self, event: Event, *, repeated: bool) -> Accepted:
        if not repeated:
            with suppress(TimeoutError):
                async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                    (result,) = await self._publisher.publish_many([event])
                if isinstance(result, int):
                    await mark_sent(self._database, {event.id: result})
        return Accepted(event.id, event.time, repeated)


async def _known(connection: Connection, event_id: str) -> Event | None:
    text = await connection.fetchval("SELECT event FROM outbox WHERE event_id = $1", event_id)
    return Event.model_validate_json(text) if text is not None else None


async def _write(
    connection: Connection, event: Event, who: Principal, attempt: Attempt
) -> Event | None:
    """Outbox and audit; gives the event that stood there before, in place of writing."""
    stream = row_of(event.fact).stream
    new = await connection.fetchval(
        _OUTBOX, event.id, stream.value if stream else "", event.model_dump_json()
    )
    if new is None:
        return await _known(connection, event.id)
    await audit(connection, who, attempt, allowed=True, event_id=event.id)
    return None


def _decided(who: Principal, decision: Decision, event_id: str, now: datetime) -> Event:
    approval = Approval(
        change=decision.change,
        granted=decision.granted,
        by=person(who.name),
        version_hash=decision.version_hash,
        reason=decision.reason,
        at=now,
    )
    kind = ApprovalGranted if decision.granted else ApprovalDenied
    return _event(who, kind(approval=approval), event_id, now)


def _event(who: Principal, fact: Fact, event_id: str, now: datetime) -> Event:
    change = getattr(fact, "change", None) or getattr(
        getattr(fact, "approval", None), "change", None
    )
    return Event(
        id=event_id, source=SOURCE, tenant=who.tenant, time=now, fact=fact, correlation=change
    )


def _require_another(row: asyncpg.Record, who: Principal, decision: Decision) -> None:
    if decision.granted and who.name == row["proposer"]:
        raise Denied(f"{who.name} proposed it", hint="somebody else has to approve")


def _require_awaited(row: asyncpg.Record, decision: Decision) -> None:
    if row["version_hash"] != decision.version_hash:
        raise Stale(
            "this changed, review again", hint=f"the version that stands is {row['version_hash']}"
        )
    if row["state"] != ChangeState.AWAITING_APPROVAL:
        raise Conflict(f"no decision is awaited: the change is {row['state']}")


def _require_same_word(known: Event, decision: Decision) -> None:
    fact = known.fact
    assert isinstance(fact, ApprovalGranted | ApprovalDenied)
    word = fact.approval
    if word.granted != decision.granted:
        said = "approved" if word.granted else "rejected"
        raise Conflict(f"it has been {said} by {word.by} already")


def _require_same_request(known: Event | None, event: Event) -> None:
    if known is not None and getattr(known.fact, "reason", "") != getattr(event.fact, "reason", ""):
        raise Conflict("this Idempotency-Key was used for another request", hint="send a new key")


def _require_allowed(row: asyncpg.Record, verb: ControlVerb) -> None:
    state = ChangeState(row["state"])
    if state.is_terminal:
        raise Conflict(f"the change has ended: it is {state}")
    refusal = _REFUSALS[verb](row)
    if refusal is not None:
        raise Conflict(f"cannot {verb.value}: {refusal}")


def _when_paused(row: asyncpg.Record) -> str | None:
    return None if row["paused_by"] else "the change is not paused"


def _when_running(row: asyncpg.Record) -> str | None:
    by = row["paused_by"]
    return f"the change is paused by {by} already" if by else None


def _when_in_stage(row: asyncpg.Record) -> str | None:
    in_stage = row["phase"] in (Phase.SOAKING, Phase.GATING)
    return None if in_stage else "no stage is waiting for its gate"


def _when_not_undoing(row: asyncpg.Record) -> str | None:
    undoing = row["state"] == ChangeState.ROLLING_BACK
    return "the change is being rolled back already" if undoing else None


_REFUSALS = {
    ControlVerb.PAUSE: _when_running,
    ControlVerb.RESUME: _when_paused,
    ControlVerb.PROMOTE: _when_in_stage,
    ControlVerb.ABORT: _when_not_undoing,
    ControlVerb.ROLLBACK: _when_not_undoing,
}
_AWAITED = """
SELECT r.version_hash, r.proposer, s.state, clock_timestamp() AS now
FROM recommendations r JOIN sagas s ON s.change_id = r.id WHERE r.id = $1 AND r.tenant = $2
"""
_RUNNING = """
SELECT state, body::jsonb ->> 'paused_by' AS paused_by, body::jsonb ->> 'phase' AS phase,
    clock_timestamp() AS now
FROM sagas WHERE change_id = $1 AND tenant = $2
"""
_OUTBOX = """
INSERT INTO outbox (event_id, stream, event) VALUES ($1, $2, $3)
ON CONFLICT (event_id) DO NOTHING RETURNING id
"""
