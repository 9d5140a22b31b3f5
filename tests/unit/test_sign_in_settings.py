"""Where people sign in, as the settings say it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import pytest

from optiinfra.portal_api.providers.port import Providers
from optiinfra.runtime.settings import load_settings
from optiinfra.runtime.sign_in import providers
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.tenant import Role

GOOGLE = {"oidc_client_id": "c", "oidc_client_secret": "s"}
GITHUB = {"github_client_id": "c", "github_client_secret": "s"}


async def made(tenant: str | None = "acme", **given: Any) -> Providers:
    async with AsyncExitStack() as stack:
        return await providers(load_settings(**given), tenant, stack)


async def test_without_a_client_id_nobody_signs_in_at_a_provider() -> None:
    assert (await made(public_url="https://portal.acme.com/")).by_name == {}
    assert (
        await made(public_url="https://portal.acme.com/")
    ).public_url == "https://portal.acme.com"
    assert (await made(None)).by_name == {}


async def test_the_providers_that_have_a_client_id_are_there() -> None:
    assert set((await made(**GOOGLE, **GITHUB)).by_name) == {"google", "github"}
    own = await made(**GOOGLE, oidc_name="keycloak", oidc_issuer="https://id.acme.example/realm")
    assert set(own.by_name) == {"keycloak"}


async def test_who_is_allowed_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = '{"Ann@acme.com": "admin", "@acme.com": "viewer"}'
    monkeypatch.setenv("OPTIINFRA_SIGN_IN_ALLOW", allowed)
    found = await made(**GITHUB)
    assert found.role_of("acme", "ann@acme.com") is Role.ADMIN
    assert found.role_of("acme", "bob@acme.com") is Role.VIEWER
    assert found.role_of("acme", "bob@evil.com") is None
    assert found.role_of("acme", "bob@sub.acme.com") is None
    assert found.role_of("globex", "ann@acme.com") is None


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"oidc_client_id": "c"}, "OIDC_CLIENT_SECRET"),
        ({"github_client_id": "c"}, "GITHUB_CLIENT_SECRET"),
        ({**GOOGLE, "oidc_issuer": "http://id.acme.example"}, "OIDC_ISSUER"),
        ({**GITHUB, "github_api_url": "api.github.com"}, "GITHUB_API_URL"),
        ({**GITHUB, "public_url": "http://portal.acme.example"}, "PUBLIC_URL"),
        ({**GITHUB, "sign_in_allow": {"acme.com": "viewer"}}, "SIGN_IN_ALLOW"),
        ({**GITHUB, "tenant": None}, "SIGN_IN_TENANT"),
    ],
)
async def test_what_is_missing_or_wrong_is_named(given: dict[str, Any], named: str) -> None:
    with pytest.raises(Rejected) as refused:
        await made(**given)
    assert f"OPTIINFRA_{named}" in str(refused.value.hint)


def test_a_role_that_is_none_is_refused() -> None:
    with pytest.raises(Rejected, match="sign_in_allow"):
        load_settings(sign_in_allow={"ann@acme.com": "boss"})
