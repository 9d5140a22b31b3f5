"""Settings: from the environment, the command line on top, mistakes named with their key."""

from __future__ import annotations

from pathlib import Path

import pytest

from optiinfra.runtime.settings import load_settings
from optiinfra.runtime.stores import required_addresses
from optiinfra.schemas.errors import Rejected


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("OPTIINFRA_")]:
        monkeypatch.delenv(name)


def test_the_defaults_are_local() -> None:
    settings = load_settings()
    assert settings.home == Path(".optiinfra")
    assert settings.portal_host == settings.gateway_host == "127.0.0.1"
    assert settings.nats_url is None


def test_the_command_line_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTIINFRA_PORTAL_PORT", "1234")
    monkeypatch.setenv("OPTIINFRA_LOG_LEVEL", "debug")
    settings = load_settings(portal_port=4321, log_level=None)
    assert (settings.portal_port, settings.log_level) == (4321, "debug")


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTIINFRA_NATS_URL", "")
    assert load_settings().nats_url is None


@pytest.mark.parametrize("value", ["high", "-1", "70000"])
def test_a_bad_value_is_named_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("OPTIINFRA_GATEWAY_PORT", value)
    with pytest.raises(Rejected, match=r"gateway_port.*OPTIINFRA_GATEWAY_PORT"):
        load_settings()


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTIINFRA_TOKEN", "oi_s-1_hush")
    monkeypatch.setenv("OPTIINFRA_POSTGRES_URL", "postgresql://u:db-hush@h/x")
    for name in ("GATEWAY_ADMIN_TOKEN", "OIDC_CLIENT_SECRET", "GITHUB_CLIENT_SECRET"):
        monkeypatch.setenv(f"OPTIINFRA_{name}", "hush")
    assert "hush" not in repr(load_settings())


def test_each_store_without_an_address_is_named() -> None:
    with pytest.raises(Rejected, match="OPTIINFRA_POSTGRES_URL, OPTIINFRA_QDRANT_URL"):
        required_addresses(nats_url="nats://x", postgres_url=None, qdrant_url="")
