"""The subject table: each subject with its payload, its stream and its publisher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.events.bus_roles import AGENTS, ASSESSORS, EXECUTORS, VOTERS, BusRole
from optiinfra.schemas.base import Value
from optiinfra.schemas.errors import Invariant
from optiinfra.schemas.kept import kept


class Stream(StrEnum):
    METRICS = "METRICS"
    SAMPLES = "SAMPLES"
    CHANGES = "CHANGES"
    TIMERS = "TIMERS"
    DLQ = "DLQ"
    ADVISORY = "ADVISORY"
    CHANGES_REPLAY = "CHANGES_REPLAY"


@dataclass(frozen=True)
class Subject:
    """One row: `pattern` is `<noun>.<fact>.<tenant>.<id>`; no stream means "not kept".

    A last token `agent` or `consumer` is the name of who says it. Each may say it in a name of its
    own alone, and a body that names another is refused: it proves who spoke. The coordinator, whom
    all believe, says of an agent that it is heard again.
    """

    prefix: str
    payload: type[Value]
    stream: Stream | None
    publishers: tuple[BusRole, ...]
    """Who may say it: from this follow the credentials of each role. None: the broker alone."""
    key: Callable[[f.Fact], tuple[str, str | None]]
    """Gives (`tokens`, tenant or None when the envelope must say it)."""
    about: str
    tokens: tuple[str, ...] = ("id",)
    """What follows the tenant."""
    version: int = 1

    @property
    def pattern(self) -> str:
        return self.pattern_of("*")

    def pattern_of(self, last: str) -> str:
        """The subjects of this row that end with `last`."""
        return ".".join((self.prefix, "*", *("*" for _ in self.tokens[1:]), last))

    @kept
    def type(self) -> str:
        """The CloudEvents type."""
        return f"optiinfra.{kind_of(self.payload)}.v{self.version}"


def kind_of(payload: type[Value]) -> str:
    """The tag of a payload class."""
    return str(payload.model_fields["kind"].default)


def _change(fact: f.Fact) -> tuple[str, str | None]:
    change = f.change_of(fact)
    if change is None:
        raise Invariant(f"{type(fact).__name__} names no change")
    return change, None


def _vote(fact: f.Fact) -> tuple[str, str | None]:
    if not isinstance(fact, f.VoteCast):
        raise Invariant(f"{type(fact).__name__} is no vote")
    return f"{fact.vote.change}.{fact.vote.agent}", None


def _answer(fact: f.Fact) -> tuple[str, str | None]:
    if not isinstance(fact, f.GateAnswered):
        raise Invariant(f"{type(fact).__name__} is no answer")
    return f"{fact.answer.change}.{fact.answer.assessor}", None


def _scope(fact: f.Fact) -> tuple[str, str | None]:
    return getattr(fact, "deployment"), getattr(fact, "tenant")  # noqa: B009


def _agent(fact: f.Fact) -> tuple[str, str | None]:
    return getattr(fact, "agent"), getattr(fact, "tenant")  # noqa: B009


def _sample(fact: f.Fact) -> tuple[str, str | None]:
    if not isinstance(fact, f.AnswerSampled):
        raise Invariant(f"{type(fact).__name__} is no sample")
    return fact.sample.deployment, fact.sample.tenant


def _proposal(fact: f.Fact) -> tuple[str, str | None]:
    if not isinstance(fact, f.RecommendationProposed):
        raise Invariant(f"{type(fact).__name__} is no proposal")
    return fact.recommendation.id, fact.recommendation.tenant


def _tenant_wide(fact: f.Fact) -> tuple[str, str | None]:
    return "all", getattr(fact, "tenant")  # noqa: B009


def _consumer(fact: f.Fact) -> tuple[str, str | None]:
    return getattr(fact, "consumer"), None  # noqa: B009


_CHANGES = Stream.CHANGES
_BY_AGENT = ("id", "agent")
_COORD = (BusRole.COORDINATOR,)
_PERSON = (BusRole.PORTAL_API, BusRole.COORDINATOR)
"""The portal says it; the coordinator's relay does when the bus was away, and for the policy."""
_QUALITY = (BusRole.AGENT_APPLICATION,)
_COST = (BusRole.AGENT_COST,)
_BURIES = (*_COORD, *AGENTS, BusRole.COLLECTOR, BusRole.NOTIFIER, BusRole.OPERATOR)
_MEASURES = {
    "performance": (BusRole.AGENT_PERFORMANCE,),
    "resource": (BusRole.AGENT_RESOURCE,),
    "cost": _COST,
    "quality": _QUALITY,
}

