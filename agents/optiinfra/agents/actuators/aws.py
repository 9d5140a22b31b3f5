"""Brings replicas up on EC2 and takes them away: at most one machine a launch token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

import httpx
import structlog
from botocore.exceptions import ClientError

from optiinfra.agents.actuators.health import probed
from optiinfra.agents.actuators.port import Launched, LaunchSpec, NoCapacity, replica_name
from optiinfra.schemas.deployment import Market, Provider, Replica
from optiinfra.schemas.errors import Rejected, Unavailable
from optiinfra.schemas.ids import derived_id

NO_CAPACITY_CODES = frozenset(
    {
        "InsufficientInstanceCapacity",
        "InsufficientHostCapacity",
        "MaxSpotInstanceCountExceeded",
        "SpotMaxPriceTooLow",
        "Unsupported",
        "VcpuLimitExceeded",
    }
)
"""The market (or the zone) has none now; `Unsupported` is the answer of a zone without the type."""
_TOKEN_SPENT = "IdempotentInstanceTerminated"  # noqa: S105 - an error code
_GONE = frozenset({"InvalidInstanceID.NotFound"})

_log = structlog.get_logger()


class Ec2(Protocol):
    """Calls EC2 with errors translated to ours; codes in `passing` come as `ClientError`."""

    async def call(
        self, operation: str, params: Mapping[str, Any], *, passing: frozenset[str] = frozenset()
    ) -> dict[str, Any]: ...


class Machine(Protocol):
    """An instance as the cloud describes it."""

    @property
    def replica(self) -> Replica: ...
    @property
    def paid(self) -> bool: ...
    @property
    def running(self) -> bool: ...
    @property
    def raw(self) -> Mapping[str, Any]: ...


class Machines(Protocol):
    """Reads our instances; lists are oldest first."""

    async def fleet(self, tenant: str, deployment: str) -> Sequence[Machine]: ...

    async def with_tag(
        self, tenant: str, deployment: str, tag: str, value: str
    ) -> Sequence[Machine]: ...

    async def by_id(self, instance_id: str) -> Machine | None: ...

    async def user_data(self, instance_id: str) -> str | None: ...


@dataclass(frozen=True, slots=True)
class LaunchTemplate:
    """What a machine is made of when there is no replica to take it over from."""

    image_id: str
    security_group_ids: tuple[str, ...] = ()
    user_data: str | None = None
    iam_profile_arn: str | None = None
    key_name: str | None = None
    subnets: Mapping[str, str] = field(default_factory=dict)
    """Subnet id by zone."""


class AwsActuator:
    """EC2 behind the `Actuator` port.

    Client tokens alone are not relied on: the token is a tag, looked up before the launch and after
    it; of two machines that raced with one token the older one stays.
    """

    def __init__(
        self,
        ec2: Ec2,
        machines: Machines,
        http: httpx.AsyncClient,
        *,
        clock: Callable[[], datetime],
        template: LaunchTemplate | None = None,
        start_up_s: float = 900.0,
    ) -> None:
        self._ec2 = ec2
        self._machines = machines
        self._http = http
        self._clock = clock
        self._template = template
        self._start_up = timedelta(seconds=start_up_s)
        self._locks: dict[str, asyncio.Lock] = {}

    async def replicas(self, tenant: str, deployment: str) -> Sequence[Replica]:
        machines = await self._machines.fleet(tenant, deployment)
        return await asyncio.gather(*(self._observed(machine) for machine in machines))

    async def replica(self, tenant: str, deployment: str, replica_id: str) -> Replica | None:
        machine = await self._find(tenant, deployment, replica_id)
        return await self._observed(machine) if machine else None

    async def launch(self, spec: LaunchSpec) -> Launched:
        """As the port says. A machine of this token that has ended is returned as stopped."""
        if spec.placement.provider is not Provider.AWS:
            raise Rejected(f"the AWS actuator cannot launch on {spec.placement.provider}")
        if spec.engine is not None:
            raise Rejected(
                "the AWS actuator cannot launch an engine with a configuration",
                hint="its machines start the engine by their own start-up script",
            )
        lock = self._locks.setdefault(spec.token, asyncio.Lock())
        async with lock:
            found = await self._by_token(spec)
            if found is not None:
                return Launched(await self._observed(found), False, _market(found))
            created = await self._create(spec)
            winner = await self._settle(spec, created)
        _log.info("aws.launched", token=spec.token, instance_id=winner.replica.instance.id)
        return Launched(await self._observed(winner), _id(winner) == created, _market(winner))

    async def terminate(self, tenant: str, deployment: str, replica_id: str) -> bool:
        machine = await self._find(tenant, deployment, replica_id)
        if machine is None:
            return False
        await self._terminate(_id(machine))
        left = await self._machines.by_id(_id(machine))
        if left is not None and left.paid:
            raise Unavailable(f"{_id(machine)} still runs after its termination", retry_after_s=5.0)
        return True

    async def _observed(self, machine: Machine) -> Replica:
        if not machine.running:
            return machine.replica
        launched = machine.replica.instance.launched_at
        young = launched is not None and self._clock() - launched < self._start_up
        return await probed(self._http, machine.replica, young=young)

    async def _find(self, tenant: str, deployment: str, replica_id: str) -> Machine | None:
        machines = await self._machines.with_tag(
            tenant, deployment, "optiinfra:replica", replica_id
        )
        return next((machine for machine in machines if machine.paid), None)

    async def _by_token(self, spec: LaunchSpec) -> Machine | None:
        found = await self._machines.with_tag(
            spec.tenant, spec.deployment, "optiinfra:launch-token", spec.token
        )
        return next((machine for machine in found if machine.paid), found[0] if found else None)

    async def _create(self, spec: LaunchSpec) -> str:
        """The id of the new instance, in the first of the possible zones that has capacity."""
        parts = await self._parts(spec)
        refused: list[str] = []
        for zone, subnet in await self._subnets(spec, parts):
            params = _request(spec, parts.params, zone, subnet)
            try:
                answer = await self._ec2.call(
                    "run_instances", params, passing=NO_CAPACITY_CODES | {_TOKEN_SPENT}
                )
            except ClientError as error:
                refused.append(_refusal(spec, zone, error))
                continue
            return str(answer["Instances"][0]["InstanceId"])
        raise NoCapacity("; ".join(refused))

    async def _settle(self, spec: LaunchSpec, created: str) -> Machine:
        """Reads back; keeps the oldest machine of the token and ends the others."""
        paid = [
            machine
            for machine in await self._machines.with_tag(
                spec.tenant, spec.deployment, "optiinfra:launch-token", spec.token
            )
            if machine.paid
        ]
        for extra in paid[1:]:
            _log.warning("aws.launched_twice", token=spec.token, instance_id=_id(extra))
            await self._terminate(_id(extra))
        winner = paid[0] if paid else await self._machines.by_id(created)
        if winner is None:
            raise Unavailable(f"{created} cannot be read back yet", retry_after_s=2.0)
        return winner

    async def _terminate(self, instance_id: str) -> None:
        try:
            await self._ec2.call(
                "terminate_instances", {"InstanceIds": [instance_id]}, passing=_GONE
            )
        except ClientError:
            _log.info("aws.gone_before", instance_id=instance_id)

    async def _parts(self, spec: LaunchSpec) -> _Parts:
        """What the machine is made of: taken over from `like`, else from the template."""
        source = spec.like
        if source is not None and source.instance.provider is Provider.AWS:
            machine = await self._machines.by_id(source.instance.id)
            if machine is not None:
                script = await self._machines.user_data(source.instance.id)
                return _taken_over(machine.raw, script)
        if self._template is None:
            raise Rejected(
                f"nothing says how to build a machine for {spec.deployment}",
                hint="name a running replica to copy, or configure a launch template for AWS",
            )
        return _templated(self._template)

    async def _subnets(self, spec: LaunchSpec, parts: _Parts) -> list[tuple[str, str | None]]:
        """Zones with their subnet, in the order in which they are tried.

        The zone asked for, or else those with the fewest replicas of the deployment first.
        """
        subnets = dict(parts.subnets) or await self._vpc_subnets(parts)
        wanted = spec.placement.zone
        if wanted is not None:
            if subnets and wanted not in subnets:
                raise Rejected(f"no subnet in zone {wanted}", hint="add one, or name another zone")
            return [(wanted, subnets.get(wanted))]
        if not subnets:
            return [("", None)]
        fleet = await self._machines.fleet(spec.tenant, spec.deployment)
        zones = [machine.replica.instance.zone for machine in fleet]
        ranked = sorted(subnets, key=lambda zone: (zones.count(zone), zone != parts.zone, zone))
        return [(zone, subnets[zone]) for zone in ranked]

    async def _vpc_subnets(self, parts: _Parts) -> dict[str, str]:
        if parts.vpc is None:
            return {}
        answer = await self._ec2.call(
            "describe_subnets", {"Filters": [{"Name": "vpc-id", "Values": [parts.vpc]}]}
        )
        rows = sorted(answer["Subnets"], key=lambda row: row["AvailableIpAddressCount"])
        subnets = {row["AvailabilityZone"]: row["SubnetId"] for row in rows}
        return subnets | ({parts.zone: parts.subnet} if parts.zone and parts.subnet else {})


@dataclass(frozen=True, slots=True)
class _Parts:
    params: Mapping[str, Any]
    zone: str | None = None
    subnet: str | None = None
    vpc: str | None = None
    subnets: Mapping[str, str] = field(default_factory=dict)


def _taken_over(raw: Mapping[str, Any], script: str | None) -> _Parts:
    profile = raw.get("IamInstanceProfile", {}).get("Arn")
    tokens = raw.get("MetadataOptions", {}).get("HttpTokens")
    return _Parts(
        params=_given(
            ImageId=raw["ImageId"],
            SecurityGroupIds=[group["GroupId"] for group in raw.get("SecurityGroups", [])],
            UserData=script,
            IamInstanceProfile={"Arn": profile} if profile else None,
            KeyName=raw.get("KeyName"),
            MetadataOptions={"HttpTokens": tokens} if tokens else None,
        ),
        zone=raw["Placement"]["AvailabilityZone"],
        subnet=raw.get("SubnetId"),
        vpc=raw.get("VpcId"),
    )


def _templated(template: LaunchTemplate) -> _Parts:
    profile = template.iam_profile_arn
    return _Parts(
        params=_given(
            ImageId=template.image_id,
            SecurityGroupIds=list(template.security_group_ids),
            UserData=template.user_data,
            IamInstanceProfile={"Arn": profile} if profile else None,
            KeyName=template.key_name,
        ),
        subnets=template.subnets,
    )


def _request(
    spec: LaunchSpec, params: Mapping[str, Any], zone: str, subnet: str | None
) -> dict[str, Any]:
    """The call, with a client token of its own for each market and zone that is tried."""
    market = spec.placement.market
    placement = None if subnet or not zone else {"AvailabilityZone": zone}
    spot = {
        "MarketType": "spot",
        "SpotOptions": {
            "SpotInstanceType": "one-time",
            "InstanceInterruptionBehavior": "terminate",
        },
    }
    tags = [{"Key": name, "Value": value} for name, value in _tags(spec).items()]
    return {
        **params,
        **_given(
            InstanceMarketOptions=spot if market is Market.SPOT else None,
            SubnetId=subnet,
            Placement=placement,
        ),
        "InstanceType": spec.placement.instance_type,
        "MinCount": 1,
        "MaxCount": 1,
        "ClientToken": derived_id(spec.token, market, zone),
        "TagSpecifications": [{"ResourceType": "instance", "Tags": tags}],
    }


def _tags(spec: LaunchSpec) -> dict[str, str]:
    """Ours cannot be overwritten by those of the caller."""
    name = replica_name(spec.deployment, spec.token)
    return {
        "Name": name,
        **spec.tags,
        "optiinfra:tenant": spec.tenant,
        "optiinfra:deployment": spec.deployment,
        "optiinfra:replica": name,
        "optiinfra:launch-token": spec.token,
        "optiinfra:model": spec.model,
        "optiinfra:created-by": "optiinfra",
    }


def _refusal(spec: LaunchSpec, zone: str, error: ClientError) -> str:
    code = error.response["Error"]["Code"]
    if code == _TOKEN_SPENT:
        raise Rejected(f"launch token {spec.token} belongs to an ended instance") from error
    _log.info("aws.no_capacity", zone=zone, market=spec.placement.market, code=code)
    return f"{spec.placement.instance_type} {spec.placement.market} in {zone or 'any zone'}: {code}"


def _given(**params: Any) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value}


def _id(machine: Machine) -> str:
    return machine.replica.instance.id


def _market(machine: Machine) -> Market:
    return machine.replica.instance.market
