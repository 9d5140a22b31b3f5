"""Folds the event log into the tables again, from nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optiinfra.coordinator.saga.evolve import counted, evolve
from optiinfra.coordinator.saga.state import Saga
from optiinfra.schemas.errors import Invariant
from optiinfra.storage.postgres.chain import Link, first_break
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.events import event_of
from optiinfra.storage.postgres.rebuilding import ChangeRow, Difference, rebuilding

TENANT_CHAIN = "tenant-"


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What was folded, and the rows that stood otherwise than the log says."""

    chains: int
    events: int
    differences: tuple[Difference, ...]


async def rebuild(database: Database, *, check: bool = False, force: bool = False) -> Rebuilt:
    """Derives every projection from the log, says what stood otherwise, and puts it in its place.

    With `check` nothing is changed. Coordinators wait meanwhile. Raises `Invariant` naming the
    first broken event, unless `force` says to fold what is there.
    """
    chains = events = 0
    async with rebuilding(database) as made:
        async for links in made.chains():
            broken = first_break(links)
            if broken is not None and not force:
                raise Invariant(
                    f"the chain {broken.chain} is broken at version {broken.version}:"
                    f" {broken.what}",
                    hint="restore the log, or fold what is there with --force",
                )
            await made.project(links)
            last = links[-1]
            if last.chain.startswith(TENANT_CHAIN):
                await made.head(last.chain, last.version, last.hash)
            else:
                await made.change(folded(links))
            chains += 1
            events += len(links)
        differences = tuple(await made.differences())
        if not check:
            await made.replace()
    return Rebuilt(chains, events, differences)


def folded(links: Sequence[Link]) -> ChangeRow:
    """The row of a change, from the links of its chain."""
    saga, moving_since = Saga(change=links[0].chain), None
    for link in links:
        saga = counted(evolve(saga, event_of(link).fact, link.at))
        moving_since = moving_since or (link.at if saga.touched else None)
    proposal, last = saga.recommendation, links[-1]
    return ChangeRow(
        change=saga.change,
        tenant=last.tenant,
        deployment=proposal.deployment if proposal else None,
        state=saga.state.value,
        version=last.version,
        hash=last.hash,
        body=saga.model_dump_json(),
        moving_since=moving_since,
        opened_at=links[0].at,
        updated_at=last.at,
    )
