"""The broker's `authorization` block: a user a role, with its permissions and nothing else."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from optiinfra.events.bus_roles import BusRole
from optiinfra.events.permissions import permissions_of

HEADER = "# Written by optiinfra from the table of subjects. Edit that, and write this again.\n"


def authorization(passwords: Mapping[BusRole, str], *, admin: tuple[str, str] | None = None) -> str:
    """Text for the broker's configuration; a password may be its bcrypt hash.

    `admin` (user, password) may do everything: for tests and for embedded servers.
    """
    quoted = {role: json.dumps(password) for role, password in passwords.items()}
    users = [
        f'{{"user": "{role}", "password": {text}, {_may(role)}}}' for role, text in quoted.items()
    ]
    if admin is not None:
        users.insert(0, json.dumps({"user": admin[0], "password": admin[1]}))
    return _block(users)


def from_environment() -> str:
    """The same for all roles; the broker takes each password from its environment."""
    users = [
        f'{{"user": "{role}", "password": ${variable_of(role)}, {_may(role)}}}' for role in BusRole
    ]
    return HEADER + _block(users)


def variable_of(role: BusRole) -> str:
    """The environment variable that holds the password of a role."""
    return f"NATS_{role.name}_PASSWORD"


def _block(users: list[str]) -> str:
    lines = ",\n".join(f"    {user}" for user in users)
    return f"authorization {{\n  timeout: 5\n  users: [\n{lines}\n  ]\n}}\n"


def _may(role: BusRole) -> str:
    allowed = permissions_of(role)
    permissions = {
        "publish": {"allow": list(allowed.publish), "deny": list(allowed.never)},
        "subscribe": {"allow": list(allowed.subscribe)},
    }
    return f'"permissions": {json.dumps(permissions)}'


def main(arguments: list[str]) -> int:
    """`python -m optiinfra.events.authorization deploy/nats-auth.conf`"""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m optiinfra.events.authorization FILE\n")
        return 2
    Path(arguments[0]).write_text(from_environment(), encoding="utf-8")
    return 0


if __name__ == "__main__":  # pragma: no cover
    sys.exit(main(sys.argv[1:]))
