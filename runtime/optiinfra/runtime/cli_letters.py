"""`optiinfra dlq`: what could not be handled, and what is done with it."""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from optiinfra.runtime import console
from optiinfra.runtime.cli_events import Since, time_of
from optiinfra.runtime.cli_options import Home, Json, Yes, settings_of
from optiinfra.schemas.errors import Rejected

if TYPE_CHECKING:
    from optiinfra.runtime.settings import Settings
    from optiinfra.storage.letters import Letters, Wanted
    from optiinfra.storage.postgres.letters import Order

T = TypeVar("T")
app = typer.Typer(
    help="Dead letters: ls, show, retry, drop.", no_args_is_help=True, rich_markup_mode=None
)
Consumer = Annotated[str | None, typer.Option(help="Only those of this consumer.")]
Cause = Annotated[str | None, typer.Option(help="Only those with this cause, as `Rejected`.")]
Number = Annotated[int, typer.Argument(help="The letter's number, as `dlq ls` shows it.")]
Everything = Annotated[bool, typer.Option("--all", help="Also those that were dealt with.")]


@app.command("ls")
def ls(
    consumer: Consumer = None,
    cause: Cause = None,
    since: Since = None,
    everything: Everything = False,
    as_json: Json = False,
    home: Home = None,
) -> None:
    """Lists what could not be handled, in the order in which it was buried."""
    wanted = _wanted(consumer, cause, since, everything=everything)
    found = _with(settings_of(home), lambda letters: letters.ls(wanted))
    if as_json:
        console.data([one.told() for one in found])
        return
    rows = [
        (str(one.number), f"{one.fact.at:%Y-%m-%d %H:%M:%S}", one.fact.consumer, one.fact.subject,
         one.fact.cause, one.fact.error[:60], one.state.value)
        for one in found
    ]  # fmt: skip
    console.table(("no", "at", "consumer", "subject", "cause", "error", "state"), rows)


@app.command()
def show(number: Number, as_json: Json = False, home: Home = None) -> None:
    """Shows a whole letter: its cause, its headers, its body."""
    found = _with(settings_of(home), lambda letters: letters.show(number))
    if as_json:
        console.data(found.told())
        return
    for name, value in found.told().items():
        console.line(f"{name:<11} {value if isinstance(value, str) else json.dumps(value)}")


@app.command()
def retry(
    number: Annotated[int | None, typer.Argument(help="The letter's number.")] = None,
    consumer: Consumer = None,
    cause: Cause = None,
    everything: Annotated[bool, typer.Option("--all", help="All that fit the options.")] = False,
    yes: Yes = False,
    reason: Annotated[str, typer.Option("--reason", "-m", help="Why.")] = "",
    home: Home = None,
) -> None:
    """Sends a buried message again, as it was; each letter once."""
    settings = settings_of(home)
    if (number is None) == (not everything):
        raise Rejected("say which letters", hint="optiinfra dlq retry N, or --all")
    if number is not None:
        sequence = _with(settings, lambda letters: _retry(letters, number, _order(reason)))
        console.line(f"letter {number} is message {sequence} now")
        return
    wanted = _wanted(consumer, cause, None, everything=False)
    chosen = _with(settings, lambda letters: letters.ls(wanted))
    if chosen and not yes:
        if not sys.stdin.isatty():
            raise Rejected("nobody is here to be asked", hint="--yes sends without asking")
        typer.confirm(f"send {len(chosen)} messages again?", abort=True, err=True)
    for one in chosen:
        _with(settings, lambda letters, one=one: letters.retry(one, _order(reason)))  # type: ignore[misc]
    console.line(f"{len(chosen)} messages sent again")


@app.command()
def drop(
    number: Number,
    reason: Annotated[str, typer.Option("--reason", "-m", help="Why nothing is to come of it.")],
    home: Home = None,
) -> None:
    """Marks a letter as dealt with; nothing is sent."""
    _with(settings_of(home), lambda letters: _drop(letters, number, _order(reason)))
    console.line(f"letter {number} is dropped")


async def _retry(letters: Letters, number: int, order: Order) -> int | None:
    return (await letters.retry(await letters.show(number), order)).sequence


async def _drop(letters: Letters, number: int, order: Order) -> None:
    await letters.drop(await letters.show(number), order)


def _order(reason: str) -> Order:
    from optiinfra.storage.postgres.letters import Order

    return Order(f"operator:{getpass.getuser()}", reason)


def _wanted(
    consumer: str | None, cause: str | None, since: str | None, *, everything: bool
) -> Wanted:
    from optiinfra.storage.letters import Wanted
    from optiinfra.storage.postgres.letters import LetterState

    state = None if everything else LetterState.NEW
    return Wanted(consumer, cause, time_of(since), state)


def _with(settings: Settings, work: Callable[[Letters], Awaitable[T]]) -> T:
    """Works on the letters as an operator of this machine: with the addresses of the settings,
    else with those that `up` has left in its home."""
    import asyncio

    from optiinfra.events.bus import Bus
    from optiinfra.events.publish import Publisher
    from optiinfra.runtime.session import addresses_of
    from optiinfra.runtime.stores import new_id, now
    from optiinfra.storage.letters import Letters
    from optiinfra.storage.postgres.database import open_database

    nats_url, postgres_url = addresses_of(settings)

    async def run() -> T:
        bus = await Bus.connect(nats_url, name="operator")
        try:
            async with open_database(postgres_url, connections=1) as database:
                publisher = Publisher(bus, "operator", now, new_id)
                return await work(Letters(bus, database, publisher))
        finally:
            await bus.close()

    return asyncio.run(run())
