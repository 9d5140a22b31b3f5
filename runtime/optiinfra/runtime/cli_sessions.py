"""`optiinfra sessions`: where you are signed in, and signing out there."""

from __future__ import annotations

from typing import Annotated

import typer

from optiinfra.runtime import console
from optiinfra.runtime.cli_options import Home, Json, settings_of
from optiinfra.schemas.errors import Rejected

app = typer.Typer(help="Your sessions: ls, end.", no_args_is_help=True, rich_markup_mode=None)


@app.command("ls")
def ls(as_json: Json = False, home: Home = None) -> None:
    """Lists browsers and programs in which you are signed in, the one used last first."""
    from optiinfra.runtime.cli_client import signed_in

    with signed_in(settings_of(home)) as api:
        found = api.get("/sessions")["items"]
    if as_json:
        console.data(found)
        return
    rows = [
        (one["id"], "this one" if one["here"] else "browser" if one["browser"] else "program",
         one["agent"], console.age(one["signed_in_at"]), console.age(one["last_used_at"]))
        for one in found
    ]  # fmt: skip
    console.table(("id", "what", "calls itself", "signed in", "last used"), rows)


@app.command()
def end(
    session: Annotated[
        str | None, typer.Argument(help="Its id, as `sessions ls` shows it.")
    ] = None,
    everywhere: Annotated[
        bool, typer.Option("--all", help="All of them, this one too; keys go on.")
    ] = False,
    home: Home = None,
) -> None:
    """Signs you out in one of them, or everywhere."""
    from optiinfra.runtime.cli_client import signed_in

    if everywhere is (session is not None):
        raise Rejected("which one?", hint="give the id of a session, or --all")
    with signed_in(settings_of(home)) as api:
        api.answer("DELETE", "/sessions" if session is None else f"/sessions/{session}")
    console.line("signed out everywhere" if session is None else f"{session} is ended")
