"""An OpenID provider and a GitHub as a real HTTP server: it signs with RS256 and checks PKCE."""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from joserfc import jwt
from joserfc.jwk import RSAKey

CLIENT_ID, SECRET = "optiinfra-at-acme", "s3cret-of-the-client"


@dataclass
class MockProvider:
    """`claims` and `github` are what it says of who signs in; `signs_with` may be a foreign key."""

    url: str = ""
    claims: dict[str, Any] = field(default_factory=dict)
    github: dict[str, Any] = field(default_factory=dict)
    addresses: list[dict[str, Any]] = field(default_factory=list)
    nonce: str | None = None
    signs_with: RSAKey | None = None
    key: RSAKey = field(default_factory=lambda: new_key("k1"))
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    keys_read: int = 0
    broken: bool = False

    async def about(self, _request: web.Request) -> web.Response:
        if self.broken:
            return web.Response(text="<html>down for maintenance</html>", status=502)
        return web.json_response(
            {
                "issuer": self.url,
                "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token",
                "jwks_uri": f"{self.url}/keys",
            }
        )

    async def keys(self, _request: web.Request) -> web.Response:
        self.keys_read += 1
        return web.json_response({"keys": [self.key.as_dict(private=False)]})

    async def authorize(self, request: web.Request) -> web.Response:
        """A person who says yes at once."""
        asked = dict(request.query)
        assert asked["response_type"] == "code"
        assert asked["code_challenge_method"] == "S256"
        assert asked["client_id"] == CLIENT_ID
        code = secrets.token_urlsafe(16)
        self.codes[code] = asked
        back = f"{asked['redirect_uri']}?code={code}&state={asked['state']}"
        return web.Response(status=302, headers={"Location": back})

    async def token(self, request: web.Request) -> web.Response:
        """Each code once, for who can show the verifier and the client's secret."""
        given = await request.post()
        asked = self.codes.pop(str(given["code"]), None)
        digest = hashlib.sha256(str(given["code_verifier"]).encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        if (
            asked is None
            or asked["code_challenge"] != challenge
            or asked["redirect_uri"] != given["redirect_uri"]
            or (given["client_id"], given["client_secret"]) != (CLIENT_ID, SECRET)
        ):
            status = 200 if request.path.startswith("/login") else 400
            return web.json_response({"error": "invalid_grant"}, status=status)
        access = secrets.token_urlsafe(16)
        self.tokens.add(access)
        told = {"access_token": access, "token_type": "bearer", "id_token": self._signed(asked)}
        return web.json_response(told)

    def _signed(self, asked: dict[str, str]) -> str:
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": CLIENT_ID,
            "sub": "1001",
            "iat": now,
            "exp": now + 300,
            "nonce": self.nonce or asked.get("nonce", ""),
            "email": "Ann@Acme.example",
            "email_verified": True,
            "name": "Ann",
            **self.claims,
        }
        told = {name: value for name, value in claims.items() if value is not None}
        key = self.signs_with or self.key
        return jwt.encode({"alg": "RS256", "kid": key.kid}, told, key)

    async def user(self, request: web.Request) -> web.Response:
        if request.headers["Authorization"].removeprefix("Bearer ") not in self.tokens:
            return web.json_response({"message": "Bad credentials"}, status=401)
        return web.json_response(self.github)

    async def emails(self, _request: web.Request) -> web.Response:
        return web.json_response(self.addresses)


def new_key(kid: str) -> RSAKey:
    return RSAKey.generate_key(2048, {"kid": kid, "use": "sig", "alg": "RS256"})


@asynccontextmanager
async def providing() -> AsyncIterator[MockProvider]:
    """The provider while it runs, on a free port."""
    made = MockProvider()
    app = web.Application()
    app.router.add_get("/.well-known/openid-configuration", made.about)
    app.router.add_get("/keys", made.keys)
    app.router.add_get("/authorize", made.authorize)
    app.router.add_get("/login/oauth/authorize", made.authorize)
    app.router.add_post("/token", made.token)
    app.router.add_post("/login/oauth/access_token", made.token)
    app.router.add_get("/user", made.user)
    app.router.add_get("/user/emails", made.emails)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield made
    finally:
        await runner.cleanup()
