"""Typed identifiers; every id is one lower-case token that fits into a subject."""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import sha1
from typing import Annotated
from uuid import UUID

from pydantic import StringConstraints

from optiinfra.schemas.errors import Rejected

NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"

Token = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
TenantId = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
DeploymentId = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
ReplicaId = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]


UuidHex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
"""A UUID as 32 lower-case hexadecimal digits."""
EventId = UuidHex
RecommendationId = UuidHex
ChangeId = UuidHex
"""A change is the saga of one recommendation and carries its id."""

NewId = Callable[[], str]
"""An injected source of ids."""

_NAMESPACE = UUID("6f1c1f0e-9c58-5b0e-8f6e-2f9f3a0d7b11").bytes


def derived_id(*parts: object) -> str:
    """The id that the same parts always give: re-deriving an event names it the same.

    A UUIDv5 (RFC 9562) as 32 hex digits, computed here because an event costs several.
    """
    name = "\x1f".join([str(part) for part in parts])
    digest = bytearray(sha1(_NAMESPACE + name.encode(), usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    return digest.hex()


def uuid7(unix_ms: int, random_bits: int) -> str:
    """UUIDv7 (RFC 9562) from a time in ms since the epoch and 74 random bits, as 32 hex digits."""
    if not 0 <= unix_ms < 1 << 48:
        raise Rejected(f"{unix_ms} ms does not fit into the 48 bits of a UUIDv7")
    rand_a = (random_bits >> 62) & 0xFFF
    rand_b = random_bits & ((1 << 62) - 1)
    return UUID(int=unix_ms << 80 | 0x7 << 76 | rand_a << 64 | 0b10 << 62 | rand_b).hex


def token(value: str) -> str:
    """`value` if it is a valid subject token, else `Rejected` saying what is allowed."""
    if not re.fullmatch(NAME_PATTERN, value):
        raise Rejected(
            f"{value!r} is not a valid name",
            hint="use 1-63 lower-case letters, digits, '-' or '_', starting with a letter or digit",
        )
    return value
