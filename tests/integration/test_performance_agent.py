"""The performance agent against emulated replicas: it measures, votes and gates on telemetry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from optiinfra.agents.base.agent import Agent
from optiinfra.agents.collectors.scrape import EngineScraper
from optiinfra.agents.performance.agent import PerformanceAgent
from optiinfra.agents.performance.policy import PerformancePolicy
from optiinfra.events.commands import GateRequested, VoteRequested
from optiinfra.events.facts import (
    ChangeResumed,
    Fact,
    GateAnswered,
    MetricsMeasured,
    TelemetryGap,
    VoteCast,
)
from optiinfra.schemas.answers import ANSWER_SCORE, GOLDEN, SOURCE
from optiinfra.schemas.deployment import ReplicaState
from optiinfra.schemas.errors import Unavailable
from optiinfra.schemas.recommendation import (
    ChangeSpec,
    ParallelismChange,
    Precision,
    Quantisation,
    SpotReplacement,
)
from optiinfra.schemas.rollout import Arms, GateAnswer, GateVerdict
from optiinfra.schemas.telemetry import Known, Sample, Unit, Unknown, UnknownReason
from optiinfra.schemas.vote import AgentName, Verdict, Vote
from optiinfra.serving.cards import load_card
from optiinfra.serving.live import CardModel
from optiinfra.twin.defects import Defect
from optiinfra.twin.emulator import EmulatorConfig, EmulatorServer
from tests.factories import event, recommendation
from tests.telemetry import NOW, Fleet, Recorded, deployment, gone_dark, replica, steady

CARD, SCALE = "h100-8b-fp16-tp1", 5.0
POLICY = PerformancePolicy(vote_window_s=60, stale_s=30, min_samples=10, min_scrapes=1)
REAL_TIME = POLICY.model_copy(update={"golden_settle_s": 0.0})
"""Nobody asks golden prompts there, and all scrapes are of the last second or so."""
CHANGE = recommendation().id


async def unsaid(fact: Fact) -> None:
    raise AssertionError(f"said {fact.kind}")


def utc_now() -> datetime:
    return datetime.now(UTC)


class Stand:
    """The agent with its ports; `clock` stands at `NOW` unless the time is real."""

    def __init__(self, client: httpx.AsyncClient, *, real_time: bool = False) -> None:
        clock = utc_now if real_time else lambda: NOW
        self.telemetry = Recorded()
        self.fleet = Fleet()
        self.agent = PerformanceAgent(
            {"chat": deployment()},
            self.fleet,
            self.telemetry,
            EngineScraper(client, clock),
            models={"chat": CardModel(load_card(CARD), time_scale=SCALE)},
            clock=clock,
            policy=REAL_TIME if real_time else POLICY,
        )

    async def sense(self) -> Sequence[Fact]:
        facts = await self.agent.sense()
        self.telemetry.record(facts)
        return facts

    async def vote(self, spec: ChangeSpec | None = None, **changes: Any) -> Vote:
        proposal = recommendation(**({"spec": spec} if spec else {}), **changes)
        asked = VoteRequested(
            change=proposal.id,
            round=1,
            agents=(AgentName.PERFORMANCE, AgentName.RESOURCE),
            recommendation=proposal,
            deadline=NOW + timedelta(seconds=60),
        )
        facts = await self.agent.handle(event(asked), unsaid)
        assert len(facts) == 1
        assert isinstance(facts[0], VoteCast)
        return facts[0].vote

    async def gate(self, arms: Arms, *, share: float = 0.5, **changes: Any) -> GateAnswer:
        values: dict[str, Any] = {
            "change": CHANGE, "deployment": "chat", "stage": 0, "stages": 3, "look": 1,
            "assessors": (AgentName.PERFORMANCE,), "arms": arms, "share": share,
            "since": NOW - timedelta(seconds=60), "rollout_since": NOW - timedelta(seconds=60),
            "recommendation": recommendation(),
            "deadline": NOW,
        }  # fmt: skip
        facts = await self.agent.handle(event(GateRequested(**{**values, **changes})), unsaid)
        assert len(facts) == 1
        assert isinstance(facts[0], GateAnswered)
        return facts[0].answer


@pytest.fixture
async def stand() -> AsyncIterator[Stand]:
    async with httpx.AsyncClient() as client:
        yield Stand(client)


@pytest.fixture
async def live() -> AsyncIterator[Stand]:
    async with httpx.AsyncClient() as client:
        yield Stand(client, real_time=True)


async def ask(url: str, requests: int) -> None:
    """Requests in parallel, each answered wholly."""
    body = {"prompt": "What is the tallest mountain? " * 20, "max_tokens": 24, "stream": False}
    async with httpx.AsyncClient(timeout=60) as client:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(client.post(f"{url}/v1/completions", json=body))
                for _ in range(requests)
            ]
        assert all(task.result().status_code == 200 for task in tasks)


async def measured_load(stand: Stand, *urls: str) -> datetime:
    """Scrape, serve, scrape twice; returns the time before which nothing had been served."""
    await stand.sense()
    since = stand.telemetry.samples[-1].at
    for _ in range(2):
        for url in urls:
            await ask(url, 20)
        await stand.sense()
    return since


def test_it_is_an_agent() -> None:
    agent: Agent = PerformanceAgent(
        {}, Fleet(), Recorded(), EngineScraper(httpx.AsyncClient(), utc_now),
        models={}, clock=utc_now,
    )  # fmt: skip
    assert agent.name is AgentName.PERFORMANCE
    assert set(agent.hears) == {"vote.requested", "gate.requested"}
    assert agent.sense_every_s == PerformancePolicy().sense_every_s


async def test_emulated_replicas_are_measured_voted_on_and_gated(live: Stand) -> None:
    config = EmulatorConfig(card=CARD, time_scale=SCALE)
    async with EmulatorServer(config) as good, EmulatorServer(config) as slow:
        live.fleet.all = [replica("good", url=good.url), replica("slow", url=slow.url)]
        since = await measured_load(live, good.url, slow.url)
        vote = await live.vote()
        assert vote.verdict is Verdict.APPROVE, vote.reasons
        names = {e.name for e in vote.evidence}
        assert {"ttft_p95_s", "tpot_p95_s_with_replicas_left", "offered_rps"} <= names
        arms = Arms(canary=("slow",), baseline=("good",))
        answer = await live.gate(arms, since=since)
        assert answer.verdict is GateVerdict.PASS, answer.reason

        slow.degrade(Defect(slowdown=200))
        late = await measured_load(live, good.url, slow.url)
        answer = await live.gate(arms, since=late)
        assert answer.verdict is GateVerdict.ROLL_BACK, answer.reason
        worst = {m.name: m for m in answer.metrics}["tpot_p95_s"]
        assert worst.samples == 40
        assert worst.verdict is GateVerdict.ROLL_BACK
        vote = await live.vote()
        assert vote.verdict is Verdict.REJECT, vote.reasons


async def test_a_hidden_metric_is_told_once_and_holds_the_gate(live: Stand) -> None:
    async with EmulatorServer(EmulatorConfig(card=CARD, time_scale=SCALE)) as server:
        live.fleet.all = [replica("a", url=server.url)]
        since = await measured_load(live, server.url)
        arms = Arms(canary=("a",))
        assert (await live.gate(arms, since=since, share=1.0)).verdict is GateVerdict.PASS
        server.degrade(Defect(hide_metrics=("vllm:time_to_first_token_seconds",)))
        gaps = [f for f in await live.sense() if isinstance(f, TelemetryGap)]
        assert [(g.replica, g.metrics) for g in gaps] == [("a", ("ttft_s",))]
        assert gaps[0].engine_version == "0.32.0+emulator"
        assert not any(isinstance(f, TelemetryGap) for f in await live.sense())
        answer = await live.gate(arms, since=since, share=1.0)
        assert answer.verdict is GateVerdict.HOLD
        assert "not exposed" in answer.reason
        assert (await live.vote()).verdict is Verdict.ABSTAIN
        server.degrade(Defect())
        assert not any(isinstance(f, TelemetryGap) for f in await live.sense())
        server.degrade(Defect(hide_metrics=("vllm:time_to_first_token_seconds",)))
        assert any(isinstance(f, TelemetryGap) for f in await live.sense())
        seen, live.fleet.all = live.fleet.all, []
        await live.sense()
        live.fleet.all = seen
        assert any(isinstance(f, TelemetryGap) for f in await live.sense())


async def test_every_replica_that_should_answer_is_measured(
    stand: Stand, unused_tcp_port: int
) -> None:
    nowhere = f"http://127.0.0.1:{unused_tcp_port}"
    stand.fleet.all = [
        replica("a", url=nowhere),
        replica("b", url=nowhere, state=ReplicaState.STARTING),
        replica("c", url=nowhere, state=ReplicaState.DRAINING),
    ]
    facts = await stand.sense()
    measured = [f for f in facts if isinstance(f, MetricsMeasured)]
    assert len(measured) == len(facts)
    assert [f.samples[0].replica for f in measured] == ["a", "c"]
    assert {f.family for f in measured} == {"performance"}


async def test_a_cloud_that_does_not_answer_stops_neither_sensing_nor_the_others(
    stand: Stand,
) -> None:
    stand.fleet.down = True
    assert await stand.sense() == []
    with pytest.raises(Unavailable):
        await stand.vote()


async def test_a_store_that_is_down_is_tried_again_later(stand: Stand) -> None:
    stand.telemetry.down = True
    with pytest.raises(Unavailable, match="the store is down"):
        await stand.vote()


async def test_too_much_load_for_one_replica_less_is_rejected(stand: Stand) -> None:
    stand.fleet.all = [replica("a"), replica("b")]
    stand.telemetry.samples = [*steady("a", rps=150.0), *steady("b", rps=150.0)]
    vote = await stand.vote()
    assert vote.verdict is Verdict.REJECT
    assert "with 1 replica(s) left" in vote.reasons[0]


async def test_golden_prompts_are_no_load_that_a_vote_weighs(stand: Stand) -> None:
    stand.fleet.all = [replica("a"), replica("b")]
    stand.telemetry.samples = [*steady("a", rps=150.0), *steady("b", rps=150.0)]
    assert (await stand.vote()).verdict is Verdict.REJECT
    asked = NOW - timedelta(seconds=30)
    stand.telemetry.samples += [
        Sample(
            metric=ANSWER_SCORE, unit=Unit.SCORE, reading=Known(value=1), replica=name, at=asked,
            labels={SOURCE: GOLDEN},
        )
        for name in "ab"
        for _ in range(148 * 40)
    ]  # fmt: skip
    vote = await stand.vote()
    (offered,) = (row.reading for row in vote.evidence if row.name == "offered_rps")
    assert isinstance(offered, Known)
    assert offered.value == pytest.approx(4)
    assert vote.verdict is Verdict.APPROVE, vote.reasons


async def test_without_requests_or_without_a_card_it_abstains(stand: Stand) -> None:
    stand.fleet.all = [replica("a"), replica("b")]
    vote = await stand.vote()
    assert vote.verdict is Verdict.ABSTAIN
    assert "no fresh ttft_s" in vote.reasons[0]
    stand.telemetry.samples = [*steady("a"), *steady("b")]
    bare = [s for s in stand.telemetry.samples if "length" not in s.metric]
    stand.telemetry.samples = bare
    vote = await stand.vote()
    assert vote.verdict is Verdict.ABSTAIN
    assert any("no request has finished" in reason for reason in vote.reasons)


async def test_a_deployment_without_a_card_cannot_be_forecast() -> None:
    async with httpx.AsyncClient() as client:
        agent = PerformanceAgent(
            {"chat": deployment()}, Fleet(replica("a"), replica("b")),
            Recorded([*steady("a"), *steady("b")]), EngineScraper(client, lambda: NOW),
            models={}, clock=lambda: NOW, policy=POLICY,
        )  # fmt: skip
        stand = Stand(client)
        stand.agent = agent
        vote = await stand.vote()
    assert vote.verdict is Verdict.ABSTAIN
    assert any("no perf card" in reason for reason in vote.reasons)


@pytest.mark.parametrize("silent", [True, False])
async def test_a_reclaimed_replica_is_replaced_whether_or_not_it_still_answers(
    stand: Stand,
    silent: bool,  # noqa: FBT001
) -> None:
    spec = recommendation().spec
    assert spec.kind == "spot_migration"
    urgent = SpotReplacement(replicas=("b",), to=spec.to, reclaim_at=NOW)
    stand.fleet.all = [replica("a"), replica("b")]
    theirs = [] if silent else steady("b", rps=3.0)
    stand.telemetry.samples = [*steady("a", rps=1.0), *theirs]
    vote = await stand.vote(urgent)
    assert vote.verdict is Verdict.APPROVE
    offered = 1 if silent else 4
    assert f"doing nothing leaves {offered} requests/s to each of 1" in vote.reasons[0]
    assert "TTFT p95 is forecast" in vote.reasons[1]


async def test_kinds_and_deployments_that_it_cannot_judge_are_abstentions(stand: Stand) -> None:
    stand.fleet.all = [replica("a")]
    vote = await stand.vote(ParallelismChange(tensor_parallel=2))
    assert vote.verdict is Verdict.ABSTAIN
    assert "parallelism" in vote.reasons[0]
    vote = await stand.vote(Quantisation(from_precision=Precision.FP16, to_precision=Precision.FP8))
    assert vote.verdict is Verdict.ABSTAIN
    assert "was not measured" in vote.reasons[0]
    vote = await stand.vote(deployment="other")
    assert vote.verdict is Verdict.ABSTAIN
    assert "not watched" in vote.reasons[0]
    answer = await stand.gate(Arms(canary=("a",)), deployment="other")
    assert answer.verdict is GateVerdict.HOLD


async def test_what_is_not_for_it_is_not_answered(stand: Stand) -> None:
    proposal = recommendation()
    asked = VoteRequested(
        change=proposal.id, round=1, agents=(AgentName.RESOURCE,),
        recommendation=proposal, deadline=NOW,
    )  # fmt: skip
    assert await stand.agent.handle(event(asked), unsaid) == []
    resumed = ChangeResumed(change=proposal.id, by="ann")
    assert await stand.agent.handle(event(resumed), unsaid) == []


@pytest.mark.parametrize(
    ("canary", "verdict"),
    [
        ({"errors": 1.0}, GateVerdict.ROLL_BACK),
        ({"waiting": 50.0}, GateVerdict.ROLL_BACK),
        ({"ttft_s": 2.0}, GateVerdict.ROLL_BACK),
        ({"rps": 0.0}, GateVerdict.HOLD),
        ({"errors": 0.0}, GateVerdict.PASS),
    ],
)
async def test_recorded_canaries_are_gated(
    stand: Stand, canary: dict[str, Any], verdict: GateVerdict
) -> None:
    stand.telemetry.samples = [*steady("new", **canary), *steady("old")]
    answer = await stand.gate(Arms(canary=("new",), baseline=("old",)))
    assert answer.verdict is verdict, answer.reason


async def test_a_canary_that_went_dark_is_a_hold(stand: Stand) -> None:
    why = Unknown(reason=UnknownReason.UNREACHABLE, detail="refused")
    stand.telemetry.samples = [*steady("new"), *gone_dark("new", why), *steady("old")]
    answer = await stand.gate(Arms(canary=("new",), baseline=("old",)))
    assert answer.verdict is GateVerdict.HOLD
    assert "refused" in answer.reason


async def test_failures_that_an_engine_does_not_expose_are_left_out(stand: Stand) -> None:
    hidden = Unknown(reason=UnknownReason.NOT_SUPPORTED, detail="not exposed")
    stand.telemetry.samples = steady("new", errors=hidden)
    answer = await stand.gate(Arms(canary=("new",)), share=1.0)
    assert answer.verdict is GateVerdict.PASS
    assert "error_rate" not in {m.name for m in answer.metrics}
