"""The sagas of one batch in memory: read once, advanced event by event, written once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from optiinfra.coordinator.arbiter import Rival, arbitrate, over_budget, replaced_by
from optiinfra.coordinator.counts import Counts
from optiinfra.coordinator.saga.decide import advance
from optiinfra.coordinator.saga.ruling import Ruling
from optiinfra.coordinator.saga.state import Context, Saga, World
from optiinfra.coordinator.under_way import UnderWay
from optiinfra.events import facts as f
from optiinfra.events.envelope import Event
from optiinfra.events.timers import WAIT_FOR_NOBODY
from optiinfra.schemas.change import TERMINAL_STATES, ChangeState
from optiinfra.schemas.errors import Invariant, Rejected
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.rules import Rules
from optiinfra.storage.postgres.append import LogEntry, SagaRecord, SagaWrite
from optiinfra.storage.postgres.chain import GENESIS
from optiinfra.storage.postgres.journal import Batch
from optiinfra.storage.postgres.view import Moving

Known = Mapping[str, tuple[str, Saga]]
"""Sagas by change, each with the hash at which its row holds it."""
_SOURCE = "coordinator"
_IN_MOTION = frozenset({ChangeState.EXECUTING, ChangeState.ROLLING_BACK})
_OPEN = frozenset(ChangeState) - TERMINAL_STATES - {ChangeState.PROPOSED}
NOTHING = Ruling()


class Ledger:
    """What a batch knows, and what it has done so far; made with `read`."""

    def __init__(self, now: datetime, rules: Rules, heard_until: datetime | None = None) -> None:
        self._now = now
        self._heard_until = heard_until
        self._rules = rules
        self._records: dict[str, SagaRecord] = {}
        self._sagas: dict[str, Saga] = {}
        self._writes: dict[str, SagaWrite] = {}
        self._under_way = UnderWay()
        self._of_target: defaultdict[str, set[str]] = defaultdict(set)
        self._nudged: set[str] = set()
        self._counts = Counts()
        self._stopped: set[str] = set()
        self.said: list[Event] = []
        self.freed: set[tuple[str, str]] = set()

    @classmethod
    async def read(
        cls,
        batch: Batch,
        events: Sequence[Event],
        rules: Rules,
        known: Known,
        heard_until: datetime | None = None,
    ) -> Ledger:
        """`known` are the sagas that the batch's question has named by their hashes; what was said
        after `heard_until` (None: nothing) has yet to be heard.
        """
        ledger = cls(batch.now, rules, heard_until)
        view = batch.view
        ledger._note(view.records, known)
        ledger._nudged = set(view.nudged)
        ledger._under_way = UnderWay(view.moving)
        tenants = sorted({event.tenant for event in events})
        ledger._counts = await Counts.read(batch, tenants, rules)
        ledger._stopped = set(view.stopped)
        return ledger

    async def read_more(self, batch: Batch, changes: Iterable[str]) -> None:
        missing = [change for change in changes if change not in self._sagas]
        if not missing:
            return
        self._note(await batch.sagas(missing), {})

    def _note(self, records: Mapping[str, SagaRecord], known: Known) -> None:
        for change, record in records.items():
            self._records[change] = record
            body = record.body
            self._keep(Saga.model_validate_json(body) if body else known[change][1])

    def _keep(self, saga: Saga) -> None:
        self._sagas[saga.change] = saga
        if saga.recommendation is not None:
            self._of_target[saga.recommendation.deployment].add(saga.change)

    def saga(self, change: str) -> Saga:
        return self._sagas.get(change) or Saga(change=change)

    def turn_switch(self, tenant: str, *, stopped: bool) -> None:
        (self._stopped.add if stopped else self._stopped.discard)(tenant)

    def take(self, event: Event) -> None:
        """Advances the event's saga. Raises `Rejected` for what can never be true of it."""
        self._advance(event, said=False)

    def _advance(self, event: Event, *, said: bool) -> bool:
        """Whether anything has changed; `said` when the event is one of ours."""
        change = f.change_of(event.fact)
        if change is None:
            raise Invariant(f"{event.type} belongs to no change")
        self._check_tenant(change, event.tenant)
        before = self.saga(change)
        if self._is_early(before, event.fact):
            return False
        step = advance(before, event.fact, self._context(before, event))
        if not step.changed:
            return False
        self._check_folded(before, step.saga, step.said)
        record = self._record(change, event.tenant)
        entries = [LogEntry(event, said=said), *self._entries(before, event, step.said)]
        self._save(record, before, step.saga, entries)
        self._counts.note(event.tenant, before, step.saga, step.said)
        for order in step.orders:
            self._order(event, order)
        return True

    @property
    def defers(self) -> bool:
        """Whether this batch leaves a change waiting."""
        return any(write.state == ChangeState.DEFERRED for write in self._writes.values())

    def writes(self) -> Mapping[str, SagaWrite]:
        """What is to be written of each change that has moved on."""
        for change, write in self._writes.items():
            write.body = self._sagas[change].model_dump_json()
        return self._writes

    def _check_tenant(self, change: str, tenant: str) -> None:
        record = self._records.get(change)
        if record is not None and record.tenant != tenant:
            raise Rejected(f"change {change} does not belong to tenant {tenant!r}")

    def _is_early(self, saga: Saga, fact: f.Fact) -> bool:
        """Whether a timer came before its time; the sweep fires it again when it is due.

        A waiting change's turn may come at any time: that is what a nudge does. A deadline has
        not come while words that were said before it wait to be heard.
        """
        if not isinstance(fact, f.TimerFired) or fact.name is f.TimerName.TURN:
            return False
        pending = saga.timers.get(fact.name)
        if pending is None or pending.key != fact.key:
            return False
        heard_until = None if fact.name in WAIT_FOR_NOBODY else self._heard_until
        return pending.fire_at > min(self._now, heard_until or self._now)

    @staticmethod
    def _check_folded(before: Saga, after: Saga, said: Sequence[f.Fact]) -> None:
        if after.version != before.version + 1 + len(said):
            raise Invariant(f"change {after.change}: the version does not count its events")

    def _context(self, saga: Saga, event: Event) -> Context:
        proposal = saga.recommendation
        if proposal is None and isinstance(event.fact, f.RecommendationProposed):
            proposal = event.fact.recommendation
        if proposal is None:
            return Context(at=self._now, rules=self._rules)
        tenant, change, policy = event.tenant, saga.change, self._rules.arbitration
        under_way = self._under_way
        executing, shared = under_way.on_target(tenant, change, proposal.deployment, policy)
        world = World(
            executing=executing,
            shared=shared,
            ruling=self._ruling(saga, event, proposal),
            over_budget=over_budget(proposal, under_way.others(tenant, change), policy)
            if policy.budgets
            else None,
            stopped=tenant in self._stopped,
            moving=under_way.count(tenant, change),
            **self._counts.of(tenant, proposal.deployment),
        )
        return Context(at=self._now, rules=self._rules, world=world)

    def _ruling(self, saga: Saga, event: Event, proposal: Recommendation) -> Ruling:
        """Asked when a change comes, when its turn comes, and when it is complete."""
        fact = event.fact
        comes = isinstance(fact, f.RecommendationProposed) or (
            isinstance(fact, f.TimerFired) and fact.name is f.TimerName.TURN
        )
        if not (comes or isinstance(fact, f.ExecutionStaged)):
            return NOTHING
        rivals = self._rivals(saga.change, event.tenant, proposal.deployment)
        if not rivals:
            return NOTHING
        mine = saga if saga.recommendation else saga.model_copy(update={"recommendation": proposal})
        if not comes:
            return replaced_by(mine, rivals)
        record = self._records.get(saga.change)
        opened_at = record.opened_at if record else self._now
        return arbitrate(mine, opened_at, rivals, self._now, self._rules.arbitration)

    def _rivals(self, change: str, tenant: str, deployment: str) -> list[Rival]:
        """The other open changes of a deployment, the oldest first."""
        found = [
            Rival(self._sagas[other], self._records[other].opened_at, nudged=other in self._nudged)
            for other in self._of_target[deployment] - {change}
            if self._records[other].tenant == tenant and self._sagas[other].state in _OPEN
        ]
        return sorted(found, key=lambda one: (one.opened_at, one.saga.change))

    def _order(self, cause: Event, fact: f.ConflictResolved) -> None:
        """Hands what was decided about another change to its saga, and says it."""
        before = self.saga(fact.change)
        event = Event(
            id=derived_id("order", fact.change, before.version + 1, fact.against),
            source=_SOURCE,
            tenant=cause.tenant,
            time=self._now,
            fact=fact,
            correlation=fact.change,
            causation=cause.id,
            traceparent=cause.traceparent,
        )
        if self._advance(event, said=True):
            self.said.append(event)

    def _record(self, change: str, tenant: str) -> SagaRecord:
        if change not in self._records:
            self._records[change] = SagaRecord(
                change=change,
                tenant=tenant,
                deployment=None,
                state=ChangeState.PROPOSED.value,
                version=0,
                hash=GENESIS,
                body="",
                moving_since=None,
                opened_at=self._now,
            )
        return self._records[change]

    def _entries(self, before: Saga, event: Event, said: Sequence[f.Fact]) -> list[LogEntry]:
        """Said facts are named by their place in the log, so that they never get two names."""
        entries = []
        for offset, fact in enumerate(said, start=before.version + 2):
            made = Event(
                id=derived_id(before.change, offset),
                source=_SOURCE,
                tenant=event.tenant,
                time=self._now,
                fact=fact,
                correlation=before.change,
                causation=event.id,
                traceparent=event.traceparent,
            )
            self.said.append(made)
            entries.append(LogEntry(made, said=True))
        return entries

    def _save(self, record: SagaRecord, before: Saga, after: Saga, entries: list[LogEntry]) -> None:
        change, proposal = after.change, after.recommendation
        self._keep(after)
        write = self._writes.setdefault(
            change, SagaWrite(record, record.state, record.deployment, "", record.moving_since)
        )
        write.state = after.state.value
        write.deployment = proposal.deployment if proposal else None
        write.entries.extend(entries)
        if after.touched and not before.touched:
            write.moving_since = self._now
        self._hold(record.tenant, before, after)

    def _hold(self, tenant: str, before: Saga, after: Saga) -> None:
        proposal = after.recommendation
        if proposal is None:
            return
        if after.state in _IN_MOTION:
            spend = proposal.spend_usd_per_hour
            moving = Moving(after.change, tenant, proposal.deployment, after.state.value, spend)
            self._under_way.begin(moving)
            return
        self._under_way.end(after.change)
        if self._is_in_the_way(before) and not self._is_in_the_way(after):
            self.freed.add((tenant, proposal.deployment))

    def _is_in_the_way(self, saga: Saga) -> bool:
        return saga.state.holds_target and not saga.is_asleep(self._now)
