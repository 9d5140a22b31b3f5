"""What a change replaces and by what: all that the moving machinery needs to know of its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Protocol

from pydantic import AwareDatetime, Field

from optiinfra.schemas.base import Value
from optiinfra.schemas.deployment import Replica
from optiinfra.schemas.ids import ReplicaId
from optiinfra.schemas.recommendation import Placement, Recommendation
from optiinfra.schemas.routing import RouteTable
from optiinfra.schemas.telemetry import Known, Reading, Unknown
from optiinfra.schemas.vote import AgentName
from optiinfra.serving.engines import EngineConfig

Engines = Mapping[ReplicaId, EngineConfig]


class Captured(Value):
    """The target before the first step; kept with the intent, restored by a rollback.

    `engines` is what each replaced replica is to run with, where the change says so.
    """

    executor: AgentName
    recommendation: Recommendation
    table: RouteTable
    replicas: tuple[Replica, ...]
    spend: Reading
    engines: dict[ReplicaId, Annotated[EngineConfig, Field(discriminator="engine")]] = Field(
        default_factory=dict
    )
    at: AwareDatetime


@dataclass(frozen=True, slots=True)
class Reclaim:
    """The old machine is taken away at `at`, whatever becomes of the change.

    From `drain_lead_s` before it, the machine gets no new request, ready or not.
    """

    at: datetime
    drain_lead_s: float


@dataclass(frozen=True, slots=True)
class Move:
    """`to` and `engines` say, for each of `old`, where and how its successor is launched.

    Without an engine the successor is started as the actuator starts them. `generations` is how
    many machines are tried for one successor when they end before they serve.
    """

    old: tuple[ReplicaId, ...]
    to: Mapping[ReplicaId, Placement]
    generations: int
    engines: Engines = field(default_factory=dict)
    reclaim: Reclaim | None = None


class Moves(Protocol):
    """The kinds of change that one agent carries out."""

    @property
    def executor(self) -> AgentName: ...

    def refusal(self, recommendation: Recommendation) -> str | None:
        """Why the proposal is none that this agent carries out; None when it is."""
        ...

    async def engines(self, recommendation: Recommendation, replicas: Sequence[Replica]) -> Engines:
        """What the successors of `replicas` are to run with; asked before anything is changed.

        Raises `Rejected` when they cannot be launched so.
        """
        ...

    def move(self, captured: Captured) -> Move: ...


class Spend(Protocol):
    """What replicas cost."""

    async def spend(self, replicas: Sequence[Replica]) -> Known | Unknown:
        """USD per hour, unknown when one of them has no price."""
        ...
