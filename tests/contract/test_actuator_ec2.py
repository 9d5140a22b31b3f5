"""What the EC2 actuator does that no other does, on moto and on a stubbed API."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from botocore.stub import Stubber

from optiinfra.agents.actuators.port import NoCapacity
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
from tests.actuator_stand import REGION, aws, now, spec


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
