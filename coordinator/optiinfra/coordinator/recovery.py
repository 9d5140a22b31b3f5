"""Finishes what was left half done, at the start and when the broker has lost something."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime

import structlog

from optiinfra.coordinator.outlet import Publishes
from optiinfra.coordinator.timekeeping import Handle, relay_outbox, sweep_timers
from optiinfra.events.topology import Kept
from optiinfra.schemas.errors import Invariant, Unavailable
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.outbox import mark_sent
from optiinfra.storage.postgres.unfinished import (
    SentRow,
    open_commands,
    rows_off_their_log,
    sent_from,
    sent_rows,
)

log = structlog.get_logger()

Look = Callable[[], Awaitable[Kept]]
"""What the broker says of the stream now."""
MessageAt = Callable[[int], Awaitable[str | None]]
"""The message id at a sequence of the stream; None when there is none."""

_SAMPLES = 24
_BATCH = 256
_MOST_ROUNDS = 400
_MARGIN = 1_024
"""Rows of the outbox are acknowledged in about their order; so many may have changed places."""


class Reconciler:
    """Compares what the broker has acknowledged with what it has, and says what it lost again.

    A broker that comes back with an older copy of its store ends earlier than it said, and counts
    on from there: the same sequence then names another message. So not only the end is compared,
    but messages: the last one that was found in its place before, and some of all ages.
    """

    def __init__(
        self, database: Database, publisher: Publishes, look: Look, message_at: MessageAt
    ) -> None:
        self._database = database
        self._publisher = publisher
        self._look = look
        self._message_at = message_at
        self._proved: SentRow | None = None

    async def reconcile(self) -> int:
        """How many events were said again; repeats are eaten by the inboxes.

        Raises `Unavailable` when broker or database do not answer.
        """
        kept = await self._look()
        row = await self._lost_from(kept)
        if row is None:
            return 0
        said = await self._say_again(row)
        log.warning("broker.lost_events", after_row=row, said_again=said)
        return said

    async def _lost_from(self, kept: Kept) -> int | None:
        """The outbox row from which on acknowledged events may be gone; None when none is.

        While nothing has happened two messages are looked at: the newest, and the one that was
        the newest before.
        """
        rows = await sent_rows(self._database, kept.first, _SAMPLES)
        if not rows:
            return None
        proved = self._proved
        if proved is not None and proved.sequence >= kept.first:
            if await self._all_in_place((proved, rows[-1]), kept):
                self._proved = rows[-1]
                return None
            rows = sorted({*rows, proved})
        held = 0
        for row in rows:
            if not await self._is_in_place(row, kept):
                self._proved = None
                return max(0, held - _MARGIN)
            held = row.row
        self._proved = rows[-1]
        return None

    async def _all_in_place(self, rows: Sequence[SentRow], kept: Kept) -> bool:
        return all([await self._is_in_place(row, kept) for row in rows])

    async def _is_in_place(self, row: SentRow, kept: Kept) -> bool:
        return row.sequence <= kept.last and await self._message_at(row.sequence) == row.event_id

    async def _say_again(self, row: int) -> int:
        said = 0
        while batch := await sent_from(self._database, row, _BATCH):
            row = batch[-1].row
            events = [one.event for one in batch]
            results = await self._publisher.publish_many(events)
            sent = {e.id: r for e, r in zip(events, results, strict=True) if isinstance(r, int)}
            await mark_sent(self._database, sent)
            said += len(sent)
            if len(sent) < len(events):
                raise Unavailable(f"{len(events) - len(sent)} lost events could not be said again")
        return said


async def recover(
    database: Database,
    publisher: Publishes,
    handle: Handle,
    reconciler: Reconciler,
    heard_until: datetime | None = None,
) -> None:
    """Says what was never said, says again what was lost, fires what is overdue, and asks again
    for steps and undos that nobody has answered.

    Deadlines after `heard_until` (None: no limit) are left: an answer may wait on the bus.

    Raises `Invariant` when a row of an open change does not stand at the end of its log.
    """
    off = await rows_off_their_log(database)
    if off:
        raise Invariant(
            f"{len(off)} open changes do not stand where their logs end: {', '.join(off[:5])}",
            hint="run `optiinfra audit verify`, then `optiinfra rebuild`",
        )
    relayed = await _until_none(lambda: relay_outbox(database, publisher, older_than_s=0))
    lost = await reconciler.reconcile()
    fired = await _until_none(lambda: sweep_timers(database, handle, heard_until))
    asked = await open_commands(database)
    await publisher.publish_many(asked)
    log.info(
        "coordinator.recovered", relayed=relayed, said_again=lost, fired=fired, asked=len(asked)
    )


async def _until_none(work: Callable[[], Awaitable[int]]) -> int:
    """A bounded number of times: what does not go away is left to those that come again."""
    done = 0
    for _ in range(_MOST_ROUNDS):
        part = await work()
        if not part:
            break
        done += part
    return done
