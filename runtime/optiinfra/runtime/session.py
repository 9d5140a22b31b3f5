"""What `up` leaves in its home for the command line: where the API is and how to speak to it."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from optiinfra.schemas.base import Value

FILE = "session.json"


class Session(Value):
    """Kept readable for its owner alone."""

    url: str
    token: str
    gateway_url: str | None = None
    gateway_admin_url: str | None = None
    gateway_admin_token: str | None = None


def read_session(home: Path) -> Session | None:
    """The session of a home, None when `up` has not run there (or its file is broken)."""
    try:
        return Session.model_validate_json((home / FILE).read_text())
    except (FileNotFoundError, ValidationError):
        return None
