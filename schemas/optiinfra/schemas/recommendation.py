"""A proposed change: what, on which target, why, for how much, at which risk."""

from __future__ import annotations

import hashlib
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from optiinfra.schemas.base import Value
from optiinfra.schemas.deployment import Market, Provider
from optiinfra.schemas.ids import DeploymentId, RecommendationId, ReplicaId, TenantId
from optiinfra.schemas.kept import kept
from optiinfra.schemas.money import Interval, PriceSource
from optiinfra.schemas.tuning import TuningTrial
from optiinfra.schemas.vote import AgentName, Evidence


class Risk(StrEnum):
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        return list(Risk).index(self)


APPROVAL_EXPIRY_S: dict[Risk, float] = {
    Risk.LOW: 7 * 86_400.0,
    Risk.MEDIUM: 48 * 3_600.0,
    Risk.HIGH: 24 * 3_600.0,
    Risk.CRITICAL: 4 * 3_600.0,
}
"""How long an approval may be waited for, by risk, s."""


def _is_unset(value: object) -> bool:
    """Whether to leave out a field that came later: hashes and states written before still fit."""
    return not value


class Placement(Value):
    """Where and how a replica is bought."""

    provider: Provider
    instance_type: str
    region: str
    zone: str | None = None
    market: Market
    fallback_market: Market | None = None
    """The market to buy from when the first has no capacity."""


class SpotMigration(Value):
    """Move replicas from on-demand instances to spot ones of the same shape."""

    kind: Literal["spot_migration"] = "spot_migration"
    replicas: tuple[ReplicaId, ...] = Field(min_length=1)
    to: Placement


class SpotReplacement(Value):
    """Replace replicas whose spot instances are being reclaimed, before they go."""

    kind: Literal["spot_replacement"] = "spot_replacement"
    replicas: tuple[ReplicaId, ...] = Field(min_length=1)
    to: Placement
    reclaim_at: AwareDatetime


class RightSizing(Value):
    """Serve the same load on another GPU type or count."""

    kind: Literal["right_sizing"] = "right_sizing"
    replicas: tuple[ReplicaId, ...] = Field(min_length=1)
    to: Placement
    count: int = Field(ge=1)


class CommitmentPurchase(Value):
    """Buy reserved capacity; irreversible, so always a person's decision."""

    kind: Literal["commitment_purchase"] = "commitment_purchase"
    provider: Provider
    instance_type: str
    region: str
    count: int = Field(ge=1)
    term_years: Literal[1, 3]
    payment: Literal["no_upfront", "partial_upfront", "all_upfront"]


class IdleShutdown(Value):
    """Stop replicas that serve nothing."""

    kind: Literal["idle_shutdown"] = "idle_shutdown"
    replicas: tuple[ReplicaId, ...] = Field(min_length=1)


class KvCacheTuning(Value):
    """Change the size, type or block length of the KV cache."""

    kind: Literal["kv_cache_tuning"] = "kv_cache_tuning"
    gpu_memory_fraction: float | None = Field(default=None, gt=0, le=1)
    dtype: str | None = None
    block_tokens: int | None = Field(default=None, ge=1)
    prefix_caching: bool | None = None
    max_num_seqs: int | None = Field(default=None, ge=1, exclude_if=_is_unset)
    """Requests that share the cache."""


class Precision(StrEnum):
    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"
    INT8 = "int8"


class Quantisation(Value):
    """Serve the model in another precision."""

    kind: Literal["quantisation"] = "quantisation"
    from_precision: Precision
    to_precision: Precision
    weights: str | None = Field(default=None, exclude_if=_is_unset)
    """The checkpoint that holds the weights in that precision; None lets the engine convert."""


class BatchTuning(Value):
    """Change the scheduler's limits."""

    kind: Literal["batch_tuning"] = "batch_tuning"
    max_num_seqs: int | None = Field(default=None, ge=1)
    max_num_batched_tokens: int | None = Field(default=None, ge=1)
    chunked_prefill: bool | None = None


