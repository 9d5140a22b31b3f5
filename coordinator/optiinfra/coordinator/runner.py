"""Takes batches of events through their sagas: one transaction a batch, then it is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

import structlog

from optiinfra.coordinator.arbiter import woken_by
from optiinfra.coordinator.known import KnownSagas
from optiinfra.coordinator.ledger import Ledger
from optiinfra.coordinator.outlet import CrashPoint, Outlet, Publishes
from optiinfra.coordinator.policy_keeper import PolicyKeeper
from optiinfra.coordinator.saga.state import STOP_SWITCH, Saga
from optiinfra.events import facts as f
from optiinfra.events.commands import ControlRequested
from optiinfra.events.envelope import Event
from optiinfra.schemas.change import ControlVerb
from optiinfra.schemas.errors import Conflict, OptiInfraError
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.rules import Rules
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.journal import Batch, Journal
from optiinfra.storage.postgres.view import Question, View

CONSUMER = "coordinator"

log = structlog.get_logger()


class Runner:
    """Stateless between batches, so that two coordinators may share the work."""

    def __init__(
        self,
        database: Database,
        publisher: Publishes,
        rules: Callable[[], Rules],
        *,
        policies: PolicyKeeper | None = None,
        heard_until: Callable[[], datetime | None] = lambda: None,
        crash_point: CrashPoint = lambda _name: None,
    ) -> None:
        self._journal = Journal(database)
        self._heard_until = heard_until
        self._rules = rules
        self._policies = policies
        self._known = KnownSagas()
        self._crash_point = crash_point
        self.outlet = Outlet(database, publisher, crash_point=crash_point)

    async def handle(self, events: Sequence[Event]) -> list[BaseException | None]:
        """Handles a batch; gives, for each event, None or why it cannot be handled.

        Raises `Unavailable` when the database cannot be reached: then nothing was handled.
        """
        failures: dict[str, BaseException] = {}
        for attempt in range(_ATTEMPTS):
            try:
                said = await self._transact(events, failures)
                break
            except Conflict:
                if attempt == _ATTEMPTS - 1:
                    raise
        self._crash_point("committed")
        await self.outlet.take(said)
        return [failures.get(event.id) for event in events]

    async def _transact(
        self, events: Sequence[Event], failures: dict[str, BaseException]
    ) -> list[Event]:
        failures.clear()
        heard_until = self._heard_until()
        changes = sorted({change for e in events if (change := f.change_of(e.fact))})
        known = self._known.lookup(changes)
        asked = _question(events, changes, known, self._rules())
        async with self._journal.batch(asked.tenants, asked) as batch:
            new = _fresh(batch.view, events)
            if self._policies is not None:
                await self._policies.follow(batch)
            rules = self._rules()
            if rules.limits_movers and not asked.counts_moves:
                raise Conflict("the policy that came into force limits what may move")
            ledger = await Ledger.read(batch, new, rules, known, heard_until)
            of_tenants = [event for event in new if f.change_of(event.fact) is None]
            for event in new:
                if f.change_of(event.fact) is not None:
                    _take(ledger, event, failures)
            for event in of_tenants:
                if isinstance(event.fact, f.SwitchTurned):
                    await self._turn_switch(batch, ledger, event)
            await batch.forget(CONSUMER, list(failures))
            failures.update(await batch.reused(_repeated(batch.view, events)))
            await batch.write_tenant_events(of_tenants, own_source=CONSUMER)
            ledger.said.extend(event for event in of_tenants if event.source == CONSUMER)
            heads = await batch.write(ledger.writes())
            await self._wake_waiting(batch, ledger)
            self._crash_point("written")
        for change, head in heads.items():
            self._known.remember(change, head, ledger.saga(change))
        return ledger.said

    async def _turn_switch(self, batch: Batch, ledger: Ledger, event: Event) -> None:
        """Hands the switch on to every change that it stops or lets go."""
        fact = event.fact
        assert isinstance(fact, f.SwitchTurned)
        verb = ControlVerb.PAUSE if fact.stopped else ControlVerb.RESUME
        ledger.turn_switch(fact.tenant, stopped=fact.stopped)
        holding = await batch.moving([fact.tenant])
        await ledger.read_more(batch, [moving.change for moving in holding])
        for moving in holding:
            saga = ledger.saga(moving.change)
            stopped_here = saga.paused_by == STOP_SWITCH
            if fact.stopped == (saga.paused_by is not None) or (
                not fact.stopped and not stopped_here
            ):
                continue
            wish = ControlRequested(
                change=moving.change, verb=verb, by=STOP_SWITCH, reason=fact.reason
            )
            ledger.take(
                Event(
                    id=derived_id(event.id, moving.change),
                    source=CONSUMER,
                    tenant=event.tenant,
                    time=batch.now,
                    fact=wish,
                    correlation=moving.change,
                    causation=event.id,
                )
            )

    async def _wake_waiting(self, batch: Batch, ledger: Ledger) -> None:
        """What became free is given at once: the target to the next in turn of those that
        want it, and the tenant's limit on movers to the tenant's next in turn."""
        if not (batch.view.waits or ledger.defers):
            return
        policy = self._rules().arbitration
        for tenant, deployment in sorted(ledger.freed):
            waiting = await batch.waiting(tenant, None)
            for change in woken_by(deployment, waiting, batch.now, policy):
                await batch.nudge(change)


_ATTEMPTS = 3
"""How often a batch is tried when another coordinator was faster."""


def _question(
    events: Sequence[Event],
    changes: Sequence[str],
    known: Mapping[str, tuple[str, Saga]],
    rules: Rules,
) -> Question:
    """Timers need no mark in the inbox: their key makes a repeated one void."""
    marked = {event.id for event in events if not isinstance(event.fact, f.TimerFired)}
    return Question(
        consumer=CONSUMER,
        events=sorted(marked),
        changes=changes,
        deployments=sorted(
            {
                event.fact.recommendation.deployment
                for event in events
                if isinstance(event.fact, f.RecommendationProposed)
            }
        ),
        known={change: head for change, (head, _) in known.items()},
        tenants=sorted({event.tenant for event in events}),
        counts_moves=rules.limits_movers,
    )


def _fresh(view: View, events: Sequence[Event]) -> list[Event]:
    """Events not handled before, each once."""
    unique = {event.id: event for event in events}
    return [
        event
        for event in unique.values()
        if event.id in view.fresh or isinstance(event.fact, f.TimerFired)
    ]


def _repeated(view: View, events: Sequence[Event]) -> list[Event]:
    """Events under ids that were handled before; by far the most say the same again."""
    return [
        event
        for event in events
        if event.id not in view.fresh and not isinstance(event.fact, f.TimerFired)
    ]


def _take(ledger: Ledger, event: Event, failures: dict[str, BaseException]) -> None:
    """One bad event does not spoil the batch: it fails alone."""
    try:
        ledger.take(event)
    except OptiInfraError as wrong:
        log.warning("event.refused", type=event.type, event_id=event.id, reason=str(wrong))
        failures[event.id] = wrong
