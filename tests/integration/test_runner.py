"""The coordinator's runner on a real PostgreSQL, with the bus played by the test."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from optiinfra.coordinator.runner import Runner
from optiinfra.coordinator.saga.evolve import fold
from optiinfra.coordinator.saga.state import Saga
from optiinfra.coordinator.timekeeping import relay_outbox, relay_timers, sweep_timers
from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.events.envelope import Event
from optiinfra.schemas.approval_rules import ApprovalRule
from optiinfra.schemas.arbitration import Arbitration
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.errors import OptiInfraError, Unavailable
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.rollout import GateVerdict
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.vote import VOTERS, Verdict
from optiinfra.storage.postgres.chain import first_break
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.events import links_of_chain, log_of_chain
from tests.factories import event, gate_answer, recommendation, step_result, vote

AUTO = Rules(approvals=(ApprovalRule(name="auto"),), max_moving=9, retry_turn_s=3600)


class Bus:
    """Keeps what is published; `down` makes it refuse."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.down = False

    async def publish_many(self, events: Sequence[Event]) -> list[int | OptiInfraError]:
        if self.down:
            return [Unavailable("the bus is down") for _ in events]
        known = {event.id for event in self.events}
        self.events.extend(event for event in events if event.id not in known)
        return list(range(1, len(events) + 1))

    def said(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.fact.kind == kind]


class Story:
    """Answers what the coordinator asks, as good agents would."""

    def __init__(self, postgres: Database, rules: Rules = AUTO) -> None:
        self.bus = Bus()
        self.postgres = postgres
        self.runner = Runner(postgres, self.bus, lambda: rules)
        self.answered: set[str] = set()
        self.verdict = GateVerdict.PASS

    async def hear(self, *facts: f.Fact) -> list[BaseException | None]:
        return await self.runner.handle([event(fact) for fact in facts])

    async def open(self, proposal: Recommendation) -> None:
        await self.hear(f.RecommendationProposed(recommendation=proposal))

    async def approve_by_vote(self, proposal: Recommendation) -> None:
        await self.hear(*(vote(proposal.id, agent) for agent in VOTERS))

    async def play(self) -> None:
        """Goes on until nobody has anything to answer and no timer is due."""
        while True:
            open_events = [e for e in self.bus.events if e.id not in self.answered]
            self.answered.update(e.id for e in open_events)
            for asked in open_events:
                await self.hear(*self._answers(asked.fact))
            fired = await sweep_timers(self.postgres, self.runner.handle)
            if not open_events and not fired:
                return

    def _answers(self, fact: f.Fact) -> list[f.Fact]:
        match fact:
            case c.ExecutionRequested():
                return [
                    f.ExecutionStaged(change=fact.change, result=step_result(fact.step, fact.fence))
                ]
            case c.GateRequested():
                return [
                    f.GateAnswered(
                        answer=gate_answer(
                            fact.change, a, stage=fact.stage, look=fact.look, verdict=self.verdict
                        )
                    )
                    for a in fact.assessors
                ]
            case c.RollbackRequested():
                done = f.RollbackCompleted(
                    change=fact.change, fence=fact.fence, proved=True, detail="as it was"
                )
                return [done]
            case _:
                return []

    async def state(self, change: str) -> ChangeState:
        async with self.postgres.connection() as connection:
            return ChangeState(
                await connection.fetchval("SELECT state FROM sagas WHERE change_id = $1", change)
            )


async def test_a_change_goes_from_proposal_to_completion(postgres: Database) -> None:
    story, proposal = Story(postgres), recommendation()
    await story.open(proposal)
    await story.approve_by_vote(proposal)
    await story.play()
    assert await story.state(proposal.id) is ChangeState.COMPLETED
    requested = [e.fact for e in story.bus.said("execution.requested")]
    steps = [fact.step for fact in requested if isinstance(fact, c.ExecutionRequested)]
    assert [step.share for step in steps] == [0.1, 0.5, 1.0, 1.0]
    assert len(story.bus.said("change.completed")) == 1


async def test_folding_the_log_gives_the_row_and_the_chain_holds(postgres: Database) -> None:
    story, proposal = Story(postgres), recommendation()
    await story.open(proposal)
    await story.approve_by_vote(proposal)
    await story.play()
    log = await log_of_chain(postgres, proposal.id)
    folded = fold(Saga(change=proposal.id), [(entry.fact, at) for entry, at in log])
    async with postgres.connection() as connection:
        row = await connection.fetchrow("SELECT * FROM sagas WHERE change_id = $1", proposal.id)
    assert row is not None
    assert folded.model_dump_json() == row["body"]
    links = await links_of_chain(postgres, proposal.id)
    assert first_break(links) is None
    assert [link.version for link in links] == list(range(1, len(links) + 1))


async def test_a_bad_gate_undoes_the_change(postgres: Database) -> None:
    story, proposal = Story(postgres), recommendation()
    story.verdict = GateVerdict.ROLL_BACK
    await story.open(proposal)
    await story.approve_by_vote(proposal)
    await story.play()
    assert await story.state(proposal.id) is ChangeState.ROLLED_BACK
    assert len(story.bus.said("execution.requested")) == 1


