"""What `up` leaves in its home for the command line: where the API is and how to speak to it."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from optiinfra.runtime.settings import Settings
from optiinfra.schemas.base import Value
from optiinfra.schemas.errors import Rejected

FILE = "session.json"


class Session(Value):
    """Kept readable for its owner alone."""

    url: str
    token: str
    sign_in_url: str | None = None
    """Opens the pages signed in, once, within 15 minutes of the start."""
    gateway_url: str | None = None
    gateway_admin_url: str | None = None
    gateway_admin_token: str | None = None
    nats_url: str | None = None
    """The bus, as an operator signs in there."""
    postgres_url: str | None = None


LOCAL_OPERATOR = "local operator"
"""Whoever runs this: one person for the policy, on the command line as in a browser."""


def sign_in_url(url: str, once: str) -> str:
    """The link that opens the pages signed in; a fragment is sent to no server."""
    return f"{url}/sign-in#token={once}"


def read_session(home: Path) -> Session | None:
    """The session of a home, None when `up` has not run there (or its file is broken)."""
    try:
        return Session.model_validate_json((home / FILE).read_text())
    except (FileNotFoundError, ValidationError):
        return None


def addresses_of(settings: Settings) -> tuple[str, str]:
    """The bus and the database of the settings, else those that `up` has left in its home.

    Raises `Rejected` when neither names them.
    """
    session = read_session(settings.home.expanduser())
    nats_url = settings.nats_url or (session.nats_url if session else None)
    if nats_url is None:
        raise _nothing_to_look_at("bus", "OPTIINFRA_NATS_URL")
    return nats_url, database_of(settings)


def database_of(settings: Settings) -> str:
    """The database of the settings, else that which `up` has left in its home.

    Raises `Rejected` when neither names one.
    """
    session = read_session(settings.home.expanduser())
    postgres_url = settings.postgres_url or (session.postgres_url if session else None)
    if postgres_url is None:
        raise _nothing_to_look_at("database", "OPTIINFRA_POSTGRES_URL")
    return postgres_url


def _nothing_to_look_at(what: str, variable: str) -> Rejected:
    return Rejected(
        f"there is no {what} to look at",
        hint=f"name the home of a running `optiinfra up` with --home, or set {variable}",
    )
