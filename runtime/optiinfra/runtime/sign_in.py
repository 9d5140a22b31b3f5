"""Where people sign in, from the settings: an OpenID provider, GitHub, both, or neither."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import httpx
from pydantic import SecretStr

from optiinfra.portal_api.providers import github, oidc
from optiinfra.portal_api.providers.codes import CodeFlow
from optiinfra.portal_api.providers.port import Provider, Providers
from optiinfra.runtime.settings import Settings
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.ids import token
from optiinfra.storage.rates import Rates

TIMEOUT_S = 10.0
_ALLOWED = re.compile(r"[^@\s]*@[^@\s]+")


async def providers(settings: Settings, tenant: str | None, stack: AsyncExitStack) -> Providers:
    """The providers that have a client id; their connections close with `stack`.

    `tenant` is the fleet file's. Raises `Rejected` naming the setting that is missing or wrong.
    """
    http = await stack.enter_async_context(httpx.AsyncClient(timeout=TIMEOUT_S))
    by_name: dict[str, Provider] = {}
    if settings.oidc_client_id is not None:
        secret = _secret(settings.oidc_client_secret, "oidc_client_secret")
        flow = CodeFlow(settings.oidc_client_id, secret, oidc.SCOPE, http)
        issuer = _https(settings.oidc_issuer, "oidc_issuer")
        by_name[settings.oidc_name] = oidc.OidcProvider(settings.oidc_name, issuer, flow, http)
    if settings.github_client_id is not None:
        secret = _secret(settings.github_client_secret, "github_client_secret")
        flow = CodeFlow(settings.github_client_id, secret, github.SCOPE, http)
        url = _https(settings.github_url, "github_url")
        api_url = _https(settings.github_api_url, "github_api_url")
        by_name["github"] = github.GithubProvider(url, api_url, flow, http)
    public = settings.public_url
    if public is not None:
        public = _https(public, "public_url").rstrip("/")
    if not by_name:
        return Providers(public_url=public)
    where = settings.sign_in_tenant or tenant
    if where is None:
        raise Rejected(
            "people could sign in, but to no tenant", hint="set OPTIINFRA_SIGN_IN_TENANT"
        )
    return Providers(
        by_name,
        token(where),
        {_address(who): role for who, role in settings.sign_in_allow.items()},
        public,
    )


def rates(redis_url: str, stack: AsyncExitStack) -> Rates:
    """How often somebody may try; its connections close with `stack`."""
    made = Rates(redis_url)
    stack.push_async_callback(made.aclose)
    return made


def _secret(given: SecretStr | None, key: str) -> SecretStr:
    if given is None:
        raise Rejected(f"there is no {key}", hint=f"set OPTIINFRA_{key.upper()}")
    return given


def _https(url: str, key: str) -> str:
    """A URL that nobody on the way can change."""
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return url
    if parts.scheme == "http" and parts.hostname in ("localhost", "127.0.0.1", "::1"):
        return url
    raise Rejected(
        f"{key} {url!r} does not begin with https://", hint=f"set OPTIINFRA_{key.upper()}"
    )


def _address(who: str) -> str:
    if not _ALLOWED.fullmatch(who):
        raise Rejected(
            f"sign_in_allow: {who!r} is neither an address nor an @domain",
            hint='set OPTIINFRA_SIGN_IN_ALLOW to JSON as {"ann@acme.com": "admin"}',
        )
    return who.lower()
