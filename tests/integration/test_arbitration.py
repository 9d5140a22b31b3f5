"""Changes that want the same, in every order of arrival: real PostgreSQL, two coordinators."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import timedelta

import pytest

from optiinfra.coordinator.runner import Runner
from optiinfra.coordinator.timekeeping import sweep_timers
from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.events.envelope import Event
from optiinfra.schemas.approval_rules import ApprovalRule
from optiinfra.schemas.arbitration import Arbitration, Budget
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.errors import OptiInfraError
from optiinfra.schemas.recommendation import Recommendation, Risk
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.vote import VOTERS, AgentName, Verdict
from optiinfra.storage.postgres.database import Database
from tests.factories import event, gate_answer, recommendation, rollout, step_result, vote

ASK = Rules(max_moving=9, movers_per_hour=99, retry_turn_s=3_600)
AUTO = ASK.model_copy(update={"approvals": (ApprovalRule(name="all", max_risk=Risk.LOW),)})
QUALITY = recommendation("q", proposer=AgentName.APPLICATION, rollout=rollout(1.0))
SPEED = recommendation("p", proposer=AgentName.PERFORMANCE, rollout=rollout(1.0))
MONEY = recommendation("m", rollout=rollout(1.0))


class Bus:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[Event] = []

    async def publish_many(self, events: Sequence[Event]) -> list[int | OptiInfraError]:
        self.said += events
        return list(range(1, len(events) + 1))


class Story:
    """Two coordinators that take turns at what they hear."""

    def __init__(self, database: Database, rules: Rules) -> None:
        self.database = database
        self.bus = Bus()
        self.runners = itertools.cycle([Runner(database, self.bus, lambda: rules) for _ in "ab"])

    async def hear(self, *facts: f.Fact) -> None:
        assert not any(await next(self.runners).handle([event(fact) for fact in facts]))

    async def propose(self, *proposals: Recommendation) -> None:
        for one in proposals:
            await self.hear(f.RecommendationProposed(recommendation=one))

    async def agree(self, proposal: Recommendation, verdict: Verdict = Verdict.APPROVE) -> None:
        asked = [e.fact for e in self.bus.said if isinstance(e.fact, c.VoteRequested)]
        number = max(one.round for one in asked if one.change == proposal.id)
        await self.hear(*(vote(proposal.id, agent, verdict, number) for agent in VOTERS))

    async def carry_out(self, proposal: Recommendation) -> None:
        """From the step that was asked for to the end."""
        for _ in range(2):
            asked = [e.fact for e in self.bus.said if isinstance(e.fact, c.ExecutionRequested)]
            step = [one for one in asked if one.change == proposal.id][-1]
            done = step_result(step.step, step.fence)
            await self.hear(f.ExecutionStaged(change=proposal.id, result=done))
            for who in proposal.rollout.gates if step.step.kind == "apply" else ():
                answer = gate_answer(proposal.id, who, stage=0, look=1)
                await self.hear(f.GateAnswered(answer=answer))

    async def turns(self) -> None:
        await sweep_timers(self.database, next(self.runners).handle)

    async def states(self) -> dict[str, ChangeState]:
        async with self.database.connection() as connection:
            rows = await connection.fetch("SELECT change_id, state FROM sagas")
        return {row["change_id"]: ChangeState(row["state"]) for row in rows}

    def records(self) -> list[tuple[str, str, str, str]]:
        facts = [e.fact for e in self.bus.said if isinstance(e.fact, f.ConflictResolved)]
        return [(one.change, one.against, one.verdict, one.rule) for one in facts]


@pytest.mark.parametrize("order", list(itertools.permutations((QUALITY, SPEED, MONEY))))
async def test_whoever_comes_first_the_best_is_decided_and_the_others_wait(
    postgres: Database, order: tuple[Recommendation, ...]
) -> None:
    story = Story(postgres, ASK)
    await story.propose(*order)
    states = await story.states()
    assert states == {
        QUALITY.id: ChangeState.VOTING,
        SPEED.id: ChangeState.DEFERRED,
        MONEY.id: ChangeState.DEFERRED,
    }
    assert all(rule == "interest" for *_, rule in story.records())
    await story.hear(f.VoteCast(vote=vote(QUALITY.id, "resource", Verdict.REJECT).vote))
    await story.turns()
    states = await story.states()
    assert (states[SPEED.id], states[MONEY.id]) == (ChangeState.VOTING, ChangeState.DEFERRED)


async def test_what_is_carried_out_is_never_taken_over_and_the_next_is_voted_on_afresh(
    postgres: Database,
) -> None:
    story = Story(postgres, AUTO)
    await story.propose(MONEY)
    await story.agree(MONEY)
    assert (await story.states())[MONEY.id] is ChangeState.EXECUTING
    await story.propose(QUALITY, SPEED)
    assert (await story.states())[QUALITY.id] is ChangeState.DEFERRED
    await story.carry_out(MONEY)
    await story.turns()
    states = await story.states()
    assert states[MONEY.id] is ChangeState.COMPLETED
    assert (states[QUALITY.id], states[SPEED.id]) == (ChangeState.VOTING, ChangeState.DEFERRED)
    await story.agree(QUALITY, Verdict.REJECT)
    assert (await story.states())[QUALITY.id] is ChangeState.VETOED


async def test_who_gives_way_keeps_its_approval_but_not_its_votes(postgres: Database) -> None:
    story = Story(postgres, ASK)
    await story.propose(MONEY)
    await story.agree(MONEY)
    assert (await story.states())[MONEY.id] is ChangeState.AWAITING_APPROVAL
    await story.propose(QUALITY)
    assert (await story.states())[MONEY.id] is ChangeState.DEFERRED
    assert story.records() == [(MONEY.id, QUALITY.id, "yields", "interest")]
    await story.agree(QUALITY, Verdict.REJECT)
    await story.turns()
    assert (await story.states())[MONEY.id] is ChangeState.VOTING
    rounds = [e.fact.round for e in story.bus.said if isinstance(e.fact, c.VoteRequested)]
    assert rounds == [1, 1, 2]


async def test_the_same_twice_is_merged_and_a_newer_one_replaces_the_older(
    postgres: Database,
) -> None:
    story = Story(postgres, ASK)
    again = recommendation("again", spec=MONEY.spec)
    newer = recommendation(
        "newer",
        spec=MONEY.spec.model_copy(
            update={"to": MONEY.spec.to.model_copy(update={"region": "eu-west-1"})}  # type: ignore[union-attr]
        ),
    )
    await story.propose(MONEY, again, newer)
    assert await story.states() == {
        MONEY.id: ChangeState.SUPERSEDED,
        again.id: ChangeState.SUPERSEDED,
        newer.id: ChangeState.VOTING,
    }
    assert [verdict for *_, verdict, _ in story.records()] == ["merged", "superseded"]


async def test_who_waited_for_replicas_that_are_gone_is_not_asked_again(
    postgres: Database,
) -> None:
    story = Story(postgres, AUTO)
    rival = recommendation(
        "rival", proposer=AgentName.RESOURCE, spec=MONEY.spec, rollout=rollout(1.0)
    )
    await story.propose(MONEY)
    await story.agree(MONEY)
    await story.propose(rival)
    await story.carry_out(MONEY)
    assert (await story.states())[rival.id] is ChangeState.SUPERSEDED
    assert story.records()[-1] == (rival.id, MONEY.id, "superseded", "replaced")


async def test_a_budget_holds_back_the_second_of_two_targets_until_the_first_is_done(
    postgres: Database,
) -> None:
    policy = Arbitration(budgets=(Budget(name="gpus", max_moving=1),))
    story = Story(postgres, AUTO.model_copy(update={"arbitration": policy}))
    other = recommendation("s", deployment="search", rollout=rollout(1.0))
    await story.propose(MONEY, other)
    await story.agree(MONEY)
    await story.agree(other)
    assert (await story.states())[other.id] is ChangeState.DEFERRED
    await story.carry_out(MONEY)
    await story.turns()
    await story.agree(other)
    assert (await story.states())[other.id] is ChangeState.EXECUTING


async def test_nobody_starves_under_an_endless_stream_of_better_ones(postgres: Database) -> None:
    """After three better ones it gives way no more, and is decided."""
    story = Story(postgres, ASK)
    await story.propose(MONEY)
    for number in range(6):
        better = recommendation(f"b{number}", proposer=AgentName.APPLICATION)
        await story.propose(better)
        if (await story.states())[better.id] is ChangeState.VOTING:
            await story.agree(better, Verdict.REJECT)
        await story.turns()
    assert (await story.states())[MONEY.id] is ChangeState.VOTING
    assert [v for *_, v, _ in story.records()].count("yields") == 3


async def test_who_has_waited_too_long_is_not_passed_any_more(postgres: Database) -> None:
    story = Story(postgres, ASK)
    await story.propose(QUALITY, MONEY)
    async with postgres.connection() as connection:
        await connection.execute(
            "UPDATE sagas SET opened_at = opened_at - $1::interval WHERE change_id = $2",
            timedelta(hours=7),
            MONEY.id,
        )
    await story.agree(QUALITY, Verdict.REJECT)
    await story.propose(SPEED)
    assert (await story.states())[SPEED.id] is ChangeState.DEFERRED
    await story.turns()
    assert (await story.states())[MONEY.id] is ChangeState.VOTING
