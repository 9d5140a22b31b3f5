"""The roles of the fault suite as processes, each a fork with its `Config` (`forks`)."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from time import monotonic

from optiinfra.agents.actuators.port import Traffic
from optiinfra.agents.actuators.traffic import GatewayTraffic
from optiinfra.agents.base.agent import Agent, Say
from optiinfra.agents.base.host import AgentHost, Identity, Ports
from optiinfra.agents.cost.execute import SpotMoves
from optiinfra.agents.cost.policy import CostPolicy
from optiinfra.agents.cost.pricing import Pricing
from optiinfra.agents.moving.execute import Executor
from optiinfra.agents.moving.job import Hands
from optiinfra.coordinator.process import CoordinatorPorts, Pace
from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.events import topology
from optiinfra.events.bus import Bus
from optiinfra.events.envelope import Event
from optiinfra.events.publish import Publisher
from optiinfra.runtime.stores import jitter, new_id, now
from optiinfra.schemas.approval_rules import ApprovalRule
from optiinfra.schemas.deployment import Deployment, Provider
from optiinfra.schemas.errors import OptiInfraError
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.recommendation import Risk
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.vote import AgentName
from optiinfra.serving.prices import Catalogue
from optiinfra.storage.postgres.database import Database, open_database
from optiinfra.storage.postgres.vouching import CommandsInLog
from optiinfra.storage.redis import RegistryCache
from tests.cost_stand import DEPLOYMENT
from tests.factories import gate_answer, vote
from tests.faults.crash import (
    Crash,
    CrashingInbox,
    CrashingIntents,
    CrashingPublisher,
    CrashingTarget,
)
from tests.faults.sabotage import SABOTAGE

ACK_WAIT_S = 2.0
SLOW_S = 2.5 * ACK_WAIT_S
ADMIN_TOKEN = "a-token-of-the-fault-suite"
RULES = Rules(
    approvals=(ApprovalRule(name="all", max_risk=Risk.LOW),),
    max_moving=1_000,
    movers_per_hour=100_000,
    retry_turn_s=1.0,
    vote_deadline_s=20.0,
    gate_answer_s=4.0,
)


@dataclass(frozen=True)
class Config:
    """What a child is told; `crash` names a point and the pass at which it kills the process."""

    role: str
    nats_url: str
    postgres_url: str
    target: str
    deployments: tuple[str, ...] = ()
    crash: tuple[str, int] | None = None
    clock_off_s: float = 0.0
    times: int = 1
    """How often each event of the agents is said, under message ids of their own."""
    slow_s: float = 0.0
    """How long the target takes over each launch."""
    stands: tuple[str, float] = ("", 0.0)
    """A point at which it stands still whenever it passes, and for how long, s."""
    max_moving: int = 1_000
    """How many changes may be carried out at once."""
    asks: bool = False
    """A person must say yes to each change."""
    gateway: str = ""
    """The admin plane that keeps the routes; the target keeps them where there is none."""
    drifted: bool = False
    """Starts on streams that are not as they should be."""
    without: tuple[str, ...] = field(default=())
    """Mechanisms that are switched off."""

    def text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Config:
        told = json.loads(text)
        crash = tuple(told["crash"]) if told["crash"] else None
        lists = {name: tuple(told[name]) for name in ("deployments", "stands", "without")}
        return cls(**{**told, **lists, "crash": crash})


class Executing:
    """The cost agent's real executor, without its eye for prices."""

    name = AgentName.COST
    capabilities = ("execute:spot_migration",)
    hears = ("execution.requested", "rollback.requested")
    sense_every_s = 3_600.0

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    async def sense(self) -> Sequence[f.Fact]:
        return []

    async def handle(self, event: Event, say: Say) -> Sequence[f.Fact]:
        fact = event.fact
        if isinstance(fact, c.ExecutionRequested):
            return await self._executor.execute(fact, 60.0, say)
        assert isinstance(fact, c.RollbackRequested)
        return await self._executor.roll_back(fact, 60.0)


class Judging:
    """Votes yes and lets gates pass where the target still serves, and says no where not."""

    capabilities = ("vote", "gate")
    sense_every_s = 3_600.0

    def __init__(self, name: AgentName, target: CrashingTarget) -> None:
        self.name = name
        self._target = target

    @property
    def hears(self) -> tuple[str, ...]:
        gates = () if self.name is AgentName.RESOURCE else ("gate.requested",)
        return ("vote.requested", *gates)

    async def sense(self) -> Sequence[f.Fact]:
        return []

    async def handle(self, event: Event, say: Say) -> Sequence[f.Fact]:
        fact = event.fact
        assert isinstance(fact, c.VoteRequested | c.GateRequested)
        proposal = fact.recommendation
        status = await self._target.status(proposal.tenant, proposal.deployment)
        assert status.table.backends
        if isinstance(fact, c.VoteRequested):
            wanted = self.name in fact.agents
            return [vote(fact.change, self.name, number=fact.round)] if wanted else []
        answer = gate_answer(fact.change, self.name, stage=fact.stage, look=fact.look)
        return [f.GateAnswered(answer=answer)]


