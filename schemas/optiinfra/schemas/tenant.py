"""A customer."""

from __future__ import annotations

from enum import StrEnum

from optiinfra.schemas.base import Value
from optiinfra.schemas.ids import TenantId


class Role(StrEnum):
    """What a person or a key may do; each role may do all that the ones before it may."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    APPROVER = "approver"
    ADMIN = "admin"

    def includes(self, other: Role) -> bool:
        """Whether this role may do what `other` may."""
        ranks = list(Role)
        return ranks.index(self) >= ranks.index(other)


class Tenant(Value):
    id: TenantId
    name: str


PERSON, POLICY = "person", "policy"
"""The kinds of actors whose word lets a change begin."""


class Actor(Value):
    """Who did something: a person, a policy, an agent or the system itself."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"


def person(name: str) -> Actor:
    return Actor(kind=PERSON, name=name)


def policy(name: str) -> Actor:
    return Actor(kind=POLICY, name=name)
