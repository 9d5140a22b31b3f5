"""A pause that comes while a finish is under way: nothing is released until the change goes on."""

from __future__ import annotations

from dataclasses import replace

from optiinfra.agents.cost.execute import SpotMoves
from optiinfra.agents.moving.execute import Executor
from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.schemas.change import ChangeState, ControlVerb
from optiinfra.schemas.rollout import Step, StepKind
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.executions import ExecutionLog
from tests.cost_stand import DEPLOYMENT, POLICY
from tests.execute_stand import Stand, staged
from tests.integration.test_runner import Story
from tests.saga_log import replacement


class Acting(Story):
    """A story whose steps a real executor carries out, on a real record and an emulated cloud."""

    def __init__(self, postgres: Database, record: type[ExecutionLog] = ExecutionLog) -> None:
        super().__init__(postgres)
        self.stand = Stand()
        hands = replace(self.stand.hands, intents=record(postgres))
        self.executor = Executor({("acme", "chat"): DEPLOYMENT}, hands, SpotMoves(POLICY))

    async def carry_out(self) -> f.Fact:
        """Carries out the step that was asked for last, and has the coordinator hear of it."""
        asked = self.bus.said("execution.requested")[-1].fact
        assert isinstance(asked, c.ExecutionRequested)
        result = staged(await self.executor.execute(asked, 600.0, self.stand.say))
        await self.hear(result)
        return result

    async def wish(self, verb: ControlVerb, change: str) -> None:
        await self.hear(c.ControlRequested(change=change, verb=verb, by="ana", reason=verb))


async def test_a_pause_holds_the_release_and_resuming_lets_it_go_on(postgres: Database) -> None:
    proposal, story, record = replacement(), Acting(postgres), ExecutionLog(postgres)
    assert not await record.is_paused(proposal.id)
    await story.open(proposal)
    await story.approve_by_vote(proposal)
    await story.wish(ControlVerb.PAUSE, proposal.id)
    assert await record.is_paused(proposal.id)
    await story.carry_out()
    assert story.stand.actuator.terminated == []
    assert await story.state(proposal.id) is ChangeState.EXECUTING
    await story.wish(ControlVerb.RESUME, proposal.id)
    assert not await record.is_paused(proposal.id)
    await story.carry_out()
    assert story.stand.actuator.terminated == ["chat-1"]
    assert await story.state(proposal.id) is ChangeState.COMPLETED
    steps = [
        e.fact.step
        for e in story.bus.said("execution.requested")
        if isinstance(e.fact, c.ExecutionRequested)
    ]
    finish = Step(kind=StepKind.FINISH, stage=0, share=1.0)
    assert steps == [finish, finish.model_copy(update={"attempt": 2})]


class Heedless(ExecutionLog):
    """Takes no notice of pauses."""

    async def is_paused(self, change: str) -> bool:
        return False


async def test_without_the_look_a_paused_change_releases_all_the_same(postgres: Database) -> None:
    proposal, story = replacement(), Acting(postgres, Heedless)
    await story.open(proposal)
    await story.approve_by_vote(proposal)
    await story.wish(ControlVerb.PAUSE, proposal.id)
    await story.carry_out()
    assert story.stand.actuator.terminated == ["chat-1"]
