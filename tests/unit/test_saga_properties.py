"""What must hold of every story: any order, any repetition, any answers, any silence."""

from __future__ import annotations

from datetime import timedelta
from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.schemas.approval import Approval
from optiinfra.schemas.approval_rules import ApprovalRule, Decision
from optiinfra.schemas.change import TERMINAL_STATES, ChangeState, ControlVerb
from optiinfra.schemas.floors import Floor
from optiinfra.schemas.freezes import FreezeWindow
from optiinfra.schemas.recommendation import Recommendation, Risk
from optiinfra.schemas.rollout import Step
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.vote import VOTERS, Verdict, Vote
from tests.factories import AT, recommendation, rollout, vote
from tests.saga_log import ASK, AUTO, SOAKED, Log, decision, replacement, votes
from tests.saga_model import Surroundings, broken_promises

PROPOSAL = recommendation(rollout=SOAKED)
PROPOSED = f.RecommendationProposed(recommendation=PROPOSAL)
URGENT = recommendation("urgent", urgent_until=AT.replace(hour=13), rollout=rollout(0.2, 1.0))
PROPOSALS = (PROPOSAL, URGENT, replacement(0.5, 1.0), replacement(1.0))
VERDICTS = st.tuples(*[st.sampled_from([*Verdict])] * 3)
WORDS = st.sampled_from([None, True, False])

POLICIES = (
    ASK,
    ASK.model_copy(update={"name": "two", "four_eyes_from": Risk.LOW}),
    AUTO.model_copy(
        update={
            "freezes": (
                FreezeWindow(
                    name="noon",
                    starts_at=AT,
                    ends_at=AT + timedelta(minutes=30),
                    halt_stages=True,
                    also_urgent=True,
                ),
            )
        }
    ),
    AUTO.model_copy(
        update={"floors": (Floor(name="f", evidence="ttft_p95_s", max=1, required=True),)}
    ),
    Rules(approvals=(ApprovalRule(name="never", decision=Decision.DENY),)),
)
"""What an operator may put in force at any moment."""

SAID = {
    "change.opened",
    "change.deferred",
    "change.approved",
    "change.paused",
    "change.resumed",
    "vote.requested",
    "approval.requested",
    "recommendation.snoozed",
    "recommendation.woken",
    "execution.requested",
    "gate.requested",
    "gate.closed",
    "rollback.requested",
}

Essence = tuple[ChangeState, int, Step | None, tuple[Vote, ...], Approval | None]


def jumbled(facts: list[f.Fact], random: Random) -> list[f.Fact]:
    """The facts in any order, each once to three times."""
    repeated = [fact for fact in facts for _ in range(random.randint(1, 3))]
    random.shuffle(repeated)
    return repeated


def told(facts: list[f.Fact]) -> Log:
    log = Log(PROPOSAL, ASK).hear(*facts)
    log.check()
    return log


def essence(log: Log) -> Essence:
    """What was decided; names that follow from the order of arrival (versions) are left out."""
    saga = log.saga
    if saga.state.is_terminal:
        return saga.state, 0, None, (), None
    return saga.state, saga.round, saga.step, saga.votes, saga.approval


@settings(deadline=None)
@given(verdicts=VERDICTS, granted=WORDS, random=st.randoms(use_true_random=False))
def test_proposal_votes_and_a_word_decide_the_same_in_every_order(
    *, verdicts: tuple[Verdict, ...], granted: bool | None, random: Random
) -> None:
    facts: list[f.Fact] = [PROPOSED, *votes(PROPOSAL.id, verdicts)]
    if granted is not None:
        facts.append(decision(PROPOSAL, granted=granted))
    log = told(jumbled(facts, random))
    if Verdict.REJECT in verdicts and granted is False:
        # Two say no, either is the end: the one that is heard first.
        assert log.saga.state in (ChangeState.VETOED, ChangeState.REJECTED)
    else:
        assert essence(log) == essence(told(facts))
    assert len(log.said(c.ExecutionRequested)) <= 1
    assert len(log.said(f.ChangeOpened)) == 1