class ParallelismChange(Value):
    """Spread the model over another number of GPUs."""

    kind: Literal["parallelism"] = "parallelism"
    tensor_parallel: int = Field(ge=1)
    pipeline_parallel: int = Field(default=1, ge=1)


class PredictiveScaling(Value):
    """Change the number of replicas ahead of the forecast load."""

    kind: Literal["predictive_scaling"] = "predictive_scaling"
    from_replicas: int = Field(ge=0)
    to_replicas: int = Field(ge=1)


class Consolidation(Value):
    """Merge half-idle replicas onto fewer instances."""

    kind: Literal["consolidation"] = "consolidation"
    replicas: tuple[ReplicaId, ...] = Field(min_length=1)
    onto: tuple[ReplicaId, ...] = ()


class KvCacheSizing(Value):
    """Give the KV cache the memory that the observed load needs."""

    kind: Literal["kv_cache_sizing"] = "kv_cache_sizing"
    kv_tokens: int = Field(ge=1)


class RevertChange(Value):
    """Undo a change that turned out harmful after it had completed."""

    kind: Literal["revert_change"] = "revert_change"
    change: RecommendationId


class GateTightening(Value):
    """Make the quality gate of a deployment stricter."""

    kind: Literal["gate_tightening"] = "gate_tightening"
    max_relative_drop: float = Field(gt=0, lt=1)


ChangeSpec = Annotated[
    SpotMigration
    | SpotReplacement
    | RightSizing
    | CommitmentPurchase
    | IdleShutdown
    | KvCacheTuning
    | Quantisation
    | BatchTuning
    | ParallelismChange
    | PredictiveScaling
    | Consolidation
    | KvCacheSizing
    | RevertChange
    | GateTightening,
    Field(discriminator="kind"),
]

IRREVERSIBLE_KINDS = frozenset({"commitment_purchase"})
"""Kinds that no policy may approve by itself."""


class StagePlan(Value):
    """One stage of a rollout: the share of traffic, and how long to wait before its gate."""

    share: float = Field(gt=0, le=1)
    soak_s: float = Field(ge=0)
    hold_limit_s: float = Field(gt=0)


class RolloutPlan(Value):
    """Shares rise strictly and end at 1."""

    stages: tuple[StagePlan, ...] = Field(min_length=1)
    gates: tuple[AgentName, ...] = (AgentName.PERFORMANCE, AgentName.APPLICATION)
    apply_timeout_s: float = Field(default=900.0, gt=0)
    look_every_s: float = Field(default=15.0, gt=0)


class Recommendation(Value):
    """A proposal with its evidence; the numbers are forecasts with intervals."""

    KEPT = ("version_hash",)

    id: RecommendationId
    tenant: TenantId
    deployment: DeploymentId
    proposer: AgentName
    title: str
    spec: ChangeSpec
    saving_usd_per_month: Interval | None = None
    spend_usd_per_hour: float | None = Field(default=None, ge=0)
    price_source: PriceSource | None = None
    risk: Risk
    risk_reasons: tuple[str, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    curve: tuple[TuningTrial, ...] = Field(default=(), exclude_if=_is_unset)
    """What was measured on a staging replica: the present configuration first."""
    rollout: RolloutPlan
    rollback_seconds: float = Field(ge=0)
    cannot_be_undone: tuple[str, ...] = ()
    proposed_at: AwareDatetime
    urgent_until: AwareDatetime | None = None
    """When the reason to act ends (a spot reclaim); decisions are hurried before it."""

    def is_urgent(self, at: datetime) -> bool:
        """Whether the reason to hurry still stands."""
        return self.urgent_until is not None and at < self.urgent_until

    @kept
    def version_hash(self) -> str:
        """What an approval is bound to: 16 hex digits over the whole proposal."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]
