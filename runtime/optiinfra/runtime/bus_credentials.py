"""`optiinfra topology credentials`: a password a role, and the broker's configuration for them."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from optiinfra.events.authorization import authorization, variable_of
from optiinfra.events.bus_roles import BusRole
from optiinfra.schemas.errors import Conflict, Rejected

CONFIG = "nats-auth.conf"
PASSWORDS = "passwords.env"


def write_credentials(folder: Path, address: str, *, hashed: bool, rotate: bool) -> list[Path]:
    """Writes the files, each for its owner alone (0600), and gives their paths.

    `nats-auth.conf` for the broker to include, `<role>.env` with the address of the bus for that
    role, `passwords.env` for compose. All are new: whoever is signed in stays until the broker
    reads its configuration again. Raises `Conflict` when one is there and `rotate` is not asked
    for, `Rejected` when hashes are asked for and bcrypt is not installed.
    """
    hash_of = _bcrypt if hashed else str
    passwords = {role: "p" + secrets.token_hex(24) for role in BusRole}
    texts = {CONFIG: authorization({role: hash_of(word) for role, word in passwords.items()})}
    texts[PASSWORDS] = "".join(f"{variable_of(role)}={passwords[role]}\n" for role in BusRole)
    texts |= {f"{role}.env": _environment(role, passwords, address) for role in BusRole}
    present = sorted(name for name in texts if (folder / name).exists())
    if present and not rotate:
        raise Conflict(
            f"{folder} holds {', '.join(present)} already",
            hint="--rotate writes new passwords over them; the broker and every role need them",
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return [_write(folder / name, text) for name, text in texts.items()]


def _environment(role: BusRole, passwords: Mapping[BusRole, str], address: str) -> str:
    host = address.removeprefix("nats://")
    return f"OPTIINFRA_NATS_URL=nats://{role}:{passwords[role]}@{host}\n"


def _bcrypt(password: str) -> str:
    try:
        bcrypt = import_module("bcrypt")
    except ImportError as missing:
        raise Rejected(
            "bcrypt is not installed", hint="pip install bcrypt, or leave --hash out"
        ) from missing
    made: bytes = bcrypt.hashpw(password.encode(), bcrypt.gensalt(11))
    return made.decode()


def _write(path: Path, text: str) -> Path:
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    fresh.replace(path)
    return path
