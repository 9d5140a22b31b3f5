"""Runs a recorded log again under another policy: which decisions differ, why, and for how much.

What was heard is taken as it was recorded: proposals, votes with their evidence, people's words,
gate answers, results. What the other policy leads to is decided by the very saga that decides in
production. Where it asks for something that the record does not have, the answer is "unknown from
here", never an invention.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from optiinfra.coordinator.counts import Counts
from optiinfra.coordinator.decisions_in_words import essence, question_in, why_of
from optiinfra.coordinator.ledger import Ledger
from optiinfra.coordinator.saga.state import Saga
from optiinfra.events import facts as f
from optiinfra.events.envelope import Event
from optiinfra.events.timers import TimerName
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.errors import Invariant, Rejected
from optiinfra.schemas.hindsight import Difference, Effect, WhatIf
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.money import Interval
from optiinfra.schemas.outcome import Outcome
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.telemetry import Known
from optiinfra.schemas.tenant import POLICY

NOTHING_YET = "nothing yet"
_HOUR = timedelta(hours=1)
_SAME_S = 0.5
"""A timer that is set so close to the recorded one is the same."""


@dataclass(frozen=True, slots=True)
class Logged:
    """An event of the log, at its place in its chain, taken in at `at`."""

    chain: str
    version: int
    at: datetime
    event: Event

    @property
    def heard(self) -> bool:
        """Whether it came from outside: what the coordinator said is named by its place."""
        return self.event.id != derived_id(self.chain, self.version)


@dataclass(slots=True)
class _Record:
    """What the log has of one change."""

    entries: list[Logged] = field(default_factory=list)
    outcome: Outcome | None = None

    def said_after(self, index: int) -> list[f.Fact]:
        """What the coordinator said because of the entry at this place."""
        said: list[f.Fact] = []
        for one in self.entries[index + 1 :]:
            if one.heard:
                break
            said.append(one.event.fact)
        return said

    def facts(self) -> Iterable[f.Fact]:
        return (one.event.fact for one in self.entries)


@dataclass(slots=True)
class _Part:
    """Where one change has come to under the other policy."""

    parted_at: datetime | None = None
    recorded: str = ""
    other: str = ""
    why: str = ""
    unknown: str | None = None
    saga: Saga | None = None
    """Where it stood when it became unknown."""
    own_timers: set[tuple[str, str]] = field(default_factory=set)


class _Replay(Ledger):
    """A ledger that goes through time."""

    def __init__(self, rules: Rules) -> None:
        super().__init__(datetime.min.replace(tzinfo=UTC), rules)
        self._moves: list[tuple[datetime, str, str]] = []
        self._grants: list[tuple[datetime, str, str]] = []

    def move_to(self, at: datetime) -> None:
        self._now = at
        moves = Counter((t, d) for when, t, d in self._moves if when > at - _HOUR)
        hour = Counter((t, r) for when, t, r in self._grants if when > at - _HOUR)
        day = Counter((t, r) for when, t, r in self._grants if when > at - 24 * _HOUR)
        self._counts = Counts.known(moves, hour, day)

    def heard(self, event: Event) -> list[f.Fact]:
        """What is said because of an event."""
        first = len(self.said)
        before = self.saga(str(f.change_of(event.fact)))
        self.take(event)
        said = [one.fact for one in self.said[first:] if f.change_of(one.fact) == before.change]
        after = self.saga(before.change)
        if after.touched and not before.touched:
            self._moves.append((self._now, event.tenant, after.proposal.deployment))
        for fact in said:
            if isinstance(fact, f.ApprovalGranted) and fact.approval.by.kind == POLICY:
                rule = fact.approval.by.name.partition("@")[0]
                self._grants.append((self._now, event.tenant, rule))
        return said

    def forget(self, change: str) -> None:
        """It stands in nobody's way any more."""
        saga = self._sagas.pop(change, None)
        if saga is not None and saga.recommendation is not None:
            self._of_target[saga.recommendation.deployment].discard(change)
        self._under_way.end(change)


