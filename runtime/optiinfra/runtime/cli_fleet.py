"""`optiinfra agents`, `switch`, `config` and `topology`: the fleet's parts and how they stand."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optiinfra.runtime import console
from optiinfra.runtime.cli_options import Config, Home, Json, Policy, settings_of
from optiinfra.schemas.errors import Rejected

if TYPE_CHECKING:
    from optiinfra.schemas.rules import Rules

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
SECRETS = ("token", "gateway_admin_token", "oidc_client_secret", "github_client_secret")
URLS = (
    "nats_url",
    "operator_nats_url",
    "postgres_url",
    "clickhouse_url",
    "qdrant_url",
    "redis_url",
)


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
def show_config(
    as_json: Json = False, home: Home = None, config: Config = None, policy: Policy = None
) -> None:
    """Shows the settings and the policy in force, without secrets."""
    from optiinfra.events.bus import without_password
    from optiinfra.runtime.policy_show import policy_lines, policy_of

    settings = settings_of(home, config, policy)
    shown = settings.model_dump(mode="json")
    for name in URLS:
        shown[name] = without_password(shown[name]) if shown[name] else None
    for name in SECRETS:
        shown[name] = "(set)" if shown[name] else None
    rules = policy_of(settings)
    if as_json:
        effective = rules.model_dump(mode="json") if rules else None
        version = rules.version if rules else None
        console.data({**shown, "rules": effective, "rules_version": version})
        return
    console.table(("setting", "value"), sorted(shown.items()))
    for line in policy_lines(rules) if rules else ():
        console.line(line)


@config.command()
def check(
    path: Annotated[Path | None, typer.Argument(help="The fleet file; else --config.")] = None,
    as_json: Json = False,
    home: Home = None,
    config: Config = None,
    policy: Policy = None,
) -> None:
    """Checks settings, fleet and policy; exits with 2 and names the key that is wrong."""
    settings = settings_of(home, config, policy)
    chosen = path or settings.config
    if chosen is not None:
        _check_fleet(chosen, settings.policy, as_json=as_json)
    elif settings.policy is not None:
        _check_policy(settings.policy, as_json=as_json)
    else:
        raise Rejected("there is no fleet file to check", hint="name it: --config fleet.yaml")


def _check_fleet(path: Path, policy: Path | None, *, as_json: bool) -> None:
    from optiinfra.runtime.fleet_file import load_governed
    from optiinfra.runtime.notifications import load_notifications

    fleet = load_governed(path, policy)
    if fleet.notifications is not None:
        load_notifications(fleet.notifications)
    if as_json:
        console.data({**_policy_told(fleet.rules), **fleet.model_dump(mode="json")})
        return
    served = ", ".join(deployment.id for deployment in fleet.deployments)
    console.line(f"{path} is good: tenant {fleet.tenant}, mode {fleet.mode}, serves {served}")
    _tell_policy(fleet.policy or path, fleet.rules)


def _check_policy(path: Path, *, as_json: bool) -> None:
    """A policy by itself; whether the fleet has what it names is not known."""
    from optiinfra.runtime.policy_file import load_policy

    rules = load_policy(path)
    if as_json:
        console.data({**_policy_told(rules), "rules": rules.model_dump(mode="json")})
    else:
        _tell_policy(path, rules)


def _policy_told(rules: Rules) -> dict[str, object]:
    return {"ok": True, "warnings": _doubts(rules), "rules_version": rules.version}


def _tell_policy(path: Path, rules: Rules) -> None:
    console.line(f"{path} holds a good policy: {rules.version}")
    for doubt in _doubts(rules):
        console.say(f"warning: {doubt}")


def _doubts(rules: Rules) -> tuple[str, ...]:
    from datetime import UTC, datetime

    from optiinfra.schemas.policy_review import warnings

    return warnings(rules, datetime.now(tz=UTC))


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


@topology.command()
def credentials(
    out: Annotated[Path, typer.Option("--out", help="The folder to write into.")],
    address: Annotated[
        str, typer.Option("--address", help="Where the roles reach the broker.")
    ] = "nats:4222",
    hashed: Annotated[
        bool, typer.Option("--hash", help="The broker's file holds bcrypt hashes alone.")
    ] = False,
    rotate: Annotated[bool, typer.Option("--rotate", help="Replace what is there.")] = False,
) -> None:
    """Makes a password for each role, and the broker's configuration that tells them apart."""
    from optiinfra.runtime.bus_credentials import write_credentials

    for path in write_credentials(out, address, hashed=hashed, rotate=rotate):
        console.line(str(path))
