"""Votes and gates' answers as the policy's floors leave them: worse than said, never better."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from optiinfra.schemas.floors import Breach, Floor
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.rollout import GateAnswer, GateVerdict
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.vote import Verdict, Vote

POLICY_FLOOR = "policy"
"""In whose name a vote is turned down that breaks a floor."""
BADNESS = {GateVerdict.PASS: 0, GateVerdict.HOLD: 1, GateVerdict.ROLL_BACK: 2}


@dataclass(frozen=True, slots=True)
class Counted:
    """What a vote counts as, and in whose name; the reasons say whose vote it was."""

    by: str
    verdict: Verdict
    reasons: tuple[str, ...]


def counted_vote(vote: Vote, proposal: Recommendation, rules: Rules) -> Counted:
    """An approval whose own evidence breaks a floor counts as no; one without a value that a
    floor demands counts as an abstention. The rest counts as it was cast.
    """
    said = Counted(vote.agent, vote.verdict, _told(vote.agent, vote.reasons))
    if vote.verdict is not Verdict.APPROVE:
        return said
    floors = [f for f in rules.floors if f.covers(proposal) and vote.agent in f.voters()]
    broken = [why for floor in floors if (why := floor.broken(vote.evidence))]
    if broken:
        return Counted(POLICY_FLOOR, Verdict.REJECT, _told(vote.agent, broken))
    missing = [why for floor in floors if (why := floor.missing(vote.evidence))]
    if missing:
        return Counted(POLICY_FLOOR, Verdict.ABSTAIN, _told(vote.agent, missing))
    return said


def counted_answer(answer: GateAnswer, proposal: Recommendation, rules: Rules) -> GateAnswer:
    """The answer with the verdict that the floors leave it, and their numbers as its reason."""
    floors = [f for f in rules.floors if f.covers(proposal) and answer.assessor in f.assessors()]
    found = [
        (verdict, why)
        for floor in floors
        for verdict, why in _objections(floor, answer)
        if BADNESS[verdict] > BADNESS[answer.verdict]
    ]
    if not found:
        return answer
    worst = max((verdict for verdict, _ in found), key=lambda verdict: BADNESS[verdict])
    reason = "; ".join(why for verdict, why in found if verdict is worst)
    return answer.model_copy(update={"verdict": worst, "reason": reason})


def _objections(floor: Floor, answer: GateAnswer) -> list[tuple[GateVerdict, str]]:
    broken, missing = floor.broken(answer.metrics), floor.missing(answer.metrics)
    undo = floor.breach is Breach.ROLL_BACK
    return [
        *([(GateVerdict.ROLL_BACK if undo else GateVerdict.HOLD, broken)] if broken else []),
        *([(GateVerdict.HOLD, missing)] if missing else []),
    ]


def _told(agent: str, reasons: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{agent}: {reason}" for reason in reasons)
