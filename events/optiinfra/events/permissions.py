"""What each role may do at the broker: derived from the table of subjects and what roles read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from optiinfra.events.bus_roles import AGENTS, BusRole, agent_of, inbox_of
from optiinfra.events.publish import SCHEDULES
from optiinfra.events.subjects import BY_PREFIX, SUBJECTS, Stream, Subject

_API = "$JS.API"
_HEARTBEATS = BY_PREFIX["agent.heartbeat"].pattern

DURABLES: dict[BusRole, tuple[tuple[Stream, str], ...]] = {
    BusRole.COORDINATOR: (
        (Stream.CHANGES, "coordinator"),
        (Stream.TIMERS, "coordinator-timers"),
    ),
    BusRole.AGENT_COST: ((Stream.CHANGES, "cost"),),
    BusRole.AGENT_PERFORMANCE: ((Stream.CHANGES, "performance"),),
    BusRole.AGENT_RESOURCE: ((Stream.CHANGES, "resource"),),
    BusRole.AGENT_APPLICATION: (
        (Stream.CHANGES, "application"),
        (Stream.SAMPLES, "application-samples"),
    ),
    BusRole.COLLECTOR: ((Stream.METRICS, "collector"), (Stream.CHANGES, "memory")),
}
"""The durable consumers of the roles; a test compares them with those that the roles make."""

READS: dict[BusRole, tuple[Stream, ...]] = {
    BusRole.AGENT_PERFORMANCE: (Stream.SAMPLES,),  # replays a deployment's own traffic
    BusRole.PORTAL_API: (Stream.CHANGES, Stream.DLQ),
    BusRole.NOTIFIER: (Stream.CHANGES,),
    BusRole.OPERATOR: tuple(Stream),
    BusRole.SUBSCRIBER: (Stream.CHANGES, Stream.CHANGES_REPLAY, Stream.METRICS),
}
"""Streams that a role reads through consumers with names of their own."""

PICKS: dict[BusRole, tuple[Stream, ...]] = {
    BusRole.COORDINATOR: (Stream.CHANGES,),  # compares what was acknowledged with what is there
    BusRole.PORTAL_API: (Stream.DLQ,),  # shows one dead letter
    BusRole.AGENT_PERFORMANCE: (Stream.SAMPLES,),  # looks whether there are any of late
    BusRole.SUBSCRIBER: (Stream.CHANGES_REPLAY,),
    BusRole.OPERATOR: tuple(Stream),
}
"""Streams of which a role may ask for one message by its sequence."""

HEARS = {BusRole.COORDINATOR: (_HEARTBEATS,), BusRole.OPERATOR: (_HEARTBEATS,)}
"""Subjects that no stream keeps, and who listens to them."""


@dataclass(frozen=True, slots=True)
class Permissions:
    """Subject patterns; what is not allowed is denied, and so is what is denied by name."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    never: tuple[str, ...] = ()
    """Denied for publishing though a pattern in `publish` covers it."""


def permissions_of(role: BusRole) -> Permissions:
    """All that a role may do."""
    own = DURABLES.get(role, ())
    publish = (
        *says(role),
        *(one for stream, name in own for one in _uses_durable(stream, name)),
        *(one for stream in READS.get(role, ()) for one in _reads(stream)),
        *_further(role),
    )
    return Permissions(
        publish=tuple(dict.fromkeys(publish)),
        subscribe=(f"{inbox_of(role)}.>", *HEARS.get(role, ())),
        never=tuple(_foreign(role)),
    )


def says(role: BusRole) -> tuple[str, ...]:
    """The subjects of facts and commands that a role may publish."""
    rows = [row for row in SUBJECTS if role in row.publishers]
    said = tuple(row.pattern_of(last) for row in rows for last in _names(row, role))
    return (*said, f"{SCHEDULES}.*.*.*") if role is BusRole.COORDINATOR else said


def _names(row: Subject, role: BusRole) -> tuple[str, ...]:
    """What may stand last in the subjects of a row when `role` speaks."""
    match row.tokens[-1]:
        case "agent" if role in AGENTS:
            return (agent_of(role),)
        case "consumer" if role in DURABLES:
            return tuple(name for _, name in DURABLES[role])
        case "consumer" if role is BusRole.NOTIFIER:
            return (role.value,)
        case _:
            return ("*",)


def _uses_durable(stream: str, name: str) -> Iterable[str]:
    """Makes, looks at, draws from and answers one durable consumer."""
    yield f"{_API}.STREAM.INFO.{stream}"
    yield from _creates(stream, name)
    yield f"{_API}.CONSUMER.INFO.{stream}.{name}"
    yield f"{_API}.CONSUMER.MSG.NEXT.{stream}.{name}"
    yield f"$JS.ACK.{stream}.{name}.>"


def _creates(stream: str, name: str) -> Iterable[str]:
    """The broker compares the name with that in the request, so it cannot name another."""
    yield f"{_API}.CONSUMER.CREATE.{stream}.{name}"
    yield f"{_API}.CONSUMER.CREATE.{stream}.{name}.>"


def _reads(stream: str) -> Iterable[str]:
    """Any consumer of a stream but the roles' durables, which `_foreign` takes out again."""
    yield from _uses_durable(stream, "*")
    yield f"{_API}.CONSUMER.DELETE.{stream}.*"


def _foreign(role: BusRole) -> Iterable[str]:
    """What a reader must not do to the roles' durable consumers; looking at them is harmless."""
    streams = READS.get(role, ())
    for stream, name in (one for owned in DURABLES.values() for one in owned):
        if stream in streams:
            yield from _creates(stream, name)
            yield f"{_API}.CONSUMER.MSG.NEXT.{stream}.{name}"
            yield f"{_API}.CONSUMER.DELETE.{stream}.{name}"
            yield f"$JS.ACK.{stream}.{name}.>"


def _further(role: BusRole) -> Iterable[str]:
    if role in DURABLES or role in (BusRole.PORTAL_API, BusRole.NOTIFIER):
        # A role refuses to start on streams that are not as they should be.
        yield f"{_API}.STREAM.INFO.*"
    for stream in PICKS.get(role, ()):
        yield f"{_API}.STREAM.MSG.GET.{stream}"
    if role is BusRole.TOPOLOGY:
        for stream in Stream:
            for verb in ("CREATE", "UPDATE", "INFO"):
                yield f"{_API}.STREAM.{verb}.{stream}"
    if role is BusRole.OPERATOR:
        # A buried message is sent again on its own subject. What must not be forged is looked up.
        yield from (row.pattern for row in SUBJECTS if row.stream not in (None, Stream.DLQ))
        for verb in ("STREAM.INFO.*", "STREAM.NAMES", "STREAM.LIST"):
            yield f"{_API}.{verb}"
        for verb in ("CONSUMER.LIST.*", "CONSUMER.NAMES.*", f"STREAM.MSG.DELETE.{Stream.DLQ}"):
            yield f"{_API}.{verb}"
