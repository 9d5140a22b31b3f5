"""Roles as processes of their own on servers that run already, as in production."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml

from optiinfra.events import facts as f
from optiinfra.events.bus_roles import BusRole
from optiinfra.schemas.tenant import Role
from optiinfra.storage.embedded.nats import NatsServer
from optiinfra.storage.embedded.ports import free_port, free_ports
from optiinfra.storage.postgres.access import AccessTokens
from tests.bus_stand import letter_of
from tests.coordinator_stand import Stand, opened
from tests.factories import recommendation

TOKEN = "the-admin-token"
FLEET = {
    "tenant": "acme",
    "clouds": {"local": {"command": ["engine"]}},
    "deployments": [{"id": "chat", "model": "m", "provider": "local"}],
}


@dataclass
class Site:
    """The servers, and how a role is told of them."""

    stand: Stand
    folder: Path
    postgres_url: str

    @asynccontextmanager
    async def role(self, *verb: str, **settings: str) -> AsyncIterator[tuple[Process, str]]:
        """The role's process once it is ready, with its health address."""
        port = free_port()
        config = self.folder / "fleet.yaml"
        config.write_text(yaml.safe_dump(FLEET))
        with (self.folder / "stderr").open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "optiinfra.runtime.cli", *verb),
                env=self._environment(
                    config, HEALTH_PORT=str(port), **{k.upper(): v for k, v in settings.items()}
                ),
                stdout=PIPE,
                stderr=errors,
            )
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    def _environment(self, config: Path, **settings: str) -> dict[str, str]:
        ours = {
            "CONFIG": str(config),
            "HOME": str(self.folder / "home"),
            "NATS_URL": self.stand.nats_url,
            "POSTGRES_URL": self.postgres_url,
            "CLICKHOUSE_URL": f"chdb://{self.folder}/none",
            "QDRANT_URL": f"local://{self.folder}/none",
            "REDIS_URL": "memory://",
            "GATEWAY_ADMIN_TOKEN": TOKEN,
            "LOG_JSON": "true",
            **settings,
        }
        kept = {k: v for k, v in os.environ.items() if not k.startswith("OPTIINFRA_")}
        return {**kept, **{f"OPTIINFRA_{name}": value for name, value in ours.items()}}

    @property
    def errors(self) -> str:
        return (self.folder / "stderr").read_text()


@pytest.fixture
def server(nats_server: Callable[[], NatsServer]) -> NatsServer:
    return nats_server()


@pytest.fixture
async def site(server: NatsServer, database: str, tmp_path: Path) -> AsyncIterator[Site]:
    async with opened(server.url, database) as stand:
        yield Site(stand, tmp_path, database)


async def until_ready(url: str, site: Site, path: str = "/readyz") -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        for _ in range(600):
            try:
                if (await http.get(f"{url}{path}")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)
    raise AssertionError(site.errors[-3000:])


async def until_told(word: str, site: Site) -> None:
    for _ in range(300):
        if word in site.errors:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(site.errors[-3000:])


async def stopped(process: Process) -> int:
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(15):
        return await process.wait()


async def test_a_coordinator_of_its_own_decides_and_tells_its_health(site: Site) -> None:
    async with site.role("coordinator") as (process, health):
        await until_ready(health, site)
        async with httpx.AsyncClient(base_url=health, trust_env=False) as http:
            assert (await http.get("/healthz")).text == "alive"
            assert (await http.get("/readyz")).text == "ready"
            assert (await http.get("/other")).status_code == 404
        proposal = recommendation("mine")
        await site.stand.say(f.RecommendationProposed(recommendation=proposal))
        await site.stand.until(
            "SELECT count(*) = 1 FROM sagas WHERE state = 'voting' AND change_id = $1",
            proposal.id,
        )
        assert await stopped(process) == 0


