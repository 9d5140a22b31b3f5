"""What a person decides or asks for: audit row and outbox row in one transaction, then said."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import asyncpg

from optiinfra.events.commands import ControlRequested
from optiinfra.events.envelope import Event
from optiinfra.events.facts import (
    ApprovalDenied,
    ApprovalGranted,
    Fact,
    RecommendationSnoozed,
    RecommendationWoken,
    SwitchTurned,
)
from optiinfra.events.subjects import row_of
from optiinfra.schemas.approval import Approval
from optiinfra.schemas.change import ChangeState, ControlVerb, Phase
from optiinfra.schemas.errors import Conflict, Denied, NotFound, OptiInfraError, Rejected
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.tenant import person
from optiinfra.storage.postgres.access import Principal
from optiinfra.storage.postgres.asleep import ASLEEP
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


@dataclass(frozen=True, slots=True)
class PutOff:
    """A person's "not now" on the version that was shown; without `until` it is to wake.

    `key` names the request when it is repeated.
    """

    change: str
    version_hash: str
    until: datetime | None
    reason: str
    key: str


class Decisions:
    """Writes wishes down; what the bus does not take now, the outbox relay publishes later."""

    def __init__(self, database: Database, publisher: Publishes) -> None:
        self._database = database
        self._publisher = publisher

    async def decide(self, who: Principal, decision: Decision) -> Accepted:
        """Approves or rejects; each person has one word on a version, and repeating it changes
        nothing. Several people may give theirs, as the policy may want two.

        Raises `NotFound`, `Stale` when another version stands, `Conflict` when nobody is asked,
        it sleeps and is to be approved, or this person has said the contrary, `Denied` when this is
        the proposer, who approves.
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
                _require_awaited(row, decision.version_hash)
                _require_awake(row, decision)
                known = await _write(connection, event, who, attempt)
        if known is not None:
            _require_same_word(known, decision)
        return await self._say(known or event, repeated=known is not None)

    async def put_off(self, who: Principal, wish: PutOff) -> Accepted:
        """Lets a recommendation sleep until a time, or wakes it.

        Raises `NotFound`, `Stale` when another version stands, `Conflict` when nobody is asked or
        what is to wake does not sleep, `Rejected` when the time is past or after the expiry.
        """
        verb = "snooze" if wish.until else "wake"
        told = {"version": wish.version_hash, "reason": wish.reason}
        if wish.until is not None:
            told["until"] = wish.until.isoformat()
        attempt = Attempt(f"recommendation.{verb}", wish.change, told)
        event_id = derived_id(
            "request", who.tenant, who.token_id, attempt.action, wish.change, wish.key
        )
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(_AWAITED, wish.change, who.tenant)
            if row is None:
                raise NotFound(f"there is no recommendation {wish.change}")
            event = _event(who, _put_off(who, wish, row["now"]), event_id, row["now"])
            known = await _known(connection, event_id)
            if known is None:
                _require_awaited(row, wish.version_hash)
                _require_time(row, wish)
                known = await _write(connection, event, who, attempt)
        _require_same_request(known, event)
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


def _put_off(who: Principal, wish: PutOff, now: datetime) -> Fact:
    said: dict[str, Any] = {
        "change": wish.change,
        "version_hash": wish.version_hash,
        "by": str(person(who.name)),
        "reason": wish.reason,
        "at": now,
    }
    if wish.until is None:
        return RecommendationWoken(**said)
    return RecommendationSnoozed(**said, until=wish.until)


def _require_another(row: asyncpg.Record, who: Principal, decision: Decision) -> None:
    if decision.granted and who.name == row["proposer"]:
        raise Denied(f"{who.name} proposed it", hint="somebody else has to approve")


def _require_awaited(row: asyncpg.Record, version_hash: str) -> None:
    if row["version_hash"] != version_hash:
        raise Stale(
            "this changed, review again", hint=f"the version that stands is {row['version_hash']}"
        )
    if row["state"] != ChangeState.AWAITING_APPROVAL:
        raise Conflict(f"no decision is awaited: the change is {row['state']}")


def _require_awake(row: asyncpg.Record, decision: Decision) -> None:
    if decision.granted and row["asleep"]:
        raise Conflict(
            f"{row['snoozed_by']} has put it off until {_said(row['snoozed_until'])}",
            hint="wake it first, then approve",
        )


def _require_time(row: asyncpg.Record, wish: PutOff) -> None:
    """A sleep ends after now, and no later than the asking does."""
    if wish.until is None:
        if not row["asleep"]:
            raise Conflict("it does not sleep: there is nothing to wake")
    elif wish.until <= row["now"]:
        raise Rejected(f"{_said(wish.until)} is past", hint="name a time to come")
    elif wish.until > row["expires_at"]:
        raise Rejected(
            f"nobody is asked any more after {_said(row['expires_at'])}, when it expires",
            hint="name an earlier time",
        )


def _said(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _require_same_word(known: Event, decision: Decision) -> None:
    fact = known.fact
    assert isinstance(fact, ApprovalGranted | ApprovalDenied)
    word = fact.approval
    if word.granted != decision.granted:
        said = "approved" if word.granted else "rejected"
        raise Conflict(f"it has been {said} by {word.by} already")


def _require_same_request(known: Event | None, event: Event) -> None:
    if known is not None and _asked(known) != _asked(event):
        raise Conflict("this Idempotency-Key was used for another request", hint="send a new key")


def _asked(event: Event) -> tuple[object, object]:
    return getattr(event.fact, "reason", ""), getattr(event.fact, "until", None)


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
_AWAITED = f"""
SELECT r.version_hash, r.proposer, s.state, clock_timestamp() AS now, {ASLEEP} AS asleep,
    s.body::json -> 'snooze' ->> 'by' AS snoozed_by,
    (s.body::json -> 'snooze' ->> 'until')::timestamptz AS snoozed_until,
    (s.body::json -> 'timers' -> 'approval_expiry' ->> 'fire_at')::timestamptz AS expires_at
FROM recommendations r JOIN sagas s ON s.change_id = r.id WHERE r.id = $1 AND r.tenant = $2
"""  # noqa: S608 - a constant
_RUNNING = """
SELECT state, body::jsonb ->> 'paused_by' AS paused_by, body::jsonb ->> 'phase' AS phase,
    clock_timestamp() AS now
FROM sagas WHERE change_id = $1 AND tenant = $2
"""
_OUTBOX = """
INSERT INTO outbox (event_id, stream, event) VALUES ($1, $2, $3)
ON CONFLICT (event_id) DO NOTHING RETURNING id
"""
