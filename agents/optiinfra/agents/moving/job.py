"""What one step of one change has at hand: the fence, the time left, the target as it was."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass

import structlog

from optiinfra.agents.actuators.intents import Intents
from optiinfra.agents.actuators.port import Actuator, Traffic
from optiinfra.agents.base.agent import Clock
from optiinfra.agents.moving.move import Captured, Move, Spend
from optiinfra.agents.moving.shares import Backends
from optiinfra.agents.moving.warm_up import WarmUp
from optiinfra.schemas.deployment import Provider, Replica
from optiinfra.schemas.errors import Conflict, Rejected
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.rollout import Step
from optiinfra.schemas.routing import RouteTable

_CAS_TRIES = 8
_log = structlog.get_logger()


class StepFailed(Exception):
    """The step cannot be brought about; the reason is for a person to read."""


class OutOfDate(Exception):
    """A later command for the same change exists: this one must not act any more."""


@dataclass(frozen=True, slots=True)
class Hands:
    """The ports that an executor acts through; `monotonic` counts seconds.

    Without a `warm_up` new replicas get users' requests as soon as they serve.
    """

    actuators: Mapping[Provider, Actuator]
    traffic: Traffic
    intents: Intents
    pricing: Spend
    drain_timeout_s: float
    clock: Clock
    monotonic: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]
    warm_up: WarmUp | None = None

    def actuator(self, provider: Provider) -> Actuator:
        """Raises `Rejected` when nothing can act on the provider."""
        found = self.actuators.get(provider)
        if found is None:
            raise Rejected(
                f"no actuator for {provider} is configured", hint=f"configure {provider} to act"
            )
        return found

    async def fleet(self, tenant: str, deployment: str) -> dict[str, Replica]:
        """All replicas that exist, by id."""
        return {
            replica.id: replica
            for actuator in self.actuators.values()
            for replica in await actuator.replicas(tenant, deployment)
        }


@dataclass(frozen=True, slots=True)
class Job:
    """One step of one change until `stop_at` on the monotonic clock.

    The time that is left comes from the command's own clock, so a skewed clock here decides
    nothing.
    """

    hands: Hands
    recommendation: Recommendation
    move: Move
    step: Step
    fence: int
    stop_at: float
    captured: Captured

    @property
    def change(self) -> str:
        return self.recommendation.id

    @property
    def tenant(self) -> str:
        return self.recommendation.tenant

    @property
    def deployment(self) -> str:
        return self.recommendation.deployment

    @property
    def old(self) -> tuple[str, ...]:
        return self.move.old

    def time_left(self) -> float:
        return max(0.0, self.stop_at - self.hands.monotonic())

    async def pause(self, seconds: float) -> None:
        """Waits, but not past the end of the step. Raises `StepFailed` when there is none left."""
        left = self.time_left()
        if left <= 0:
            raise StepFailed("the time for the step is over")
        await self.hands.sleep(min(seconds, left))

    async def require_fence(self) -> None:
        """Raises `OutOfDate` when a later command for this change has begun."""
        try:
            await self.hands.intents.begin(self.change, self.step, self.fence, {})
        except Conflict as error:
            raise OutOfDate(str(error)) from error

    async def is_paused(self) -> bool:
        """Whether a person, the stop switch or a freeze holds the change up by now."""
        return await self.hands.intents.is_paused(self.change)

    async def fleet(self) -> dict[str, Replica]:
        return await self.hands.fleet(self.tenant, self.deployment)

    def launch_token(self, index: int, generation: int) -> str:
        """The name of a launch; replacing one reclaimed machine twice is the same launch."""
        if self.move.reclaim is not None:
            old = self.old[index]
            return derived_id("replacement", self.tenant, self.deployment, old, generation)
        return derived_id(self.change, "launch", index, generation)

    def launch_tokens(self) -> frozenset[str]:
        """All that this change can have launched."""
        return frozenset(
            self.launch_token(index, generation)
            for index in range(len(self.old))
            for generation in range(self.move.generations)
        )

    async def route(self, change: Callable[[RouteTable], Backends]) -> bool:
        """Brings the routes to `change` of themselves, read back; whether anything was written.

        The fence is asked between the read and the write, and the write holds only for the version
        read: a write that is out of date can never follow that of a later command.
        """
        written = False
        for _ in range(_CAS_TRIES):
            table = (await self.hands.traffic.status(self.tenant, self.deployment)).table
            wanted = change(table)
            if wanted == table.backends:
                return written
            await self.require_fence()
            version = table.version + 1
            try:
                await self.hands.traffic.put(
                    table.model_copy(update={"version": version, "backends": wanted})
                )
            except Conflict:
                _log.info("routes.moved", change=self.change, version=version)
                continue
            written = True
        raise StepFailed("somebody else keeps writing the routes")

    async def drained(self, replicas: Collection[str], timeout_s: float) -> list[str]:
        """Those of `replicas` that still have requests in flight after `timeout_s` together."""
        stop = self.hands.monotonic() + min(timeout_s, self.time_left())
        busy = []
        for replica in replicas:
            left = max(0.1, stop - self.hands.monotonic())
            if not await self.hands.traffic.await_drained(
                self.tenant, self.deployment, replica, left
            ):
                busy.append(replica)
        return busy

    async def terminate(self, replica: Replica) -> None:
        """Takes the machine away and waits until it is read back as gone."""
        actuator = self.hands.actuator(replica.instance.provider)
        await self.require_fence()
        await actuator.terminate(self.tenant, self.deployment, replica.id)
        delay = 0.2
        while await actuator.replica(self.tenant, self.deployment, replica.id) is not None:
            await self.pause(delay)
            delay = min(2 * delay, 5.0)
