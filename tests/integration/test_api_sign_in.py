"""Signing in at a provider that is a real server: who is let in, and every way to fail."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from pydantic import SecretStr

from optiinfra.portal_api.providers.codes import CodeFlow
from optiinfra.portal_api.providers.github import SCOPE as GITHUB_SCOPE
from optiinfra.portal_api.providers.github import GithubProvider
from optiinfra.portal_api.providers.oidc import SCOPE, OidcProvider
from optiinfra.portal_api.providers.port import Provider, Providers
from optiinfra.schemas.tenant import Role
from optiinfra.storage.postgres.database import Database
from tests.integration.api_stand import Stand, is_problem, standing
from tests.integration.mock_provider import CLIENT_ID, SECRET, MockProvider, new_key, providing

PAGE = "http://localhost:8088"
ALLOWED = {"ann@acme.example": Role.ADMIN, "@acme.example": Role.VIEWER}


@pytest.fixture
async def mock() -> AsyncIterator[MockProvider]:
    async with providing() as made:
        yield made


@asynccontextmanager
async def signing_in_at(
    mock: MockProvider, postgres: Database, **values: Any
) -> AsyncIterator[Stand]:
    secret = SecretStr(SECRET)
    async with httpx.AsyncClient(trust_env=False) as http:
        by_name: dict[str, Provider] = {
            "google": OidcProvider(
                "google", mock.url, CodeFlow(CLIENT_ID, secret, SCOPE, http), http
            ),
            "github": GithubProvider(
                mock.url, mock.url, CodeFlow(CLIENT_ID, secret, GITHUB_SCOPE, http), http
            ),
        }
        given = {"tenant": "acme", "allowed": ALLOWED, **values}
        async with standing(postgres, providers=Providers(by_name, **given)) as made:
            yield made


@pytest.fixture
async def stand(mock: MockProvider, postgres: Database) -> AsyncIterator[Stand]:
    async with signing_in_at(mock, postgres) as made:
        yield made


async def begun(client: httpx.AsyncClient, at: str = "google", query: str = "") -> str:
    """Where the browser is sent to."""
    answer = await client.get(f"/api/v1/sign-in/{at}{query}")
    assert answer.status_code == 303, answer.text
    return str(answer.headers["location"])


async def said_yes(address: str) -> str:
    """Where the provider sends the browser back to: path and query."""
    async with httpx.AsyncClient(trust_env=False) as person:
        answer = await person.get(address)
    assert answer.status_code == 302, answer.text
    back = urlsplit(answer.headers["location"])
    return f"{back.path}?{back.query}"


async def sign_in(client: httpx.AsyncClient, at: str = "google", query: str = "") -> httpx.Response:
    return await client.get(await said_yes(await begun(client, at, query)))


async def signed_in(client: httpx.AsyncClient, at: str = "google") -> dict[str, Any]:
    answer = await sign_in(client, at)
    assert (answer.status_code, answer.headers.get("location")) == (303, "/"), answer.text
    me: dict[str, Any] = (await client.get("/api/v1/session")).json()
    return me


async def audited(stand: Stand, *, allowed: bool, tenant: str = "acme") -> list[dict[str, Any]]:
    async with stand.client(tenant=tenant) as admin:
        path = f"/api/v1/audit?allowed={str(allowed).lower()}"
        items: list[dict[str, Any]] = (await admin.get(path)).json()["items"]
    return items


async def test_somebody_allowed_signs_in_and_comes_again_as_the_same(
    stand: Stand, mock: MockProvider
) -> None:
    async with stand.bearing({}, PAGE) as client:
        me = await signed_in(client)
        assert (me["name"], me["role"], me["tenant"]) == ("ann@acme.example", "admin", "acme")
        mock.claims["email"] = "ann.new@acme.example"
        assert (await signed_in(client))["name"] == "ann@acme.example"
        (user,) = (await client.get("/api/v1/users")).json()["items"]
        assert (user["name"], user["last_signed_in_at"] is not None) == ("Ann", True)
    actions = [row["action"] for row in await audited(stand, allowed=True)]
    assert actions == ["session.open", "session.open", "user.link"]


async def test_a_domain_gives_its_role_and_others_stay_out(
    stand: Stand, mock: MockProvider
) -> None:
    mock.claims.update(email="bob@acme.example", sub="1002")
    async with stand.bearing({}, PAGE) as client:
        assert (await signed_in(client))["role"] == "viewer"
        for number, email in enumerate(
            ("mallory@evil.example", "ann@acme.example.evil.example", "x@not-acme.example")
        ):
            mock.claims.update(email=email, sub=f"2{number}")
            problem = is_problem(await sign_in(client), 403)
            assert "declared" in problem["detail"]
    rows = await audited(stand, allowed=False)
    assert [row["actor"] for row in rows][-1] == "person:mallory@evil.example"
    assert len(rows) == 3


async def test_nobody_is_let_in_unless_declared(mock: MockProvider, postgres: Database) -> None:
    async with (
        signing_in_at(mock, postgres, allowed={}) as stand,
        stand.bearing({}, PAGE) as client,
    ):
        is_problem(await sign_in(client), 403)
        ann = await stand.user("ann", Role.OPERATOR)
        assert (await signed_in(client))["role"] == "operator"
        mock.claims["sub"] = "9999"
        assert "another account" in is_problem(await sign_in(client), 403)["detail"]
        mock.claims["sub"] = "1001"
        async with stand.client() as admin:
            await admin.patch(f"/api/v1/users/{ann['id']}", json={"disabled": True})
        assert "disabled" in is_problem(await sign_in(client), 403)["detail"]


async def test_a_user_of_another_tenant_signs_in_there_alone(stand: Stand) -> None:
    async with stand.client(tenant="globex") as admin, stand.bearing({}, PAGE) as client:
        is_problem(await sign_in(client, query="?tenant=globex"), 403)
        body = {"email": "ann@acme.example", "name": "Ann", "role": "viewer"}
        assert (await admin.post("/api/v1/users", json=body)).status_code == 201
        assert (await sign_in(client, query="?tenant=globex")).status_code == 303
        me = (await client.get("/api/v1/session")).json()
        assert (me["tenant"], me["role"]) == ("globex", "viewer")
        assert (await signed_in(client))["tenant"] == "acme"
    assert len(await audited(stand, allowed=False, tenant="globex")) == 1


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another nonce": ({"nonce": "guessed"}, "nonce"),
    "no nonce": ({"claims": {"nonce": None}}, "nonce"),
    "another audience": ({"claims": {"aud": "somebody-else"}}, "aud"),
    "another party": ({"claims": {"aud": [CLIENT_ID, "b"], "azp": "b"}}, "azp"),
    "another issuer": ({"claims": {"iss": "https://evil.example"}}, "iss"),
    "expired": ({"claims": {"exp": int(time.time()) - 3_600}}, "exp"),
    "no expiry": ({"claims": {"exp": None}}, "exp"),
    "from the future": ({"claims": {"iat": int(time.time()) + 3_600}}, "future"),
    "another access token": ({"claims": {"at_hash": "AAAAAAAAAAAAAAAAAAAAAA"}}, "at_hash"),
    "no subject": ({"claims": {"sub": None}}, "sub"),
    "an unverified address": ({"claims": {"email_verified": False}}, "verified"),
    "an address of unknown standing": ({"claims": {"email_verified": None}}, "verified"),
    "no address": ({"claims": {"email": None}}, "verified"),
    "a forged signature": ({"signs_with": new_key("k1")}, "bad_signature"),
    "an unknown key": ({"signs_with": new_key("k9")}, "k9"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_statement_that_does_not_hold_is_a_problem(
    stand: Stand, mock: MockProvider, name: str
) -> None:
    twisted, why = WRONG[name]
    for part, value in twisted.items():
        setattr(mock, part, value)
    async with stand.bearing({}, PAGE) as client:
        assert why in is_problem(await sign_in(client), 400)["detail"]
        is_problem(await client.get("/api/v1/session"), 401)
    async with stand.client() as admin:
        assert (await admin.get("/api/v1/users")).json()["items"] == []


async def test_an_unsigned_statement_is_a_problem(
    stand: Stand, mock: MockProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed = mock._signed
    monkeypatch.setattr(
        mock,
        "_signed",
        lambda asked: "eyJhbGciOiJub25lIn0." + signed(asked).split(".")[1] + ".",
    )
    async with stand.bearing({}, PAGE) as client:
        is_problem(await sign_in(client), 400)


async def test_new_keys_of_the_provider_are_fetched_when_they_are_used(
    stand: Stand, mock: MockProvider
) -> None:
    async with stand.bearing({}, PAGE) as client:
        await signed_in(client)
        await signed_in(client)
        assert mock.keys_read == 1
        mock.key = new_key("k2")
        await signed_in(client)
        assert mock.keys_read == 2


async def test_a_state_is_good_once_and_in_its_own_browser(stand: Stand) -> None:
    async with stand.bearing({}, PAGE) as client, stand.bearing({}, PAGE) as another:
        back = await said_yes(await begun(client))
        await begun(another)
        is_problem(await another.get(back), 400)
        is_problem(await client.get(back.replace("state=", "state=x")), 400)
        is_problem(await client.get(back.replace("/google/", "/github/")), 400)
        is_problem(await client.get(back.split("&state=")[0]), 400)
        assert (await client.get(back)).status_code == 303
        is_problem(await client.get(back), 400)


async def test_a_sign_in_that_took_too_long_is_begun_again(
    stand: Stand, postgres: Database
) -> None:
    async with stand.bearing({}, PAGE) as client:
        back = await said_yes(await begun(client))
        async with postgres.connection() as connection:
            await connection.execute("UPDATE sign_ins SET expires_at = clock_timestamp()")
        is_problem(await client.get(back), 400)


async def test_a_code_of_another_sign_in_is_worth_nothing(stand: Stand) -> None:
    """The verifier belongs to the state: a stolen code does not fit it."""
    async with stand.bearing({}, PAGE) as victim, stand.bearing({}, PAGE) as thief:
        stolen = parse_qs(urlsplit(await said_yes(await begun(victim))).query)["code"][0]
        own = parse_qs(urlsplit(await said_yes(await begun(thief))).query)["state"][0]
        path = f"/api/v1/sign-in/google/callback?code={stolen}&state={own}"
        assert "invalid_grant" in is_problem(await thief.get(path), 400)["detail"]


async def test_a_replayed_code_is_a_problem(stand: Stand, mock: MockProvider) -> None:
    async with stand.bearing({}, PAGE) as client:
        back = await said_yes(await begun(client))
        mock.codes.clear()
        assert "invalid_grant" in is_problem(await client.get(back), 400)["detail"]


async def test_a_person_who_says_no_is_told_so(stand: Stand) -> None:
    async with stand.bearing({}, PAGE) as client:
        state = parse_qs(urlsplit(await begun(client)).query)["state"][0]
        path = f"/api/v1/sign-in/google/callback?error=access_denied&state={state}"
        assert "access_denied" in is_problem(await client.get(path), 400)["detail"]


async def test_a_provider_that_is_broken_is_a_problem_and_one_that_is_away_too(
    stand: Stand, mock: MockProvider, postgres: Database
) -> None:
    async with stand.bearing({}, PAGE) as client:
        mock.broken = True
        is_problem(await client.get("/api/v1/sign-in/google"), 400)
        mock.broken = False
        await begun(client)
    mock.url = "http://127.0.0.1:9"
    async with signing_in_at(mock, postgres) as away, away.bearing({}, PAGE) as client:
        answer = await client.get("/api/v1/sign-in/google")
        assert "retry-after" in answer.headers
        is_problem(answer, 503)


async def test_github_vouches_by_number_and_verified_primary_address(
    stand: Stand, mock: MockProvider
) -> None:
    mock.github = {"id": 7, "login": "ann", "name": None}
    mock.addresses = [
        {"email": "ann@evil.example", "primary": False, "verified": True},
        {"email": "Ann@acme.example", "primary": True, "verified": True},
    ]
    async with stand.bearing({}, PAGE) as client:
        me = await signed_in(client, "github")
        assert (me["name"], me["role"]) == ("ann@acme.example", "admin")
        assert (await signed_in(client, "google"))["name"] == "ann@acme.example"
        (user,) = (await client.get("/api/v1/users")).json()["items"]
        assert user["name"] == "ann"
        mock.addresses[1]["verified"] = False
        assert "verified" in is_problem(await sign_in(client, "github"), 400)["detail"]
        mock.addresses, mock.github = [], {"login": "ann"}
        is_problem(await sign_in(client, "github"), 400)


async def test_what_the_browser_sees_holds_no_secret(stand: Stand) -> None:
    async with stand.bearing({}, PAGE) as client:
        address = await begun(client)
        assert SECRET not in address
        asked = parse_qs(urlsplit(address).query)
        assert asked["redirect_uri"] == [f"{PAGE}/api/v1/sign-in/google/callback"]
        assert asked["scope"] == ["openid email profile"]
        (kept,) = client.cookies.jar
        assert (kept.path, kept.secure) == ("/api/v1/sign-in", False)
        answer = await client.get(await said_yes(address))
        assert SECRET not in str(answer.headers) + answer.text


async def test_the_pages_learn_where_one_can_sign_in(stand: Stand) -> None:
    async with stand.client(None) as client:
        told = (await client.get("/api/v1/session/providers")).json()
        assert told == {"providers": ["github", "google"]}
        is_problem(await client.get("/api/v1/sign-in/gitlab"), 404)
        is_problem(await client.get("/api/v1/sign-in/gitlab/callback"), 404)


async def test_the_address_to_come_back_to_is_never_taken_from_a_stranger(
    stand: Stand, mock: MockProvider, postgres: Database
) -> None:
    async with stand.bearing({}, "https://evil.example") as client:
        problem = is_problem(await client.get("/api/v1/sign-in/google"), 400)
        assert "OPTIINFRA_PUBLIC_URL" in problem["hint"]
    public = "https://portal.acme.example"
    async with (
        signing_in_at(mock, postgres, public_url=public) as known,
        known.bearing({}, public) as client,
    ):
        asked = parse_qs(urlsplit(await begun(client)).query)
        assert asked["redirect_uri"] == [f"{public}/api/v1/sign-in/google/callback"]
        headers = {"Authorization": f"Bearer {await known.token(Role.VIEWER)}"}
        link = (await client.post("/api/v1/session/link", headers=headers)).json()["url"]
        assert link.startswith(f"{public}/api/v1/sign-in?token=oi_once-")
