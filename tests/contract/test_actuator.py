"""One suite over every actuator: in memory, local processes, EC2 by moto, Kubernetes by a stub."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import httpx
import psutil
import pytest
from botocore.stub import Stubber
from moto import mock_aws

from optiinfra.agents.actuators.aws import AwsActuator, LaunchTemplate
from optiinfra.agents.actuators.local import EngineCommand, LocalActuator
from optiinfra.agents.actuators.port import Actuator, LaunchSpec, NoCapacity
from optiinfra.agents.collectors.clouds import (
    TAG_EMULATED,
    TAG_ENDPOINT,
    AwsAccount,
    AwsApi,
    AwsInstances,
    AwsSpot,
    parse_instance,
)
from optiinfra.schemas.deployment import Market, Provider, ReplicaState
from optiinfra.schemas.errors import Denied, Rejected, Unavailable
from optiinfra.schemas.ids import derived_id
from optiinfra.serving.engines import VllmConfig
from tests.cost_stand import FakeActuator, placement
from tests.kubernetes_stand import kubernetes

REGION = "us-east-1"


def now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Bench:
    """An actuator under test and a launch that suits it."""

    actuator: Actuator
    spec: LaunchSpec


def spec(provider: Provider, **changes: Any) -> LaunchSpec:
    to = placement(provider=provider, region=REGION, **changes)
    return LaunchSpec("acme", "chat", "m", to, token=derived_id("one"))


@pytest.fixture
def cloud() -> Iterator[Any]:
    with mock_aws():
        client = boto3.client("ec2", region_name=REGION)
        yield client
        client.close()


def aws(
    client: Any, *, template: bool = True, health: int = 200, start_up_s: float = 900.0
) -> AwsActuator:
    api = AwsApi(client)
    transport = httpx.MockTransport(lambda _: httpx.Response(health))
    image = client.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    return AwsActuator(
        api,
        AwsInstances(api),
        httpx.AsyncClient(transport=transport),
        clock=now,
        template=LaunchTemplate(image) if template else None,
        start_up_s=start_up_s,
    )


@asynccontextmanager
async def local(folder: Path, **changes: Any) -> AsyncIterator[LocalActuator]:
    """Engines that answer `/health`: a plain file server over a folder with that file."""
    (folder / "www").mkdir(exist_ok=True)
    (folder / "www" / "health").write_text("ok")
    serve = (sys.executable, "-m", "http.server", "{port}", "--bind", "{host}")
    args = (*serve, "--directory", str(folder / "www"))
    async with httpx.AsyncClient(trust_env=False) as http:
        command = replace(EngineCommand(args), **changes)
        actuator = LocalActuator(folder / "engines", command, http, clock=now)
        try:
            yield actuator
        finally:
            for replica in await actuator.replicas("acme", "chat"):
                await actuator.terminate("acme", "chat", replica.id)


@pytest.fixture(params=["fake", "local", "aws", "kubernetes"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    if request.param == "fake":
        yield Bench(FakeActuator(), spec(Provider.AWS))
    elif request.param == "local":
        async with local(tmp_path) as actuator:
            yield Bench(actuator, spec(Provider.LOCAL))
    elif request.param == "kubernetes":
        async with kubernetes(tmp_path) as (actuator, _):
            yield Bench(actuator, spec(Provider.KUBERNETES))
    else:
        yield Bench(aws(request.getfixturevalue("cloud")), spec(Provider.AWS))


async def until_serving(actuator: Actuator, replica_id: str) -> None:
    async with asyncio.timeout(20):
        while True:
            found = await actuator.replica("acme", "chat", replica_id)
            if found is not None and found.state is ReplicaState.SERVING:
                return
            await asyncio.sleep(0.02)


async def test_a_launch_is_read_back_and_comes_to_serve(bench: Bench) -> None:
    launched = await bench.actuator.launch(bench.spec)
    assert (launched.created, launched.market) == (True, Market.SPOT)
    replica = launched.replica
    assert replica.launch_token == bench.spec.token
    assert replica.instance.instance_type == bench.spec.placement.instance_type
    assert replica.instance.market is Market.SPOT
    await until_serving(bench.actuator, replica.id)
    assert [one.id for one in await bench.actuator.replicas("acme", "chat")] == [replica.id]
    assert list(await bench.actuator.replicas("acme", "other")) == []


async def test_two_launches_with_one_token_give_one_machine(bench: Bench) -> None:
    first = await bench.actuator.launch(bench.spec)
    second = await bench.actuator.launch(bench.spec)
    assert (first.created, second.created) == (True, False)
    assert first.replica.instance.id == second.replica.instance.id
    assert len(await bench.actuator.replicas("acme", "chat")) == 1


async def test_launches_at_the_same_time_with_one_token_give_one_machine(bench: Bench) -> None:
    found = await asyncio.gather(*(bench.actuator.launch(bench.spec) for _ in range(4)))
    assert len({launched.replica.instance.id for launched in found}) == 1
    assert len(await bench.actuator.replicas("acme", "chat")) == 1


async def test_another_token_gives_another_machine(bench: Bench) -> None:
    one = await bench.actuator.launch(bench.spec)
    two = await bench.actuator.launch(replace(bench.spec, token=derived_id("two")))
    assert two.created
    assert one.replica.id != two.replica.id


async def test_terminating_twice_is_harmless(bench: Bench) -> None:
    replica = (await bench.actuator.launch(bench.spec)).replica
    assert await bench.actuator.terminate("acme", "chat", replica.id)
    assert await bench.actuator.replica("acme", "chat", replica.id) is None
    assert list(await bench.actuator.replicas("acme", "chat")) == []
    assert not await bench.actuator.terminate("acme", "chat", replica.id)


async def test_a_replica_that_never_was_is_unknown(bench: Bench) -> None:
    assert await bench.actuator.replica("acme", "chat", "nobody") is None
    assert not await bench.actuator.terminate("acme", "chat", "nobody")


async def test_a_machine_of_another_tenant_is_not_touched(bench: Bench) -> None:
    replica = (await bench.actuator.launch(bench.spec)).replica
    if isinstance(bench.actuator, FakeActuator):
        pytest.skip("the fake knows one tenant")
    assert not await bench.actuator.terminate("rival", "chat", replica.id)
    assert len(await bench.actuator.replicas("acme", "chat")) == 1


# --- EC2 only


async def test_a_spent_token_is_answered_with_the_ended_machine(cloud: Any) -> None:
    actuator = aws(cloud)
    replica = (await actuator.launch(spec(Provider.AWS))).replica
    await actuator.terminate("acme", "chat", replica.id)
    again = await actuator.launch(spec(Provider.AWS))
    assert (again.created, again.replica.state) == (False, ReplicaState.STOPPED)


async def test_a_race_of_two_processes_leaves_the_older_machine(cloud: Any) -> None:
    one, two = aws(cloud), aws(cloud)
    found = await asyncio.gather(one.launch(spec(Provider.AWS)), two.launch(spec(Provider.AWS)))
    assert len(await one.replicas("acme", "chat")) == 1
    assert len({launched.replica.id for launched in found}) == 1


async def test_a_machine_is_built_like_the_replica_that_it_replaces(cloud: Any) -> None:
    vpc = cloud.create_vpc(CidrBlock="10.1.0.0/16")["Vpc"]["VpcId"]
    subnets = {
        zone: cloud.create_subnet(VpcId=vpc, CidrBlock=block, AvailabilityZone=zone)["Subnet"][
            "SubnetId"
        ]
        for zone, block in (("us-east-1a", "10.1.0.0/24"), ("us-east-1b", "10.1.1.0/24"))
    }
    group = cloud.create_security_group(GroupName="g", Description="g", VpcId=vpc)["GroupId"]
    image = cloud.describe_images(Owners=["amazon"])["Images"][1]["ImageId"]
    tags = {"optiinfra:tenant": "acme", "optiinfra:deployment": "chat", "optiinfra:replica": "old"}
    old = cloud.run_instances(
        ImageId=image,
        MinCount=1,
        MaxCount=1,
        InstanceType="g5.xlarge",
        SubnetId=subnets["us-east-1a"],
        SecurityGroupIds=[group],
        UserData="#!/bin/sh\nstart",
        TagSpecifications=[
            {
                "ResourceType": "instance",
                "Tags": [{"Key": name, "Value": value} for name, value in tags.items()],
            }
        ],
    )["Instances"][0]
    actuator = aws(cloud, template=False)
    like = await actuator.replica("acme", "chat", "old")
    assert like is not None
    launched = await actuator.launch(replace(spec(Provider.AWS), like=like))
    raw = cloud.describe_instances(InstanceIds=[launched.replica.instance.id])
    made = raw["Reservations"][0]["Instances"][0]
    assert made["ImageId"] == old["ImageId"]
    assert [one["GroupId"] for one in made["SecurityGroups"]] == [group]
    assert made["SubnetId"] == subnets["us-east-1b"], "the zone with fewer replicas"
    assert made["InstanceLifecycle"] == "spot"
    api = AwsApi(cloud)
    assert await AwsInstances(api).user_data(made["InstanceId"]) == "#!/bin/sh\nstart"
    elsewhere = replace(
        spec(Provider.AWS, zone="us-east-1f"), like=like, token=derived_id("elsewhere")
    )
    with pytest.raises(Rejected, match="no subnet in zone us-east-1f"):
        await actuator.launch(elsewhere)
    named = replace(spec(Provider.AWS, zone="us-east-1a"), like=like, token=derived_id("named"))
    assert (await actuator.launch(named)).replica.instance.zone == "us-east-1a"


async def test_without_a_model_or_a_template_a_launch_is_refused(cloud: Any) -> None:
    with pytest.raises(Rejected, match="how to build a machine"):
        await aws(cloud, template=False).launch(spec(Provider.AWS))
    with pytest.raises(Rejected, match="cannot launch on local"):
        await aws(cloud).launch(spec(Provider.LOCAL))


async def test_the_endpoint_tag_wins_and_silence_is_starting_then_unknown(cloud: Any) -> None:
    actuator = aws(cloud, health=503)
    replica = (await actuator.launch(spec(Provider.AWS))).replica
    assert replica.state is ReplicaState.STARTING
    assert replica.url is not None
    assert replica.url.endswith(":8000")
    cloud.create_tags(
        Resources=[replica.instance.id],
        Tags=[
            {"Key": TAG_ENDPOINT, "Value": "http://127.0.0.1:9"},
            {"Key": TAG_EMULATED, "Value": "true"},
        ],
    )
    old = aws(cloud, health=503, start_up_s=0)
    found = await old.replica("acme", "chat", replica.id)
    assert found is not None
    assert (found.url, found.emulated) == ("http://127.0.0.1:9", True)
    assert found.state is ReplicaState.UNKNOWN


@pytest.mark.parametrize(
    "code", ["InsufficientInstanceCapacity", "SpotMaxPriceTooLow", "MaxSpotInstanceCountExceeded"]
)
async def test_a_market_without_machines_is_no_capacity(cloud: Any, code: str) -> None:
    actuator = aws(cloud)
    with refusing(cloud, code), pytest.raises(NoCapacity, match=code):
        await actuator.launch(spec(Provider.AWS))


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        ("UnauthorizedOperation", Denied, "allow ec2:RunInstances"),
        ("RequestLimitExceeded", Unavailable, "throttled"),
        ("InvalidAMIID.NotFound", Rejected, "ec2:RunInstances was refused"),
        ("IdempotentInstanceTerminated", Rejected, "ended instance"),
    ],
)
async def test_refusals_of_the_cloud_become_our_errors(
    cloud: Any, code: str, kind: type[Exception], text: str
) -> None:
    actuator = aws(cloud)
    with refusing(cloud, code), pytest.raises(kind, match=text):
        await actuator.launch(spec(Provider.AWS))


class refusing:  # noqa: N801 - reads as a phrase
    """The next launch is refused with a code; reads before it find nothing."""

    def __init__(self, client: Any, code: str) -> None:
        self._stub = Stubber(client)
        self._stub.add_response("describe_instances", {"Reservations": []})
        self._stub.add_client_error("run_instances", service_error_code=code)

    def __enter__(self) -> None:
        self._stub.activate()

    def __exit__(self, *_: object) -> None:
        self._stub.deactivate()


async def test_missing_credentials_and_unreachable_endpoints_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    account = AwsAccount(REGION, endpoint_url="http://127.0.0.1:9", attempts=1)
    api = AwsApi.connect("ec2", account)
    with pytest.raises(Denied, match="credentials"):
        await AwsInstances(api).fleet("acme", "chat")
    api.close()
    with pytest.raises(Denied, match="profile"):
        AwsApi.connect("ec2", replace(account, profile="nobody"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    api = AwsApi.connect("ec2", account)
    with pytest.raises(Unavailable, match="DescribeInstances did not get through"):
        await AwsInstances(api).fleet("acme", "chat")
    api.close()


async def test_spot_prices_and_zones_are_read_page_by_page_in_the_own_region_only(
    cloud: Any,
) -> None:
    def row(zone: str, price: str) -> dict[str, Any]:
        return {"AvailabilityZone": zone, "SpotPrice": price, "Timestamp": now()}

    spot = AwsSpot(AwsApi(cloud))
    with Stubber(cloud) as stub:
        first = {"SpotPriceHistory": [row("us-east-1b", "1.0671")], "NextToken": "more"}
        stub.add_response("describe_spot_price_history", first)
        last = {"SpotPriceHistory": [row("us-east-1c", "0.9702")]}
        stub.add_response("describe_spot_price_history", last)
        quotes = await spot.spot_history("p3.2xlarge", REGION, now())
    assert [(one.zone, one.usd_per_hour) for one in quotes] == [
        ("us-east-1b", 1.0671),
        ("us-east-1c", 0.9702),
    ]
    assert "us-east-1a" in await spot.zones(REGION)
    assert list(await spot.spot_history("p3.2xlarge", "eu-west-1", now())) == []
    assert list(await spot.zones("eu-west-1")) == []


async def test_machines_without_our_tags_and_unknown_ids_are_not_ours(cloud: Any) -> None:
    image = cloud.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    raw = cloud.run_instances(ImageId=image, MinCount=1, MaxCount=1)["Instances"][0]
    instances = AwsInstances(AwsApi(cloud))
    assert await instances.by_id(raw["InstanceId"]) is None
    assert await instances.by_id("i-0123456789abcdef0") is None
    assert await instances.user_data(raw["InstanceId"]) is None


def test_a_machine_without_an_address_has_no_url_and_a_block_is_reserved() -> None:
    names = ("tenant", "deployment", "replica")
    raw = {
        "InstanceId": "i-1",
        "InstanceType": "p5.48xlarge",
        "InstanceLifecycle": "capacity-block",
        "State": {"Name": "pending"},
        "Placement": {"AvailabilityZone": "us-east-1a"},
        "Tags": [{"Key": f"optiinfra:{name}", "Value": "x"} for name in names],
    }
    found = parse_instance(raw, REGION, "http://{public_ip}:8000")
    assert found is not None
    assert found.replica.url is None
    assert found.replica.instance.market is Market.RESERVED
    assert not found.running


# --- local processes only


async def test_another_actuator_adopts_the_engines_that_it_finds(tmp_path: Path) -> None:
    async with local(tmp_path) as first:
        replica = (await first.launch(spec(Provider.LOCAL))).replica
        async with local(tmp_path) as second:
            again = await second.launch(spec(Provider.LOCAL))
            assert not again.created
            assert again.replica.instance.id == replica.instance.id
            assert await second.terminate("acme", "chat", replica.id)
        assert await first.replica("acme", "chat", replica.id) is None


async def test_a_later_process_with_the_same_pid_is_not_taken_for_the_engine(
    tmp_path: Path,
) -> None:
    async with local(tmp_path) as actuator:
        replica = (await actuator.launch(spec(Provider.LOCAL))).replica
        home = tmp_path / "engines" / derived_id(derived_id("one"))
        pid = int((home / "pid").read_text())
        birth = home / "birth"
        noted = birth.read_text()
        birth.write_text("1.0")
        assert await actuator.replica("acme", "chat", replica.id) is None
        assert not await actuator.terminate("acme", "chat", replica.id)
        assert psutil.pid_exists(pid)
        birth.unlink()
        assert await actuator.replica("acme", "chat", replica.id) is not None
        birth.write_text(noted)


async def test_an_engine_that_ignores_the_polite_signal_is_killed(tmp_path: Path) -> None:
    deaf = ("/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.05; done", "{port}")
    async with httpx.AsyncClient() as http:
        actuator = LocalActuator(tmp_path, EngineCommand(deaf), http, clock=now, stop_s=0.5)
        replica = (await actuator.launch(spec(Provider.LOCAL))).replica
        assert replica.state is ReplicaState.STARTING
        assert await actuator.terminate("acme", "chat", replica.id)
        assert await actuator.replica("acme", "chat", replica.id) is None


async def test_an_engine_that_ends_by_itself_is_stopped_and_can_be_forgotten(
    tmp_path: Path,
) -> None:
    args = ("/bin/sh", "-c", 'test "$KEY" = value', "{model}")
    async with httpx.AsyncClient() as http:
        command = EngineCommand(args, env={"KEY": "value"})
        actuator = LocalActuator(tmp_path, command, http, clock=now)
        launched = await actuator.launch(spec(Provider.LOCAL))
        async with asyncio.timeout(10):
            while await actuator.replica("acme", "chat", launched.replica.id):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        again = await actuator.launch(spec(Provider.LOCAL))
        assert (again.created, again.replica.state) == (False, ReplicaState.STOPPED)
        actuator.forget("acme", "chat")
        assert not any(tmp_path.iterdir())


async def test_full_slots_and_bad_commands_are_refused(tmp_path: Path) -> None:
    async with local(tmp_path, slots=1) as actuator:
        await actuator.launch(spec(Provider.LOCAL))
        with pytest.raises(NoCapacity):
            await actuator.launch(replace(spec(Provider.LOCAL), token=derived_id("two")))
        with pytest.raises(Rejected, match="cannot launch on aws"):
            await actuator.launch(spec(Provider.AWS))
    other = replace(spec(Provider.LOCAL), token=derived_id("three"))
    async with local(tmp_path, args=("{nonsense}",)) as actuator:
        with pytest.raises(Rejected, match="bad placeholder"):
            await actuator.launch(other)
    async with local(tmp_path, args=("no-such-engine",)) as actuator:
        with pytest.raises(Rejected, match="cannot be run"):
            await actuator.launch(other)


async def test_an_engine_is_started_with_the_flags_of_its_configuration_and_so_are_its_successors(
    tmp_path: Path,
) -> None:
    engine = VllmConfig(model="m", max_num_seqs=7, prefix_caching=False)
    waits = ("/bin/sh", "-c", "while :; do sleep 0.05; done", "{port}", "{engine_arguments}")
    async with local(tmp_path, args=waits) as actuator:
        plain = await actuator.launch(spec(Provider.LOCAL))
        assert await actuator.engine("acme", "chat", plain.replica.id) is None
        tuned = replace(spec(Provider.LOCAL), token=derived_id("tuned"), engine=engine)
        first = (await actuator.launch(tuned)).replica
        words = psutil.Process(int(first.instance.id.removeprefix("local-"))).cmdline()
        assert words[-3:] == ["--max-num-seqs", "7", "--no-enable-prefix-caching"]
        like = replace(spec(Provider.LOCAL), token=derived_id("next"), like=first)
        successor = (await actuator.launch(like)).replica
        assert await actuator.engine("acme", "chat", successor.id) == engine


async def test_an_engine_that_ends_while_it_is_looked_at_is_reaped_by_that_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dies(psutil.Process):
        def status(self) -> Any:
            self.kill()
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            return super().status()

    async with local(tmp_path) as actuator:
        replica = (await actuator.launch(spec(Provider.LOCAL))).replica
        pid = int(replica.instance.id.removeprefix("local-"))
        with monkeypatch.context() as patch:
            patch.setattr(psutil, "Process", Dies)
            assert list(await actuator.replicas("acme", "chat")) == []
        assert not psutil.pid_exists(pid)


async def test_a_configuration_that_reaches_no_engine_is_refused(
    tmp_path: Path, cloud: Any
) -> None:
    engine = VllmConfig(model="m", max_num_seqs=8, max_num_batched_tokens=4)
    async with local(tmp_path) as actuator:
        with pytest.raises(Rejected, match="takes no configuration"):
            actuator.require_launchable("m", engine)
    async with local(tmp_path, args=("x", "{engine_arguments}")) as actuator:
        with pytest.raises(Rejected, match="would not start"):
            actuator.require_launchable("m", engine)
    with pytest.raises(Rejected, match="cannot launch an engine with a configuration"):
        await aws(cloud).launch(replace(spec(Provider.AWS), engine=engine))


async def test_an_unreadable_record_is_named(tmp_path: Path) -> None:
    home = tmp_path / "engines" / "broken"
    home.mkdir(parents=True)
    async with httpx.AsyncClient() as http:
        actuator = LocalActuator(tmp_path / "engines", EngineCommand(("x",)), http, clock=now)
        assert list(await actuator.replicas("acme", "chat")) == []
        (home / "engine.json").write_text("{")
        with pytest.raises(Rejected, match="unreadable"):
            await actuator.replicas("acme", "chat")
