"""One saga with its whole log, driven by hand: for stories about the pure saga."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Self, TypeVar

from optiinfra.coordinator.saga.decide import advance
from optiinfra.coordinator.saga.evolve import fold
from optiinfra.coordinator.saga.state import Context, Saga, World, later
from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.events.facts import TimerName
from optiinfra.schemas.approval import Approval
from optiinfra.schemas.approval_rules import ApprovalRule
from optiinfra.schemas.change import ControlVerb
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.rollout import GateVerdict
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.tenant import person
from optiinfra.schemas.vote import VOTERS, AgentName, Verdict
from tests.factories import AT, gate_answer, recommendation, replacing, rollout, step_result, vote

AUTO = Rules(name="v7", approvals=(ApprovalRule(name="low", max_risk="low"),))
ASK = Rules()
GATES = (AgentName.PERFORMANCE, AgentName.APPLICATION)
SOAKED = rollout(soak_s=30.0, hold_limit_s=60.0)

Said = TypeVar("Said")


class Log:
    """Takes facts into a saga and keeps all that was heard and said; `world` may be changed."""

    def __init__(self, proposal: Recommendation | None = None, rules: Rules = AUTO) -> None:
        self.proposal = proposal or recommendation(rollout=SOAKED)
        self.rules = rules
        self.world = World()
        self.at = AT
        self.saga = Saga(change=self.proposal.id)
        self.entries: list[tuple[f.Fact, datetime]] = []
        self.last: tuple[f.Fact, ...] = ()

    @property
    def change(self) -> str:
        return self.proposal.id

    def hear(self, *facts: f.Fact) -> Self:
        """Takes facts in, one by one; `last` is what was said because of the last one."""
        for fact in facts:
            context = Context(at=self.at, rules=self.rules, world=self.world)
            step = advance(self.saga, fact, context)
            if step.changed:
                self.entries += [(fact, self.at), *((said, self.at) for said in step.said)]
            else:
                assert step.saga is self.saga
                assert step.said == ()
            self.saga, self.last = step.saga, step.said
            assert self.saga.version == len(self.entries)
        return self

    def check(self) -> None:
        """Folding the log, and reading the row back, must give this very saga."""
        assert fold(Saga(change=self.change), self.entries) == self.saga
        assert Saga.model_validate_json(self.saga.model_dump_json()) == self.saga

    def said(self, kind: type[Said]) -> list[Said]:
        return [fact for fact, _ in self.entries if isinstance(fact, kind)]

    def wait(self, seconds: float) -> Self:
        self.at = later(self.at, seconds)
        return self

    def fire(self, name: TimerName, key: object | None = None) -> Self:
        """Fires a pending timer at its time, or one with a key of the test's own."""
        pending = self.saga.timers.get(name)
        if key is None:
            assert pending is not None, f"no timer {name} is set"
            key, self.at = pending.key, max(self.at, pending.fire_at)
        return self.hear(f.TimerFired(change=self.change, name=name, key=str(key)))

    def kinds(self) -> list[str]:
        """What was said because of the last fact, without timers."""
        return [fact.kind for fact in self.last if not isinstance(fact, f.TimerSet)]

    # The parts of a story, in order.

    def open(self) -> Self:
        return self.hear(f.RecommendationProposed(recommendation=self.proposal))

    def vote(self, *agents: str, verdict: Verdict = Verdict.APPROVE) -> Self:
        """Votes in the present round (the first one before the proposal) of all or some agents."""
        names = agents or sorted(VOTERS)
        return self.hear(*(vote(self.change, a, verdict, max(self.saga.round, 1)) for a in names))

    def decide(self, *, granted: bool = True, **changes: Any) -> Self:
        return self.hear(decision(self.proposal, granted=granted, at=self.at, **changes))

    def snooze(self, seconds: float, **changes: Any) -> Self:
        return self.hear(put_off(self.proposal, seconds, at=self.at, **changes))

    def wake(self, **changes: Any) -> Self:
        return self.hear(woken(self.proposal, at=self.at, **changes))

    def control(self, verb: ControlVerb, by: str = "ana", reason: str = "because") -> Self:
        wish = c.ControlRequested(change=self.change, verb=verb, by=by, reason=reason)
        return self.hear(wish)

    def staged(self) -> Self:
        """The executor has brought about what it was asked last."""
        assert self.saga.step is not None
        done = step_result(self.saga.step, self.saga.fence)
        return self.hear(f.ExecutionStaged(change=self.change, result=done))

    def answer(
        self,
        *assessors: AgentName,
        verdict: GateVerdict = GateVerdict.PASS,
        look: int | None = None,
        stage: int | None = None,
    ) -> Self:
        assert self.saga.step is not None
        number = self.saga.step.stage if stage is None else stage
        asked = look or self.saga.look
        answers = [
            gate_answer(self.change, a, stage=number, look=asked, verdict=verdict)
            for a in assessors or GATES
        ]
        return self.hear(*(f.GateAnswered(answer=answer) for answer in answers))

    def undone(self, *, proved: bool = True, fence: int | None = None) -> Self:
        done = f.RollbackCompleted(
            change=self.change,
            fence=fence or max(self.saga.fence, 1),
            proved=proved,
            detail="read back",
        )
        return self.hear(done)

    def regress(self, reason: str = "answers are worse") -> Self:
        return self.hear(f.QualityRegressed(change=self.change, reason=reason))

    # Longer ways to a place in the story.

    def to_applying(self) -> Self:
        return self.open().vote()

    def to_soaking(self) -> Self:
        return self.to_applying().staged()

    def to_gating(self) -> Self:
        return self.to_soaking().fire(TimerName.SOAK)

    def pass_stage(self) -> Self:
        """From a requested stage to its passed gate."""
        return self.staged().fire(TimerName.SOAK).answer()

    def to_finishing(self) -> Self:
        self.to_applying()
        for _ in self.proposal.rollout.stages:
            self.pass_stage()
        return self

    def to_awaiting(self) -> Self:
        self.rules = ASK
        return self.open().vote()


