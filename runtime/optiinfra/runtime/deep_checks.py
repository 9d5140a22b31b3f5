"""What `doctor --deep` looks at while OptiInfra works: changes, consumers, letters, agents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from optiinfra.events.bus import Bus
from optiinfra.events.condition import (
    ConsumerCondition,
    broker_clock,
    consumer_conditions,
    given_up,
    stream_condition,
)
from optiinfra.events.publish import Publisher
from optiinfra.events.subjects import Stream
from optiinfra.events.topology import diff
from optiinfra.runtime import deep_findings as told
from optiinfra.runtime.findings import Finding, Level, failed
from optiinfra.runtime.session import addresses_of
from optiinfra.runtime.settings import Settings
from optiinfra.runtime.stores import new_id, now
from optiinfra.runtime.stuck import LATE_S, finding_on, findings_on_intents
from optiinfra.schemas.errors import OptiInfraError
from optiinfra.storage.letters import Letters, Wanted
from optiinfra.storage.postgres.condition import Condition
from optiinfra.storage.postgres.database import Database, open_database
from optiinfra.storage.postgres.registry import database_clock

CONNECT_S = 5.0
BETWEEN_S = 2.0
"""Between the two looks at a consumer that tell whether it moves, s."""
OPEN_AT_MOST = 200
SHOWN_AT_MOST = 20
SAMPLE = 1_000
_CONSUMED = (Stream.CHANGES, Stream.TIMERS, Stream.METRICS, Stream.SAMPLES)


@dataclass(frozen=True, slots=True)
class Patient:
    """What is looked at: one broker and one database."""

    bus: Bus
    database: Database


async def look_deep(settings: Settings, between_s: float = BETWEEN_S) -> list[Finding]:
    """All findings on the stores of the settings, else on those of a running `up`.

    Never raises: what does not answer is a finding. Changes nothing.
    """
    found: list[Finding] = []
    try:
        async with _opened(settings) as patient:
            for look in (_changes, _stores, _streams, _letters, _agents, _clocks):
                try:
                    found += await look(patient)
                except OptiInfraError as error:
                    found.append(failed(look.__name__.strip("_"), error))
            found += await _consumers(patient, between_s)
    except OptiInfraError as error:
        found.append(failed("deep checks", error))
    return found


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[Patient]:
    nats_url, postgres_url = addresses_of(settings)
    bus = await Bus.connect(nats_url, name="doctor", timeout_s=CONNECT_S)
    try:
        async with open_database(postgres_url, connections=1) as database:
            yield Patient(bus, database)
    finally:
        await bus.close()


async def _changes(patient: Patient) -> list[Finding]:
    """How many are open, those that are stuck, and what the rest waits for."""
    condition = Condition(patient.database)
    states = await condition.open_states()
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    changes = await condition.open_changes(OPEN_AT_MOST)
    each = [finding_on(one) for one in changes]
    each += findings_on_intents(await condition.open_intents())
    return [Finding(Level.OK, "open changes", counts or "none"), *_shortened(each)]


def _shortened(found: Sequence[Finding]) -> list[Finding]:
    """The worst first, and no more than a person reads."""
    order = (Level.FAIL, Level.WARN, Level.OK)
    ranked = sorted(found, key=lambda one: order.index(one.level))
    kept, rest = ranked[:SHOWN_AT_MOST], ranked[SHOWN_AT_MOST:]
    if rest:
        said = f"{len(rest)} more, the worst of them {rest[0].level}"
        kept.append(Finding(rest[0].level, "further changes", said, "optiinfra changes ls"))
    return kept


async def _stores(patient: Patient) -> list[Finding]:
    condition = Condition(patient.database)
    return [
        told.on_outbox(await condition.unsent()),
        told.on_timers(await condition.overdue_timers(LATE_S)),
        told.on_heads(await condition.heads_off_their_log(SAMPLE)),
        told.on_projections(await condition.not_projected(SAMPLE)),
        *told.on_switches(await condition.switches()),
    ]


async def _streams(patient: Patient) -> list[Finding]:
    differences = await diff(patient.bus)
    found = [
        Finding(
            Level.FAIL,
            f"stream {one.stream}",
            str(one),
            "optiinfra topology apply, with --update where something drifted",
            "roles refuse to start on it",
        )
        for one in differences
    ]
    for stream in Stream:
        condition = await stream_condition(patient.bus, stream)
        if condition is not None:
            found.append(told.on_stream(condition))
    return found


async def _letters(patient: Patient) -> list[Finding]:
    publisher = Publisher(patient.bus, "operator", now, new_id)
    letters = Letters(patient.bus, patient.database, publisher)
    return told.on_letters(await letters.ls(Wanted()))


async def _agents(patient: Patient) -> list[Finding]:
    return told.on_agents(await Condition(patient.database).agents())


async def _clocks(patient: Patient) -> list[Finding]:
    return [
        *told.on_clocks(now(), {"the broker": await broker_clock(patient.bus)}),
        *told.on_clocks(now(), {"the database": await database_clock(patient.database)}),
    ]


async def _consumers(patient: Patient, between_s: float) -> list[Finding]:
    """Two looks, since only movement tells a busy consumer from one that hangs."""
    try:
        before = await _all_consumers(patient.bus)
        await asyncio.sleep(between_s)
        after = await _all_consumers(patient.bus)
        given = await given_up(patient.bus)
    except OptiInfraError as error:
        return [failed("consumers", error)]
    earlier = {(one.stream, one.name): one for one in before}
    return [
        *told.missing_durables(after),
        *(
            told.on_consumer(earlier[one.stream, one.name], one, between_s)
            for one in after
            if one.durable and (one.stream, one.name) in earlier
        ),
        *told.on_given_up(given),
    ]


async def _all_consumers(bus: Bus) -> list[ConsumerCondition]:
    return [one for stream in _CONSUMED for one in await consumer_conditions(bus, stream)]
