"""GitHub, which speaks OAuth 2 without OpenID: the account is asked for with the token."""

from __future__ import annotations

from typing import Any

import httpx

from optiinfra.portal_api.providers.codes import CodeFlow
from optiinfra.portal_api.providers.port import SignInFailed, answer_of
from optiinfra.storage.postgres.sign_ins import Begun, Vouched

SCOPE = "read:user user:email"


class GithubProvider:
    """`url` is where people sign in, `api_url` where programs ask."""

    def __init__(self, url: str, api_url: str, flow: CodeFlow, client: httpx.AsyncClient) -> None:
        self._url = url.rstrip("/")
        self._api_url = api_url.rstrip("/")
        self._flow = flow
        self._client = client

    async def address(self, begun: Begun, *, state: str, redirect_uri: str) -> str:
        """Where the browser goes to sign in."""
        endpoint = f"{self._url}/login/oauth/authorize"
        return self._flow.address(endpoint, begun, state=state, redirect_uri=redirect_uri)

    async def person(self, begun: Begun, *, code: str, redirect_uri: str) -> Vouched:
        """The account by its number, which never changes, and its verified primary e-mail."""
        endpoint = f"{self._url}/login/oauth/access_token"
        given = await self._flow.tokens(endpoint, begun, code=code, redirect_uri=redirect_uri)
        account = await self._ask("/user", given["access_token"])
        addresses = await self._ask("/user/emails", given["access_token"])
        if not isinstance(account, dict) or type(account.get("id")) is not int:
            raise SignInFailed("GitHub does not say whose token it gave")
        email = _primary(addresses)
        name = account.get("name") or account.get("login") or email
        return Vouched("github", str(account["id"]), email.lower(), str(name))

    async def _ask(self, path: str, token: str) -> Any:
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/vnd.github+json"}
        return await answer_of(self._client, "GET", f"{self._api_url}{path}", headers=headers)


def _primary(addresses: Any) -> str:
    for one in addresses if isinstance(addresses, list) else []:
        known = isinstance(one, dict) and isinstance(one.get("email"), str)
        if known and one.get("primary") is True and one.get("verified") is True:
            return str(one["email"])
    raise SignInFailed("GitHub has not verified the primary e-mail address")
