"""`optiinfra events`: what is said, and what was said."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optiinfra.runtime import console
from optiinfra.runtime.cli_options import Home, Json, Limit, settings_of
from optiinfra.schemas.errors import Rejected

if TYPE_CHECKING:
    from optiinfra.runtime.settings import Settings
    from optiinfra.schemas.hindsight import Standing

events = typer.Typer(help="Events: tail, replay.", no_args_is_help=True, rich_markup_mode=None)
_SPAN = re.compile(r"^(\d+)([smhd])$")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
EVERYTHING = 1_000_000_000
Tenant = Annotated[str, typer.Option(help="Whose log, when it is read from the database.")]
Id = Annotated[str | None, typer.Option("--change", help="Only this change.")]
Kind = Annotated[str | None, typer.Option("--kind", help="Only this kind, as `vote.cast`.")]
Since = Annotated[str | None, typer.Option("--since", help="A time, or how long ago: 15m, 2h.")]
Until = Annotated[str | None, typer.Option("--until", help="A time, or how long ago.")]


@events.command()
def tail(
    change: Id = None,
    kind: Kind = None,
    after: Annotated[
        int | None, typer.Option(min=0, help="Resume after this stream sequence.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Stop after so many.")] = EVERYTHING,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Follows the live stream until Ctrl-C; resumes by itself when the connection is lost."""
    from optiinfra.runtime.cli_changes import as_event
    from optiinfra.runtime.cli_client import signed_in

    with signed_in(settings_of(home)) as api:
        whole = api.id_of(change) if change else None
        for frame in api.follow(after, console.say):
            if frame["kind"] == "gap":
                console.say(f"events {frame['from']} to {frame['to']} are no longer kept")
            if frame["kind"] != "event":
                continue
            event = as_event(frame)
            if whole in (None, event["correlation"]) and kind in (None, event["kind"]):
                _tell(event, as_json=as_json)
                limit -= 1
            if limit == 0:
                return


@events.command()
def replay(
    change: Id = None,
    kind: Kind = None,
    since: Since = None,
    until: Until = None,
    speed: Annotated[
        float, typer.Option(min=0, help="Times real time; 0: as fast as possible.")
    ] = 0.0,
    states: Annotated[
        bool,
        typer.Option("--states", help="Then tell in what state every change was at the end of it."),
    ] = False,
    limit: Limit = EVERYTHING,
    tenant: Tenant = "default",
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Tells a range of the log again, in its order; from the database when postgres_url is set.

    Nothing is written and nothing in use is asked: the states are folded from the events alone.
    """
    from optiinfra.coordinator.replayed import Replayed, standing

    settings = settings_of(home)
    start = time_of(since)
    want = {"change": change, "kind": kind, "since": start, "until": time_of(until)}
    read = {**want, "kind": None, "since": None} if states else want
    reach = EVERYTHING if states else limit
    found = (
        _from_database(settings, tenant, read, reach)
        if is_direct(settings)
        else _from_api(settings, read, reach)
    )
    last: datetime | None = None
    projection = Replayed() if states else None
    for event in found:
        if projection is not None:
            projection.take(event)
        at = datetime.fromisoformat(event["at"])
        if kind not in (None, event["kind"]) or (start is not None and at < start):
            continue
        if speed > 0 and last is not None:
            time.sleep(max(0.0, (at - last).total_seconds() / speed))
        last = at
        _tell(event, as_json=as_json)
        limit -= 1
        if limit == 0:
            break
    if projection is not None:
        _tell_states(map(standing, projection.changes.values()), as_json=as_json)


def is_direct(settings: Settings) -> bool:
    """Whether to read the database itself: it is named, and no API is."""
    return settings.postgres_url is not None and settings.api_url is None


def _from_api(settings: Settings, want: dict[str, Any], limit: int) -> Iterator[dict[str, Any]]:
    from optiinfra.runtime.cli_client import signed_in

    with signed_in(settings) as api:
        if want["change"]:
            want = {**want, "change": api.id_of(want["change"])}
        times = {name: want[name].isoformat() for name in ("since", "until") if want[name]}
        yield from api.pages("/events", limit, **{**want, **times})


def _from_database(
    settings: Settings, tenant: str, want: dict[str, Any], limit: int
) -> Iterator[dict[str, Any]]:
    import asyncio

    from optiinfra.storage.postgres.database import open_database
    from optiinfra.storage.postgres.documents import Document, Documents
    from optiinfra.storage.postgres.reading import EventFilter, Page

    async def page(after: tuple[Any, ...] | None) -> list[Document]:
        async with open_database(str(settings.postgres_url), connections=1) as database:
            return await Documents(database).events(
                tenant, EventFilter(**want), Page(min(limit, 1_000), after)
            )

    after: tuple[Any, ...] | None = None
    while limit > 0 and (found := asyncio.run(page(after))):
        yield from (json.loads(one.text) for one in found)
        limit -= len(found)
        after = found[-1].key


def time_of(given: str | None) -> datetime | None:
    """A time, or how long ago it was. Raises `Rejected`."""
    if given is None:
        return None
    span = _span(given)
    return _exact(given, "how long ago") if span is None else datetime.now(UTC) - span


def time_to_come(given: str) -> datetime:
    """A time, or how long from now it is. Raises `Rejected`."""
    span = _span(given)
    return _exact(given, "how long from now") if span is None else datetime.now(UTC) + span


def _span(given: str) -> timedelta | None:
    found = _SPAN.match(given)
    return timedelta(seconds=int(found[1]) * _SECONDS[found[2]]) if found else None


def _exact(given: str, or_what: str) -> datetime:
    try:
        at = datetime.fromisoformat(given)
    except ValueError as wrong:
        raise Rejected(
            f"{given!r} is not a time",
            hint=f"give 2026-01-31T12:00:00Z, or {or_what}: 15m, 2h, 3d",
        ) from wrong
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _tell_states(standings: Iterable[Standing], *, as_json: bool) -> None:
    names = ("change", "state", "deployment", "stage", "why")
    rows = [one.model_dump(mode="json") for one in standings]
    if as_json:
        for row in rows:
            console.data(row)
    else:
        short = [{**row, "change": row["change"][:8]} for row in rows]
        console.table(names, [tuple(row[name] for name in names) for row in short])


def _tell(event: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        console.data(event)
    else:
        console.line(console.event_line(event))