def rules_of(config: Config) -> Rules:
    approvals = () if config.asks else RULES.approvals
    return RULES.model_copy(update={"max_moving": config.max_moving, "approvals": approvals})


def traffic_of(config: Config, target: CrashingTarget) -> Traffic:
    return GatewayTraffic(config.gateway, ADMIN_TOKEN) if config.gateway else target


def crash_of(config: Config) -> Crash:
    point, nth = config.crash or (None, 1)
    stands_at, stands_s = config.stands
    return Crash(point, nth, stands_at=stands_at, stands_s=stands_s)


def clock_of(config: Config) -> Callable[[], datetime]:
    return lambda: now() + timedelta(seconds=config.clock_off_s)


async def coordinate(config: Config) -> None:
    bus = await Bus.connect(config.nats_url, name="coordinator")
    if not config.drifted:
        await topology.require(bus)
    clock = clock_of(config)
    async with open_database(config.postgres_url) as database:
        made = SABOTAGE.coordinator(config.without)(
            CoordinatorPorts(
                bus=bus,
                publisher=Publisher(bus, "coordinator", clock, new_id),
                database=database,
                cache=RegistryCache("memory://"),
                rules=lambda: rules_of(config),
                clock=clock,
                new_id=new_id,
                jitter=jitter,
            ),
            Pace(timers_s=0.1, relay_s=0.5, agents_s=5.0, reconcile_s=1.0, ack_wait_s=ACK_WAIT_S),
            crash_point=crash_of(config),
        )
        await made.run()


async def act(config: Config) -> None:
    """All four agents of one instance, each on the bus by itself."""
    crash = crash_of(config)
    bus = await Bus.connect(config.nats_url, name="agents")
    target = CrashingTarget(Path(config.target))
    target.crash, target.slow_s = crash, config.slow_s
    async with open_database(config.postgres_url) as database, asyncio.TaskGroup() as group:
        for agent in cast_of(config, database, target, crash):
            group.create_task(_host(config, agent, bus, database, crash).run())


def cast_of(
    config: Config, database: Database, target: CrashingTarget, crash: Crash
) -> list[Agent]:
    intents = SABOTAGE.intents(config.without)(database)
    if isinstance(intents, CrashingIntents):
        intents.crash = crash
    hands = Hands(
        actuators={Provider.AWS: target},
        traffic=traffic_of(config, target),
        intents=intents,
        pricing=Pricing(Catalogue.load(), {}, clock_of(config)),
        drain_timeout_s=CostPolicy().drain_timeout_s,
        clock=clock_of(config),
        monotonic=monotonic,
        sleep=asyncio.sleep,
    )
    executor = SABOTAGE.executor(config.without)(
        deployments_of(config), hands, SpotMoves(CostPolicy())
    )
    voters = (AgentName.PERFORMANCE, AgentName.RESOURCE, AgentName.APPLICATION)
    return [Executing(executor), *(Judging(name, target) for name in voters)]


def deployments_of(config: Config) -> dict[tuple[str, str], Deployment]:
    return {
        ("acme", name): DEPLOYMENT.model_copy(update={"id": name}) for name in config.deployments
    }


def _host(config: Config, agent: Agent, bus: Bus, database: Database, crash: Crash) -> AgentHost:
    inbox = CrashingInbox(database)
    publisher = CrashingPublisher(bus, agent.name.value, clock_of(config), new_id)
    inbox.crash = publisher.crash = crash
    publisher.times = config.times
    ports = Ports(
        bus=bus,
        publisher=publisher,
        inbox=inbox,
        proof=CommandsInLog(database),
        clock=clock_of(config),
        new_id=new_id,
        jitter=jitter,
    )
    identity = Identity("acme", derived_id(new_id())[:8], "test")
    host = SABOTAGE.host(config.without)
    return host(agent, identity, ports, heartbeat_s=2.0, ack_wait_s=ACK_WAIT_S)


def main(argument: str) -> int:
    """The role's life; gives the exit status."""
    config = Config.read(argument)
    work = {"coordinator": coordinate, "agents": act}[config.role]
    status = 0
    try:
        asyncio.run(work(config))
    except* OptiInfraError as failed:
        print(f"{config.role} ends: {failed.exceptions[0]!r}", file=sys.stderr, flush=True)
        status = 6
    return status
