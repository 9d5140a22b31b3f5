"""Keeps the policy in force: watches the file, records what it says, follows what is recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import structlog

from optiinfra.coordinator.policy_choice import PolicyOnFile, change, rules_of, supersedes
from optiinfra.events.envelope import Event
from optiinfra.schemas.errors import Invariant, Rejected
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.rules import Rules
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.journal import Batch, Journal
from optiinfra.storage.postgres.policies import PolicyRecord, policy_in_force

_SOURCE = "coordinator"

Say = Callable[[Sequence[Event]], Awaitable[None]]

log = structlog.get_logger()


class PolicySource(Protocol):
    """A file with a policy."""

    def look(self) -> PolicyOnFile | None:
        """What it says when that has changed since the last look, once.

        Raises `Rejected`, once, when it has become unreadable or wrong.
        """
        ...


class PolicyKeeper:
    """Of one tenant. Until `refresh` has run once, what the file said at first is in force."""

    def __init__(
        self, tenant: str, first: PolicyOnFile, source: PolicySource, database: Database
    ) -> None:
        self._tenant = tenant
        self._source = source
        self._database = database
        self._pending: PolicyOnFile | None = first
        self._in_force = first.rules
        self._number = 0

    def rules(self) -> Rules:
        """The policy in force."""
        return self._in_force

    async def follow(self, batch: Batch) -> None:
        """Has the newest policy in force that is recorded as of a batch, before it decides."""
        if batch.view.policies.get(self._tenant, 0) > self._number:
            newest = await batch.newest_policy(self._tenant)
            if newest is not None:
                self._take(newest)

    async def refresh(self, say: Say) -> int:
        """Looks at the file and at what is recorded; gives how many changes it has recorded.

        Raises `Unavailable` or `Conflict` from the database: then it is tried again next time.
        """
        await self._look()
        newest = await policy_in_force(self._database, self._tenant)
        said = await self._record(say, newest) if self._pending else 0
        if said == 0 and newest is not None:
            self._take(newest)
        self._pending = None
        return said

    async def _look(self) -> None:
        """A broken file changes nothing; what is in force stays."""
        try:
            found = await asyncio.to_thread(self._source.look)
        except Rejected as broken:
            log.error("policy.file_broken", in_force=self._in_force.version, reason=str(broken))
        else:
            self._pending = found or self._pending

    async def _record(self, say: Say, newest: PolicyRecord | None) -> int:
        found = self._pending
        if found is None or not supersedes(found, newest):
            self._tell_older(found, newest)
            return 0
        before = (self._in_force, self._number)
        try:
            async with Journal(self._database).batch([self._tenant]) as batch:
                event = await self._write(batch, found)
        except BaseException:
            self._in_force, self._number = before
            raise
        if event is None:
            return 0
        await say([event])
        return 1

    async def _write(self, batch: Batch, found: PolicyOnFile) -> Event | None:
        """Says the change, and has it in force before another batch of the tenant can begin."""
        newest = await batch.newest_policy(self._tenant)
        if newest is not None and not supersedes(found, newest):
            self._take(newest)  # another coordinator was faster
            return None
        fact = change(found, newest, self._tenant, batch.now)
        event = Event(
            id=derived_id("policy", self._tenant, fact.number, fact.sha256),
            source=_SOURCE,
            tenant=self._tenant,
            time=batch.now,
            fact=fact,
        )
        await batch.write_tenant_events([event], own_source=_SOURCE)
        await batch.nudge_all(self._tenant)
        written = await batch.newest_policy(self._tenant)
        if written is None:
            raise Invariant("a policy that was written is not there")
        self._take(written)
        return event

    def _take(self, record: PolicyRecord) -> None:
        """Has a recorded policy in force, unless it is already."""
        if record.number == self._number:
            return
        self._number = record.number
        rules = rules_of(record)
        if rules is None:
            log.error("policy.not_understood", version=record.version, number=record.number)
            return
        self._in_force = rules
        log.info("policy.in_force", version=rules.version, number=record.number, by=record.by)

    def _tell_older(self, found: PolicyOnFile | None, newest: PolicyRecord | None) -> None:
        if found and newest and found.rules.version != newest.version:
            log.warning(
                "policy.file_is_older",
                file=found.by,
                version=found.rules.version,
                in_force=newest.version,
            )
