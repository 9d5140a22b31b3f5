"""`optiinfra audit` and `optiinfra rebuild`: who did what, and that the log stands."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from optiinfra.runtime import console
from optiinfra.runtime.cli_events import Since, Tenant, Until, is_direct, time_of
from optiinfra.runtime.cli_options import Home, Json, Limit, settings_of

if TYPE_CHECKING:
    from optiinfra.runtime.settings import Settings
    from optiinfra.storage.postgres.database import Database
    from optiinfra.storage.postgres.export import Checked

T = TypeVar("T")
app = typer.Typer(help="Audit: ls, verify, export.", no_args_is_help=True, rich_markup_mode=None)


@app.command("ls")
def ls(
    limit: Limit = 50,
    denied: Annotated[bool, typer.Option("--denied", help="Only what was not allowed.")] = False,
    actor: Annotated[str | None, typer.Option(help="Only what this one did or tried.")] = None,
    target: Annotated[str | None, typer.Option("--on", help="Only what concerns this.")] = None,
    since: Since = None,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Lists who did or tried what, the latest first; what was denied too."""
    from optiinfra.runtime.cli_client import signed_in

    at = time_of(since)
    want = {
        "allowed": "false" if denied else None,
        "actor": actor,
        "target": target,
        "since": at.isoformat() if at else None,
    }
    with signed_in(settings_of(home)) as api:
        found = list(api.pages("/audit", limit, **want))
    if as_json:
        console.data(found)
        return
    rows = [
        (a["at"][:19], a["actor"], a["action"], a["target"], "yes" if a["allowed"] else "DENIED")
        for a in found
    ]
    console.table(("at", "who", "what", "on", "allowed"), rows)


@app.command()
def verify(
    tenant: Tenant = "default",
    file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="An export, not the log.")
    ] = None,
    as_json: Json = False,
    home: Home = None,
) -> int:
    """Proves the event log whole; exits with 1 and names the first place where it is not."""
    settings = settings_of(home)
    if file is not None:
        found = _of_file(file)
    elif is_direct(settings):
        found = _in_database(settings, tenant)
    else:
        found = _by_api(settings)
    if as_json:
        console.data(found)
    else:
        for one in found["breaks"]:
            where = f" (position {one['position']})" if one.get("position") else ""
            event = f", event {one['event_id']}" if one["event_id"] else ""
            console.line(
                f"broken  {one['chain']} at version {one['version']}{event}{where}: {one['what']}"
            )
        word = "whole" if found["ok"] else "NOT whole"
        console.line(f"{word}: {found['events']} events in {found['chains']} chains")
    return 0 if found["ok"] else 1


@app.command()
def export(
    out: Annotated[Path, typer.Argument(dir_okay=False, help="The file to write.")],
    tenant: Tenant = "default",
    since: Since = None,
    until: Until = None,
    home: Home = None,
) -> None:
    """Writes the log and the audit trail of a tenant into a file that proves itself."""
    from optiinfra.storage.postgres.export import Range, exported

    wanted = Range(tenant, time_of(since), time_of(until))

    async def work(database: Database) -> int:
        lines = 0
        with out.open("x", encoding="utf-8", newline="\n") as sink:
            async for line in exported(database, wanted):
                sink.write(line)
                lines += 1
        return lines

    from optiinfra.schemas.errors import Rejected

    try:
        lines = _directly(settings_of(home), work)
    except FileExistsError as there:
        raise Rejected(f"{out} is there already", hint="name another file") from there
    console.line(f"{lines - 1} lines and their seal in {out}")


def rebuild(
    check: Annotated[bool, typer.Option("--check", help="Only say what differs.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Fold a broken log as it is.")] = False,
    as_json: Json = False,
    home: Home = None,
) -> int:
    """Derives all tables from the event log again; exits with 1 if any row stood otherwise."""
    from optiinfra.coordinator.rebuild import Rebuilt
    from optiinfra.coordinator.rebuild import rebuild as fold_again

    async def work(database: Database) -> Rebuilt:
        return await fold_again(database, check=check, force=force)

    found = _directly(settings_of(home), work)
    if as_json:
        console.data(asdict(found))
    else:
        for one in found.differences:
            console.line(f"{one.table} {one.key}: {_unlike(one.stands, one.derived)}")
        did = "differ" if check else "were put right"
        console.line(
            f"{found.events} events in {found.chains} chains folded;"
            f" {len(found.differences)} rows {did}"
        )
    return 1 if found.differences else 0


def _unlike(stands: str | None, derived: str | None) -> str:
    """What differs between two rows, column by column."""
    if stands is None or derived is None:
        return "it stands, the log has nothing of it" if stands else "it is missing"
    there, log = json.loads(stands), json.loads(derived)
    return "; ".join(
        f"{name} is {str(there.get(name))[:60]!r}, by the log {str(log.get(name))[:60]!r}"
        for name in sorted({*there, *log})
        if there.get(name) != log.get(name)
    )


def _directly(settings: Settings, work: Callable[[Database], Awaitable[T]]) -> T:
    """Works on the database of the settings, else on that of a running `up`."""
    from optiinfra.runtime.session import database_of
    from optiinfra.storage.postgres.database import open_database

    url = database_of(settings)

    async def run() -> T:
        async with open_database(url, connections=1) as database:
            return await work(database)

    return asyncio.run(run())


def _by_api(settings: Settings) -> dict[str, Any]:
    from optiinfra.runtime.cli_client import signed_in

    with signed_in(settings) as api:
        found: dict[str, Any] = api.get("/audit/verify")
        return found


def _in_database(settings: Settings, tenant: str) -> dict[str, Any]:
    from optiinfra.storage.postgres.verification import Verification
    from optiinfra.storage.postgres.verification import verify as verify_log

    async def work(database: Database) -> Verification:
        return await verify_log(database, tenant)

    found = _directly(settings, work)
    return {**asdict(found), "ok": found.ok}


def _of_file(file: Path) -> dict[str, Any]:
    from optiinfra.storage.postgres.export import checked

    with file.open("rb") as lines:
        found: Checked = checked(lines)
    told = {**asdict(found), "ok": found.ok}
    if not found.whole:
        told["breaks"] = [
            *told["breaks"],
            {"chain": str(file), "version": 0, "event_id": "", "position": 0,
             "what": "its digest does not fit: lines were changed, added or taken out"},
        ]  # fmt: skip
    return told
