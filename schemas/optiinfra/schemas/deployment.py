"""A model served by one engine configuration on replicas, each on an instance from a market."""

from __future__ import annotations

from enum import StrEnum

from pydantic import AwareDatetime, Field, HttpUrl

from optiinfra.schemas.base import Value
from optiinfra.schemas.ids import DeploymentId, ReplicaId, TenantId


class Engine(StrEnum):
    """Serving engines whose metrics can be read; TensorRT-LLM is the one behind Triton."""

    VLLM = "vllm"
    SGLANG = "sglang"
    TGI = "tgi"
    TENSORRT_LLM = "tensorrt_llm"
    LLAMA_CPP = "llama_cpp"


class Market(StrEnum):
    ON_DEMAND = "on_demand"
    SPOT = "spot"
    RESERVED = "reserved"


class Provider(StrEnum):
    AWS = "aws"
    GCP = "gcp"
    AZURE = "azure"
    LOCAL = "local"
    KUBERNETES = "kubernetes"


class ReplicaState(StrEnum):
    """What the cloud and the replica itself say; `UNKNOWN` when neither answers."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPED = "stopped"
    UNKNOWN = "unknown"


class SLO(Value):
    """Latency objectives; defaults as in the performance policy."""

    ttft_p95_s: float = Field(default=0.5, gt=0)
    tpot_p95_s: float = Field(default=0.05, gt=0)
    error_rate: float = Field(default=0.01, ge=0, lt=1)


class QualityFloor(Value):
    """How much worse answers may become, and how sure a gate has to be: docs/quality-gate.md."""

    max_relative_drop: float = Field(
        default=0.05, gt=0, lt=1, description="a relative drop of quality that is rolled back"
    )
    alpha: float = Field(
        default=0.05,
        ge=1e-6,
        le=0.5,
        description="chance at most of ever rolling back a canary that answers as well",
    )
    beta: float = Field(
        default=0.05,
        ge=1e-6,
        le=0.5,
        description="chance at most of ever passing a canary that is worse by the drop above",
    )


class Instance(Value):
    """A machine that is paid for."""

    id: str
    provider: Provider
    instance_type: str
    region: str
    zone: str
    market: Market
    launched_at: AwareDatetime | None = None


class Replica(Value):
    """One serving engine process (group) and the instance under it."""

    id: ReplicaId
    deployment: DeploymentId
    state: ReplicaState
    url: str | None = None
    instance: Instance
    launch_token: str | None = None
    emulated: bool = False


class Deployment(Value):
    """What the user declared about one served model; the desired, not the observed state."""

    id: DeploymentId
    tenant: TenantId
    model: str
    engine: Engine = Engine.VLLM
    perf_card: str | None = None
    slo: SLO = SLO()
    quality: QualityFloor = QualityFloor()
    gateway_url: HttpUrl
    interruptible: bool = False
    acting: bool = False
    min_replicas: int = Field(default=1, ge=1)
    failure_tolerance: int = Field(default=1, ge=0)
    priority: str = "standard"
