"""What happened, in plain words: one event, none or more lines; decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from optiinfra.demo.api import LoggedEvent
from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.schemas.ids import ChangeId
from optiinfra.schemas.money import Interval
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.rollout import GateAnswer, GateMetric, StepKind
from optiinfra.schemas.telemetry import Known, Reading, Unit
from optiinfra.schemas.vote import Verdict

SIMULATED = "simulated"
_VERDICTS = {Verdict.APPROVE: "approves", Verdict.REJECT: "rejects", Verdict.ABSTAIN: "cannot tell"}
_UNITS = {Unit.SECONDS: " s", Unit.USD_PER_HOUR: " $/h"}


@dataclass(frozen=True, slots=True)
class Spoken:
    """One line: about which deployment, and how it is meant (good, bad, ask, dim or plain)."""

    about: str
    text: str
    tone: str = "plain"


class Narrator:
    """Knows the proposals that it has heard of, so that later events can be told in words."""

    def __init__(self) -> None:
        self._proposals: dict[ChangeId, Recommendation] = {}
        self._votes: dict[tuple[ChangeId, str], Verdict] = {}
        self._stages: set[tuple[ChangeId, int]] = set()
        self._tellers: dict[type, Callable[[Any], list[tuple[str, str]]]] = {
            f.RecommendationProposed: self._proposed,
            f.VoteCast: self._voted,
            f.ChangeVetoed: lambda x: [
                ("bad", f"VETOED by {', '.join(x.by)}: nothing is done ({_because(x.reasons)})")
            ],
            f.ChangeDeferred: lambda x: [("dim", f"waits: {x.reason}")],
            f.ApprovalRequested: lambda x: [
                ("ask", f"all three agree; a person is asked (risk {x.risk}, {x.version_hash})")
            ],
            f.ApprovalGranted: lambda x: [("good", f"approved by {x.approval.by}")],
            f.ApprovalDenied: lambda x: [("bad", f"refused by {x.approval.by}")],
            f.RecommendationSnoozed: lambda x: [("dim", f"put off until {x.until} by {x.by}")],
            f.RecommendationWoken: lambda x: [("plain", f"woken by {x.by}")],
            c.ExecutionRequested: self._step,
            f.ExecutionStaged: self._staged,
            f.ExecutionFailed: lambda x: [("bad", f"the step failed: {x.reason}")],
            f.GateAnswered: self._answered,
            f.GateClosed: self._closed,
            f.QualityRegressed: lambda x: [("bad", f"ALARM: {x.reason}")],
            c.RollbackRequested: lambda x: [("bad", f"undoing at once: {x.reason}")],
            f.RollbackCompleted: lambda x: [
                ("plain", f"undone, read back{'' if x.proved else ' and NOT proved'}: {x.detail}")
            ],
            f.ChangeCompleted: lambda _: [("good", "COMPLETED: in force wholly")],
            f.ChangeRolledBack: lambda _: [("good", "ROLLED BACK: stands as it stood before")],
            f.ChangeFailed: lambda x: [("bad", f"FAILED, a person is needed: {x.reason}")],
            f.ChangeRejected: lambda x: [("bad", f"REJECTED by {x.by}: {x.reason}")],
            f.ChangePaused: lambda x: [("plain", f"paused by {x.by}: {x.reason}")],
            f.OutcomeRecorded: self._outcome,
            f.AgentLost: lambda x: [("bad", f"agent {x.agent} is silent")],
            f.TelemetryGap: lambda x: [("bad", f"telemetry gap: {x.detail}")],
        }

    def tell(self, event: LoggedEvent) -> list[Spoken]:
        """The lines for one event of the log, in their order."""
        fact = event.fact
        if isinstance(fact, f.RecommendationProposed):
            if fact.recommendation.id in self._proposals:
                return []
            self._proposals[fact.recommendation.id] = fact.recommendation
        teller = self._tellers.get(type(fact))
        about = self._about(fact)
        return [Spoken(about, text, tone) for tone, text in (teller(fact) if teller else [])]

    def _about(self, fact: f.Fact) -> str:
        proposal = self._proposals.get(f.change_of(fact) or "")
        if proposal is not None:
            return proposal.deployment
        return str(getattr(fact, "deployment", "") or "fleet")

    def _proposed(self, fact: f.RecommendationProposed) -> list[tuple[str, str]]:
        proposal = fact.recommendation
        lines = [("plain", f"the {proposal.proposer} agent proposes: {proposal.title}")]
        if proposal.saving_usd_per_month is not None:
            lines.append(("plain", f"saves {_money(proposal.saving_usd_per_month)} a month"))
        risks = [("dim", f"risk {proposal.risk}: {reason}") for reason in proposal.risk_reasons]
        return lines + risks

    def _voted(self, fact: f.VoteCast) -> list[tuple[str, str]]:
        vote = fact.vote
        reasons = "; ".join(vote.reasons)
        told = self._votes.get((vote.change, vote.agent))
        self._votes[vote.change, vote.agent] = vote.verdict
        if told is vote.verdict:
            return []
        if vote.verdict is Verdict.ABSTAIN:
            return [("dim", f"{vote.agent} cannot tell yet, and is asked again: {reasons}")]
        tone = "good" if vote.verdict is Verdict.APPROVE else "bad"
        return [(tone, f"{vote.agent} {_VERDICTS[vote.verdict]}: {reasons}")]

    def _step(self, fact: c.ExecutionRequested) -> list[tuple[str, str]]:
        step, stages = fact.step, len(fact.recommendation.rollout.stages)
        last = ("plain", "last step: drain the old replicas, then terminate them")
        if step.kind is StepKind.FINISH and (fact.change, step.stage) in self._stages:
            return [last]
        self._stages.add((fact.change, step.stage))
        where = f"stage {step.stage + 1} of {stages}"
        told = [("plain", f"{where}: {step.share:.0%} of the traffic to new replicas")]
        return [*told, last] if step.kind is StepKind.FINISH else told

    def _staged(self, fact: f.ExecutionStaged) -> list[tuple[str, str]]:
        result = fact.result
        spend = "" if result.usd_per_hour is None else f"; ${result.usd_per_hour:.2f}/h now"
        detail = f"; {result.detail}" if result.detail else ""
        return [("plain", f"in force: {', '.join(result.arms.canary) or 'none'}{spend}{detail}")]

    def _answered(self, fact: f.GateAnswered) -> list[tuple[str, str]]:
        return [("dim", f"{fact.answer.assessor}: {_numbers(fact.answer)}")]

    def _closed(self, fact: f.GateClosed) -> list[tuple[str, str]]:
        tone = {"pass": "good", "roll_back": "bad"}.get(fact.verdict, "plain")
        words = {"pass": "PASS", "hold": "hold, look again", "roll_back": "ROLL BACK"}
        told = f"gate of stage {fact.stage + 1}, look {fact.look}: {words[fact.verdict]}"
        return [(tone, f"{told}: {_because(fact.reasons)}")]

    def _outcome(self, fact: f.OutcomeRecorded) -> list[tuple[str, str]]:
        outcome = fact.outcome
        predicted = outcome.predicted_usd_per_month
        promised = f", predicted {_money(predicted)}" if predicted else ""
        realised = _shown(outcome.realised_usd_per_month, "${:,.0f} a month")
        return [("plain", f"remembered: realised {realised}{promised}")]


def tell_cloud(line: dict[str, Any]) -> Spoken | None:
    """What the simulated cloud says, in words; None for what is of no interest."""
    match line:
        case {"event": "launched", "replica": name, "market": market, "zone": zone}:
            kind = line.get("instance_type", "")
            text = f"{SIMULATED} machine {name}: {market} {kind} in {zone} starts"
            return Spoken(str(line.get("deployment", "")), text, "dim")
        case {"event": "serving", "replica": name, "url": url}:
            return Spoken("cloud", f"{name} serves (emulated engine at {url})", "dim")
        case {"event": "stopped", "replica": name}:
            return Spoken("cloud", f"{name} is gone, no longer paid for", "dim")
        case {"event": "failed", "replica": name}:
            return Spoken("cloud", f"the engine of {name} did not start", "bad")
        case {"event": "no_capacity", "instance_type": kind}:
            return Spoken("cloud", f"no spot capacity for {kind} ({SIMULATED})", "bad")
        case {"event": "reclaiming", "replica": name, "gone_at": gone_at}:
            text = f"EC2 Spot Instance Interruption Warning ({SIMULATED}): {name} goes at {gone_at}"
            return Spoken("cloud", text, "bad")
        case {"event": "reclaimed", "replica": name, "was_there": was_there}:
            end = "its power was cut" if was_there else "it had been replaced and was gone already"
            return Spoken("cloud", f"end of the notice for {name}: {end}", "plain")
    return None


def _numbers(answer: GateAnswer) -> str:
    """The numbers of a gate's answer, each beside what was allowed."""
    told = [_metric(metric) for metric in answer.metrics]
    evidence = answer.quality
    if evidence is not None:
        told.append(
            f"e-values: worse {evidence.e_rollback:.3g} of {1 / evidence.alpha:.0f},"
            f" not worse {evidence.e_promote:.3g} of {1 / evidence.beta:.0f}"
        )
    return "; ".join(told)


def _metric(metric: GateMetric) -> str:
    unit = _UNITS.get(metric.unit, "")
    observed = _shown(metric.observed, "{:.3g}" + unit)
    samples = f" from {metric.samples}" if metric.samples else ""
    return f"{metric.name} {observed} (limit {metric.threshold:.3g}{unit}{samples})"


def _shown(reading: Reading, pattern: str) -> str:
    return pattern.format(reading.value) if isinstance(reading, Known) else "unknown"


def _money(interval: Interval) -> str:
    return f"${interval.mid:,.0f} (${interval.low:,.0f} to ${interval.high:,.0f})"


def _because(reasons: tuple[str, ...]) -> str:
    return "; ".join(reasons)
