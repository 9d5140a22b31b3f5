"""A small world around one saga: agents, a person, an operator and clocks that answer at random."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from optiinfra.coordinator.saga.freeze import FREEZE
from optiinfra.coordinator.saga.ruling import Loss, Ruling
from optiinfra.coordinator.saga.state import Saga, World, later
from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.events.facts import TimerName
from optiinfra.schemas.change import ChangeState, ControlVerb, Phase
from optiinfra.schemas.rollout import GateVerdict, StepKind
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.tenant import person
from optiinfra.schemas.vote import VOTERS, AgentName, Verdict
from tests.factories import gate_answer, step_result, vote
from tests.saga_log import Log, decision, put_off, woken

OTHER = "f" * 32
MOSTLY_YES = (Verdict.APPROVE,) * 12 + (Verdict.ABSTAIN, Verdict.REJECT)
MOSTLY_PASS = (GateVerdict.PASS,) * 8 + (GateVerdict.HOLD,) * 2 + (GateVerdict.ROLL_BACK,)
WORLDS = (
    *[World()] * 6,
    World(executing=OTHER),
    World(ruling=Ruling(behind=Loss(change=OTHER, rule="interest", reason="it goes first"))),
    World(ruling=Ruling(yields=(Loss(change=OTHER, rule="risk", reason="this goes first"),))),
    World(moving=3),
    World(moved_last_hour=99),
    World(stopped=True),
)


class Surroundings:
    """Delivers what is under way in any order, late and twice, and answers what is asked."""

    def __init__(self, log: Log, random: Random, policies: Sequence[Rules] = ()) -> None:
        self.log = log
        self.random = random
        self.policies = (log.rules, *policies)
        self.pauses = 3
        """How many more an executor sees before it releases anything."""
        self.under_way: list[f.Fact] = [
            f.RecommendationProposed(recommendation=log.proposal),
        ]

    def disturb(self) -> None:
        """One thing happens that may: a delivery, a timer, a wish, a change of the world."""
        happenings = (self._deliver, self._deliver, self._deliver, self._fire, self._meddle)
        self.random.choice(happenings)()

    def settle(self, steps: int = 400) -> None:
        """From here on everybody answers, nobody meddles, and clocks run; it must end."""
        self.log.world = World()
        for _ in range(steps):
            if self.log.saga.state.is_terminal and not self.under_way:
                return
            if self.log.saga.paused_by not in (None, FREEZE):
                self.log.control(ControlVerb.RESUME)
                self._answer()
            elif self.under_way:
                self._hear(self.under_way.pop(0))
            else:
                self._fire_next()
        raise AssertionError(f"no end after {steps} steps: {self.log.saga.state}")

    def _deliver(self) -> None:
        if self.under_way:
            place = self.random.randrange(len(self.under_way))
            twice = self.random.random() < 0.2
            fact = self.under_way[place] if twice else self.under_way.pop(place)
            self._hear(fact)

    def _hear(self, fact: f.Fact) -> None:
        self.log.hear(fact)
        self._answer()
        version = self.log.saga.version
        self.log.hear(fact)
        assert self.log.saga.version == version, f"{fact.kind} counted twice"
        assert is_awaited(self.log.saga), "nobody is asked and no timer is set"

    def _fire(self) -> None:
        timers = sorted(self.log.saga.timers)
        if timers and self.random.random() < 0.5:
            self._fire_next()
        elif timers:
            name = self.random.choice(timers)
            self.log.fire(name, key=self.random.choice(["0", "1", "2", "0-1", "apply-0-1"]))
            self._answer()

    def _fire_next(self) -> None:
        timers = self.log.saga.timers
        due = min(timers, key=lambda name: (timers[name].fire_at, name))
        self.log.fire(due)
        self._answer()
        assert is_awaited(self.log.saga), "nobody is asked and no timer is set"

    def _meddle(self) -> None:
        chance = self.random.random()
        if chance < 0.4:
            self.log.world = self.random.choice(WORLDS)
        elif chance < 0.5:
            self.log.rules = self.random.choice(self.policies)
        elif chance < 0.6:
            self.log.regress()
            self._answer()
        elif self.log.saga.recommendation is not None:
            verbs = (ControlVerb.PAUSE, ControlVerb.RESUME, ControlVerb.PROMOTE) * 4
            self.log.control(self.random.choice((*verbs, ControlVerb.ABORT, ControlVerb.ROLLBACK)))
            self._answer()

    def _answer(self) -> None:
        for fact in self.log.last:
            self.under_way += self._answers(fact)

    def _answers(self, fact: f.Fact) -> list[f.Fact]:
        match fact:
            case c.VoteRequested():
                return [
                    vote(fact.change, agent, self.random.choice(MOSTLY_YES), fact.round)
                    for agent in fact.agents
                    if self.random.random() < 0.95
                ]
            case f.ApprovalRequested() if self.random.random() < 0.8:
                words = [self._word(name) for name in ("ana", "bob")[: fact.needed]]
                return [*self._not_yet(), *words]
            case c.ExecutionRequested():
                return self._carry_out(fact)
            case c.GateRequested():
                return [self._judge(fact, agent) for agent in fact.assessors if self._is_awake()]
            case c.RollbackRequested() if self.random.random() < 0.9:
                proved = self.random.random() < 0.8
                return [
                    f.RollbackCompleted(
                        change=fact.change, fence=fact.fence, proved=proved, detail="read back"
                    )
                ]
            case _:
                return []

    def _not_yet(self) -> list[f.Fact]:
        """Some put it off first, for a nap or for hours, and some of them end that early."""
        proposal, at = self.log.proposal, self.log.at
        words: list[f.Fact] = [
            put_off(proposal, self.random.choice((60, 14_400)), at=at),
            woken(proposal, at=later(at, 1)),
        ]
        return words[: self.random.choice((0, 0, 0, 1, 1, 2))]

    def _word(self, name: str) -> f.Fact:
        granted = self.random.random() < 0.8
        return decision(self.log.proposal, granted=granted, by=person(name), at=self.log.at)

    def _is_awake(self) -> bool:
        return self.random.random() < 0.9

    def _judge(self, asked: c.GateRequested, agent: AgentName) -> f.GateAnswered:
        verdict = self.random.choice(MOSTLY_PASS)
        answer = gate_answer(
            asked.change, agent, stage=asked.stage, look=asked.look, verdict=verdict
        )
        return f.GateAnswered(answer=answer)

    def _carry_out(self, asked: c.ExecutionRequested) -> list[f.Fact]:
        named = {"change": asked.change, "step": asked.step, "fence": asked.fence}
        begun = f.ExecutionStarted(**named, executor=asked.executor)
        done = f.ExecutionStaged(change=asked.change, result=step_result(asked.step, asked.fence))
        failed = f.ExecutionFailed(**named, reason="it broke")
        chance = self.random.random()
        if asked.step.kind is StepKind.FINISH and self.pauses and chance < 0.2:
            self.pauses -= 1
            return [begun, stopped_short(asked)]
        if chance < 0.9:
            return [begun, done]
        return [begun, failed] if chance < 0.97 else [begun]


def stopped_short(asked: c.ExecutionRequested) -> f.ExecutionStaged:
    """What an executor says of a finish that finds the change paused, and releases nothing."""
    stage = asked.step.model_copy(update={"kind": StepKind.APPLY, "attempt": 1})
    return f.ExecutionStaged(change=asked.change, result=step_result(stage, asked.fence))


def is_awaited(saga: Saga) -> bool:
    """Whether a change that has not ended has a timer that will move it, or waits for a person."""
    held = saga.paused_by is not None and (saga.state is ChangeState.APPROVED or saga.passed)
    if saga.state.is_terminal or saga.recommendation is None or held:
        return True
    return bool(_moved_by(saga) & set(saga.timers))


def _moved_by(saga: Saga) -> set[TimerName]:
    by_phase = {
        Phase.APPLYING: {TimerName.APPLY_DEADLINE},
        Phase.FINISHING: {TimerName.APPLY_DEADLINE},
        Phase.SOAKING: {TimerName.HOLD_LIMIT},
        Phase.GATING: {TimerName.LOOK_DEADLINE},
    }
    if saga.phase is not None:
        return by_phase[saga.phase]
    return {
        ChangeState.DEFERRED: {TimerName.TURN},
        ChangeState.VOTING: {TimerName.VOTE_DEADLINE, TimerName.REVOTE},
        ChangeState.AWAITING_APPROVAL: {TimerName.APPROVAL_EXPIRY},
        ChangeState.ROLLING_BACK: {TimerName.ROLLBACK_DEADLINE},
    }.get(saga.state, set())


def broken_promises(log: Log) -> list[str]:
    """What the log of an ended change shows to have gone wrong; empty when all was kept."""
    facts = [fact for fact, _ in log.entries]
    broken = [_execution_without_leave(log, n) for n in range(len(facts))]
    ends = [n for n, fact in enumerate(facts) if fact.kind in f.TERMINAL_FACTS]
    steps = [fact.step for fact in facts if isinstance(fact, c.ExecutionRequested)]
    undos = [n for n, fact in enumerate(facts) if isinstance(fact, c.RollbackRequested)]
    fences = [
        (n + 1, fact.fence)
        for n, fact in enumerate(facts)
        if isinstance(fact, c.ExecutionRequested | c.RollbackRequested)
    ]
    shares = [step.share for step in steps if step.kind == "apply"]
    finishes = [step for step in steps if step.kind == "finish"]
    completed = log.saga.state is ChangeState.COMPLETED
    after_undo = facts[undos[0] + 1 :] if undos else []
    heard = (f.VoteCast, f.OutcomeRecorded)
    asleep = [n for n, fact in enumerate(facts) if type(fact) in _BEGINS and _sleeps(log, n)]
    checks = {
        "it did not end exactly once": len(ends) == 1,
        "something was said after the end": all(isinstance(x, heard) for x in facts[ends[0] + 1 :]),
        "a step was requested twice": len({(s.kind, s.stage, s.attempt) for s in steps})
        == len(steps),
        "shares do not rise": shares == sorted(set(shares)),
        "the finish is not the last step": finishes == steps[len(steps) - len(finishes) :],
        "touched and neither completed nor undone": bool(undos) == (bool(steps) and not completed),
        "undone twice": len(undos) <= 1,
        "approved, or asked about anew, while it slept": not asleep,
        "a step after the undo": not any(isinstance(x, c.ExecutionRequested) for x in after_undo),
        "a fence is not its place in the log": all(place == fence for place, fence in fences),
    }
    return [found for found in broken if found] + [
        what for what, kept in checks.items() if not kept
    ]


_BEGINS = {f.ApprovalRequested, f.ChangeApproved, c.ExecutionRequested}


def _sleeps(log: Log, place: int) -> bool:
    """Whether the latest word of a person before this place of the log puts the change off."""
    words = [
        (fact.at, fact.until if isinstance(fact, f.RecommendationSnoozed) else fact.at)
        for fact, _ in log.entries[:place]
        if isinstance(fact, f.RecommendationSnoozed | f.RecommendationWoken)
    ]
    return bool(words) and log.entries[place][1] < max(words)[1]


def _execution_without_leave(log: Log, place: int) -> str | None:
    """Why the request at this place of the log should not have been made, if it is one."""
    fact = log.entries[place][0]
    if not isinstance(fact, c.ExecutionRequested):
        return None
    before = [earlier for earlier, _ in log.entries[:place]]
    number = max(asked.round for asked in before if isinstance(asked, c.VoteRequested))
    cast = [v.vote for v in before if isinstance(v, f.VoteCast) and v.vote.round == number]
    agreed = {v.agent for v in cast} == set(VOTERS)
    if not agreed or any(v.verdict is not Verdict.APPROVE for v in cast):
        return f"step {fact.step} without three approvals in round {number}"
    version = log.proposal.version_hash
    grants = [g.approval for g in before if isinstance(g, f.ApprovalGranted)]
    if not any(grant.version_hash == version for grant in grants):
        return f"step {fact.step} without a grant of version {version}"
    return None