async def test_a_coordinator_takes_an_edit_of_its_policy_over_and_outlives_a_broken_one(
    site: Site,
) -> None:
    policy = site.folder / "policy.yaml"
    policy.write_text("name: first\n")
    async with site.role("coordinator", policy=str(policy)) as (process, health):
        await until_ready(health, site)
        await site.stand.until("SELECT count(*) = 1 FROM policies")
        policy.write_text("naem: second\n")
        process.send_signal(signal.SIGHUP)
        await until_told("policy.file_broken", site)
        assert "did you mean 'name'?" in site.errors
        policy.write_text("name: second\n")
        process.send_signal(signal.SIGHUP)
        await site.stand.until("SELECT count(*) = 2 FROM policies")
        assert await stopped(process) == 0
    rows = await site.stand.fetch("SELECT version, by FROM policies ORDER BY number")
    assert [str(row["version"]).partition("@")[0] for row in rows] == ["first", "second"]
    assert {row["by"] for row in rows} == {"file:policy.yaml"}


async def test_the_api_of_its_own_serves_and_stops(site: Site) -> None:
    port = free_port()
    token = await AccessTokens(site.stand.database).issue("acme", "ann", Role.VIEWER, lasts_s=60)
    async with site.role("portal-api", portal_port=str(port)) as (process, health):
        await until_ready(health, site)
        await until_ready(f"http://127.0.0.1:{port}", site)
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}/api/v1",
            headers={"Authorization": f"Bearer {token}"},
            trust_env=False,
        ) as http:
            assert (await http.get("/agents")).status_code == 200
            overview = await http.get("/overview")
        assert (overview.status_code, overview.json()["hint"]) == (503, "run `optiinfra migrate`")
        assert await stopped(process) == 0


async def test_the_api_sends_letters_again_with_the_credential_of_an_operator(
    site: Site, server: NatsServer
) -> None:
    stand, port = site.stand, free_port()
    await stand.say(f.ChangeResumed(change="a" * 32, by="ann"))
    letter = await letter_of(stand.bus, 1)
    await stand.publisher.publish(stand.publisher.event(letter, tenant="acme"))
    token = await AccessTokens(stand.database).issue("acme", "ann", Role.OPERATOR, lasts_s=60)
    async with (
        site.role(
            "portal-api",
            portal_port=str(port),
            nats_url=server.url_for(BusRole.PORTAL_API),
            operator_nats_url=server.url_for(BusRole.OPERATOR),
        ) as (process, health),
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}/api/v1",
            headers={"Authorization": f"Bearer {token}"},
            trust_env=False,
        ) as http,
    ):
        await until_ready(health, site)
        await until_ready(f"http://127.0.0.1:{port}", site)
        answer = await http.post("/dead-letters/1/retry", json={})
        assert (answer.status_code, answer.json()["sequence"]) == (200, 2), answer.text
        assert await stopped(process) == 0


async def test_a_gateway_of_its_own_takes_the_token_of_its_settings(site: Site) -> None:
    port, admin = free_ports(2)
    settings = {"gateway_port": str(port), "gateway_admin_port": str(admin)}
    async with site.role("gateway", **settings) as (process, _):
        await until_ready(f"http://127.0.0.1:{admin}", site, "/healthz")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{admin}", trust_env=False) as http:
            assert (await http.get("/admin/routes")).status_code == 401
            right = {"Authorization": f"Bearer {TOKEN}"}
            assert (await http.get("/admin/routes", headers=right)).status_code == 200
        assert await stopped(process) == 0


async def test_a_role_without_its_stores_names_what_is_missing(site: Site) -> None:
    async with site.role("coordinator", postgres_url="", redis_url="") as (process, _):
        assert await asyncio.wait_for(process.wait(), 30) == 2
    assert "OPTIINFRA_POSTGRES_URL, OPTIINFRA_REDIS_URL" in site.errors
    assert "Traceback" not in site.errors


async def test_a_role_refuses_a_broker_whose_streams_have_drifted(site: Site) -> None:
    await site.stand.bus.js.delete_stream("DLQ")
    async with site.role("coordinator") as (process, _):
        assert await asyncio.wait_for(process.wait(), 30) == 5
    assert "DLQ is missing" in site.errors
    assert "Traceback" not in site.errors


async def test_an_agent_without_a_gateway_says_what_it_needs(site: Site) -> None:
    async with site.role("agent", "resource") as (process, _):
        assert await asyncio.wait_for(process.wait(), 30) == 2
    assert "needs the gateway" in site.errors
