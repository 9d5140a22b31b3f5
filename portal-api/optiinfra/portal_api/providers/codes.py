"""The authorization code flow with PKCE (RFC 6749, 7636), as both kinds of providers take it.

Authlib words the requests; httpx carries them, since Authlib's own client for it is deprecated.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

import httpx
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri, prepare_token_request
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from pydantic import SecretStr

from optiinfra.portal_api.providers.port import SignInFailed, answer_of
from optiinfra.storage.postgres.sign_ins import Begun


class CodeFlow:
    """One application that is registered at a provider."""

    def __init__(
        self, client_id: str, secret: SecretStr, scope: str, client: httpx.AsyncClient
    ) -> None:
        self.client_id = client_id
        self._secret = secret
        self._scope = scope
        self._client = client

    def address(
        self, endpoint: str, begun: Begun, *, state: str, redirect_uri: str, **more: str
    ) -> str:
        """Where the browser goes; the verifier stays here, its digest goes along."""
        return str(
            prepare_grant_uri(
                endpoint,
                self.client_id,
                "code",
                redirect_uri,
                self._scope,
                state,
                code_challenge=create_s256_code_challenge(begun.verifier),
                code_challenge_method="S256",
                **more,
            )
        )

    async def tokens(
        self, endpoint: str, begun: Begun, *, code: str, redirect_uri: str
    ) -> dict[str, Any]:
        """What the provider gives for a code. Raises `SignInFailed` and `Unavailable`."""
        body = prepare_token_request(
            "authorization_code",
            redirect_uri=redirect_uri,
            code=code,
            code_verifier=begun.verifier,
            client_id=self.client_id,
            client_secret=self._secret.get_secret_value(),
        )
        given = await answer_of(
            self._client,
            "POST",
            endpoint,
            data=dict(parse_qsl(body)),
            headers={"Accept": "application/json"},
        )
        if not isinstance(given, dict) or not isinstance(given.get("access_token"), str):
            raise SignInFailed("no token came for the code")
        return given