async def test_every_message_three_times_ends_the_same(postgres: Database) -> None:
    story, proposal = Story(postgres), recommendation()
    proposed = f.RecommendationProposed(recommendation=proposal)
    votes = [vote(proposal.id, agent) for agent in VOTERS]
    for _ in range(3):
        await story.hear(proposed, *votes, *votes)
    await story.play()
    assert await story.state(proposal.id) is ChangeState.COMPLETED
    assert len(story.bus.said("vote.requested")) == 1


async def test_votes_before_the_proposal_are_counted(postgres: Database) -> None:
    story, proposal = Story(postgres), recommendation()
    await story.approve_by_vote(proposal)
    assert story.bus.events == []
    await story.open(proposal)
    await story.play()
    assert await story.state(proposal.id) is ChangeState.COMPLETED


async def test_one_bad_event_fails_alone(postgres: Database) -> None:
    story, proposal = Story(postgres), recommendation()
    failures = await story.hear(
        vote(proposal.id, "stranger"),
        f.RecommendationProposed(recommendation=proposal),
    )
    assert "stranger" in str(failures[0])
    assert failures[1] is None
    assert await story.state(proposal.id) is ChangeState.VOTING


async def test_what_the_bus_refuses_is_relayed_later(postgres: Database) -> None:
    story, proposal = Story(postgres), recommendation()
    story.bus.down = True
    await story.open(proposal)
    assert story.bus.events == []
    story.bus.down = False
    assert await relay_outbox(postgres, story.bus, older_than_s=0) == 2
    assert await relay_timers(postgres, story.bus, older_than_s=0) == 2
    assert {e.fact.kind for e in story.bus.events} == {
        "change.opened",
        "vote.requested",
        "timer.set",
    }
    assert await relay_outbox(postgres, story.bus, older_than_s=0) == 0
    assert await relay_timers(postgres, story.bus, older_than_s=0) == 0


async def test_a_second_change_of_a_target_waits_and_then_goes(postgres: Database) -> None:
    story, first, second = Story(postgres), recommendation("a"), recommendation("b")
    await story.open(first)
    await story.open(second)
    assert await story.state(second.id) is ChangeState.DEFERRED
    await story.hear(vote(first.id, "resource", Verdict.REJECT))
    assert await story.state(first.id) is ChangeState.VETOED
    await story.play()
    assert await story.state(second.id) is ChangeState.VOTING


@pytest.mark.parametrize("turned", [False, True])
async def test_a_bound_deployment_changes_after_the_one_under_way(
    postgres: Database, *, turned: bool
) -> None:
    bound = AUTO.model_copy(
        update={"max_moving": 9, "arbitration": Arbitration(needs={"chat": ("search",)})}
    )
    story, other = Story(postgres, bound), Story(postgres, bound)
    first, second = recommendation("a"), recommendation("b", deployment="search")
    if turned:
        first, second = second, first
    await story.open(first)
    await other.open(second)
    await story.approve_by_vote(first)
    await other.approve_by_vote(second)
    assert await story.state(first.id) is ChangeState.EXECUTING
    assert await other.state(second.id) is ChangeState.DEFERRED
    await story.play()
    assert await story.state(first.id) is ChangeState.COMPLETED
    assert await other.state(second.id) is ChangeState.VOTING
    await story.hear(vote(second.id, "resource", Verdict.REJECT, 2))
    assert await other.state(second.id) is ChangeState.VETOED


async def test_the_stop_switch_halts_the_next_stage_and_lets_it_go_on(postgres: Database) -> None:
    story, proposal = Story(postgres), recommendation()
    await story.open(proposal)
    stop = f.SwitchTurned(
        tenant="acme", stopped=True, by="ana", reason="incident", at=proposal.proposed_at
    )
    await story.hear(stop)
    await story.approve_by_vote(proposal)
    await story.play()
    assert story.bus.said("execution.requested") == []
    await story.hear(stop.model_copy(update={"stopped": False, "reason": "over"}))
    await story.play()
    assert await story.state(proposal.id) is ChangeState.COMPLETED


async def test_a_change_of_another_tenant_cannot_be_touched(postgres: Database) -> None:
    story, proposal = Story(postgres), recommendation()
    await story.open(proposal)
    foreign = event(vote(proposal.id, "resource", Verdict.REJECT), tenant="other")
    failures = await story.runner.handle([foreign])
    assert "does not belong to tenant" in str(failures[0])
    assert await story.state(proposal.id) is ChangeState.VOTING


async def test_two_coordinators_at_once_decide_once(postgres: Database) -> None:
    story, proposal = Story(postgres), recommendation()
    other = Runner(postgres, story.bus, lambda: AUTO)
    await story.open(proposal)
    votes = [event(vote(proposal.id, agent)) for agent in VOTERS]
    await asyncio.gather(
        *(runner.handle([one]) for one in votes for runner in (story.runner, other))
    )
    await story.play()
    assert await story.state(proposal.id) is ChangeState.COMPLETED
    assert len(story.bus.said("change.approved")) == 1