class Simulation:
    """One run; `differences` and totals come from `result`."""

    def __init__(self, log: Sequence[Logged], rules: Rules, most_waits: int | None = None) -> None:
        self._ledger = _Replay(rules)
        self._waits_left = most_waits
        self._log = log
        self._records: dict[str, _Record] = {}
        self._parts: dict[str, _Part] = {}
        self._due: list[tuple[datetime, str, TimerName, str]] = []
        self._ends: dict[str, str] = {}
        for one in log:
            if f.change_of(one.event.fact) is None:
                continue
            record = self._records.setdefault(one.chain, _Record())
            record.entries.append(one)
            if isinstance(one.event.fact, f.OutcomeRecorded):
                record.outcome = one.event.fact.outcome
        self._places = {
            id(one): index
            for record in self._records.values()
            for index, one in enumerate(record.entries)
        }

    def run(self) -> WhatIf:
        for one in self._log:
            fact = one.event.fact
            if isinstance(fact, f.SwitchTurned):
                self._ledger.turn_switch(fact.tenant, stopped=fact.stopped)
            if f.change_of(fact) is None:
                continue
            self._fire_until(one.at)
            if one.heard and not isinstance(fact, f.ConflictResolved):
                self._take(one)
            elif fact.kind in f.TERMINAL_FACTS and self._part(one.chain).unknown:
                self._ledger.forget(one.chain)
        if self._log:
            self._fire_until(self._log[-1].at)
        return self._result()

    def _part(self, change: str) -> _Part:
        return self._parts.setdefault(change, _Part())

    def _take(self, one: Logged) -> None:
        part = self._part(one.chain)
        fact = one.event.fact
        if part.unknown or (isinstance(fact, f.TimerFired) and self._is_ours(part, fact)):
            return
        self._ledger.move_to(one.at)
        event = self._aligned(one)
        try:
            said = self._ledger.heard(event)
        except (Rejected, Invariant):
            return  # it answers something that was not asked for under this policy
        recorded = self._records[one.chain].said_after(self._places[id(one)])
        self._compare(one, said, recorded)

    def _aligned(self, one: Logged) -> Event:
        """Results carry the fence of the command that they answer: that of this run."""
        saga, fact = self._ledger.saga(one.chain), one.event.fact
        fenced = isinstance(fact, f.ExecutionStarted | f.ExecutionFailed | f.RollbackCompleted)
        if fenced and saga.fence:
            fact = fact.model_copy(update={"fence": saga.fence})
        return Event(
            id=one.event.id,
            source=one.event.source,
            tenant=one.event.tenant,
            time=one.event.time,
            fact=fact,
            correlation=one.event.correlation,
        )

    def _compare(self, one: Logged, said: list[f.Fact], recorded: list[f.Fact]) -> None:
        part = self._part(one.chain)
        self._note_timers(part, said, recorded)
        mine, theirs = essence(said), essence(recorded)
        if part.parted_at is None and mine != theirs:
            place = next(
                (n for n, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b),
                min(len(mine), len(theirs)),
            )
            part.parted_at = one.at
            part.recorded = theirs[place] if place < len(theirs) else NOTHING_YET
            part.other = mine[place] if place < len(mine) else NOTHING_YET
            part.why = why_of(said, part.other) or why_of(recorded, part.recorded)
        if part.parted_at is not None:
            part.unknown = self._unanswered(one.chain, said)
            part.saga = self._ledger.saga(one.chain)

    def _note_timers(self, part: _Part, said: list[f.Fact], recorded: list[f.Fact]) -> None:
        """Timers that the record does not have, or has at another time, fire by themselves."""
        theirs = {(t.name, t.key): t.fire_at for t in recorded if isinstance(t, f.TimerSet)}
        for timer in said:
            if isinstance(timer, f.TimerSet):
                name = (timer.name, timer.key)
                there = theirs.get(name)
                if there is None or abs((there - timer.fire_at).total_seconds()) > _SAME_S:
                    part.own_timers.add(name)
                if name in part.own_timers:
                    heapq.heappush(self._due, (timer.fire_at, timer.change, *name))

    def _is_ours(self, part: _Part, fact: f.TimerFired) -> bool:
        return (fact.name, fact.key) in part.own_timers

    def _unanswered(self, change: str, said: Iterable[f.Fact]) -> str | None:
        """What was asked for that the record has no answer to, in words."""
        facts = list(self._records[change].facts())
        for fact in said:
            found = question_in(fact)
            if found is not None and not any(found.answers(one) for one in facts):
                return found.words
        return None

    def _fire_until(self, at: datetime) -> None:
        while (due := self._next_due(at)) is not None:
            fire_at, change, fact = due
            self._count_wait()
            self._ledger.move_to(fire_at)
            name = derived_id("what-if", change, fact.name, fact.key)
            tenant = self._records[change].entries[0].event.tenant
            event = Event(id=name, source="what-if", tenant=tenant, time=fire_at, fact=fact)
            said = self._ledger.heard(event)
            part = self._part(change)
            part.own_timers.discard((fact.name, fact.key))
            place = Logged(change, 0, fire_at, event)
            self._compare(place, said, [])

    def _count_wait(self) -> None:
        if self._waits_left is None:
            return
        self._waits_left -= 1
        if self._waits_left < 0:
            raise Rejected(
                "under this policy too many changes would wait for too long to be followed here",
                hint="choose a later time, or run `optiinfra what-if`, which has no such limit",
            )

    def _next_due(self, at: datetime) -> tuple[datetime, str, f.TimerFired] | None:
        """The first of this run's own timers that is due; one that was set again is told later."""
        while self._due and self._due[0][0] <= at:
            fire_at, change, name, key = heapq.heappop(self._due)
            part, pending = self._part(change), self._ledger.saga(change).timers.get(name)
            ours = (name, key) in part.own_timers and not part.unknown
            if ours and pending is not None and (pending.key, pending.fire_at) == (key, fire_at):
                return fire_at, change, f.TimerFired(change=change, name=name, key=key)
        return None

    def _result(self) -> WhatIf:
        found = [
            self._difference(change, part)
            for change, part in self._parts.items()
            if part.parted_at is not None and self._records[change].entries
        ]
        found.sort(key=lambda one: (one.at, one.change))
        return WhatIf(
            changes=len(self._records),
            differences=tuple(found),
            realised=_total(one.effect for one in found if one.effect.basis == "realised"),
            predicted=_total(one.effect for one in found if one.effect.basis == "predicted"),
            unknown=sum(one.effect.basis == "unknown" for one in found),
        )

    def _difference(self, change: str, part: _Part) -> Difference:
        record, saga = self._records[change], part.saga or self._ledger.saga(change)
        proposal = next(
            one.recommendation
            for one in record.facts()
            if isinstance(one, f.RecommendationProposed)
        )
        ended = next((o.kind for o in record.facts() if o.kind in f.TERMINAL_FACTS), None)
        other = f"unknown from here: {part.unknown}" if part.unknown else saga.state.value
        assert part.parted_at is not None
        return Difference(
            change=change,
            deployment=proposal.deployment,
            title=proposal.title,
            at=part.parted_at,
            recorded=part.recorded,
            other=part.other,
            why=part.why,
            recorded_end=f.TERMINAL_FACTS[ended].value if ended else "open",
            other_end=other,
            effect=_effect(
                record, saga, proposal.saving_usd_per_month, open_end=bool(part.unknown)
            ),
        )


