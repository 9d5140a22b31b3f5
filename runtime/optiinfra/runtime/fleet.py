"""The fleet file: which deployments there are, on which clouds, and what may be done to them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, HttpUrl, field_validator, model_validator

from optiinfra.agents.performance.tuning_policy import Tuning
from optiinfra.runtime.fleet_kubernetes import KubernetesCloud
from optiinfra.schemas.base import Value
from optiinfra.schemas.deployment import (
    SLO,
    Deployment,
    Engine,
    Market,
    Provider,
    QualityFloor,
)
from optiinfra.schemas.ids import DeploymentId, TenantId
from optiinfra.schemas.rules import Rules
from optiinfra.serving.cards import card_names


class Gateway(Value):
    """A gateway that runs already; left out, `optiinfra up` runs one.

    Its admin token is a secret, so it stands in the environment: OPTIINFRA_GATEWAY_ADMIN_TOKEN.
    """

    url: HttpUrl = Field(description="where clients send their requests")
    admin_url: HttpUrl = Field(description="its admin port, which sets the routes")


class AwsCloud(Value):
    """An AWS account, with the credentials that boto3 finds by itself."""

    regions: tuple[str, ...] = Field(min_length=1, description="the region, one for now")
    endpoint_url: HttpUrl | None = Field(
        default=None, description="another API endpoint, such as a VPC endpoint"
    )
    interruption_queue_url: HttpUrl | None = Field(
        default=None, description="the SQS queue that receives EC2 spot interruption warnings"
    )
    engine_port: int = Field(
        default=8000, ge=1, le=65_535, description="where the engine listens on each instance"
    )

    @field_validator("regions")
    @classmethod
    def _is_one(cls, regions: tuple[str, ...]) -> tuple[str, ...]:
        if len(regions) != 1:
            raise ValueError("name one region, and run one OptiInfra a region for now")
        return regions


class LocalCloud(Value):
    """Engines as processes on this machine."""

    command: tuple[str, ...] = Field(
        min_length=1,
        description="program and arguments; `{host}`, `{port}`, `{model}`, `{weights}`,"
        " `{replica}`, `{deployment}`, `{token}` and `{instance_type}` are filled in (`{weights}`:"
        " the engine configuration's `model`, else the same as `{model}`), and the argument"
        " `{engine_arguments}` becomes the flags of the engine's configuration",
    )
    engine_version: str | None = Field(
        default=None, description="of the engine, for its flags; the newest when left out"
    )
    emulated: bool = Field(default=False, description="the command starts an engine emulator")
    slots: int = Field(default=16, ge=1, description="how many engines fit on this machine")
    keep_running: bool = Field(
        default=False, description="leave the engines running when `optiinfra up` ends"
    )


class Clouds(Value):
    """Where replicas run."""

    aws: AwsCloud | None = Field(default=None, description="Amazon EC2")
    kubernetes: KubernetesCloud | None = Field(default=None, description="a Kubernetes cluster")
    local: LocalCloud | None = Field(default=None, description="processes on this machine")


class Timing(Value):
    """How long things take; the defaults suit production, the demo shortens them."""

    sense_every_s: float = Field(default=15.0, gt=0, description="how often agents look")
    heartbeat_s: float = Field(default=15.0, gt=0, description="how often agents say they live")
    lost_after_s: float = Field(
        default=45.0, gt=0, description="an agent that is silent for longer counts as lost"
    )
    stage_shares: tuple[float, ...] = Field(
        default=(0.1, 0.5, 1.0), min_length=1, description="share of the traffic at each stage"
    )
    stage_soak_s: tuple[float, ...] = Field(
        default=(300.0, 600.0, 900.0), min_length=1, description="wait before each stage's gate"
    )
    hold_limit_s: float = Field(
        default=900.0, gt=0, description="a gate that holds for longer is rolled back"
    )
    look_every_s: float = Field(default=30.0, gt=0, description="how often a gate looks again")
    apply_timeout_s: float = Field(
        default=900.0, gt=0, description="time for one step, and for a new replica to serve"
    )
    drain_timeout_s: float = Field(
        default=300.0, gt=0, description="time for the requests on a replica that leaves"
    )
    window_s: float = Field(default=300.0, gt=0, description="telemetry that a vote looks back on")
    golden_per_look: int = Field(default=40, ge=1, description="golden prompts a gate asks a look")
    baseline_every_s: float = Field(
        default=900.0, gt=0, description="how often the quality baseline is measured anew"
    )
    min_gate_samples: int = Field(
        default=30, ge=1, description="requests below which latency counts as unknown"
    )
    load_step_s: float = Field(
        default=60.0, gt=0, description="one step of the load history that forecasts are made from"
    )
    start_up_s: float = Field(
        default=420.0,
        gt=0,
        description="how long a new replica takes until it serves: load is forecast so far ahead",
    )

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        shares, soaks = self.stage_shares, self.stage_soak_s
        if len(shares) != len(soaks):
            raise ValueError(
                f"stage_shares has {len(shares)} stages and stage_soak_s has {len(soaks)};"
                " give one soak time for each share"
            )
        rising = all(a < b for a, b in pairwise((0.0, *shares)))
        if not rising or shares[-1] != 1.0:
            raise ValueError(f"stage_shares must rise from above 0 to 1.0, not {list(shares)}")
        if min(soaks) < 0:
            raise ValueError("stage_soak_s must not be negative")
        return self

    @model_validator(mode="after")
    def _silence_is_longer_than_a_beat(self) -> Self:
        if self.lost_after_s <= self.heartbeat_s:
            raise ValueError(
                f"lost_after_s ({self.lost_after_s:g}) must be longer than"
                f" heartbeat_s ({self.heartbeat_s:g})"
            )
        return self


class Start(Value):
    """What `optiinfra up` starts while a deployment has too few replicas.

    Only in `mode: act`, on this machine or in Kubernetes. Type, region and market are what the
    replicas are priced as, and in Kubernetes also where they run.
    """

    replicas: int = Field(ge=1, description="how many")
    instance_type: str = Field(default="local", description="priced as this type")
    region: str = Field(default="local", description="priced in this region")
    market: Market = Field(default=Market.ON_DEMAND, description="priced in this market")


class DeploymentConfig(Value):
    """One served model as its owner declares it."""

    id: DeploymentId = Field(description="its name; instances carry it as a tag")
    model: str = Field(min_length=1, description="the name that requests ask for")
    engine: Engine = Field(default=Engine.VLLM, description="whose metrics it exposes")
    provider: Provider = Field(description="the cloud under `clouds` that it runs on")
    perf_card: str | None = Field(
        default=None, description="the performance card of engine, model and GPU, for forecasts"
    )
    slo: SLO = Field(default=SLO(), description="what the latencies and errors must stay under")
    quality: QualityFloor = Field(
        default=QualityFloor(),
        description="how much worse answers may become: docs/quality-gate.md",
    )
    interruptible: bool = Field(default=False, description="may run on spot machines")
    min_replicas: int = Field(default=1, ge=1, description="never fewer than these")
    failure_tolerance: int = Field(default=1, ge=0, description="replicas that may fail at once")
    priority: Literal["low", "standard", "customer"] = Field(
        default="standard", description="who goes first when changes conflict"
    )
    golden: Path | None = Field(
        default=None, description="JSON lines of prompts and answers; relative to this file"
    )
    engine_file: Path | None = Field(
        default=None,
        description="what its engines are started with, as `optiinfra engine show` reads it;"
        " relative to this file",
    )
    start: Start | None = Field(default=None, description="first replicas, local or in Kubernetes")
    tuning: Tuning | None = Field(
        default=None,
        description="tune its engine on a staging replica, which costs what any replica costs while"
        " a study lasts; left out, nothing is tried",
    )

    @field_validator("perf_card")
    @classmethod
    def _card_is_known(cls, name: str | None) -> str | None:
        if name is not None and name not in card_names():
            raise ValueError(f"no card is called {name!r}; choose one of {', '.join(card_names())}")
        return name


class Fleet(Value):
    """The whole file. `mode: observe` (the default) proposes and votes, and never acts."""

    tenant: TenantId = Field(default="default", description="whose fleet this is")
    mode: Literal["observe", "act"] = Field(
        default="observe", description="`observe` proposes and votes; `act` also carries out"
    )
    gateway: Gateway | None = Field(default=None, description="a gateway that runs already")
    clouds: Clouds = Field(default=Clouds(), description="where replicas run")
    deployments: tuple[DeploymentConfig, ...] = Field(min_length=1, description="what is served")
    rules: Rules = Field(
        default=Rules(), description="the policy, inline: the keys stand in docs/policy.md"
    )
    policy: Path | None = Field(
        default=None,
        description="the policy in a file of its own, in place of `rules`; relative to this file",
    )
    notifications: Path | None = Field(
        default=None,
        description="whom to tell what, in a file of its own (docs/notifications.md); relative to"
        " this file",
    )
    timing: Timing = Field(default=Timing(), description="how long things take")
    sample_fraction: float = Field(
        default=0.05, ge=0, le=1, description="part of the live answers that is scored"
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.policy is not None and "rules" in self.model_fields_set:
            raise ValueError(
                "give the policy under rules or in the file that policy names, not both"
            )
        names = self.deployment_ids
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"deployments {sorted(twice)} are declared twice")
        for number, deployment in enumerate(self.deployments):
            where = f"deployments.{number} ({deployment.id})"
            self._check_provider(where, deployment)
            _check_start(where, deployment)
            _check_tuning(where, deployment)
            self._check_engine_file(where, deployment)
        if len({one.golden for one in self.deployments if one.golden is not None}) > 1:
            raise ValueError("the deployments name more than one golden set; name one for all")
        return self

    def _check_provider(self, where: str, deployment: DeploymentConfig) -> None:
        provider = deployment.provider.value
        if provider not in Clouds.model_fields:
            raise ValueError(
                f"{where}.provider: {provider} has no adapter yet;"
                f" choose one of {', '.join(Clouds.model_fields)}"
            )
        if getattr(self.clouds, provider) is None:
            raise ValueError(
                f"{where}.provider is {provider!r}, but the file has no clouds.{provider};"
                " add it, or name another provider"
            )

    def _check_engine_file(self, where: str, deployment: DeploymentConfig) -> None:
        local = self.clouds.local if deployment.provider is Provider.LOCAL else None
        if deployment.engine_file is None or local is None:
            return
        if "{engine_arguments}" not in local.command:
            raise ValueError(
                f"{where}.engine_file has no effect: put {{engine_arguments}} into"
                " clouds.local.command, where its flags are to stand"
            )

    @property
    def deployment_ids(self) -> list[str]:
        """The names of all deployments, in the file's order."""
        return [deployment.id for deployment in self.deployments]

    @property
    def golden(self) -> Path | None:
        """The golden set that the file names, None for the one that ships."""
        named = [one.golden for one in self.deployments if one.golden is not None]
        return named[0] if named else None

    def declared(self, gateway_url: str) -> dict[str, Deployment]:
        """The deployments as everybody else speaks of them."""
        return {
            config.id: Deployment(
                id=config.id,
                tenant=self.tenant,
                model=config.model,
                engine=config.engine,
                perf_card=config.perf_card,
                slo=config.slo,
                quality=config.quality,
                gateway_url=HttpUrl(gateway_url),
                interruptible=config.interruptible,
                acting=self.mode == "act",
                min_replicas=config.min_replicas,
                failure_tolerance=config.failure_tolerance,
                priority=config.priority,
            )
            for config in self.deployments
        }


