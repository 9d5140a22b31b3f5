"""The command `optiinfra`: verbs that start things, verbs over the API, one line for each error."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from optiinfra.runtime import (
    cli_audit,
    cli_changes,
    cli_engine,
    cli_events,
    cli_fleet,
    cli_keys,
    cli_letters,
    cli_recs,
    cli_sessions,
    cli_what_if,
    console,
)
from optiinfra.runtime.cli_options import Config, Home, Json, Policy, Yes, give, settings_of
from optiinfra.schemas.errors import (
    Conflict,
    Denied,
    NotFound,
    OptiInfraError,
    Rejected,
    Unavailable,
)

EXIT_CODES: tuple[tuple[type[OptiInfraError], int], ...] = (
    (NotFound, 3),
    (Denied, 4),
    (Rejected, 2),
    (Conflict, 5),
    (Unavailable, 6),
)
"""The first class that fits; everything else is 1."""
INTERRUPTED = 130
_UsageError: Any = typer.BadParameter.__bases__[0].__bases__[0]
"""The base of everything that the parser complains of (typer keeps it for itself)."""

app = typer.Typer(
    name="optiinfra",
    help="Keeps an LLM-serving fleet cheap and fast without making its answers worse.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_recs.app, name="recs")
app.add_typer(cli_changes.app, name="changes")
app.add_typer(cli_fleet.agents, name="agents")
app.add_typer(cli_events.events, name="events")
app.add_typer(cli_audit.app, name="audit")
app.add_typer(cli_letters.app, name="dlq")
app.add_typer(cli_fleet.switch, name="switch")
app.add_typer(cli_fleet.topology, name="topology")
app.add_typer(cli_fleet.config, name="config")
app.add_typer(cli_engine.app, name="engine")
app.add_typer(cli_keys.app, name="keys")
app.add_typer(cli_sessions.app, name="sessions")
app.command()(cli_audit.rebuild)
app.command()(cli_keys.login)
app.command("what-if")(cli_what_if.what_if)


def _version(wanted: bool) -> None:  # noqa: FBT001 - typer's callback
    if wanted:
        from importlib.metadata import version

        console.line(version("optiinfra"))
        raise typer.Exit


@app.callback()
def before(
    home: Home = None,
    config: Config = None,
    policy: Policy = None,
    version: Annotated[  # noqa: ARG001 - its callback acts
        bool, typer.Option("--version", callback=_version, is_eager=True, help="The version.")
    ] = False,
) -> None:
    """Keeps an LLM-serving fleet cheap and fast without making its answers worse."""
    give(home=home, config=config, policy=policy)


@app.command()
def demo(
    fast: Annotated[bool, typer.Option("--fast", help="About two minutes.")] = False,
    yes: Yes = False,
    as_json: Json = False,
    seed: Annotated[int, typer.Option(help="Another seed, another run.")] = 7,
    home: Home = None,
    play: Annotated[str, typer.Option(help="One play alone: a, b, c or d.")] = "all",
) -> int:
    """Plays the whole story against a simulated cloud."""
    played = import_module("optiinfra.demo.main")
    options = played.DemoOptions(
        fast=fast, yes=yes, json=as_json, seed=seed, home=home or given_home(), play=play
    )
    return int(played.run(options))


@app.command(name="demo-vllm")
def demo_vllm(
    yes: Yes = False,
    as_json: Json = False,
    grid: Annotated[bool, typer.Option(help="Walk vLLM's grid, too: slow.")] = True,
    runs: Annotated[int, typer.Option(min=1, help="How often each variant is tried.")] = 1,
    vllm: Annotated[
        Path | None,
        typer.Option(envvar="OPTIINFRA_VLLM", help="A vLLM executable that is there."),
    ] = None,
    home: Home = None,
) -> int:
    """Plays the loop on a real vLLM server (installed when it is missing: 3.5 GB)."""
    played = import_module("optiinfra.demo.vllm.main")
    options = played.VllmDemoOptions(
        yes=yes, json=as_json, grid=grid, runs=runs, vllm=vllm, home=home or given_home()
    )
    return int(played.run(options))


def given_home() -> Any:
    """The home that stood before the verb, or in the environment; None leaves nothing behind."""
    settings = settings_of()
    return settings.home if "home" in settings.model_fields_set else None


@app.command()
def up(home: Home = None, config: Config = None, policy: Policy = None) -> int:
    """Runs everything on this machine for the fleet that `--config` names."""
    return _call("optiinfra.runtime.up", "run", settings_of(home, config, policy))


@app.command()
def down(home: Home = None) -> int:
    """Stops what `up` started from this home."""
    return _call("optiinfra.runtime.up", "stop", settings_of(home))


@app.command()
def status(as_json: Json = False, home: Home = None) -> int:
    """Says what runs from this home."""
    return _call("optiinfra.runtime.up", "status", settings_of(home), as_json)


@app.command()
def doctor(
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Also what goes on: changes, consumers, letters, agents."),
    ] = False,
    as_json: Json = False,
    home: Home = None,
    config: Config = None,
    policy: Policy = None,
) -> int:
    """Checks this machine and the configuration, and says what to do."""
    settings = settings_of(home, config, policy)
    return _call("optiinfra.runtime.doctor", "run", settings, as_json, deep)


@app.command()
def migrate(home: Home = None) -> int:
    """Brings the databases' tables to this version."""
    return _call("optiinfra.runtime.roles", "migrate", settings_of(home))


@app.command()
def agent(
    name: Annotated[str, typer.Argument(help="cost, performance, resource or application.")],
    home: Home = None,
    config: Config = None,
) -> int:
    """Runs one agent as a process of its own."""
    roles = import_module("optiinfra.runtime.roles")
    return int(roles.run_agent(name, settings_of(home, config)) or 0)


def _role(role: str, about: str) -> None:
    def run_role(home: Home = None, config: Config = None, policy: Policy = None) -> int:
        settings = settings_of(home, config, policy)
        return _call("optiinfra.runtime.roles", "run_role", role, settings)

    app.command(role, help=about)(run_role)


_role("coordinator", "Runs the coordinator as a process of its own.")
_role("collector", "Runs the collectors as a process of its own.")
_role("gateway", "Runs the gateway as a process of its own.")
_role("portal-api", "Runs the API as a process of its own.")
_role("notifier", "Runs what tells people and other systems as a process of its own.")


def _call(module: str, function: str, *arguments: object) -> int:
    """Imports late, so that `--help` stays quick."""
    return int(getattr(import_module(module), function)(*arguments) or 0)


def run(arguments: Sequence[str]) -> int:
    """The exit code of one call; prints an error as one line with what to do about it."""
    try:
        return int(app(args=list(arguments), prog_name="optiinfra", standalone_mode=False) or 0)
    except OptiInfraError as failed:
        return _tell(failed)
    except BaseExceptionGroup as several:
        ours = several.subgroup(OptiInfraError)
        if ours is None:
            raise
        return _tell(_first(ours))
    except _UsageError as misused:
        misused.show()
        return int(misused.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        console.say("stopped")
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _tell(failed: OptiInfraError) -> int:
    console.say(f"error: {failed.message}")
    if failed.hint:
        console.say(f"  try: {failed.hint}")
    return next((code for kind, code in EXIT_CODES if isinstance(failed, kind)), 1)


def _first(group: BaseExceptionGroup[Any]) -> OptiInfraError:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
