"""The application agent against emulated replicas that answer well, badly, or not at all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import httpx
import pytest

from optiinfra.agents.application.agent import ApplicationAgent
from optiinfra.agents.application.golden import GoldenRunner, load_golden
from optiinfra.agents.application.policy import ApplicationPolicy
from optiinfra.agents.application.sense import Senses
from optiinfra.events.commands import GateRequested, VoteRequested
from optiinfra.events.envelope import Event
from optiinfra.events.facts import (
    AnswerSampled,
    Fact,
    GateAnswered,
    MetricsMeasured,
    QualityAssessed,
    QualityRegressed,
    VoteCast,
)
from optiinfra.schemas.deployment import (
    Deployment,
    Instance,
    Market,
    Provider,
    Replica,
    ReplicaState,
)
from optiinfra.schemas.errors import Rejected, Unavailable
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.recommendation import (
    Recommendation,
    RolloutPlan,
    StagePlan,
)
from optiinfra.schemas.rollout import Arms, GateAnswer, GateVerdict
from optiinfra.schemas.sampling import AnswerSample
from optiinfra.schemas.telemetry import Sample, is_known
from optiinfra.schemas.vote import AgentName, Verdict, Vote
from optiinfra.twin.defects import Defect
from optiinfra.twin.emulator import EmulatorConfig, EmulatorServer
from tests.factories import AT, recommendation

CHANGE = recommendation().id
MODEL = "emulated-model"
DEPLOYMENT = Deployment(
    id="chat",
    tenant="acme",
    model=MODEL,
    gateway_url="http://127.0.0.1:1",
)
PLAN = RolloutPlan(
    stages=tuple(StagePlan(share=s, soak_s=60, hold_limit_s=300) for s in (0.1, 0.5, 1.0))
)


@dataclass
class Store:
    """Telemetry kept in a list: what the metrics store gives back, without a server."""

    rows: list[Sample] = field(default_factory=list)

    def keep(self, facts: Sequence[Fact]) -> None:
        for fact in facts:
            if isinstance(fact, MetricsMeasured):
                self.rows += fact.samples

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
        found = [
            row
            for row in self.rows
            if row.metric == metric
            and since <= row.at < until
            and (replicas is None or row.replica in replicas)
        ]
        return sorted(found, key=lambda row: row.at)


@dataclass
class Fleet:
    """Replicas by name; `clock` only goes on when told."""

    urls: dict[str, str | None]
    now: datetime = AT
    is_lost: bool = False
    is_moving: bool = False

    async def are_under_way(self, tenant: str, deployment: str) -> bool:
        return self.is_moving

    def clock(self) -> datetime:
        self.now += timedelta(milliseconds=1)
        return self.now

    async def replicas(self, tenant: str, deployment: str) -> Sequence[Replica]:
        if self.is_lost:
            raise Unavailable("the cloud is away")
        return [
            Replica(
                id=name,
                deployment=deployment,
                state=ReplicaState.SERVING,
                url=url,
                emulated=True,
                instance=Instance(
                    id=f"i-{name}", provider=Provider.LOCAL, instance_type="none", region="here",
                    zone="here", market=Market.ON_DEMAND,
                ),
            )
            for name, url in self.urls.items()
        ]  # fmt: skip


@dataclass
class World:
    """The agent with its fleet and store."""

    fleet: Fleet
    store: Store
    agent: ApplicationAgent

    async def hear(self, fact: Fact) -> Sequence[Fact]:
        event = Event(
            id=derived_id(fact.model_dump_json()), source="test", tenant="acme",
            time=self.fleet.now, fact=fact,
        )  # fmt: skip
        said = await self.agent.handle(event, _unheard)
        self.store.keep(said)
        return said

    async def look(self, look: int, stage: int = 0) -> tuple[GateAnswer, Sequence[Fact]]:
        self.fleet.now += timedelta(seconds=15)
        facts = await self.hear(gate_request(self.fleet.now, look, stage))
        (answer,) = [fact.answer for fact in facts if isinstance(fact, GateAnswered)]
        return answer, facts


async def _unheard(fact: Fact) -> None:
    raise AssertionError(f"said {fact.kind} on the way")


def proposal(plan: RolloutPlan = PLAN, deployment: str = "chat") -> Recommendation:
    return recommendation(rollout=plan, deployment=deployment)


def gate_request(now: datetime, look: int, stage: int = 0) -> GateRequested:
    return GateRequested(
        change=CHANGE, deployment="chat", stage=stage, stages=3, look=look,
        assessors=(AgentName.APPLICATION,), arms=Arms(canary=("new",), baseline=("old",)),
        share=PLAN.stages[stage].share, since=now - timedelta(seconds=1),
        rollout_since=AT,
        recommendation=proposal(), deadline=now + timedelta(seconds=20),
    )  # fmt: skip


def vote_request(
    now: datetime, plan: RolloutPlan = PLAN, deployment: str = "chat"
) -> VoteRequested:
    return VoteRequested(
        change=CHANGE, round=1, agents=(AgentName.APPLICATION,),
        recommendation=proposal(plan, deployment), deadline=now + timedelta(seconds=60),
    )  # fmt: skip


@pytest.fixture(scope="module")
async def engines() -> AsyncIterator[dict[str, EmulatorServer]]:
    async with AsyncExitStack() as stack:
        yield {
            name: await stack.enter_async_context(
                EmulatorServer(EmulatorConfig(model=MODEL, seed=seed, time_scale=1000, grace_s=1))
            )
            for seed, name in enumerate(("old", "new"))
        }


@pytest.fixture
def world(engines: dict[str, EmulatorServer]) -> World:
    for engine in engines.values():
        engine.degrade(Defect())
    fleet = Fleet({name: engine.url for name, engine in engines.items()})
    store = Store()
    policy = ApplicationPolicy(golden_per_look=60, baseline_prompts=30)
    runner = GoldenRunner(httpx.AsyncClient)
    senses = Senses(fleet, store, load_golden(), runner, fleet, fleet.clock, policy)
    return World(fleet, store, ApplicationAgent([DEPLOYMENT], senses))


async def test_an_equal_canary_passes_once_there_is_evidence_and_each_stage_adds_some(
    world: World,
) -> None:
    verdicts = [(await world.look(look))[0].verdict for look in (1, 2, 3)]
    assert verdicts == [GateVerdict.HOLD, GateVerdict.HOLD, GateVerdict.PASS]
    answer, _ = await world.look(1, stage=1)
    assert answer.verdict is GateVerdict.PASS
    assert answer.quality is not None
    assert answer.quality.pairs == 240
    assert answer.quality.mean_canary == pytest.approx(answer.quality.mean_baseline)
    assert (answer.quality.twins, answer.quality.twin_stdev) == (240, 0)
    assert answer.quality.baseline is not None
    assert answer.quality.canary is not None
    assert (answer.quality.baseline.units, answer.quality.canary.units) == (480, 240)
    assert answer.quality.canary.coverage == 1


async def test_a_canary_that_answers_wrongly_is_rolled_back_with_an_alarm(
    world: World, engines: dict[str, EmulatorServer]
) -> None:
    engines["new"].degrade(Defect(wrong_answer_rate=0.3))
    answer, facts = await world.look(1)
    if answer.verdict is GateVerdict.HOLD:
        answer, facts = await world.look(2)
    assert answer.verdict is GateVerdict.ROLL_BACK
    assert answer.quality is not None
    assert answer.quality.e_rollback >= 20
    assert answer.quality.difference_high is not None
    assert answer.quality.difference_high < 0
    assert [fact.kind for fact in facts] == [
        "metrics.measured", "gate.answered", "quality.regressed",
    ]  # fmt: skip
    assert isinstance(facts[-1], QualityRegressed)


async def test_a_canary_that_fails_breaks_the_floor_at_the_first_look(
    world: World, engines: dict[str, EmulatorServer]
) -> None:
    engines["new"].degrade(Defect(error_rate=0.5))
    answer, facts = await world.look(1)
    assert answer.verdict is GateVerdict.ROLL_BACK
    assert "failed or were empty" in answer.reason
    assert not any(isinstance(fact, QualityRegressed) for fact in facts)


async def test_a_replica_that_cannot_be_reached_holds(world: World) -> None:
    async with EmulatorServer(EmulatorConfig(model=MODEL, grace_s=0)) as gone:
        world.fleet.urls["new"] = gone.url
    answer, _ = await world.look(1)
    assert answer.verdict is GateVerdict.HOLD
    assert "not reached: new (" in answer.reason
    world.fleet.urls["new"] = None
    answer, _ = await world.look(2)
    assert "not reached: new (it has no URL)" in answer.reason


async def test_a_look_that_is_asked_for_twice_asks_the_same_prompts(world: World) -> None:
    asked = gate_request(world.fleet.now, 1)
    prompts = []
    for _ in range(2):
        facts = await world.hear(asked)
        assert isinstance(facts[0], MetricsMeasured)
        prompts.append([row.labels["unit"] for row in facts[0].samples])
    assert prompts[0] == prompts[1]


async def test_a_look_after_its_deadline_asks_nobody_and_holds(world: World) -> None:
    late = gate_request(world.fleet.now, 1).model_copy(update={"deadline": world.fleet.now})
    facts = await world.hear(late)
    assert [fact.kind for fact in facts] == ["gate.answered"]
    assert isinstance(facts[0], GateAnswered)
    assert facts[0].answer.verdict is GateVerdict.HOLD


async def test_live_answers_alone_show_a_regression_while_golden_prompts_still_look_good(
    world: World,
) -> None:
    start = world.fleet.now
    for number in range(60):
        good = sampled("old", f"s{number}", "The tower is 300 metres tall.", start, number)
        bad = sampled("new", f"t{number}", "Penguins sing opera in Vienna.", start, number)
        world.store.keep(await score(world, [good, bad]))
    world.fleet.now = start + timedelta(seconds=120)
    request = gate_request(world.fleet.now, 1).model_copy(update={"since": start})
    facts = await world.hear(request)
    (answer,) = [fact.answer for fact in facts if isinstance(fact, GateAnswered)]
    assert answer.verdict is GateVerdict.ROLL_BACK
    assert answer.quality is not None
    assert answer.quality.pairs == 120


def sampled(replica: str, unit: str, answer: str, start: datetime, second: int) -> AnswerSample:
    return AnswerSample(
        id=derived_id(replica, unit), tenant="acme", deployment="chat", replica=replica, unit=unit,
        prompt="Context: The tower is 300 metres tall.\nQuestion: How tall is it?\nAnswer:",
        answer=answer, ok=True, finish_reason="stop", route_version=1,
        at=start + timedelta(seconds=second),
    )  # fmt: skip


async def score(world: World, samples: Sequence[AnswerSample]) -> Sequence[Fact]:
    events = [
        Event(
            id=sample.id, source="gateway", tenant="acme", time=sample.at,
            fact=AnswerSampled(sample=sample),
        )
        for sample in samples
    ]  # fmt: skip
    return await world.agent.samples_handler(events)


async def test_tapped_answers_are_scored_and_what_cannot_be_scored_stays_unknown(
    world: World,
) -> None:
    good = sampled("old", "a", "The tower is 300 metres tall.", world.fleet.now, 0)
    chat = good.model_copy(update={"prompt": "Hello!", "answer": "Hello, how are you?"})
    failed = good.model_copy(update={"ok": False, "answer": ""})
    empty = good.model_copy(update={"answer": " "})
    (fact,) = await score(world, [good, chat, failed, empty])
    assert isinstance(fact, MetricsMeasured)
    scores = [row for row in fact.samples if row.metric == "answer_score"]
    assert [is_known(row.reading) for row in scores] == [True, False, False, False]
    faults = [row.labels.get("fault") for row in scores]
    assert faults == [None, None, "failed", "the answer is empty"]
    oks = [row.reading for row in fact.samples if row.metric == "answer_ok"]
    assert [reading.value for reading in oks if reading.state == "known"] == [1, 1, 0, 0]


async def test_a_vote_waits_for_a_baseline_and_then_weighs_the_power_of_the_rollout(
    world: World,
) -> None:
    assert (await vote(world)).verdict is Verdict.ABSTAIN
    facts = await world.agent.sense()
    world.store.keep(facts)
    assert [fact.kind for fact in facts] == ["metrics.measured", "quality.assessed"]
    assert isinstance(facts[1], QualityAssessed)
    assert facts[1].units == 30
    assert facts[1].mean > 0.9
    assert (await vote(world)).verdict is Verdict.APPROVE
    short = RolloutPlan(stages=(StagePlan(share=1.0, soak_s=1, hold_limit_s=1),))
    hurried = await vote(world, short)
    assert hurried.verdict is Verdict.REJECT
    assert "needs" in hurried.reasons[0]
    world.fleet.now += timedelta(hours=2)
    assert (await vote(world)).verdict is Verdict.ABSTAIN


async def vote(world: World, plan: RolloutPlan = PLAN) -> Vote:
    (fact,) = await world.hear(vote_request(world.fleet.now, plan))
    assert isinstance(fact, VoteCast)
    return fact.vote


async def test_without_a_serving_replica_the_baseline_is_unknown(world: World) -> None:
    world.fleet.urls = {"old": None}
    (fact,) = await world.agent.sense()
    assert isinstance(fact, MetricsMeasured)
    assert not is_known(fact.samples[-1].reading)
    world.store.keep([fact])
    abstention = await vote(world)
    assert "no replica serves" in abstention.reasons[0]


async def test_a_canary_on_trial_does_not_spoil_the_baseline(
    world: World, engines: dict[str, EmulatorServer]
) -> None:
    engines["new"].degrade(Defect(wrong_answer_rate=1.0))
    await world.look(1)
    facts = await world.agent.sense()
    assert isinstance(facts[1], QualityAssessed)
    assert facts[1].mean > 0.9
    assert isinstance(facts[0], MetricsMeasured)
    assert {row.replica for row in facts[0].samples} == {"old", None}


async def test_a_canary_that_no_gate_has_asked_yet_does_not_spoil_the_baseline(
    world: World, engines: dict[str, EmulatorServer]
) -> None:
    engines["new"].degrade(Defect(wrong_answer_rate=1.0))
    world.fleet.is_moving = True
    assert await world.agent.sense() == []
    world.fleet.is_moving = False
    facts = await world.agent.sense()
    assert isinstance(facts[1], QualityAssessed)


async def test_when_nobody_can_name_the_replicas_the_baseline_is_unknown(world: World) -> None:
    world.fleet.is_lost = True
    (fact,) = await world.agent.sense()
    assert isinstance(fact, MetricsMeasured)
    assert "the cloud is away" in fact.samples[0].reading.model_dump_json()


async def test_an_unreachable_fleet_gives_no_baseline_and_says_why(world: World) -> None:
    async with EmulatorServer(EmulatorConfig(model=MODEL, grace_s=0)) as gone:
        world.fleet.urls = {"old": gone.url}
    (fact,) = await world.agent.sense()
    assert isinstance(fact, MetricsMeasured)
    assert "ConnectError" in fact.samples[-1].reading.model_dump_json()


async def test_what_is_meant_for_others_is_left_alone_and_an_unknown_target_is_refused(
    world: World,
) -> None:
    request = vote_request(world.fleet.now)
    others = request.model_copy(update={"agents": (AgentName.RESOURCE,)})
    assert await world.hear(others) == []
    with pytest.raises(Rejected, match="knows no deployment 'other'"):
        await world.hear(vote_request(world.fleet.now, deployment="other"))
    assert world.agent.hears == ("vote.requested", "gate.requested")
    assert world.agent.capabilities == ("vote", "gate")
    assert world.agent.name is AgentName.APPLICATION
    assert world.agent.sense_every_s == 300
