"""What the cloud says: instances with our tags, and the history of spot prices (AWS)."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
)

from optiinfra.schemas.deployment import Instance, Market, Provider, Replica, ReplicaState
from optiinfra.schemas.errors import Denied, Rejected, Unavailable
from optiinfra.serving.prices import SpotQuote

TAG_TENANT = "optiinfra:tenant"
TAG_DEPLOYMENT = "optiinfra:deployment"
TAG_REPLICA = "optiinfra:replica"
TAG_TOKEN = "optiinfra:launch-token"  # noqa: S105 - the name of a tag
TAG_ENDPOINT = "optiinfra:endpoint"
TAG_EMULATED = "optiinfra:emulated"

PAID_STATES = ("pending", "running")
_DENIED = frozenset(
    {
        "UnauthorizedOperation",
        "AccessDenied",
        "AccessDeniedException",
        "AuthFailure",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidClientTokenId",
        "OptInRequired",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
_TRANSIENT = frozenset(
    {
        "EC2ThrottledException",
        "InternalError",
        "InternalFailure",
        "RequestLimitExceeded",
        "RequestThrottled",
        "ServiceUnavailable",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
        "Unavailable",
    }
)
_STATES = {
    "pending": ReplicaState.STARTING,
    "running": ReplicaState.UNKNOWN,
}


@dataclass(frozen=True, slots=True)
class AwsAccount:
    """How to reach one account in one region; None leaves it to boto3's own chain."""

    region: str
    endpoint_url: str | None = None
    profile: str | None = None
    connect_timeout_s: float = 3.0
    read_timeout_s: float = 20.0
    attempts: int = 4


class SpotCloud(Protocol):
    """A cloud that sells spot machines. Errors: `Unavailable`, `Denied`."""

    async def spot_history(
        self, instance_type: str, region: str, since: datetime
    ) -> Sequence[SpotQuote]:
        """Quotes from `since` on, with the one in force then; empty when there are none."""
        ...

    async def zones(self, region: str) -> Sequence[str]:
        """Zones that can be bought in, sorted."""
        ...


class AwsApi:
    """One boto3 client behind a thread, with its errors translated to ours."""

    def __init__(self, client: Any) -> None:
        self._client = client

    @classmethod
    def connect(cls, service: str, account: AwsAccount) -> AwsApi:
        """A client of `service`. Raises `Denied` when the profile or region cannot be found."""
        config = Config(
            connect_timeout=account.connect_timeout_s,
            read_timeout=account.read_timeout_s,
            retries={"mode": "standard", "total_max_attempts": account.attempts},
        )
        try:
            session = boto3.session.Session(
                profile_name=account.profile, region_name=account.region
            )
            # The service is a variable, so the typed overloads do not apply.
            make: Any = session.client
            return cls(make(service, endpoint_url=account.endpoint_url, config=config))
        except BotoCoreError as error:
            raise Denied(f"no {service} client: {error}", hint="check the AWS profile") from error

    @property
    def region(self) -> str:
        return str(self._client.meta.region_name)

    async def call(
        self, operation: str, params: Mapping[str, Any], *, passing: frozenset[str] = frozenset()
    ) -> dict[str, Any]:
        """One API call. Error codes in `passing` reach the caller as `ClientError`.

        Raises `Denied` (no credentials, no permission: the action is named), `Unavailable`
        (unreachable or throttled) and `Rejected` (anything that fails again when repeated).
        """
        method = getattr(self._client, operation)
        try:
            answer: dict[str, Any] = await asyncio.to_thread(method, **params)
        except (NoCredentialsError, PartialCredentialsError, NoRegionError) as error:
            raise Denied(
                f"AWS credentials are missing or incomplete: {error}",
                hint="give the agent a role, a profile, or AWS_ACCESS_KEY_ID and its secret",
            ) from error
        except ClientError as error:
            if _code(error) in passing:
                raise
            raise self._translated(error) from error
        except BotoCoreError as error:
            raise Unavailable(
                f"{self._action(operation)} did not get through: {error}",
                retry_after_s=5.0,
                hint="check the network, the region and the endpoint of the cloud",
            ) from error
        return answer

    async def pages(
        self, operation: str, params: Mapping[str, Any], key: str
    ) -> list[dict[str, Any]]:
        """All items under `key`, page by page; errors as `call`."""
        items: list[dict[str, Any]] = []
        more: dict[str, str] = {}
        while True:
            page = await self.call(operation, {**params, **more})
            items.extend(page.get(key, []))
            if not page.get("NextToken"):
                return items
            more = {"NextToken": page["NextToken"]}

    def close(self) -> None:
        self._client.close()

    def _action(self, operation: str) -> str:
        name = self._client.meta.method_to_api_mapping.get(operation, operation)
        return f"{self._client.meta.service_model.service_name}:{name}"

    def _translated(self, error: ClientError) -> Exception:
        code, text = _code(error), error.response["Error"].get("Message", "")
        name = f"{self._client.meta.service_model.service_name}:{error.operation_name}"
        if code in _DENIED:
            return Denied(f"AWS refuses {name}: {code}: {text}", hint=f"allow {name} to the agent")
        if code in _TRANSIENT or error.response["ResponseMetadata"].get("HTTPStatusCode", 0) >= 500:
            return Unavailable(f"{name} is throttled or failing: {code}: {text}", retry_after_s=5.0)
        return Rejected(f"{name} was refused: {code}: {text}")


