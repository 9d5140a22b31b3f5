"""The measured and forecast quantities that votes and gates carry: their names, units and voices.

A floor of the policy names one of these. A test compares the table with what the agents say.
"""

from __future__ import annotations

from dataclasses import dataclass

from optiinfra.schemas.telemetry import Unit
from optiinfra.schemas.vote import AgentName


@dataclass(frozen=True, slots=True)
class EvidenceName:
    """Who carries the quantity in a vote, and who in a gate's answer."""

    unit: Unit
    votes: frozenset[AgentName] = frozenset()
    gates: frozenset[AgentName] = frozenset()


_P = frozenset({AgentName.PERFORMANCE})
_R = frozenset({AgentName.RESOURCE})
_A = frozenset({AgentName.APPLICATION})

EVIDENCE: dict[str, EvidenceName] = {
    "ttft_p95_s": EvidenceName(Unit.SECONDS, votes=_P, gates=_P),
    "tpot_p95_s": EvidenceName(Unit.SECONDS, votes=_P, gates=_P),
    "ttft_p95_s_with_replicas_left": EvidenceName(Unit.SECONDS, votes=_P),
    "tpot_p95_s_with_replicas_left": EvidenceName(Unit.SECONDS, votes=_P),
    "ttft_p95_s_of_the_slowest_replica": EvidenceName(Unit.SECONDS, votes=_P),
    "ttft_p95_s_without": EvidenceName(Unit.SECONDS, votes=_P),
    "ttft_p95_s_replaced": EvidenceName(Unit.SECONDS, votes=_P),
    "offered_rps": EvidenceName(Unit.PER_SECOND, votes=_P | _R),
    "replicas_serving": EvidenceName(Unit.COUNT, votes=_P),
    "replicas_left": EvidenceName(Unit.COUNT, votes=_P),
    "replicas_surviving": EvidenceName(Unit.COUNT, votes=_P),
    "replicas_leaving": EvidenceName(Unit.COUNT, votes=_P),
    "requests_waiting": EvidenceName(Unit.COUNT, gates=_P),
    "error_rate": EvidenceName(Unit.FRACTION, gates=_P),
    "capacity_rps_per_replica": EvidenceName(Unit.PER_SECOND, votes=_R),
    "replicas_after": EvidenceName(Unit.COUNT, votes=_R),
    "replicas_lost": EvidenceName(Unit.COUNT, votes=_R),
    "replicas_without_it": EvidenceName(Unit.COUNT, votes=_R),
    "forecast_peak_rps": EvidenceName(Unit.PER_SECOND, votes=_R),
    "forecast_coverage": EvidenceName(Unit.FRACTION, votes=_R),
    "baseline_quality": EvidenceName(Unit.SCORE, votes=_A),
    "baseline_pair_stdev": EvidenceName(Unit.SCORE, votes=_A),
    "pairs_to_see_a_drop": EvidenceName(Unit.COUNT, votes=_A),
    "quality_drop_relative": EvidenceName(Unit.FRACTION, gates=_A),
    "canary_failed_answers": EvidenceName(Unit.FRACTION, gates=_A),
    "unscored_difference": EvidenceName(Unit.FRACTION, gates=_A),
    "baseline_twin_difference": EvidenceName(Unit.SCORE, gates=_A),
    "unreached_replicas": EvidenceName(Unit.COUNT, gates=_A),
}
