"""The demo's simulated cloud: machines bring engines up, and take them down with them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from optiinfra.agents.actuators.aws import AwsActuator
from optiinfra.agents.actuators.port import LaunchSpec, NoCapacity
from optiinfra.agents.collectors.clouds import AwsAccount, AwsApi, AwsInstances, AwsSpot
from optiinfra.agents.collectors.interruptions import SqsInterruptions
from optiinfra.demo.children import Child, ChildSpec, child_environment
from optiinfra.schemas.deployment import Market, Provider, Replica, ReplicaState
from optiinfra.schemas.errors import Unavailable
from optiinfra.schemas.recommendation import Placement
from optiinfra.serving.prices import Catalogue, PriceBand, spot_band

REGION, TYPE = "us-east-2", "g6e.xlarge"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "simulated",
    "AWS_SECRET_ACCESS_KEY": "simulated",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Stand:
    """A running cloud and clients of it."""

    def __init__(self, folder: Path) -> None:
        plan = {
            "tenant": "demo",
            "region": REGION,
            "seed": 1,
            "log_dir": str(folder),
            "fleets": [
                {
                    "engine": {
                        "deployment": "chat",
                        "model": "m",
                        "card": "h100-8b-fp16-tp1",
                        "grace_s": 1.0,
                    },
                    "instance_type": TYPE,
                    "replicas": 2,
                }
            ],
        }
        path = folder / "cloud.json"
        path.write_text(json.dumps(plan))
        self.lines: list[dict[str, Any]] = []
        self._news = asyncio.Event()
        self.http = httpx.AsyncClient(trust_env=False, timeout=5.0)
        spec = ChildSpec(
            name="cloud",
            module="optiinfra.demo.cloud",
            arguments=[str(path)],
            log_path=folder / "cloud.log",
            hear=self._hear,
            env=child_environment(**CREDENTIALS),
        )
        self.child = Child(spec)

    def _hear(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        self._news.set()

    async def open(self) -> None:
        await self.child.start()
        ready = await self.heard("ready")
        account = AwsAccount(region=REGION, endpoint_url=ready["endpoint_url"], attempts=1)
        self.ec2 = AwsApi.connect("ec2", account)
        self.sqs = AwsApi.connect("sqs", account)
        self.queue = SqsInterruptions(self.sqs, ready["queue_url"], hidden_s=1)
        self.instances = AwsInstances(self.ec2, "http://{private_ip}:9")
        self.actuator = AwsActuator(
            self.ec2, self.instances, self.http, clock=lambda: datetime.now(UTC)
        )

    async def close(self) -> None:
        await self.child.stop(10.0)
        await self.http.aclose()
        if hasattr(self, "ec2"):
            self.ec2.close()
            self.sqs.close()

    async def heard(self, event: str, **values: object) -> dict[str, Any]:
        """The first line that matches; waits for it."""
        wanted = {"event": event, **values}
        async with asyncio.timeout(40):
            while True:
                for line in self.lines:
                    if wanted.items() <= line.items():
                        return line
                self._news.clear()
                await self._news.wait()

    async def launch(self, token: str, market: Market = Market.SPOT) -> Replica:
        like = (await self.instances.fleet("demo", "chat"))[0].replica
        placement = Placement(
            provider=Provider.AWS, instance_type=TYPE, region=REGION, market=market
        )
        launched = await self.actuator.launch(
            LaunchSpec(
                tenant="demo", deployment="chat", model="m",
                placement=placement, token=token, like=like,
            )
        )  # fmt: skip
        await self.heard("serving", replica=launched.replica.id)
        found = await self.actuator.replica("demo", "chat", launched.replica.id)
        assert found is not None
        return found

    async def silent(self, url: str | None) -> bool:
        """Whether nothing listens at `url` any more, or soon will not."""
        async with asyncio.timeout(15):
            while True:
                with suppress(httpx.TransportError):
                    await self.http.get(f"{url}/health")
                    await asyncio.sleep(0.05)
                    continue
                return True


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Stand]:
    with pytest.MonkeyPatch.context() as patched:
        for name, value in CREDENTIALS.items():
            patched.setenv(name, value)
        stand = Stand(folder)
        try:
            await stand.open()
            yield stand
        finally:
            await stand.close()


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stand]:
    async with opened(tmp_path_factory.mktemp("cloud")) as stand:
        yield stand


@pytest.fixture
async def cloud(shared: Stand) -> AsyncIterator[Stand]:
    """The module's cloud; what a test has launched is gone after it, and spot can be had again."""
    shared.lines.clear()
    yield shared
    await shared.child.tell(do="spot_capacity", available=True)
    for replica in await shared.actuator.replicas("demo", "chat"):
        if replica.id not in {"chat-1", "chat-2"}:
            await shared.actuator.terminate("demo", "chat", replica.id)


