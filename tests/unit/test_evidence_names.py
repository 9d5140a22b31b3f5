"""The table of evidence that floors may name, beside what the agents really carry."""

from __future__ import annotations

from collections.abc import Iterator

from optiinfra.agents.application.gate import judge_gate
from optiinfra.agents.application.policy import judge_vote
from optiinfra.agents.performance import policy as performance
from optiinfra.agents.performance.gate_policy import gate
from optiinfra.agents.resource import policy as resource
from optiinfra.schemas.evidence_names import EVIDENCE, EvidenceName
from optiinfra.schemas.telemetry import Known
from optiinfra.schemas.vote import VOTERS, AgentName, Evidence
from optiinfra.serving.windows import Pooled
from tests.factories import recommendation
from tests.unit import test_application_policy as application_stories
from tests.unit import test_performance_gate as gate_stories
from tests.unit import test_performance_policy as performance_stories
from tests.unit import test_resource_policy as resource_stories


def voted() -> Iterator[tuple[AgentName, Evidence]]:
    """What the three voters carry, in all their kinds of votes."""
    slowest = {"a": Pooled(Known(value=0.3), 50)}
    judgements = (
        (AgentName.PERFORMANCE, performance.vote(
            performance_stories.question(each=slowest), performance_stories.POLICY)),
        (AgentName.PERFORMANCE, performance.vote_on_replacement(performance_stories.replacement())),
        (AgentName.RESOURCE, resource.vote(resource_stories.question(), resource_stories.POLICY)),
        (AgentName.RESOURCE, resource.vote_on_replacement(resource.FleetAfter(3, 1), 1)),
        (AgentName.APPLICATION, judge_vote(
            application_stories.POLICY,
            recommendation(rollout=application_stories.PLAN),
            application_stories.vote_sight())),
    )  # fmt: skip
    for agent, judgement in judgements:
        yield from ((agent, one) for one in judgement.evidence)


def found() -> dict[str, EvidenceName]:
    """The table as the agents would write it."""
    votes: dict[str, set[AgentName]] = {}
    gates: dict[str, set[AgentName]] = {}
    units = {}
    for agent, evidence in voted():
        votes.setdefault(evidence.name, set()).add(agent)
        units[evidence.name] = evidence.unit
    looked = (
        (AgentName.PERFORMANCE, gate(gate_stories.question(), gate_stories.POLICY).metrics),
        (AgentName.APPLICATION, judge_gate(
            application_stories.POLICY,
            application_stories.sight(application_stories.units(150)),
            application_stories.FLOOR).metrics),
    )  # fmt: skip
    for agent, metrics in looked:
        for metric in metrics:
            gates.setdefault(metric.name, set()).add(agent)
            units[metric.name] = metric.unit
    none: set[AgentName] = set()
    return {
        name: EvidenceName(unit, frozenset(votes.get(name, none)), frozenset(gates.get(name, none)))
        for name, unit in units.items()
    }


def test_the_table_is_what_the_agents_carry() -> None:
    assert found() == EVIDENCE


def test_only_voters_carry_evidence_in_votes() -> None:
    assert all(known.votes <= VOTERS for known in EVIDENCE.values())
    assert all(known.votes | known.gates for known in EVIDENCE.values())
