"""The fleet file: which deployments there are, on which clouds, and what may be done to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, HttpUrl, ValidationError, model_validator

from optiinfra.schemas.base import Value
from optiinfra.schemas.deployment import SLO, Deployment, Engine, Provider, QualityFloor
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.ids import DeploymentId, TenantId
from optiinfra.schemas.rules import Rules


class Gateway(Value):
    """The gateway in front of the replicas; left out, `optiinfra up` runs one."""

    url: HttpUrl
    admin_url: HttpUrl
    admin_token_env: str = "OPTIINFRA_GATEWAY_ADMIN_TOKEN"  # noqa: S105 - a name, not a secret


class AwsCloud(Value):
    """An AWS account, with the credentials that boto3 finds by itself."""

    regions: tuple[str, ...] = Field(min_length=1)
    endpoint_url: HttpUrl | None = None
    interruption_queue_url: HttpUrl | None = None
    engine_port: int = Field(default=8000, ge=1, le=65_535)


class LocalCloud(Value):
    """Engine processes on this machine; `{port}`, `{model}` and `{replica}` are filled in."""

    command: tuple[str, ...] = Field(min_length=1)


class Clouds(Value):
    aws: AwsCloud | None = None
    local: LocalCloud | None = None


class Timing(Value):
    """How long things take; the defaults suit production, the demo shortens them."""

    sense_every_s: float = Field(default=15.0, gt=0)
    heartbeat_s: float = Field(default=15.0, gt=0)
    lost_after_s: float = Field(default=45.0, gt=0)
    stage_shares: tuple[float, ...] = (0.1, 0.5, 1.0)
    stage_soak_s: tuple[float, ...] = (300.0, 600.0, 900.0)
    hold_limit_s: float = Field(default=900.0, gt=0)
    look_every_s: float = Field(default=30.0, gt=0)
    apply_timeout_s: float = Field(default=900.0, gt=0)
    drain_timeout_s: float = Field(default=300.0, gt=0)
    window_s: float = Field(default=300.0, gt=0)
    golden_per_look: int = Field(default=40, ge=1)
    baseline_every_s: float = Field(default=900.0, gt=0)
    min_gate_samples: int = Field(default=30, ge=1)
    load_step_s: float = Field(default=60.0, gt=0)
    """One step of the load history that forecasts are made from."""
    start_up_s: float = Field(default=420.0, gt=0)
    """How long a new replica takes until it serves: so far ahead load is forecast."""


class DeploymentConfig(Value):
    """One served model as its owner declares it."""

    id: DeploymentId
    model: str
    engine: Engine = Engine.VLLM
    provider: Provider
    perf_card: str | None = None
    slo: SLO = SLO()
    quality: QualityFloor = QualityFloor()
    interruptible: bool = False
    min_replicas: int = Field(default=1, ge=1)
    failure_tolerance: int = Field(default=1, ge=0)
    priority: Literal["low", "standard", "customer"] = "standard"
    golden: Path | None = None


class Fleet(Value):
    """The whole file. `mode: observe` (the default) proposes and votes, and never acts."""

    tenant: TenantId = "default"
    mode: Literal["observe", "act"] = "observe"
    gateway: Gateway | None = None
    clouds: Clouds = Clouds()
    deployments: tuple[DeploymentConfig, ...] = Field(min_length=1)
    rules: Rules = Rules()
    timing: Timing = Timing()
    sample_fraction: float = Field(default=0.05, ge=0, le=1)

    @model_validator(mode="after")
    def _is_consistent(self) -> Fleet:
        names = [deployment.id for deployment in self.deployments]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"deployments {sorted(twice)} are declared twice")
        for deployment in self.deployments:
            if getattr(self.clouds, deployment.provider.value, None) is None:
                raise ValueError(
                    f"deployment {deployment.id!r} is on {deployment.provider.value!r},"
                    f" which clouds does not configure"
                )
        return self

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


def load_fleet(path: Path) -> Fleet:
    """Reads and checks the file. Raises `Rejected` naming the key, what is wrong, and the line."""
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as missing:
        raise Rejected(
            f"there is no fleet file {path}", hint="write one; docs/fleet.md shows how"
        ) from missing
    except (OSError, UnicodeDecodeError) as unreadable:
        raise Rejected(f"{path} cannot be read: {unreadable}") from unreadable
    except yaml.YAMLError as broken:
        raise Rejected(f"{path} is not YAML: {broken}") from broken
    if not isinstance(content, dict):
        raise Rejected(f"{path} must hold a mapping with the key 'deployments'")
    try:
        return Fleet.model_validate(content)
    except ValidationError as invalid:
        lines = [
            f"{'.'.join(str(part) for part in error['loc']) or 'file'}: {error['msg']}"
            for error in invalid.errors(include_url=False, include_input=False)
        ]
        raise Rejected(
            f"{path}: " + "; ".join(lines), hint="`optiinfra config check` explains every key"
        ) from invalid
