"""What becomes of a change that wants what another wants: it waits, yields, or is not needed."""

from __future__ import annotations

from optiinfra.coordinator.saga.decide import advance
from optiinfra.coordinator.saga.ruling import Loss, Ruling
from optiinfra.coordinator.saga.state import Context, World
from optiinfra.events import facts as f
from optiinfra.events.facts import TimerName
from optiinfra.schemas.change import ChangeState
from tests.saga_log import ASK, Log

OTHER = "f" * 32
LOSS = Loss(change=OTHER, rule="interest", reason="the other goes first")


def resolved(log: Log, verdict: str) -> f.ConflictResolved:
    return f.ConflictResolved(
        change=log.change, against=OTHER, verdict=verdict, claim="chat", rule="interest",
        reason="the other goes first",
    )  # fmt: skip


def test_who_waits_says_once_behind_whom_and_by_which_rule() -> None:
    log = Log()
    log.world = World(ruling=Ruling(behind=LOSS))
    log.open().fire(TimerName.TURN)
    [record] = log.said(f.ConflictResolved)
    assert (record.verdict, record.against, record.rule) == ("waits", OTHER, "interest")
    assert record.rules_version == log.rules.version
    [deferred] = log.said(f.ChangeDeferred)
    assert deferred.behind == OTHER
    log.check()


def test_who_says_what_another_says_is_merged_into_it() -> None:
    log = Log()
    log.world = World(ruling=Ruling(merged=LOSS))
    log.open()
    assert log.saga.state is ChangeState.SUPERSEDED
    [ended] = log.said(f.RecommendationSuperseded)
    assert (ended.by, ended.reason) == (OTHER, "merged: the other goes first")
    assert [one.verdict for one in log.said(f.ConflictResolved)] == ["merged"]
    log.check()


def test_who_gives_way_votes_afresh_when_its_turn_comes_and_its_approval_stays_good() -> None:
    log = Log(rules=ASK).open().vote()
    log.hear(resolved(log, "yields"))
    assert log.kinds() == ["change.deferred"]
    assert (log.saga.state, log.saga.preempted) == (ChangeState.DEFERRED, 1)
    log.decide().fire(TimerName.TURN)
    assert (log.saga.state, log.saga.round) == (ChangeState.VOTING, 2)
    assert log.vote().saga.state is ChangeState.EXECUTING
    log.check()


def test_old_deadlines_of_who_gave_way_do_nothing() -> None:
    log = Log().open()
    log.hear(resolved(log, "yields"))
    for name in (TimerName.VOTE_REMINDER, TimerName.VOTE_DEADLINE):
        assert log.fire(name).last == ()
    assert log.saga.state is ChangeState.DEFERRED
    log.check()


def test_who_is_replaced_ends_with_the_reason() -> None:
    for log in (Log().open(), Log(rules=ASK).open().vote()):
        log.hear(resolved(log, "superseded"))
        assert log.saga.state is ChangeState.SUPERSEDED
        assert log.saga.end_reason == "the other goes first"
        log.check()


def test_who_has_begun_or_ended_or_waits_already_gives_nothing_up() -> None:
    begun, ended = Log().to_applying(), Log().open().decide(granted=False)
    for log in (begun, ended):
        before = log.saga
        log.hear(resolved(log, "yields"), resolved(log, "superseded"))
        assert log.saga == before
    waiting = Log()
    waiting.world = World(executing=OTHER)
    before = waiting.open().saga
    assert waiting.hear(resolved(waiting, "yields")).saga == before


def test_records_that_come_back_change_nothing() -> None:
    log = Log().open()
    for verdict in ("waits", "merged"):
        assert log.hear(resolved(log, verdict)).last == ()


def test_orders_name_who_gives_way_and_who_is_replaced() -> None:
    log = Log()
    world = World(ruling=Ruling(yields=(LOSS,), supersedes=(LOSS,)))
    step = advance(
        log.saga,
        f.RecommendationProposed(recommendation=log.proposal),
        Context(at=log.at, rules=log.rules, world=world),
    )
    assert [(one.change, one.against, one.verdict) for one in step.orders] == [
        (OTHER, log.change, "superseded"),
        (OTHER, log.change, "yields"),
    ]
    assert step.saga.state is ChangeState.VOTING


def test_what_is_complete_replaces_those_that_wanted_its_replicas() -> None:
    log = Log().to_finishing()
    log.world = World(ruling=Ruling(supersedes=(LOSS,)))
    assert log.saga.step is not None
    from tests.factories import step_result

    done = f.ExecutionStaged(change=log.change, result=step_result(log.saga.step, log.saga.fence))
    step = advance(log.saga, done, Context(at=log.at, rules=log.rules, world=log.world))
    assert step.saga.state is ChangeState.COMPLETED
    assert [(one.change, one.verdict) for one in step.orders] == [(OTHER, "superseded")]