def what_if(log: Sequence[Logged], rules: Rules, most_waits: int | None = None) -> WhatIf:
    """Runs a tenant's log, in its order, under `rules`.

    Raises `Rejected` when more than `most_waits` timers fire that the log does not have.
    """
    return Simulation(log, rules, most_waits).run()


def _effect(record: _Record, saga: Saga, predicted: Interval | None, *, open_end: bool) -> Effect:
    """What is gained (or lost, below 0) a month by the other policy.

    With an open end, only what would have begun and never did has a prediction.
    """
    was_done = any(isinstance(one, f.ChangeCompleted) for one in record.facts())
    would_be = saga.touched and saga.state not in (
        ChangeState.ROLLED_BACK,
        ChangeState.ROLLING_BACK,
        ChangeState.FAILED,
    )
    unknown = open_end and (was_done or not would_be)
    if was_done == would_be and not unknown:
        return Effect(basis="none")
    sign = -1.0 if was_done else 1.0
    outcome = record.outcome
    ttft = outcome.ttft_p95_s if outcome else None
    ttft_p95_s = ttft.value if isinstance(ttft, Known) else None
    if was_done and outcome and isinstance(outcome.realised_usd_per_month, Known):
        usd = outcome.realised_usd_per_month.value
        money = Interval(low=usd, mid=usd, high=usd).scaled(sign)
        return Effect(
            basis="unknown" if unknown else "realised", usd_per_month=money, ttft_p95_s=ttft_p95_s
        )
    if predicted is not None:
        return Effect(
            basis="unknown" if unknown else "predicted",
            usd_per_month=predicted.scaled(sign),
            ttft_p95_s=ttft_p95_s,
        )
    return Effect(basis="unknown", ttft_p95_s=ttft_p95_s)


def _total(effects: Iterable[Effect]) -> Interval:
    """Sums bound by bound: wider than the truth where errors are independent."""
    known = [one.usd_per_month for one in effects if one.usd_per_month is not None]
    low, mid, high = (sum(getattr(one, n) for one in known) for n in ("low", "mid", "high"))
    return Interval(low=low, mid=mid, high=high)
