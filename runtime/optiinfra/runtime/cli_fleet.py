"""`optiinfra agents`, `switch`, `config` and `topology`: the fleet's parts and how they stand."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from optiinfra.runtime import console
from optiinfra.runtime.cli_options import Config, Home, Json, settings_of
from optiinfra.schemas.errors import Rejected

agents = typer.Typer(help="Agents: ls.", no_args_is_help=True, rich_markup_mode=None)
switch = typer.Typer(
    help="The stop switch: on halts every new stage, off lets them go on, show says how it stands.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
config = typer.Typer(help="Settings: show, check.", no_args_is_help=True, rich_markup_mode=None)
topology = typer.Typer(
    help="The broker's streams: apply, diff.", no_args_is_help=True, rich_markup_mode=None
)
SECRETS = ("token", "gateway_admin_token")
URLS = ("nats_url", "postgres_url", "clickhouse_url", "qdrant_url", "redis_url")


@agents.command("ls")
def ls(as_json: Json = False, home: Home = None) -> None:
    """Lists the agents' instances with their heartbeats."""
    from optiinfra.runtime.cli_client import signed_in

    with signed_in(settings_of(home)) as api:
        found = api.get("/agents")["items"]
    if as_json:
        console.data(found)
        return
    rows = [
        (a["agent"], a["instance"], a["status"], f"{a['silent_s']:.0f} s", a["busy_with"],
         a["handled"], a["failed"], a["version"])
        for a in found
    ]  # fmt: skip
    columns = ("agent", "instance", "status", "silent", "busy with", "handled", "failed", "version")
    console.table(columns, rows)


@switch.command("on")
def on(
    reason: Annotated[str, typer.Option("--reason", "-m", help="Why.")],
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Stops: no stage begins any more; rollbacks still run."""
    _turn({"stopped": True, "reason": reason}, home, as_json=as_json)


@switch.command("off")
def off(
    reason: Annotated[str, typer.Option("--reason", "-m", help="Why.")],
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Lets changes go on."""
    _turn({"stopped": False, "reason": reason}, home, as_json=as_json)


@switch.command("show")
def show(as_json: Json = False, home: Home = None) -> None:
    """Says how the switch stands."""
    from optiinfra.runtime.cli_client import signed_in

    with signed_in(settings_of(home)) as api:
        found = api.get("/switch")
    if as_json:
        console.data(found)
        return
    why = f" (by {found['by']}: {found['reason']})" if found["by"] else ""
    console.line(f"{'on: changes are stopped' if found['stopped'] else 'off'}{why}")


def _turn(body: dict[str, object], home: Path | None, *, as_json: bool) -> None:
    from optiinfra.runtime.cli_client import signed_in

    with signed_in(settings_of(home)) as api:
        accepted = api.post("/switch", body)
    if as_json:
        console.data(accepted)
    else:
        console.say(f"switch {'on' if body['stopped'] else 'off'}: accepted")


@config.command("show")
def show_config(as_json: Json = False, home: Home = None, config: Config = None) -> None:
    """Shows the settings in force, without their secrets."""
    from optiinfra.events.bus import without_password

    shown = settings_of(home, config).model_dump(mode="json")
    for name in URLS:
        shown[name] = without_password(shown[name]) if shown[name] else None
    for name in SECRETS:
        shown[name] = "(set)" if shown[name] else None
    if as_json:
        console.data(shown)
    else:
        console.table(("setting", "value"), sorted(shown.items()))


@config.command()
def check(
    path: Annotated[Path | None, typer.Argument(help="The fleet file; else --config.")] = None,
    as_json: Json = False,
    home: Home = None,
    config: Config = None,
) -> None:
    """Checks settings and fleet file; exits with 2 and names the key that is wrong."""
    from optiinfra.runtime.fleet_file import load_fleet

    settings = settings_of(home, config)
    chosen = path or settings.config
    if chosen is None:
        raise Rejected("there is no fleet file to check", hint="name it: --config fleet.yaml")
    fleet = load_fleet(chosen)
    if as_json:
        console.data({"ok": True, **fleet.model_dump(mode="json")})
        return
    served = ", ".join(deployment.id for deployment in fleet.deployments)
    console.line(f"{chosen} is good: tenant {fleet.tenant}, mode {fleet.mode}, serves {served}")


@topology.command()
def apply(
    update: Annotated[bool, typer.Option("--update", help="Correct what drifted, too.")] = False,
    home: Home = None,
) -> int:
    """Creates the streams that are missing."""
    roles = import_module("optiinfra.runtime.roles")
    return int(roles.topology(settings_of(home), apply=True, update=update))


@topology.command()
def diff(home: Home = None) -> int:
    """Shows how the streams differ; exits with 5 when they do."""
    roles = import_module("optiinfra.runtime.roles")
    return int(roles.topology(settings_of(home), apply=False))