@dataclass(frozen=True, slots=True)
class CloudInstance:
    """One machine: the replica on it as the cloud alone sees it, and the raw description."""

    replica: Replica
    tenant: str
    running: bool
    raw: Mapping[str, Any] = field(repr=False)

    @property
    def paid(self) -> bool:
        return self.raw["State"]["Name"] in PAID_STATES


class AwsInstances:
    """Reads EC2 instances that carry our tags.

    `endpoint` is the URL of an engine whose instance has not registered one itself by the tag
    `optiinfra:endpoint`; `{private_ip}`, `{public_ip}` and `{private_dns}` are filled in.
    """

    def __init__(self, ec2: AwsApi, endpoint: str = "http://{private_ip}:8000") -> None:
        self._ec2 = ec2
        self._endpoint = endpoint

    async def fleet(self, tenant: str, deployment: str) -> list[CloudInstance]:
        """Instances of a deployment that are paid for, oldest first."""
        found = await self._tagged(tenant, {TAG_DEPLOYMENT: deployment}, PAID_STATES)
        return sorted(found, key=_age)

    async def with_tag(
        self, tenant: str, deployment: str, tag: str, value: str
    ) -> list[CloudInstance]:
        """Instances with one more tag, also those that have ended, oldest first."""
        found = await self._tagged(tenant, {TAG_DEPLOYMENT: deployment, tag: value}, ())
        return sorted(found, key=_age)

    async def by_id(self, instance_id: str) -> CloudInstance | None:
        """The instance, also after its end; None when it is unknown or not ours."""
        try:
            reservations = await self._ec2.call(
                "describe_instances",
                {"InstanceIds": [instance_id]},
                passing=frozenset({"InvalidInstanceID.NotFound", "InvalidInstanceID.Malformed"}),
            )
        except ClientError:
            return None
        found = self._parsed(reservations.get("Reservations", []))
        return found[0] if found else None

    async def user_data(self, instance_id: str) -> str | None:
        """The start-up script of an instance, None when it has none."""
        answer = await self._ec2.call(
            "describe_instance_attribute", {"InstanceId": instance_id, "Attribute": "userData"}
        )
        encoded = answer.get("UserData", {}).get("Value")
        return base64.b64decode(encoded).decode() if encoded else None

    async def _tagged(
        self, tenant: str, tags: Mapping[str, str], states: Sequence[str]
    ) -> list[CloudInstance]:
        wanted = {TAG_TENANT: tenant, **tags}
        filters = [{"Name": f"tag:{name}", "Values": [value]} for name, value in wanted.items()]
        if states:
            filters.append({"Name": "instance-state-name", "Values": list(states)})
        return self._parsed(
            await self._ec2.pages("describe_instances", {"Filters": filters}, "Reservations")
        )

    def _parsed(self, reservations: Sequence[Mapping[str, Any]]) -> list[CloudInstance]:
        raws = [raw for reservation in reservations for raw in reservation["Instances"]]
        parsed = (parse_instance(raw, self._ec2.region, self._endpoint) for raw in raws)
        return [instance for instance in parsed if instance is not None]


