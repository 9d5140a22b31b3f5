"""Options that many verbs share, and the settings that follow from them."""

from __future__ import annotations

from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from optiinfra.runtime.settings import Settings

Home = Annotated[Path | None, typer.Option("--home", help="Where embedded stores keep their data.")]
Config = Annotated[Path | None, typer.Option("--config", help="The fleet file.")]
Policy = Annotated[
    Path | None, typer.Option("--policy", help="The policy file, in place of the fleet's.")
]
Json = Annotated[bool, typer.Option("--json", help="Data as JSON on stdout.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="How many at most.")]
Reason = Annotated[str, typer.Option("--reason", "-m", help="Why; it is kept.")]
Change = Annotated[str, typer.Argument(help="The id, or enough of its beginning.")]


_GIVEN: ContextVar[dict[str, object]] = ContextVar("given", default={})  # noqa: B039 - never mutated


def give(**given: object) -> None:
    """Keeps what stood before the verb, as in `optiinfra --home DIR recs ls`."""
    _GIVEN.set({name: value for name, value in given.items() if value is not None})


def settings_of(
    home: Path | None = None, config: Path | None = None, policy: Path | None = None
) -> Settings:
    """The settings with what the command line gave. Raises `Rejected` naming a bad key."""
    from optiinfra.runtime.settings import load_settings

    here = {"home": home, "config": config, "policy": policy}
    after = {name: value for name, value in here.items() if value is not None}
    return load_settings(**{**_GIVEN.get(), **after})
