"""Decisions in words that do not depend on versions and times, and the questions in them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.schemas.tenant import POLICY


@dataclass(frozen=True, slots=True)
class Question:
    """Something that only the outside can answer."""

    words: str
    kinds: tuple[str, ...]
    place: tuple[object, ...] = ()

    def answers(self, fact: f.Fact) -> bool:
        return fact.kind in self.kinds and (not self.place or _place(fact) == self.place)


def question_in(fact: f.Fact) -> Question | None:
    match fact:
        case c.VoteRequested(round=number):
            return Question(
                f"votes of round {number} would be asked for", ("vote.cast",), (number,)
            )
        case f.ApprovalRequested():
            kinds = ("approval.granted", "approval.denied")
            return Question("a person would be asked", kinds, ("a person",))
        case c.ExecutionRequested(step=step):
            return Question(
                f"{step.kind} of stage {step.stage + 1} would be carried out",
                ("execution.staged", "execution.failed"),
                (step.kind, step.stage),
            )
        case c.GateRequested(stage=stage, look=look):
            return Question(
                f"look {look} at stage {stage + 1} would be judged",
                ("gate.answered",),
                (stage, look),
            )
        case c.RollbackRequested():
            return Question("it would be undone", ("rollback.completed",))
        case _:
            return None


def _place(fact: f.Fact) -> tuple[object, ...]:
    match fact:
        case f.VoteCast(vote=vote):
            return (vote.round,)
        case f.ExecutionStaged(result=result):
            return (result.step.kind, result.step.stage)
        case f.ExecutionFailed(step=step):
            return (step.kind, step.stage)
        case f.GateAnswered(answer=answer):
            return (answer.stage, answer.look)
        case f.ApprovalGranted(approval=approval) | f.ApprovalDenied(approval=approval):
            return ("a rule",) if approval.by.kind == POLICY else ("a person",)
        case _:
            return ()


def essence(said: Iterable[f.Fact]) -> list[str]:
    """Decisions in words, without what differs between any two policies: versions and times."""
    return [text for fact in said if (text := _words(fact)) is not None]


def _words(fact: f.Fact) -> str | None:
    match fact:
        case f.TimerSet() | f.ChangeOpened() | f.ConflictResolved() | c.VoteRequested():
            return None
        case f.ApprovalGranted(approval=approval):
            return f"approved by rule {approval.by.name.partition('@')[0]}"
        case f.ChangeApproved():
            return "approved"
        case f.ApprovalRequested(needed=needed):
            return "a person is asked" if needed == 1 else f"{needed} people are asked"
        case c.ExecutionRequested(step=step):
            return f"{step.kind} of stage {step.stage + 1}"
        case f.GateClosed(stage=stage, verdict=verdict):
            return f"gate of stage {stage + 1}: {verdict}"
        case _:
            return fact.kind.replace(".", " ").replace("_", " ")


def why_of(said: Iterable[f.Fact], words: str) -> str:
    """The reason that the decision itself gives."""
    for fact in said:
        if _words(fact) == words:
            reasons = getattr(fact, "reasons", ()) or (getattr(fact, "reason", ""),)
            approval = getattr(fact, "approval", None)
            return "; ".join(one for one in reasons if one) or (approval.reason if approval else "")
    return ""