class AwsSpot:
    """Spot price history and zones of EC2, Linux machines."""

    def __init__(self, ec2: AwsApi) -> None:
        self._ec2 = ec2

    async def spot_history(
        self, instance_type: str, region: str, since: datetime
    ) -> Sequence[SpotQuote]:
        if region != self._ec2.region:
            return []
        rows = await self._ec2.pages(
            "describe_spot_price_history",
            {
                "InstanceTypes": [instance_type],
                "ProductDescriptions": ["Linux/UNIX"],
                "StartTime": since,
            },
            "SpotPriceHistory",
        )
        return [
            SpotQuote(row["AvailabilityZone"], float(row["SpotPrice"]), row["Timestamp"])
            for row in rows
        ]

    async def zones(self, region: str) -> Sequence[str]:
        if region != self._ec2.region:
            return []
        answer = await self._ec2.call(
            "describe_availability_zones", {"Filters": [{"Name": "state", "Values": ["available"]}]}
        )
        return sorted(zone["ZoneName"] for zone in answer["AvailabilityZones"])


def parse_instance(raw: Mapping[str, Any], region: str, endpoint: str) -> CloudInstance | None:
    """Our view of one `describe_instances` item; None when it lacks our tags."""
    tags = {tag["Key"]: tag["Value"] for tag in raw.get("Tags", [])}
    if not {TAG_TENANT, TAG_DEPLOYMENT, TAG_REPLICA} <= tags.keys():
        return None
    state = raw["State"]["Name"]
    machine = Instance(
        id=raw["InstanceId"],
        provider=Provider.AWS,
        instance_type=raw["InstanceType"],
        region=region,
        zone=raw["Placement"]["AvailabilityZone"],
        market=_market(raw),
        launched_at=raw.get("LaunchTime"),
    )
    replica = Replica(
        id=tags[TAG_REPLICA],
        deployment=tags[TAG_DEPLOYMENT],
        state=_STATES.get(state, ReplicaState.STOPPED),
        url=tags.get(TAG_ENDPOINT) or _url(raw, endpoint),
        instance=machine,
        launch_token=tags.get(TAG_TOKEN),
        emulated=tags.get(TAG_EMULATED) == "true",
    )
    return CloudInstance(replica, tags[TAG_TENANT], state == "running", raw)


def _market(raw: Mapping[str, Any]) -> Market:
    """EC2 shows spot and capacity blocks; an instance under a reservation looks like on-demand."""
    lifecycle = raw.get("InstanceLifecycle")
    if lifecycle == "spot":
        return Market.SPOT
    return Market.RESERVED if lifecycle == "capacity-block" else Market.ON_DEMAND


def _url(raw: Mapping[str, Any], endpoint: str) -> str | None:
    parts = {
        "private_ip": raw.get("PrivateIpAddress", ""),
        "public_ip": raw.get("PublicIpAddress", ""),
        "private_dns": raw.get("PrivateDnsName", ""),
    }
    used = [name for name in parts if f"{{{name}}}" in endpoint]
    if any(not parts[name] for name in used):
        return None
    return endpoint.format(**parts)


def _age(instance: CloudInstance) -> tuple[str, str]:
    launched = instance.replica.instance.launched_at
    return (launched.isoformat() if launched else "", instance.replica.instance.id)


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
