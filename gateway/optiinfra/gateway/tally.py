"""Counts requests and latencies of each replica for the life of the process."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from optiinfra.gateway.routes import RouteKey
from optiinfra.schemas.ids import ReplicaId
from optiinfra.schemas.routing import BackendCounters

BOUNDS_S: tuple[float, ...] = tuple(0.0005 * 2 ** (k / 3) for k in range(55))
"""Upper bounds of the latency buckets: 0.5 ms to 131 s, each 26 % above the one before."""


class Outcome(StrEnum):
    """How a request ended, as its client saw it."""

    SERVED = "served"
    FAILED = "failed"
    """No answer, or an error that is not the request's own fault."""
    TRUNCATED = "truncated"
    """The answer had begun and broke off."""
    CANCELLED = "cancelled"
    """The client left first."""
    REJECTED = "rejected"
    """The engine refused the request itself (400, 405, 413, 415, 422)."""


class Latency(StrEnum):
    TTFT = "ttft"
    TPOT = "tpot"
    E2E = "e2e"
    ADDED = "added"
    """What the gateway itself put on top."""


class Histogram:
    """Counts per bucket of `BOUNDS_S` (the last one is open) and the sum, in seconds."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def observe(self, value_s: float) -> None:
        self.counts[bisect_left(BOUNDS_S, value_s)] += 1
        self.sum_s += value_s


@dataclass(frozen=True, slots=True)
class Reading:
    """A replica's counts at one time, or over one window."""

    outcomes: tuple[int, ...]
    retried: int
    counts: tuple[tuple[int, ...], ...]
    sums_s: tuple[float, ...]

    def minus(self, other: Reading) -> Reading:
        return Reading(
            tuple(a - b for a, b in zip(self.outcomes, other.outcomes, strict=True)),
            self.retried - other.retried,
            tuple(
                tuple(a - b for a, b in zip(mine, theirs, strict=True))
                for mine, theirs in zip(self.counts, other.counts, strict=True)
            ),
            tuple(a - b for a, b in zip(self.sums_s, other.sums_s, strict=True)),
        )


@dataclass(slots=True)
class ReplicaTally:
    """Everything counted of one replica."""

    in_flight: int = 0
    retried: int = 0
    """Attempts that failed before an answer began and were taken over by another replica."""
    outcomes: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    latency: dict[Latency, Histogram] = field(
        default_factory=lambda: {kind: Histogram() for kind in Latency}
    )

    def reading(self) -> Reading:
        return Reading(
            tuple(self.outcomes.values()),
            self.retried,
            tuple(tuple(histogram.counts) for histogram in self.latency.values()),
            tuple(histogram.sum_s for histogram in self.latency.values()),
        )

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Count one attempt as in flight while it lasts."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1


class Window:
    """Past readings of one tally on a fixed grid of time, taken before a slot's first change."""

    def __init__(self, start: datetime, slot_s: float, slots: int) -> None:
        self._slot = timedelta(seconds=slot_s)
        self._next = start
        self._past: deque[tuple[datetime, Reading]] = deque(maxlen=slots)

    @property
    def full(self) -> bool:
        """Whether older readings have been forgotten."""
        return len(self._past) == self._past.maxlen

    def mark(self, now: datetime, tally: ReplicaTally) -> None:
        """To be called before each change of `tally`."""
        if now >= self._next:
            self._past.append((now, tally.reading()))
            self._next = now + self._slot

    def base(self, since: datetime, now: Reading) -> tuple[datetime, Reading]:
        """The reading to subtract for "since `since`", exact to one slot, and its time.

        Between a slot's end and the next mark nothing has changed, so that an idle replica's old
        counts never leak into a later window. Past the kept slots the oldest reading is given.
        """
        for at, reading in self._past:
            if at + self._slot > since:
                return at, reading
        return since, now


class Counted(NamedTuple):
    """What was counted of one replica (None: of requests that reached none) in a window."""

    key: RouteKey
    replica: ReplicaId | None
    in_flight: int
    reading: Reading


class Tallies:
    """The tallies of all replicas; `None` as replica counts what reached no replica."""

    def __init__(self, clock: Callable[[], datetime], *, slot_s: float, slots: int) -> None:
        self._clock = clock
        self._slot_s, self._slots = slot_s, slots
        self._tallies: dict[tuple[RouteKey, ReplicaId | None], tuple[ReplicaTally, Window]] = {}
        self.started_at = clock()

    def of(self, key: RouteKey, replica: ReplicaId | None) -> ReplicaTally:
        """The tally to change now (the window is marked)."""
        now = self._clock()
        entry = self._tallies.get((key, replica))
        if entry is None:
            entry = ReplicaTally(), Window(now, self._slot_s, self._slots)
            self._tallies[(key, replica)] = entry
        tally, window = entry
        window.mark(now, tally)
        return tally

    def all(self) -> Iterator[tuple[RouteKey, ReplicaId | None, ReplicaTally]]:
        for (key, replica), (tally, _) in self._tallies.items():
            yield key, replica, tally

    def since(self, since: datetime | None) -> tuple[datetime, list[Counted]]:
        """Counts of all replicas from about `since` (to one slot; the start when None) to now.

        The time returned is the one that they really reach back to: later than `since` when the
        kept slots no longer cover it.
        """
        reached = self.started_at if since is None else max(since, self.started_at)
        rows = []
        for (key, replica), (tally, window) in self._tallies.items():
            reading = tally.reading()
            if since is not None:
                at, base = window.base(reached, reading)
                reading = reading.minus(base)
                reached = max(reached, at) if window.full else reached
            rows.append(Counted(key, replica, tally.in_flight, reading))
        return reached, rows

    def counters(self, key: RouteKey) -> tuple[BackendCounters, ...]:
        """Counters of every replica of `key` ever met, also of removed ones."""
        return tuple(
            BackendCounters(
                replica=replica,
                in_flight=tally.in_flight,
                served=tally.outcomes[Outcome.SERVED],
                failed=tally.outcomes[Outcome.FAILED],
                truncated=tally.outcomes[Outcome.TRUNCATED],
            )
            for (owner, replica), (tally, _) in self._tallies.items()
            if owner == key and replica is not None
        )