@settings(deadline=None)
@given(verdicts=VERDICTS, granted=WORDS)
def test_the_decision_is_the_one_that_the_rules_name(
    *, verdicts: tuple[Verdict, ...], granted: bool | None
) -> None:
    facts: list[f.Fact] = [PROPOSED, *votes(PROPOSAL.id, verdicts)]
    log = told([*facts, decision(PROPOSAL, granted=granted)] if granted is not None else facts)
    if Verdict.REJECT in verdicts:
        expected = ChangeState.VETOED
    elif granted is False:
        expected = ChangeState.REJECTED
    elif Verdict.ABSTAIN in verdicts:
        expected = ChangeState.VOTING
    else:
        expected = ChangeState.EXECUTING if granted else ChangeState.AWAITING_APPROVAL
    assert log.saga.state is expected


@settings(deadline=None)
@given(
    agent=st.sampled_from(sorted(VOTERS)),
    other=st.sampled_from([Verdict.REJECT, Verdict.ABSTAIN]),
    random=st.randoms(use_true_random=False),
)
def test_an_agent_that_contradicts_itself_vetoes_in_every_order(
    agent: str, other: Verdict, random: Random
) -> None:
    facts: list[f.Fact] = [PROPOSED, *votes(PROPOSAL.id), vote(PROPOSAL.id, agent, other)]
    assert told(jumbled(facts, random)).saga.state is ChangeState.VETOED


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    random=st.randoms(use_true_random=False),
    events=st.integers(min_value=0, max_value=80),
    automatic=st.booleans(),
    proposal=st.sampled_from(PROPOSALS),
)
def test_every_story_ends_once_and_keeps_every_promise(
    *, random: Random, events: int, automatic: bool, proposal: Recommendation
) -> None:
    log = Log(proposal, AUTO if automatic else ASK)
    around = Surroundings(log, random)
    for _ in range(events):
        around.disturb()
    around.settle()
    assert broken_promises(log) == []
    log.check()


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    random=st.randoms(use_true_random=False),
    events=st.integers(min_value=0, max_value=80),
    proposal=st.sampled_from(PROPOSALS),
)
def test_every_story_ends_once_and_keeps_every_promise_whatever_policies_come_and_go(
    *, random: Random, events: int, proposal: Recommendation
) -> None:
    log = Log(proposal, AUTO)
    around = Surroundings(log, random, POLICIES)
    for _ in range(events):
        around.disturb()
    around.settle()
    assert broken_promises(log) == []
    assert two_said_yes(log)
    log.check()


def two_said_yes(log: Log) -> bool:
    """Whether each approval that was made under a policy of four eyes names two people."""
    strict = {rules.version for rules in POLICIES if rules.needed(log.proposal) == 2}
    approved = [one for one in log.said(f.ChangeApproved) if one.rules_version in strict]
    return all(one.by.count("person:") == 2 for one in approved)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(random=st.randoms(use_true_random=False), events=st.integers(min_value=5, max_value=60))
def test_wherever_a_change_is_being_carried_out_it_can_be_undone_also_while_paused(
    random: Random, events: int
) -> None:
    log = Log(PROPOSAL)
    around = Surroundings(log, random)
    for _ in range(events):
        around.disturb()
        if log.saga.state is ChangeState.EXECUTING:
            undone = Log(PROPOSAL)
            undone.saga, undone.entries, undone.at = log.saga, list(log.entries), log.at
            undone.control(ControlVerb.PAUSE).control(ControlVerb.ROLLBACK)
            assert undone.saga.state is ChangeState.ROLLING_BACK
            assert undone.undone().saga.state is ChangeState.ROLLED_BACK
            assert broken_promises(undone) == []


def test_the_random_stories_reach_every_end_and_say_everything() -> None:
    """The properties would also hold of stories in which nothing happens: in these it does."""
    ends: set[ChangeState] = set()
    kinds: set[str] = set()
    for seed in range(150):
        log = Log(PROPOSAL, AUTO if seed % 2 else ASK)
        around = Surroundings(log, Random(seed))
        for _ in range(seed % 40):
            around.disturb()
        around.settle()
        ends.add(log.saga.state)
        kinds.update(fact.kind for fact, _ in log.entries)
    assert ends == TERMINAL_STATES - {ChangeState.SUPERSEDED}
    assert kinds >= SAID
