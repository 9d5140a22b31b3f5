"""`optiinfra recs`: what is proposed, and your word on it, also "not now"."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optiinfra.runtime import console
from optiinfra.runtime.cli_events import time_to_come
from optiinfra.runtime.cli_options import Change, Home, Json, Limit, Reason, Yes, settings_of
from optiinfra.schemas.errors import Rejected

if TYPE_CHECKING:
    from optiinfra.runtime.cli_client import Api

app = typer.Typer(
    help="Recommendations: list, show, approve, reject, snooze, wake.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Version = Annotated[
    str | None, typer.Option("--version", help="The version you were shown; another is refused.")
]


@app.command("ls")
def ls(
    state: Annotated[str | None, typer.Option(help="As `awaiting_approval`.")] = None,
    deployment: Annotated[str | None, typer.Option()] = None,
    snoozed: Annotated[
        bool | None, typer.Option("--snoozed/--awake", help="Only what somebody has put off.")
    ] = None,
    limit: Limit = 50,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Lists recommendations, the newest first."""
    from optiinfra.runtime.cli_client import signed_in

    with signed_in(settings_of(home)) as api:
        want = {"state": state, "deployment": deployment, "snoozed": snoozed}
        found = list(api.pages("/recommendations", limit, **want))
    if as_json:
        console.data(found)
        return
    rows = [
        (r["id"], _state(r), r["recommendation"]["title"], r["recommendation"]["risk"],
         console.saving(r["recommendation"]), console.age(r["proposed_at"]))
        for r in found
    ]  # fmt: skip
    console.table(("id", "state", "what", "risk", "saving/month", "age"), rows)


@app.command()
def show(change: Change, as_json: Json = False, home: Home = None) -> None:
    """Shows one with its evidence, votes, rollout and rollback."""
    from optiinfra.runtime.cli_client import signed_in

    with signed_in(settings_of(home)) as api:
        found = api.get(f"/recommendations/{api.id_of(change)}")
    if as_json:
        console.data(found)
    else:
        for text in card(found):
            console.line(text)


@app.command()
def approve(
    change: Change,
    reason: Reason = "",
    version: Version = None,
    yes: Yes = False,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Says yes to the version that is shown now (or to `--version`)."""
    _decide("approve", change, (reason, version), yes=yes, as_json=as_json, home=home)


@app.command()
def reject(
    change: Change,
    reason: Annotated[str, typer.Option("--reason", "-m", help="Why; it is learnt from.")],
    version: Version = None,
    yes: Yes = False,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Says no to the version that is shown now (or to `--version`)."""
    _decide("reject", change, (reason, version), yes=yes, as_json=as_json, home=home)


@app.command()
def snooze(
    change: Change,
    until: Annotated[str, typer.Option(help="A time, as 2026-01-31T09:00+01:00, or 4h from now.")],
    reason: Reason = "",
    version: Version = None,
    yes: Yes = False,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Puts the decision off: it stays pending, is not asked for, and still expires."""
    at = time_to_come(until).isoformat()
    _decide("snooze", change, (reason, version), yes=yes, as_json=as_json, home=home, until=at)


@app.command()
def wake(
    change: Change,
    reason: Reason = "",
    version: Version = None,
    yes: Yes = False,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Asks again for a decision that was put off."""
    _decide("wake", change, (reason, version), yes=yes, as_json=as_json, home=home)


def _decide(
    verb: str,
    change: str,
    given: tuple[str, str | None],
    *,
    yes: bool,
    as_json: bool,
    home: Any,
    **more: str,
) -> None:
    from optiinfra.runtime.cli_client import signed_in

    reason, version = given
    with signed_in(settings_of(home)) as api:
        whole = api.id_of(change)
        if version is None:
            version = _reviewed(api, whole, verb, yes=yes)
        path = f"/recommendations/{whole}/{verb}"
        accepted = api.post(path, {"reason": reason, **more}, **{"If-Match": f'"{version}"'})
    if as_json:
        console.data(accepted)
    else:
        console.say(f"{verb}: {'said before' if accepted['repeated'] else 'accepted'} ({whole})")


def _reviewed(api: Api, change: str, verb: str, *, yes: bool) -> str:
    """The version that stands, once a person has seen it. Raises `Rejected` off a terminal."""
    found = api.get(f"/recommendations/{change}")
    if not yes:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise Rejected("there is no terminal to ask on", hint="add --yes, or --version HASH")
        for text in card(found):
            console.say(text)
        typer.confirm(f"{verb} this?", abort=True, err=True)
    return str(found["version_hash"])


def card(found: dict[str, Any]) -> list[str]:
    """A recommendation for people; dissent first among the votes."""
    proposal = found["recommendation"]
    votes = sorted(found["votes"], key=lambda vote: vote["verdict"] == "approve")
    stages = " → ".join(f"{stage['share']:.0%}" for stage in proposal["rollout"]["stages"])
    return [
        f"{proposal['title']}  [{_state(found)}]",
        f"id        {found['id']}  version {found['version_hash']}",
        f"target    {proposal['deployment']}",
        f"proposed  by {proposal['proposer']} {console.age(found['proposed_at'])} ago",
        f"saving    {console.saving(proposal)} a month",
        f"risk      {proposal['risk']}" + "".join(f"; {why}" for why in proposal["risk_reasons"]),
        *(f"vote      {v['agent']}: {v['verdict']}: {'; '.join(v['reasons'])}" for v in votes),
        *_asked(found),
        *(f"evidence  {_evidence(one)}" for one in proposal["evidence"]),
        f"rollout   {stages}, rollback in {proposal['rollback_seconds']:.0f} s",
        *(f"warning   cannot be undone: {what}" for what in proposal["cannot_be_undone"]),
    ]


def _state(found: dict[str, Any]) -> str:
    """Where it stands; what sleeps says until when, in the zone of this machine."""
    off = found["snoozed"]
    if off is None:
        return str(found["state"])
    until = datetime.fromisoformat(off["until"]).astimezone()
    return f"snoozed until {until:%Y-%m-%d %H:%M} by {off['by']}"


def _asked(found: dict[str, Any]) -> list[str]:
    said = [f"{one['by']} says {'yes' if one['granted'] else 'no'}" for one in found["approvals"]]
    if found["state"] == "awaiting_approval":
        given = len({one["by"] for one in found["approvals"] if one["granted"]})
        said.append(f"{given} of {found['approvals_needed']} have said yes")
    return [f"approval  {'; '.join(said)}"] if said else []


def _evidence(one: dict[str, Any]) -> str:
    reading = one["reading"]
    value = reading.get("value") if isinstance(reading, dict) else reading
    shown = console.UNKNOWN if value is None else f"{value:g}"
    return f"{one['name']} {shown} {one['unit']} ({one['source']})"
