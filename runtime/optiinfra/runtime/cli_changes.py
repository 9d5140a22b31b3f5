"""`optiinfra changes`: what is under way, and an operator's wishes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optiinfra.runtime import console
from optiinfra.runtime.cli_options import Change, Home, Json, Limit, Reason, settings_of

if TYPE_CHECKING:
    from optiinfra.runtime.cli_client import Api

app = typer.Typer(
    help="Changes: list, show, conflicts, watch, pause, resume, promote, abort, rollback.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("ls")
def ls(
    state: Annotated[str | None, typer.Option(help="As `executing`.")] = None,
    deployment: Annotated[str | None, typer.Option()] = None,
    limit: Limit = 50,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Lists changes; what moved last comes first."""
    from optiinfra.runtime.cli_client import signed_in

    with signed_in(settings_of(home)) as api:
        found = list(api.pages("/changes", limit, state=state, deployment=deployment))
    if as_json:
        console.data(found)
        return
    rows = [
        (c["id"], c["state"], _stage(c), c["title"], c["deployment"], console.age(c["updated_at"]))
        for c in found
    ]
    console.table(("id", "state", "stage", "what", "target", "moved"), rows)


@app.command()
def conflicts(
    change: Annotated[str | None, typer.Argument(help="Only those of this change.")] = None,
    limit: Limit = 50,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Lists which changes wanted the same, who lost, and by which rule; the latest first."""
    from optiinfra.runtime.cli_client import signed_in

    with signed_in(settings_of(home)) as api:
        whole = api.id_of(change) if change else None
        found = list(api.pages("/conflicts", limit, change=whole))
    if as_json:
        console.data(found)
        return
    rows = [
        (c["at"][:19], c["change"]["id"], c["verdict"], c["against"]["id"], c["claim"], c["rule"])
        for c in found
    ]  # fmt: skip
    console.table(("at", "change", "what", "because of", "both want", "by rule"), rows)


@app.command()
def show(change: Change, as_json: Json = False, home: Home = None) -> None:
    """Shows one change: its votes, stages with their gates, and everything that happened."""
    from optiinfra.runtime.cli_client import signed_in

    with signed_in(settings_of(home)) as api:
        found = api.get(f"/changes/{api.id_of(change)}")
    if as_json:
        console.data(found)
        return
    why = found["end_reason"] or found["rollback_reason"] or found["waiting"]
    console.line(f"{found['title']}  [{found['state']}]" + (f"  {why}" if why else ""))
    for stage in found["stages"]:
        console.line(f"stage {stage['stage']}  {stage['share']:.0%}  {stage['status']}")
        for look in stage["looks"]:
            verdict = look["verdict"] or "waited for"
            console.line(f"  look {look['look']}: {verdict}" + _why(look["reasons"]))
            for answer in look["answers"]:
                console.line(f"    {answer['assessor']}: {answer['verdict']}: {answer['reason']}")
                for metric in answer["metrics"]:
                    console.line(f"      {_metric(metric)}")
    for event in found["timeline"]:
        console.line(console.event_line(event))


@app.command()
def watch(change: Change, as_json: Json = False, home: Home = None) -> int:
    """Follows one change to its end; exits with 0 when it completed, with 1 when not."""
    from optiinfra.runtime.cli_client import signed_in

    with signed_in(settings_of(home)) as api:
        return _watch(api, api.id_of(change), as_json=as_json)


def _watch(api: Api, change: str, *, as_json: bool) -> int:
    from optiinfra.events.facts import TERMINAL_FACTS

    answer = api.answer("GET", f"/changes/{change}")
    seen: set[str] = set()
    for event in answer.json()["timeline"]:
        seen.add(event["id"])
        _tell(event, as_json=as_json)
        if event["kind"] in TERMINAL_FACTS:
            return 0 if event["kind"] == "change.completed" else 1
    for frame in api.follow(int(answer.headers["X-Event-Seq"]), console.say):
        if frame["kind"] != "event" or frame["id"] in seen or frame.get("correlationid") != change:
            continue
        seen.add(frame["id"])
        event = as_event(frame)
        _tell(event, as_json=as_json)
        if event["kind"] in TERMINAL_FACTS:
            return 0 if event["kind"] == "change.completed" else 1
    return 1


def as_event(frame: dict[str, Any]) -> dict[str, Any]:
    """A frame of the live stream in the shape of the log's events."""
    return {
        "id": frame["id"],
        "seq": frame["seq"],
        "kind": frame["data"]["kind"],
        "at": frame["time"],
        "source": frame["source"],
        "correlation": frame.get("correlationid"),
        "causation": frame.get("causationid"),
        "fact": frame["data"],
    }


def _tell(event: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        console.data(event)
    else:
        console.line(console.event_line(event))


def _control(verb: str) -> Any:
    def control(
        change: Change, reason: Reason = "", as_json: Json = False, home: Home = None
    ) -> None:
        _wish(verb, change, (reason, home), as_json=as_json)

    control.__doc__ = _ABOUT[verb]
    return control


def _wish(verb: str, change: str, given: tuple[str, Path | None], *, as_json: bool) -> None:
    from optiinfra.runtime.cli_client import signed_in

    reason, home = given
    with signed_in(settings_of(home)) as api:
        whole = api.id_of(change)
        accepted = api.post(f"/changes/{whole}/{verb}", {"reason": reason})
    if as_json:
        console.data(accepted)
    else:
        console.say(f"{verb}: accepted ({whole})")


def _stage(change: dict[str, Any]) -> str | None:
    step = change["step"]
    if step is None:
        return None
    phase = f" {change['phase']}" if change["phase"] else ""
    return f"{step['share']:.0%}{phase}" + (" (paused)" if change["paused_by"] else "")


def _why(reasons: list[str]) -> str:
    return f": {'; '.join(reasons)}" if reasons else ""


def _metric(metric: dict[str, Any]) -> str:
    observed = metric["observed"]
    value = observed.get("value") if isinstance(observed, dict) else observed
    shown = console.UNKNOWN if value is None else f"{value:g}"
    return (
        f"{metric['name']}: observed {shown} {metric['unit']}, threshold {metric['threshold']:g},"
        f" window {metric['window_s']:g} s, {metric['samples']} samples: {metric['verdict']}"
    )


_ABOUT = {
    "pause": "No further stage until it is resumed.",
    "resume": "Goes on after a pause.",
    "promote": "Takes the decision of the gate on yourself: the stage passes.",
    "abort": "Ends it: cancelled before its first step, rolled back after.",
    "rollback": "Brings the target back to what it was before.",
}
for _verb in _ABOUT:
    app.command(_verb)(_control(_verb))