SUBJECTS: tuple[Subject, ...] = (
    *(
        Subject(
            f"metrics.{family}", f.MetricsMeasured, Stream.METRICS, who, _scope,
            f"{family} readings of one collector in one interval",
        )
        for family, who in _MEASURES.items()
    ),
    Subject("sample.answer", f.AnswerSampled, Stream.SAMPLES, (BusRole.GATEWAY,), _sample, "an answer tapped for scoring"),
    Subject("telemetry.gap", f.TelemetryGap, _CHANGES, (BusRole.AGENT_PERFORMANCE,), _scope, "a promised metric is missing: hold"),
    Subject("recommendation.proposed", f.RecommendationProposed, _CHANGES, (BusRole.AGENT_COST, BusRole.AGENT_PERFORMANCE), _proposal, "an agent proposes a change"),
    Subject("recommendation.superseded", f.RecommendationSuperseded, _CHANGES, _COORD, _change, "a newer proposal took its place"),
    Subject("recommendation.expired", f.RecommendationExpired, _CHANGES, _COORD, _change, "nobody approved it in time"),
    Subject("recommendation.snoozed", f.RecommendationSnoozed, _CHANGES, _PERSON, _change, "a person put the decision off"),
    Subject("recommendation.woken", f.RecommendationWoken, _CHANGES, _PERSON, _change, "a person ends its sleep early"),
    Subject("vote.requested", c.VoteRequested, _CHANGES, _COORD, _change, "agents are asked to vote"),
    Subject("vote.cast", f.VoteCast, _CHANGES, VOTERS, _vote, "one agent's vote in one round", _BY_AGENT),
    Subject("approval.requested", f.ApprovalRequested, _CHANGES, _COORD, _change, "a person is asked"),
    Subject("approval.granted", f.ApprovalGranted, _CHANGES, _PERSON, _change, "a person or a policy said yes"),
    Subject("approval.denied", f.ApprovalDenied, _CHANGES, _PERSON, _change, "a person said no"),
    Subject("change.opened", f.ChangeOpened, _CHANGES, _COORD, _change, "the saga of a recommendation begins"),
    Subject("change.deferred", f.ChangeDeferred, _CHANGES, _COORD, _change, "it waits for its turn"),
    Subject("conflict.resolved", f.ConflictResolved, _CHANGES, _COORD, _change, "two changes wanted the same: who lost, and why"),
    Subject("change.vetoed", f.ChangeVetoed, _CHANGES, _COORD, _change, "terminal: an agent said no, or did not answer"),
    Subject("change.approved", f.ChangeApproved, _CHANGES, _COORD, _change, "execution begins"),
    Subject("change.rejected", f.ChangeRejected, _CHANGES, _COORD, _change, "terminal: a person said no"),
    Subject("change.paused", f.ChangePaused, _CHANGES, _COORD, _change, "no further stage until resumed"),
    Subject("change.resumed", f.ChangeResumed, _CHANGES, _COORD, _change, "goes on"),
    Subject("change.completed", f.ChangeCompleted, _CHANGES, _COORD, _change, "terminal: in force wholly"),
    Subject("change.rolled_back", f.ChangeRolledBack, _CHANGES, _COORD, _change, "terminal: undone, and proved so"),
    Subject("change.failed", f.ChangeFailed, _CHANGES, _COORD, _change, "terminal: a person is needed"),
    Subject("change.cancelled", f.ChangeCancelled, _CHANGES, _COORD, _change, "terminal: an operator stopped it before its first step"),
    Subject("execution.requested", c.ExecutionRequested, _CHANGES, _COORD, _change, "an executor is asked to bring a step about"),
    Subject("execution.started", f.ExecutionStarted, _CHANGES, EXECUTORS, _change, "the executor's intent is written down"),
    Subject("execution.staged", f.ExecutionStaged, _CHANGES, EXECUTORS, _change, "a step is in force, read back"),
    Subject("execution.failed", f.ExecutionFailed, _CHANGES, EXECUTORS, _change, "a step could not be brought about"),
    Subject("rollback.requested", c.RollbackRequested, _CHANGES, _COORD, _change, "an executor is asked to undo"),
    Subject("rollback.completed", f.RollbackCompleted, _CHANGES, EXECUTORS, _change, "the undo was read back"),
    Subject("gate.requested", c.GateRequested, _CHANGES, _COORD, _change, "assessors are asked for one look"),
    Subject("gate.answered", f.GateAnswered, _CHANGES, ASSESSORS, _answer, "one assessor's verdict on one look", _BY_AGENT),
    Subject("gate.closed", f.GateClosed, _CHANGES, _COORD, _change, "the verdict of one look"),
    Subject("quality.assessed", f.QualityAssessed, _CHANGES, _QUALITY, _scope, "the quality baseline was refreshed"),
    Subject("quality.regressed", f.QualityRegressed, _CHANGES, _QUALITY, _change, "alarm: undo at once"),
    Subject("outcome.recorded", f.OutcomeRecorded, _CHANGES, _COST, _change, "predicted against realised"),
    Subject("agent.registered", f.AgentRegistered, _CHANGES, (*AGENTS, BusRole.COORDINATOR), _agent, "an agent instance joined, or is heard again", ("agent",)),
    Subject("agent.lost", f.AgentLost, _CHANGES, _COORD, _agent, "no heartbeat for 45 s"),
    Subject("agent.heartbeat", f.AgentHeartbeat, None, AGENTS, _agent, "alive; not kept", ("agent",)),
    Subject("control.requested", c.ControlRequested, _CHANGES, _PERSON, _change, "an operator's wish for one change"),
    Subject("switch.turned", f.SwitchTurned, _CHANGES, _PERSON, _tenant_wide, "the stop switch was turned"),
    Subject("policy.changed", f.PolicyChanged, _CHANGES, _COORD, _tenant_wide, "another policy is in force"),
    Subject("timer.set", f.TimerSet, Stream.TIMERS, _COORD, _change, "a message schedule"),
    Subject("timer.fired", f.TimerFired, Stream.TIMERS, (), _change, "a schedule came due"),
    Subject("dlq", f.DeadLettered, Stream.DLQ, _BURIES, _consumer, "a message that could not be handled", ("consumer",)),
)  # fmt: skip

BY_PREFIX = {row.prefix: row for row in SUBJECTS}
_BY_KIND = {kind_of(row.payload): row for row in SUBJECTS}


def row_of(fact: f.Fact) -> Subject:
    """The table's row for a fact."""
    if isinstance(fact, f.MetricsMeasured):
        return BY_PREFIX[f"metrics.{fact.family}"]
    return _BY_KIND[fact.kind]


def subject_of(fact: f.Fact, tenant: str) -> str:
    """The subject on which `fact` is said for `tenant`.

    Raises `Invariant` when the fact belongs to another tenant.
    """
    row = row_of(fact)
    key, owner = row.key(fact)
    if owner is not None and owner != tenant:
        raise Invariant(f"a fact of tenant {owner!r} cannot be said for tenant {tenant!r}")
    return f"{row.prefix}.{tenant}.{key}"


def tenant_of(subject: str) -> str:
    """The tenant token of a subject."""
    return subject.split(".")[2]


def subjects_in(stream: Stream) -> tuple[str, ...]:
    """The subject patterns that a stream holds, in the table's order."""
    return tuple(row.pattern for row in SUBJECTS if row.stream is stream)