def decision(
    proposal: Recommendation, *, granted: bool = True, at: datetime = AT, **changes: Any
) -> f.ApprovalGranted | f.ApprovalDenied:
    """A person's word on this very version of the proposal, unless `changes` say otherwise."""
    values: dict[str, Any] = {
        "change": proposal.id,
        "granted": granted,
        "by": person("ana"),
        "version_hash": proposal.version_hash,
        "at": at,
    }
    approval = Approval(**{**values, **changes})
    return f.ApprovalGranted(approval=approval) if granted else f.ApprovalDenied(approval=approval)


def replacement(*shares: float, soak_s: float = 0.0) -> Recommendation:
    """Of a lost machine: no gate is named, and none of its stages soaks unless `soak_s` says so."""
    return replacing(recommendation(), rollout(*shares or (1.0,), soak_s=soak_s), AT)


def put_off(
    proposal: Recommendation, seconds: float, *, at: datetime = AT, **changes: Any
) -> f.RecommendationSnoozed:
    """A person's "not now" on this very version, unless `changes` say otherwise."""
    values: dict[str, Any] = {
        "change": proposal.id,
        "version_hash": proposal.version_hash,
        "by": "person:ana",
        "until": later(at, seconds),
        "at": at,
    }
    return f.RecommendationSnoozed(**{**values, **changes})


def woken(proposal: Recommendation, *, at: datetime = AT, **changes: Any) -> f.RecommendationWoken:
    """A person ends the sleep of this very version, unless `changes` say otherwise."""
    values: dict[str, Any] = {
        "change": proposal.id,
        "version_hash": proposal.version_hash,
        "by": "person:bob",
        "at": at,
    }
    return f.RecommendationWoken(**{**values, **changes})


def votes(
    change: str, verdicts: Sequence[Verdict] = (Verdict.APPROVE,) * 3, number: int = 1
) -> list[f.VoteCast]:
    """One vote of each voter."""
    pairs = zip(sorted(VOTERS), verdicts, strict=True)
    return [vote(change, agent, verdict, number) for agent, verdict in pairs]
