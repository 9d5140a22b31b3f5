"""Random passwords of the local servers, kept in one file that only its owner can read."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from optiinfra.schemas.errors import Invariant


def kept_password(home: Path, server: str) -> str:
    """The password of `server` in this home; made at the first call, the same ever after."""
    return kept_passwords(home, (server,))[server]


def kept_passwords(home: Path, names: Iterable[str]) -> dict[str, str]:
    """The passwords of these in this home, each made when it is first asked for."""
    path, wanted = home / "credentials", tuple(names)
    known = _read(path)
    missing = [name for name in wanted if name not in known]
    if missing:
        known |= {name: secrets.token_urlsafe(24) for name in missing}
        _write(path, known)
    return {name: known[name] for name in wanted}


def _read(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise Invariant(
            f"{path} is not JSON", hint="remove the home folder and start again"
        ) from error
    return {str(name): str(password) for name, password in found.items()}


def _write(path: Path, passwords: dict[str, str]) -> None:
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(passwords, file)
    fresh.replace(path)
