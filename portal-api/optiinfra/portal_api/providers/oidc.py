"""OpenID Connect, as Google speaks it: discovery, and a signed statement of who somebody is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet

from optiinfra.portal_api.providers.codes import CodeFlow
from optiinfra.portal_api.providers.port import SignInFailed, answer_of
from optiinfra.storage.postgres.sign_ins import Begun, Vouched

SCOPE = "openid email profile"
REMEMBERED_S = 3_600.0
LEEWAY_S = 60
_PUBLISHED = ("issuer", "authorization_endpoint", "token_endpoint", "jwks_uri")


class OidcProvider:
    """What the issuer publishes of itself is read again every hour, its keys also when a
    statement names one that is new."""

    def __init__(
        self,
        name: str,
        issuer: str,
        flow: CodeFlow,
        client: httpx.AsyncClient,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._issuer = issuer.rstrip("/")
        self._flow = flow
        self._client = client
        self._clock = clock
        self._published: tuple[dict[str, str], KeySet] | None = None
        self._read_at = 0.0

    async def address(self, begun: Begun, *, state: str, redirect_uri: str) -> str:
        """Where the browser goes to sign in."""
        endpoints, _ = await self._about()
        return self._flow.address(
            endpoints["authorization_endpoint"],
            begun,
            state=state,
            redirect_uri=redirect_uri,
            nonce=begun.nonce,
        )

    async def person(self, begun: Begun, *, code: str, redirect_uri: str) -> Vouched:
        """Whom the id token names, once its signature, issuer, audience, times, nonce and
        `at_hash` hold and its e-mail is verified."""
        about, keys = await self._about()
        given = await self._flow.tokens(
            about["token_endpoint"], begun, code=code, redirect_uri=redirect_uri
        )
        try:
            claims = await self._claims(given, begun, about["issuer"], keys)
        except (JoseError, ValueError, TypeError) as wrong:
            raise SignInFailed(f"the statement of {self._name} does not hold: {wrong}") from wrong
        email, verified = claims.get("email"), claims.get("email_verified")
        if not isinstance(email, str) or verified not in (True, "true"):
            raise SignInFailed(f"{self._name} has not verified the e-mail address")
        return Vouched(
            self._name, str(claims["sub"]), email.lower(), str(claims.get("name") or email)
        )

    async def _claims(
        self, given: dict[str, Any], begun: Begun, issuer: str, keys: KeySet
    ) -> dict[str, Any]:
        stated = str(given.get("id_token", ""))
        try:
            token = jwt.decode(stated, keys, algorithms=["RS256"])
        except InvalidKeyIdError:
            _, keys = await self._about(anew=True)
            token = jwt.decode(stated, keys, algorithms=["RS256"])
        claims = CodeIDToken(
            token.claims,
            token.header,
            options={
                "iss": {"essential": True, "value": issuer},
                "aud": {"essential": True, "value": self._flow.client_id},
            },
            params={
                "nonce": begun.nonce,
                "client_id": self._flow.client_id,
                "access_token": given["access_token"],
            },
        )
        claims.validate(leeway=LEEWAY_S)
        return dict(claims)

    async def _about(self, *, anew: bool = False) -> tuple[dict[str, str], KeySet]:
        """What the issuer says of itself, and its keys."""
        if self._published is None or anew or self._clock() - self._read_at > REMEMBERED_S:
            self._published = await self._read()
            self._read_at = self._clock()
        return self._published

    async def _read(self) -> tuple[dict[str, str], KeySet]:
        url = f"{self._issuer}/.well-known/openid-configuration"
        told = await answer_of(self._client, "GET", url)
        if not isinstance(told, dict) or str(told.get("issuer", "")).rstrip("/") != self._issuer:
            raise SignInFailed(f"{url} describes another issuer")
        missing = [name for name in _PUBLISHED if not isinstance(told.get(name), str)]
        if missing:
            raise SignInFailed(f"{url} lacks {', '.join(missing)}")
        about = {name: str(told[name]) for name in _PUBLISHED}
        keys = await answer_of(self._client, "GET", about["jwks_uri"])
        try:
            return about, KeySet.import_key_set(keys)
        except (JoseError, ValueError, TypeError, KeyError) as broken:
            raise SignInFailed(f"{about['jwks_uri']} holds no keys") from broken
