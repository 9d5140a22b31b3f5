"""What the cost agent sees, prices, proposes and remembers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from optiinfra.agents.base.recent import RecentChange
from optiinfra.agents.collectors.interruptions import ReclaimNotice, parse_notice
from optiinfra.agents.cost.agent import CostAgent
from optiinfra.agents.cost.graph import Senses
from optiinfra.agents.cost.policy import CostPolicy, machine_kind
from optiinfra.agents.moving.job import Hands
from optiinfra.events.commands import ExecutionRequested, RollbackRequested
from optiinfra.events.facts import (
    ChangeCompleted,
    ChangeRolledBack,
    ChangeVetoed,
    ExecutionStaged,
    Fact,
    MetricsMeasured,
    OutcomeRecorded,
    RecommendationProposed,
    RollbackCompleted,
)
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.deployment import Deployment, Market, Provider, Replica
from optiinfra.schemas.errors import Denied, Unavailable
from optiinfra.schemas.recommendation import Recommendation, Risk, SpotMigration, SpotReplacement
from optiinfra.schemas.rollout import Arms, Step, StepKind
from optiinfra.schemas.telemetry import Known, Sample, Unit, Unknown, UnknownReason
from optiinfra.schemas.vote import AgentName
from tests.cost_stand import (
    DEPLOYMENT,
    POLICY,
    REGION,
    START,
    FakeActuator,
    FakeCloud,
    FakeIntents,
    FakeInterruptions,
    FakeRecent,
    FakeTelemetry,
    FakeTraffic,
    Time,
    machine,
    pricing,
)
from tests.factories import event, recommendation

TWO = (machine(1), machine(2))


class Stand:
    """A whole cost agent over fakes."""

    def __init__(
        self,
        replicas: Sequence[Replica] = TWO,
        deployment: Deployment = DEPLOYMENT,
        policy: CostPolicy = POLICY,
    ) -> None:
        self.time = Time()
        self.cloud = FakeCloud({f"{REGION}b": 0.36, f"{REGION}c": 0.34})
        self.actuator = FakeActuator(replicas)
        self.recent = FakeRecent()
        self.queue = FakeInterruptions()
        self.telemetry = FakeTelemetry()
        self.pricing = pricing(self.time, self.cloud)
        actuators = {Provider.AWS: self.actuator}
        self.hands = Hands(
            actuators=actuators,
            traffic=FakeTraffic(replicas),
            intents=FakeIntents(),
            pricing=self.pricing,
            drain_timeout_s=policy.drain_timeout_s,
            clock=self.time.now,
            monotonic=self.time.monotonic,
            sleep=self.time.sleep,
        )
        senses = Senses(
            deployments=[deployment],
            actuators=actuators,
            interruptions=[self.queue],
            pricing=self.pricing,
            recent=self.recent,
            policy=policy,
            clock=self.time.now,
        )
        self.agent = CostAgent(senses, self.hands, self.telemetry)

    async def proposals(self) -> list[Recommendation]:
        facts = await self.agent.sense()
        return [fact.recommendation for fact in facts if isinstance(fact, RecommendationProposed)]

    async def hear(self, fact: Fact) -> Sequence[Fact]:
        async def say(_: Fact) -> None:
            return None

        return await self.agent.handle(event(fact), say)

    def notice(self, replica: Replica, seconds: float = 120) -> ReclaimNotice:
        notice = ReclaimNotice(
            replica.instance.id, self.time.now() + timedelta(seconds=seconds), "receipt"
        )
        self.queue.waiting.append(notice)
        return notice


def command(proposal: Recommendation, step: Step, fence: int) -> ExecutionRequested:
    return ExecutionRequested(
        change=proposal.id,
        step=step,
        fence=fence,
        executor=AgentName.COST,
        recommendation=proposal,
        deadline=START + timedelta(minutes=10),
    )


async def test_a_round_measures_spend_and_proposes_a_migration_with_its_evidence() -> None:
    stand = Stand()
    facts = await stand.agent.sense()
    assert isinstance(facts[0], MetricsMeasured)
    spent = [sample.reading for sample in facts[0].samples]
    assert [r.value for r in spent if isinstance(r, Known)] == pytest.approx([1.237, 1.237, 2.474])
    assert facts[0].samples[0].labels == {
        "market": "on_demand",
        "instance_type": "g5.xlarge",
        "price_source": "aws price list of 2025-11-30",
    }
    assert isinstance(facts[1], RecommendationProposed)
    found = facts[1].recommendation
    assert found.title == "Move 2 of 2 replicas of chat to spot g5.xlarge in ap-northeast-2"
    assert isinstance(found.spec, SpotMigration)
    assert found.spec.replicas == ("chat-1", "chat-2")
    assert found.saving_usd_per_month is not None
    assert found.saving_usd_per_month.mid < 2.474 * 730
    assert found.price_source is not None
    assert found.price_source.name == "spot price history"
    names = {row.name for row in found.evidence}
    assert {"spot_usd_per_hour", "on_demand_usd_per_hour", "interruptions_per_month"} <= names
    assert found.cannot_be_undone


async def test_the_same_round_again_gives_the_same_recommendation() -> None:
    stand = Stand()
    first, second = await stand.proposals(), await stand.proposals()
    assert first[0].id == second[0].id


async def test_an_open_or_recently_vetoed_migration_is_not_proposed_again() -> None:
    stand = Stand()
    stand.recent.changes["spot_migration"] = [RecentChange("a", ChangeState.VOTING, None)]
    assert await stand.proposals() == []
    ended = RecentChange("a", ChangeState.VETOED, START - timedelta(hours=1))
    stand.recent.changes["spot_migration"] = [ended]
    assert await stand.proposals() == []
    ended = RecentChange("a", ChangeState.VETOED, START - timedelta(days=3))
    stand.recent.changes["spot_migration"] = [ended]
    assert len(await stand.proposals()) == 1


async def test_implausible_live_quotes_fall_back_to_the_list_and_raise_the_risk() -> None:
    stand = Stand()
    stand.cloud.quotes = {f"{REGION}a": 0.00001}
    found = (await stand.proposals())[0]
    assert found.price_source is not None
    assert found.price_source.name == "aws price list"
    assert found.risk.rank >= Risk.MEDIUM.rank
    live = next(row for row in found.evidence if row.name == "live_spot_usd_per_hour")
    assert isinstance(live.reading, Unknown)
    assert live.reading.reason is UnknownReason.IMPLAUSIBLE


@pytest.mark.parametrize("error", [Unavailable("away"), Denied("no permission")])
async def test_a_price_feed_that_cannot_be_asked_is_unknown(error: Exception) -> None:
    stand = Stand()
    stand.cloud.error = error
    offer = await stand.pricing.offer(machine_kind(machine(1)))
    assert offer.live is not None
    assert offer.live.reason is UnknownReason.UNREACHABLE


async def test_quotes_are_asked_for_once_in_five_minutes() -> None:
    stand = Stand()
    await stand.proposals()
    await stand.proposals()
    assert stand.cloud.asked == 1
    stand.time.seconds = 301
    await stand.proposals()
    assert stand.cloud.asked == 2


async def test_an_unlisted_machine_has_an_unknown_spend_and_no_proposal() -> None:
    odd = machine(3)
    odd = odd.model_copy(
        update={"instance": odd.instance.model_copy(update={"instance_type": "q1.huge"})}
    )
    stand = Stand(replicas=(machine(1), odd))
    facts = await stand.agent.sense()
    assert len(facts) == 1
    assert isinstance(facts[0], MetricsMeasured)
    total = facts[0].samples[-1].reading
    assert isinstance(total, Unknown)
    assert "q1.huge" in total.detail


async def test_without_a_price_feed_the_list_is_used() -> None:
    stand = Stand()
    offer = await pricing(stand.time).offer(machine_kind(machine(1)))
    assert offer.live is not None
    assert offer.live.reason is UnknownReason.NOT_CONFIGURED
    assert not isinstance(offer.spot, Unknown)


async def test_a_cloud_that_cannot_be_asked_makes_the_spend_unknown() -> None:
    stand = Stand()

    async def away(tenant: str, deployment: str) -> Sequence[Replica]:
        raise Unavailable("EC2 is away")

    stand.actuator.replicas = away  # type: ignore[method-assign]
    facts = await stand.agent.sense()
    assert len(facts) == 1
    assert isinstance(facts[0], MetricsMeasured)
    reading = facts[0].samples[0].reading
    assert isinstance(reading, Unknown)
    assert reading.reason is UnknownReason.UNREACHABLE


async def test_a_reclaim_notice_becomes_an_urgent_replacement_in_another_zone() -> None:
    spot = machine(1, Market.SPOT)
    stand = Stand(replicas=(spot, machine(2)))
    notice = stand.notice(spot)
    found = (await stand.proposals())[0]
    assert isinstance(found.spec, SpotReplacement)
    assert found.spec.replicas == ("chat-1",)
    assert found.spec.to.zone == f"{REGION}c"
    assert found.urgent_until == notice.reclaim_at
    assert found.risk is Risk.LOW
    assert [stage.share for stage in found.rollout.stages] == [1.0]


async def test_the_fallback_of_a_reclaimed_machine_does_not_go_back_to_spot_at_once() -> None:
    stand = Stand()
    for change in (
        RecentChange("r", ChangeState.EXECUTING, None),
        RecentChange("r", ChangeState.COMPLETED, START - timedelta(minutes=30)),
    ):
        stand.recent.changes["spot_replacement"] = [change]
        with capture_logs() as logs:
            assert await stand.proposals() == []
        (held,) = [line for line in logs if line["event"] == "cost.not_proposed"]
        assert "replacement r of reclaimed machines" in held["reason"]
    ended = RecentChange("r", ChangeState.COMPLETED, START - timedelta(hours=1))
    stand.recent.changes["spot_replacement"] = [ended]
    assert len(await stand.proposals()) == 1


async def test_a_notice_is_acknowledged_only_once_its_change_is_on_record() -> None:
    spot = machine(1, Market.SPOT)
    stand = Stand(replicas=(spot, machine(2)))
    stand.notice(spot)
    first = (await stand.proposals())[0]
    assert (await stand.proposals())[0].id == first.id
    assert stand.queue.acknowledged == []
    stand.recent.changes["spot_replacement"] = [RecentChange(first.id, ChangeState.VOTING, None)]
    assert await stand.proposals() == []
    assert stand.queue.acknowledged == [spot.instance.id]


async def test_a_late_notice_is_no_longer_urgent_and_an_old_foreign_one_is_let_go() -> None:
    spot = machine(1, Market.SPOT)
    stand = Stand(replicas=(spot, machine(2)))
    stand.notice(spot, seconds=-60)
    stand.notice(machine(9), seconds=-60)
    stand.notice(machine(8), seconds=-7200)
    found = (await stand.proposals())[0]
    assert found.urgent_until is None
    assert stand.queue.acknowledged == ["i-8"]


async def test_a_queue_that_cannot_be_read_does_not_stop_the_round() -> None:
    stand = Stand()
    stand.queue.error = Denied("sqs:ReceiveMessage")
    assert len(await stand.proposals()) == 1


def notice_body(**changes: Any) -> str:
    body = {
        "detail-type": "EC2 Spot Instance Interruption Warning",
        "time": "2026-01-05T12:00:00Z",
        "detail": {"instance-id": "i-1", "instance-action": "terminate"},
    }
    return json.dumps({**body, **changes})


def test_an_interruption_warning_names_the_machine_and_the_time_it_goes() -> None:
    found = parse_notice(notice_body(), "r")
    assert found == ReclaimNotice("i-1", START + timedelta(minutes=2), "r")


@pytest.mark.parametrize(
    "body",
    [
        "not json",
        "[]",
        notice_body(detail={}),
        notice_body(time="2026-01-05T12:00:00"),
        notice_body(**{"detail-type": "EC2 Instance Rebalance Recommendation"}),
    ],
)
def test_other_messages_are_no_notice(body: str) -> None:
    assert parse_notice(body, "r") is None


async def test_a_completed_migration_records_predicted_against_realised() -> None:
    stand = Stand()
    proposal = (await stand.proposals())[0]
    apply = Step(kind=StepKind.APPLY, stage=2, share=1.0)
    assert isinstance((await stand.hear(command(proposal, apply, 1)))[0], ExecutionStaged)
    done = Step(kind=StepKind.FINISH, stage=2, share=1.0)
    await stand.hear(command(proposal, done, 2))
    stand.telemetry.samples = [
        Sample(metric="answer_score", unit=Unit.SCORE, reading=Known(value=score), at=START)
        for score in (0.8, 0.9)
    ]
    facts = await stand.hear(ChangeCompleted(change=proposal.id, arms=Arms()))
    assert isinstance(facts[0], OutcomeRecorded)
    found = facts[0].outcome
    assert found.terminal is ChangeState.COMPLETED
    assert isinstance(found.realised_usd_per_month, Known)
    assert found.realised_usd_per_month.value == pytest.approx(730 * 2 * (1.237 - 0.34), rel=0.01)
    assert found.predicted_usd_per_month == proposal.saving_usd_per_month
    assert isinstance(found.quality_mean, Known)
    assert found.quality_mean.value == pytest.approx(0.85)
    assert isinstance(found.ttft_p95_s, Unknown)
    assert found.features["replicas_moved"] == 2
    assert found.features["predicted_usd_per_month"] > 0


async def test_a_rolled_back_migration_has_realised_nothing() -> None:
    stand = Stand()
    proposal = (await stand.proposals())[0]
    await stand.hear(command(proposal, Step(kind=StepKind.APPLY, stage=0, share=0.1), 1))
    undo = RollbackRequested(
        change=proposal.id,
        fence=2,
        executor=AgentName.COST,
        recommendation=proposal,
        reason="worse",
        deadline=START + timedelta(minutes=10),
    )
    answer = (await stand.hear(undo))[0]
    assert isinstance(answer, RollbackCompleted)
    assert answer.proved
    facts = await stand.hear(ChangeRolledBack(change=proposal.id, reason="worse"))
    assert isinstance(facts[0], OutcomeRecorded)
    assert facts[0].outcome.realised_usd_per_month == Known(value=0.0)
    assert isinstance(facts[0].outcome.quality_mean, Unknown)


async def test_changes_of_others_leave_no_outcome() -> None:
    stand = Stand()
    assert await stand.hear(ChangeCompleted(change=recommendation().id, arms=Arms())) == []
    assert await stand.hear(ChangeVetoed(change="a" * 32, by=("x",), reasons=("y",))) == []


async def test_an_unknown_spend_makes_the_realised_saving_unknown() -> None:
    stand = Stand()
    proposal = (await stand.proposals())[0]
    await stand.hear(command(proposal, Step(kind=StepKind.APPLY, stage=0, share=0.1), 1))
    odd = machine(7)
    odd = odd.model_copy(
        update={"instance": odd.instance.model_copy(update={"instance_type": "q1.huge"})}
    )
    stand.actuator.machines[odd.id] = odd
    facts = await stand.hear(ChangeCompleted(change=proposal.id, arms=Arms()))
    assert isinstance(facts[0], OutcomeRecorded)
    assert isinstance(facts[0].outcome.realised_usd_per_month, Unknown)


def test_the_agent_says_what_it_can_do_and_what_it_hears() -> None:
    agent = Stand().agent
    assert agent.name is AgentName.COST
    assert "execute:spot_migration" in agent.capabilities
    assert "rollback.requested" in agent.hears
    assert agent.sense_every_s == 30.0
