"""What `doctor --deep` makes of what broker and database say of themselves; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from optiinfra.events.bus_roles import BusRole
from optiinfra.events.condition import ConsumerCondition, StreamCondition
from optiinfra.events.permissions import DURABLES
from optiinfra.events.subjects import Stream
from optiinfra.runtime.findings import Finding, Level, public
from optiinfra.runtime.stuck import spoken
from optiinfra.schemas.vote import VOTERS, AgentName
from optiinfra.storage.letters import Letter, by_cause
from optiinfra.storage.postgres.condition import Backlog, KnownAgent, StopSwitch

FULL_WARN, FULL_FAIL = 0.8, 0.95
MIRROR_LAG = 1_000
BACKLOG_WARN_S, BACKLOG_FAIL_S = 10.0, 60.0
SILENT_S = 45.0
"""After this a coordinator counts an instance as lost."""
SKEW_WARN_S = 2.0
_MIB = 1 << 20
_COORDINATOR = "see that a coordinator runs: optiinfra coordinator"
_ROLES = {(stream, name): role for role, owned in DURABLES.items() for stream, name in owned}


def on_stream(condition: StreamCondition) -> Finding:
    """How full a stream is; one that lets the oldest go may be full."""
    what, kept = f"stream {condition.stream}", condition.held / _MIB
    if condition.mirror_lag > MIRROR_LAG:
        said = f"{condition.mirror_lag} messages behind {Stream.CHANGES}"
        todo = "optiinfra topology diff; replays and audits read CHANGES until it has caught up"
        return Finding(Level.WARN, what, said, todo, "what is read from it is not the newest")
    if condition.room <= 0:
        return Finding(Level.OK, what, f"{kept:.1f} MiB, without a limit")
    share = condition.held / condition.room
    said = f"{kept:.1f} of {condition.room / _MIB:.1f} MiB"
    if not condition.refuses or share < FULL_WARN:
        return Finding(Level.OK, what, said)
    level = Level.FAIL if share >= FULL_FAIL else Level.WARN
    todo = "raise its limit (max_bytes) at the broker, or keep events for a shorter time"
    return Finding(level, what, said, todo, "when it is full it takes nothing new: changes stop")


def on_consumer(before: ConsumerCondition, now: ConsumerCondition, between_s: float) -> Finding:
    """Where a consumer stands, from two looks at it."""
    role = _ROLES.get((now.stream, now.name))
    what = f"consumer {now.name}"
    said = f"{now.waiting} waiting, {now.in_hand} in hand, {now.redelivered} given out again"
    if not (now.listeners or before.listeners or now.in_hand or before.in_hand):
        level = Level.FAIL if role else Level.WARN
        return Finding(level, what, f"nobody listens; {said}", start(role), _WAITS_FOR_NOBODY)
    moved = now.delivered != before.delivered or now.acked_to != before.acked_to
    if (now.waiting or now.redelivered) and not moved:
        said = f"stands still for {between_s:.0f} s; {said}"
        return Finding(Level.WARN, what, said, _look_at(role), _WAITS_FOR_NOBODY)
    falls_behind = now.waiting > max(before.waiting, 1_000)
    if falls_behind:
        said = f"falls behind: {said}"
        return Finding(Level.WARN, what, said, "start another instance of its role", _LATE)
    return Finding(Level.OK, what, said)


def missing_durables(found: Sequence[ConsumerCondition]) -> list[Finding]:
    """The consumers that roles make at their start and that are not there."""
    there = {(one.stream, one.name) for one in found}
    return [
        Finding(Level.FAIL, f"consumer {name}", f"{stream} has none", start(role), _NEVER_RAN)
        for (stream, name), role in _ROLES.items()
        if (stream, name) not in there
    ]


def start(role: BusRole | None) -> str:
    """The command that starts a role."""
    if role is None:
        return "start its program, or delete the consumer if nobody wants it any more"
    return "start it: optiinfra " + role.value.replace("agent-", "agent ")


def on_given_up(counts: Mapping[str, int]) -> list[Finding]:
    """Messages that the broker has stopped delivering."""
    return [
        Finding(
            Level.WARN,
            f"consumer {name}",
            f"the broker gave {count} messages up after too many deliveries",
            f"see what ends the process each time: the logs of {name}",
            "it hears of them no more, and no letter tells of them",
        )
        for name, count in counts.items()
    ]


def on_letters(letters: Sequence[Letter]) -> list[Finding]:
    """Dead letters by consumer and cause, with the newest as an example."""
    if not letters:
        return [Finding(Level.OK, "dead letters", "none that nobody has dealt with")]
    return [
        Finding(
            Level.WARN,
            f"dead letters of {consumer}",
            f"{len(group)} for {cause}; number {group[-1].number}: {_example(group[-1])}",
            f"optiinfra dlq show {group[-1].number}, then optiinfra dlq retry --all"
            f" --consumer {consumer} --cause {cause}, or optiinfra dlq drop",
            "what these messages asked for has not happened",
        )
        for (consumer, cause), group in sorted(by_cause(letters).items())
    ]


def on_outbox(backlog: Backlog) -> Finding:
    """What was decided and not said yet."""
    said = f"{backlog.count} unsent, the oldest for {spoken(backlog.oldest_s)}"
    if backlog.count == 0 or backlog.oldest_s < BACKLOG_WARN_S:
        return Finding(Level.OK, "outbox", said if backlog.count else "everything is said")
    level = Level.FAIL if backlog.oldest_s >= BACKLOG_FAIL_S else Level.WARN
    return Finding(level, "outbox", said, _COORDINATOR, "nobody acts on a decision before")


def on_timers(overdue: Backlog) -> Finding:
    if overdue.count == 0:
        return Finding(Level.OK, "timers", "none is overdue")
    said = f"{overdue.count} are overdue, the oldest for {spoken(overdue.oldest_s)}"
    return Finding(Level.FAIL, "timers", said, _COORDINATOR, "deadlines pass without effect")


def on_heads(off: Sequence[str]) -> Finding:
    if not off:
        return Finding(Level.OK, "event log", "the changes that moved last stand at its end")
    said = f"{len(off)} changes do not stand where their logs end: {', '.join(off[:3])}"
    todo = "optiinfra audit verify names the first broken event"
    return Finding(Level.FAIL, "event log", said, todo, "a coordinator refuses to start")


def on_projections(missing: Sequence[str]) -> Finding:
    if not missing:
        return Finding(Level.OK, "projections", "hold the newest events of the log")
    said = f"{len(missing)} events of the log are not in them, the first is {missing[-1]}"
    todo = "optiinfra rebuild makes them anew from the log"
    return Finding(Level.FAIL, "projections", said, todo, "the portal shows less than is true")


def on_switches(switches: Sequence[StopSwitch]) -> list[Finding]:
    return [
        Finding(
            Level.WARN,
            f"stop switch of {one.tenant}",
            f"on since {one.at:%Y-%m-%d %H:%M} UTC, by {one.by}: {one.reason}",
            "optiinfra switch off",
            "no stage begins while it is on; rollbacks still run",
        )
        for one in switches
    ]


def on_agents(agents: Sequence[KnownAgent]) -> list[Finding]:
    """Each agent of each tenant; one living instance is enough."""
    tenants = sorted({one.tenant for one in agents})
    if not tenants:
        return [_absent("agents", "no agent has ever registered", None)]
    return [
        _on_agent(tenant, name, [a for a in agents if (a.tenant, a.agent) == (tenant, name)])
        for tenant in tenants
        for name in AgentName
    ]


def on_clocks(here: datetime, others: Mapping[str, datetime | None]) -> list[Finding]:
    """How far the clocks of the servers are from the one of this machine."""
    return [_on_clock(name, (at - here).total_seconds()) for name, at in others.items() if at]


def _on_agent(tenant: str, name: AgentName, instances: Sequence[KnownAgent]) -> Finding:
    what = f"agent {name} of {tenant}"
    living = [one for one in instances if one.status == "alive" and one.silent_s <= SILENT_S]
    if living:
        newest = min(one.silent_s for one in living)
        said = f"{len(living)} alive, last heard of {spoken(newest)} ago"
        return Finding(Level.OK, what, said)
    if not instances:
        return _absent(what, "it has never registered", name)
    silent = min(one.silent_s for one in instances)
    return _absent(what, f"silent for {spoken(silent)}: {instances[-1].instance}", name)


def _absent(what: str, said: str, name: AgentName | None) -> Finding:
    why = "it proposes and executes: nothing begins"
    if name is None or name in VOTERS:
        why = "a vote that is missing is a veto: no change passes without it"
    todo = f"optiinfra agent {name}" if name else "optiinfra agent NAME, for each of the four"
    return Finding(Level.FAIL, what, said, f"start it: {todo}", why)


def _on_clock(name: str, ahead_s: float) -> Finding:
    what = f"clock of {name}"
    if abs(ahead_s) <= SKEW_WARN_S:
        return Finding(Level.OK, what, f"within {SKEW_WARN_S:.0f} s of this machine's")
    direction = "ahead of" if ahead_s > 0 else "behind"
    return Finding(
        Level.WARN,
        what,
        f"{spoken(abs(ahead_s))} {direction} this machine's",
        "let all machines keep time with NTP",
        "deadlines follow the database alone, but measurements carry the time of who measured",
    )


def _example(letter: Letter) -> str:
    return public(" ".join(letter.fact.error.split())[:120])


def _look_at(role: BusRole | None) -> str:
    return f"see what {role or 'its program'} logs; a second instance may take over"


_WAITS_FOR_NOBODY = "what it is to hear lies at the broker until somebody takes it"
_NEVER_RAN = "its role has never run on this broker, or somebody has deleted it"
_LATE = "everything that depends on it comes late"
