"""A fleet in memory for the cost agent: machines, routes, intents, time and a price feed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from optiinfra.agents.actuators.port import Launched, LaunchSpec, NoCapacity
from optiinfra.agents.base.recent import RecentChange
from optiinfra.agents.collectors.interruptions import ReclaimNotice
from optiinfra.agents.cost.policy import CostPolicy
from optiinfra.agents.cost.pricing import Pricing
from optiinfra.schemas.deployment import (
    Deployment,
    Instance,
    Market,
    Provider,
    Replica,
    ReplicaState,
)
from optiinfra.schemas.errors import Conflict
from optiinfra.schemas.execution import Intent
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.recommendation import Placement
from optiinfra.schemas.rollout import Step
from optiinfra.schemas.routing import (
    Backend,
    BackendCounters,
    BackendState,
    RouteStatus,
    RouteTable,
)
from optiinfra.schemas.telemetry import Sample
from optiinfra.serving.prices import Catalogue, SpotQuote

START = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
TYPE, REGION = "g5.xlarge", "ap-northeast-2"
DEPLOYMENT = Deployment(
    id="chat",
    tenant="acme",
    model="m",
    gateway_url="http://127.0.0.1:1/",
    interruptible=True,
    acting=True,
)


class Time:
    """A clock that only sleeping moves; `at` runs callbacks when their time comes."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._due: list[tuple[float, Callable[[], object]]] = []

    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds

    def at(self, seconds: float, do: Callable[[], object]) -> None:
        self._due.append((seconds, do))

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        due = [do for when, do in self._due if when <= self.seconds]
        self._due = [(when, do) for when, do in self._due if when > self.seconds]
        for do in due:
            do()


def machine(number: int, market: Market = Market.ON_DEMAND, **changes: Any) -> Replica:
    values: dict[str, Any] = {
        "id": f"chat-{number}",
        "deployment": "chat",
        "state": ReplicaState.SERVING,
        "url": f"http://10.0.0.{number}:8000",
        "instance": Instance(
            id=f"i-{number}",
            provider=Provider.AWS,
            instance_type=TYPE,
            region=REGION,
            zone=f"{REGION}a",
            market=market,
            launched_at=START,
        ),
    }
    return Replica(**{**values, **changes})


class FakeActuator:
    """Machines in memory; `full` markets have no capacity, new ones serve after `looks` looks."""

    def __init__(self, replicas: Sequence[Replica] = (), looks: int = 2) -> None:
        self.machines = {replica.id: replica for replica in replicas}
        self.full: set[Market] = set()
        self.looks = looks
        self.launches: list[LaunchSpec] = []
        self.terminated: list[str] = []
        self.stillborn = 0
        self.on_launch: Callable[[], None] = lambda: None
        self._seen: dict[str, int] = {}

    async def replicas(self, tenant: str, deployment: str) -> Sequence[Replica]:
        found = [one for one in self.machines.values() if one.deployment == deployment]
        return [one for one in found if one.state is not ReplicaState.STOPPED]

    async def launch(self, spec: LaunchSpec) -> Launched:
        for one in self.machines.values():
            if one.launch_token == spec.token:
                return Launched(one, False, one.instance.market)
        market = spec.placement.market
        if market in self.full:
            raise NoCapacity(f"no {market} {spec.placement.instance_type}")
        self.launches.append(spec)
        self.on_launch()
        name = f"{spec.deployment}-{derived_id(spec.token)[:8]}"
        state = ReplicaState.STOPPED if self.stillborn > 0 else ReplicaState.STARTING
        self.stillborn -= 1
        born = machine(0, id=name, state=state, launch_token=spec.token)
        placed = born.instance.model_copy(
            update={
                "id": f"i-{name}",
                "market": market,
                "zone": spec.placement.zone or f"{REGION}a",
                "provider": spec.placement.provider,
            }
        )
        self.machines[name] = born.model_copy(update={"instance": placed})
        return Launched(self.machines[name], True, market)

    async def replica(self, tenant: str, deployment: str, replica_id: str) -> Replica | None:
        one = self.machines.get(replica_id)
        if one is None or one.state is ReplicaState.STOPPED:
            return None
        if one.state is ReplicaState.STARTING:
            self._seen[replica_id] = self._seen.get(replica_id, 0) + 1
            if self._seen[replica_id] >= self.looks:
                one = one.model_copy(update={"state": ReplicaState.SERVING})
                self.machines[replica_id] = one
        return one

    async def terminate(self, tenant: str, deployment: str, replica_id: str) -> bool:
        if replica_id not in self.machines:
            return False
        del self.machines[replica_id]
        self.terminated.append(replica_id)
        return True


