"""`optiinfra keys` and `login`: what programs and browsers sign in with."""

from __future__ import annotations

from typing import Annotated

import typer

from optiinfra.runtime import console
from optiinfra.runtime.cli_options import Home, Json, Limit, settings_of

app = typer.Typer(help="Keys: create, ls, revoke.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def create(
    label: Annotated[str, typer.Argument(help="What it is for.")],
    scopes: Annotated[
        list[str] | None, typer.Option("--scope", help="A permission, as `read`; repeatable.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=365, help="How long it is good for.")] = 90,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Makes a key and shows it, this one time."""
    from optiinfra.runtime.cli_client import signed_in

    with signed_in(settings_of(home)) as api:
        made = api.post("/keys", {"label": label, "scopes": scopes or ["read"], "days": days})
    if as_json:
        console.data(made)
        return
    console.say(f"{made['id']} may {', '.join(made['scopes'])} until {made['expires_at'][:10]}")
    console.line(made["key"])


@app.command("ls")
def ls(limit: Limit = 50, as_json: Json = False, home: Home = None) -> None:
    """Lists keys, the newest first."""
    from optiinfra.runtime.cli_client import signed_in

    with signed_in(settings_of(home)) as api:
        found = list(api.pages("/keys", limit))
    if as_json:
        console.data(found)
        return
    rows = [
        (key["id"], key["label"], key["owner"], " ".join(key["scopes"]), key["expires_at"][:10],
         key["last_used_at"] and console.age(key["last_used_at"]))
        for key in found
    ]  # fmt: skip
    console.table(("id", "label", "owner", "scopes", "expires", "last used"), rows)


@app.command()
def revoke(
    key: Annotated[str, typer.Argument(help="Its id, as `keys ls` shows it.")], home: Home = None
) -> None:
    """Ends a key."""
    from optiinfra.runtime.cli_client import signed_in

    with signed_in(settings_of(home)) as api:
        api.answer("DELETE", f"/keys/{key}")
    console.line(f"{key} is revoked")


def login(home: Home = None) -> None:
    """Prints a link that signs your browser in, once, within 15 minutes."""
    from optiinfra.runtime.cli_client import signed_in

    with signed_in(settings_of(home)) as api:
        console.line(api.post("/session/link", {})["url"])