def _check_start(where: str, deployment: DeploymentConfig) -> None:
    if deployment.start is None:
        return
    if deployment.provider not in (Provider.LOCAL, Provider.KUBERNETES):
        raise ValueError(
            f"{where}.start works on local and kubernetes only; start other instances yourself"
        )
    if deployment.provider is Provider.KUBERNETES and deployment.engine_file is None:
        raise ValueError(f"{where}.start needs engine_file: what its engines are started with")
    if deployment.start.replicas < deployment.min_replicas:
        raise ValueError(f"{where}.start.replicas is below min_replicas")


def _check_tuning(where: str, deployment: DeploymentConfig) -> None:
    if deployment.tuning is None:
        return
    if deployment.provider is not Provider.LOCAL:
        raise ValueError(f"{where}.tuning works on the local cloud only for now; leave it out")
    if deployment.engine_file is None:
        raise ValueError(
            f"{where}.tuning needs to know what its engines are started with: name an engine_file"
        )


def as_fleet(content: dict[str, Any], folder: Path) -> Fleet:
    """The fleet that parsed YAML describes; relative paths in it start at `folder`.

    Raises pydantic's `ValidationError`.
    """
    fleet = Fleet.model_validate(content)
    placed = tuple(
        one.model_copy(
            update={
                name: folder / path
                for name in ("golden", "engine_file")
                if (path := getattr(one, name)) is not None
            }
        )
        for one in fleet.deployments
    )
    policy = folder / fleet.policy if fleet.policy else None
    told = folder / fleet.notifications if fleet.notifications else None
    changes = {
        "deployments": placed,
        "policy": policy,
        "notifications": told,
        "clouds": _placed(fleet.clouds, folder),
    }
    return fleet.model_copy(update=changes)


def _placed(clouds: Clouds, folder: Path) -> Clouds:
    cluster = clouds.kubernetes
    if cluster is None or cluster.kubeconfig is None:
        return clouds
    at = cluster.model_copy(update={"kubeconfig": folder / cluster.kubeconfig})
    return clouds.model_copy(update={"kubernetes": at})