class FakeTraffic:
    """Routes in memory with compare-and-set; `busy` replicas never drain."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        backends = tuple(Backend(replica=one.id, url=one.url or "", weight=1.0) for one in replicas)
        self.table = RouteTable(tenant="acme", deployment="chat", model="m", backends=backends)
        self.busy: set[str] = set()
        self.before_put: Callable[[], None] = lambda: None
        self.history: list[RouteTable] = []

    async def status(self, tenant: str, deployment: str) -> RouteStatus:
        counters = tuple(
            BackendCounters(
                replica=b.replica,
                in_flight=int(b.replica in self.busy),
                served=0,
                failed=0,
                truncated=0,
            )
            for b in self.table.backends
        )
        return RouteStatus(table=self.table, counters=counters)

    async def put(self, table: RouteTable) -> RouteStatus:
        self.before_put()
        if table.version != self.table.version + 1:
            raise Conflict(f"version {table.version} does not follow {self.table.version}")
        self.table = table
        self.history.append(table)
        return await self.status(table.tenant, table.deployment)

    async def set_backends(
        self, tenant: str, deployment: str, backends: Sequence[Backend]
    ) -> RouteStatus:
        fresh = {"version": self.table.version + 1, "backends": tuple(backends)}
        return await self.put(self.table.model_copy(update=fresh))

    async def await_drained(
        self, tenant: str, deployment: str, replica: str, timeout_s: float
    ) -> bool:
        for backend in self.table.backends:
            if backend.replica == replica and backend.state is BackendState.ACTIVE:
                raise Conflict(f"{replica} is active")
        return replica not in self.busy

    def weights(self) -> dict[str, float]:
        return {b.replica: b.weight for b in self.table.backends}


class FakeIntents:
    """Intents in memory with the fence rule of the port."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, Step], Intent] = {}
        self.highest: dict[str, int] = {}
        self.first: dict[str, dict[str, Any]] = {}
        self.paused: set[str] = set()

    async def begin(self, change: str, step: Step, fence: int, captured: dict[str, Any]) -> Intent:
        if self.highest.get(change, 0) > fence:
            raise Conflict(f"fence {fence} is behind {self.highest[change]}")
        self.highest[change] = fence
        kept = self.first.setdefault(change, captured)
        found = self.rows.get((change, step))
        if found is None:
            self.rows[change, step] = Intent(change, step, fence, kept, None, False)
            return Intent(change, step, fence, kept, None, True)
        return found

    async def finish(self, change: str, step: Step, result: dict[str, Any]) -> None:
        row = self.rows[change, step]
        if row.result is None:
            self.rows[change, step] = replace(row, result=result)

    async def is_paused(self, change: str) -> bool:
        return change in self.paused

    async def captured(self, change: str) -> dict[str, Any] | None:
        return self.first.get(change)

    def outdate(self, change: str) -> None:
        """What a later command does."""
        self.highest[change] = 10_000


@dataclass
class FakeCloud:
    """A price feed; `quotes` are prices per zone that hold since an hour ago."""

    quotes: dict[str, float] = field(default_factory=dict)
    error: Exception | None = None
    age: timedelta = timedelta(hours=1)
    asked: int = 0

    async def spot_history(
        self, instance_type: str, region: str, since: datetime
    ) -> Sequence[SpotQuote]:
        self.asked += 1
        if self.error:
            raise self.error
        at = START - self.age
        return [SpotQuote(zone, price, at) for zone, price in self.quotes.items()]

    async def zones(self, region: str) -> Sequence[str]:
        return [f"{REGION}{letter}" for letter in "abc"]


class FakeRecent:
    def __init__(self) -> None:
        self.changes: dict[str, list[RecentChange]] = {}

    async def recent(self, tenant: str, deployment: str, kind: str) -> Sequence[RecentChange]:
        return self.changes.get(kind, [])


class FakeInterruptions:
    def __init__(self) -> None:
        self.waiting: list[ReclaimNotice] = []
        self.acknowledged: list[str] = []
        self.error: Exception | None = None

    async def notices(self) -> Sequence[ReclaimNotice]:
        if self.error:
            raise self.error
        return list(self.waiting)

    async def acknowledge(self, notice: ReclaimNotice) -> None:
        self.acknowledged.append(notice.instance_id)
        self.waiting.remove(notice)


class FakeTelemetry:
    def __init__(self, samples: Sequence[Sample] = ()) -> None:
        self.samples = samples

    async def window(
        self,
        tenant: str,
        deployment: str,
        metric: str,
        *,
        since: datetime,
        until: datetime,
        replicas: Sequence[str] | None = None,
    ) -> Sequence[Sample]:
        return [sample for sample in self.samples if sample.metric == metric]


def pricing(time: Time, cloud: FakeCloud | None = None) -> Pricing:
    clouds = {Provider.AWS: cloud} if cloud else {}
    return Pricing(Catalogue.load(), clouds, time.now)


def placement(**changes: Any) -> Placement:
    values: dict[str, Any] = {
        "provider": Provider.AWS,
        "instance_type": TYPE,
        "region": REGION,
        "market": Market.SPOT,
    }
    return Placement(**{**values, **changes})


POLICY = CostPolicy()