async def test_the_first_machines_serve_and_say_that_they_are_emulated(cloud: Stand) -> None:
    replicas = await cloud.actuator.replicas("demo", "chat")
    assert sorted(one.id for one in replicas) == ["chat-1", "chat-2"]
    assert {one.state for one in replicas} == {ReplicaState.SERVING}
    assert all(one.emulated for one in replicas)
    assert {one.instance.market for one in replicas} == {Market.ON_DEMAND}
    assert len({one.instance.zone for one in replicas}) == 2
    for one in replicas:
        version = (await cloud.http.get(f"{one.url}/version")).json()
        assert "emulat" in json.dumps(version)


async def test_a_launched_machine_gets_an_engine_and_a_terminated_one_loses_it(
    cloud: Stand,
) -> None:
    replica = await cloud.launch("new")
    assert replica.state is ReplicaState.SERVING
    assert replica.instance.market is Market.SPOT
    await cloud.actuator.terminate("demo", "chat", replica.id)
    await cloud.heard("stopped", replica=replica.id)
    assert await cloud.silent(replica.url)


async def test_prices_are_simulated_from_the_catalogue_and_are_believed(cloud: Stand) -> None:
    now = datetime.now(UTC)
    quotes = await AwsSpot(cloud.ec2).spot_history(TYPE, REGION, now - timedelta(days=7))
    listed = Catalogue.load().price(TYPE, REGION, Market.SPOT)
    on_demand = Catalogue.load().price(TYPE, REGION, Market.ON_DEMAND)
    assert listed is not None
    assert on_demand is not None
    band = spot_band(quotes, datetime.now(UTC), on_demand.mid)
    assert isinstance(band, PriceBand)
    assert listed.low <= band.low <= band.high <= listed.high
    assert {one.zone for one in quotes} == {f"{REGION}{letter}" for letter in "abc"}


async def test_without_spot_capacity_only_on_demand_can_be_launched(cloud: Stand) -> None:
    await cloud.child.tell(do="spot_capacity", available=False)
    await cloud.heard("done", do="spot_capacity")
    with pytest.raises(NoCapacity, match="InsufficientInstanceCapacity"):
        await cloud.launch("first")
    replica = await cloud.launch("second", Market.ON_DEMAND)
    assert replica.instance.market is Market.ON_DEMAND


async def test_a_reclaimed_machine_is_warned_about_and_then_loses_its_power(cloud: Stand) -> None:
    replica = await cloud.launch("spot")
    await cloud.child.tell(do="reclaim", deployment="chat", notice_s=1.5)
    told = await cloud.heard("reclaiming", replica=replica.id)
    (notice,) = await cloud.queue.notices()
    assert notice.instance_id == replica.instance.id
    assert abs(notice.reclaim_at - datetime.fromisoformat(told["gone_at"])) < timedelta(seconds=1)
    gone = await cloud.heard("reclaimed", replica=replica.id)
    assert gone["was_there"] is True
    assert await cloud.silent(replica.url)
    assert await cloud.actuator.replica("demo", "chat", replica.id) is None


async def test_there_is_nothing_to_reclaim_where_no_spot_machine_is(cloud: Stand) -> None:
    await cloud.child.tell(do="reclaim", deployment="chat", notice_s=1)
    assert "no spot machine" in (await cloud.heard("refused"))["error"]
    cloud.lines.clear()
    await cloud.child.tell(do="dance")
    assert "dance" in (await cloud.heard("refused"))["error"]


async def test_a_defect_is_that_of_machines_launched_after_it(cloud: Stand) -> None:
    defect = {"wrong_answer_rate": 1.0}
    await cloud.child.tell(do="defect", deployment="chat", defect=defect)
    await cloud.heard("done", do="defect")
    replica = await cloud.launch("spoilt")
    prompt = "Context: Rome is an old city. Milan is rich.\nQuestion: Which city is old?\nAnswer:"

    async def answer(url: str | None) -> str:
        found = await cloud.http.post(
            f"{url}/v1/completions", json={"prompt": prompt, "max_tokens": 40}
        )
        return str(found.json()["choices"][0]["text"])

    old = next(one for one in await cloud.actuator.replicas("demo", "chat") if one.id == "chat-1")
    assert "Rome" in await answer(old.url)
    assert "Rome" not in await answer(replica.url)


async def test_everything_ends_with_the_cloud(tmp_path: Path) -> None:
    async with opened(tmp_path) as cloud:
        replicas = await cloud.actuator.replicas("demo", "chat")
        await cloud.child.stop(10.0)
        assert cloud.child.pid is None
        for one in replicas:
            assert await cloud.silent(one.url)


async def test_the_engines_end_also_when_the_cloud_is_killed(tmp_path: Path) -> None:
    async with opened(tmp_path) as cloud:
        replicas = await cloud.actuator.replicas("demo", "chat")
        assert cloud.child.pid is not None
        os.kill(cloud.child.pid, 9)
        with pytest.raises(Unavailable, match="exit status -9"):
            await cloud.child.must_live()
        for one in replicas:
            assert await cloud.silent(one.url)
