"""What signing in at a provider needs of it, and who is let in."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx

from optiinfra.schemas.errors import NotFound, Rejected, Unavailable
from optiinfra.schemas.tenant import Role
from optiinfra.storage.postgres.sign_ins import Begun, Vouched


class SignInFailed(Rejected):
    """What came from the browser or the provider proves nobody's identity. API: 400."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the sign-in failed: {why}", hint="begin again from the sign-in page")


class Provider(Protocol):
    """One place where people have accounts."""

    async def address(self, begun: Begun, *, state: str, redirect_uri: str) -> str:
        """Where the browser goes to sign in."""
        ...

    async def person(self, begun: Begun, *, code: str, redirect_uri: str) -> Vouched:
        """Whom the code stands for.

        Raises `SignInFailed`, or `Unavailable` when the provider cannot be reached.
        """
        ...


@dataclass(frozen=True, slots=True)
class Providers:
    """Where people may sign in; nobody is let in who is neither a user nor `allowed`.

    `allowed` gives the role of new users of `tenant` by their e-mail, or by `@domain`.
    `public_url` is the API's address as browsers see it; without one, only this machine's counts.
    """

    by_name: Mapping[str, Provider] = field(default_factory=dict)
    tenant: str = ""
    allowed: Mapping[str, Role] = field(default_factory=dict)
    public_url: str | None = None

    def named(self, name: str) -> Provider:
        """Raises `NotFound` when nobody can sign in there."""
        if name not in self.by_name:
            raise NotFound(f"there is no signing in with {name!r}")
        return self.by_name[name]

    def role_of(self, tenant: str, email: str) -> Role | None:
        """What somebody new may do; None when this address is not allowed."""
        if tenant != self.tenant:
            return None
        domain = f"@{email.rpartition('@')[2]}"
        return self.allowed.get(email, self.allowed.get(domain))


def new_secret() -> str:
    """A state, nonce or verifier that nobody guesses: 64 letters, as RFC 7636 wants at least 43."""
    return secrets.token_urlsafe(48)


async def answer_of(client: httpx.AsyncClient, method: str, url: str, **options: Any) -> Any:
    """The JSON of a provider's answer.

    Raises `SignInFailed` when it is an error or none, `Unavailable` when none comes.
    """
    try:
        answer = await client.request(method, url, **options)
    except httpx.TransportError as lost:
        raise Unavailable(f"{httpx.URL(url).host} cannot be reached: {lost!r}") from lost
    try:
        told = answer.json()
    except (ValueError, RecursionError) as broken:
        raise SignInFailed(f"{answer.url.host} answered {answer.status_code}") from broken
    error = told.get("error") if isinstance(told, dict) else None
    if answer.is_error or error:
        said = error if isinstance(error, str) else answer.status_code
        raise SignInFailed(f"{answer.url.host} answered {json.dumps(said)[:100]}")
    return told
