"""What quality and latency may not fall below, checked on the evidence that agents carry."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from enum import StrEnum
from typing import Annotated, Self

from pydantic import AfterValidator, Field, JsonValue, model_validator

from optiinfra.schemas.approval_rules import Part
from optiinfra.schemas.evidence_names import EVIDENCE
from optiinfra.schemas.rollout import GateMetric
from optiinfra.schemas.telemetry import Known, Reading
from optiinfra.schemas.vote import AgentName, Evidence


def _is_evidence(name: str) -> str:
    if name in EVIDENCE:
        return name
    near = get_close_matches(name, EVIDENCE, n=1)
    meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(EVIDENCE)}"
    raise ValueError(f"no agent carries evidence called {name!r}; {meant}")


EvidenceKey = Annotated[
    str, AfterValidator(_is_evidence), Field(json_schema_extra={"enum": list[JsonValue](EVIDENCE)})
]


class Place(StrEnum):
    """Where a floor is looked at: on votes, on the answers of gates, or on both."""

    VOTES = "votes"
    GATES = "gates"
    BOTH = "both"


class Breach(StrEnum):
    """What a gate does whose floor is broken: wait (and undo at its hold limit), or undo."""

    HOLD = "hold"
    ROLL_BACK = "roll_back"


class Floor(Part):
    """A bound on one quantity: a vote for a change that breaks it counts as a veto."""

    evidence: EvidenceKey = Field(description="the quantity, as votes and gates name it")
    max: float | None = Field(
        default=None, allow_inf_nan=False, description="it may be this at most, in its own unit"
    )
    min: float | None = Field(
        default=None, allow_inf_nan=False, description="it must be this at least"
    )
    where: Place = Field(default=Place.BOTH, description="where it is looked at")
    required: bool = Field(
        default=False,
        description="an approval without a known value counts as an abstention, a gate's as a hold",
    )
    breach: Breach = Field(
        default=Breach.HOLD, description="what a broken gate does; a broken vote is always a veto"
    )

    @model_validator(mode="after")
    def _bounds_something(self) -> Self:
        if self.max is None and self.min is None:
            raise ValueError("give max, min or both")
        if self.max is not None and self.min is not None and self.min > self.max:
            raise ValueError(f"min ({self.min:g}) is above max ({self.max:g})")
        known = EVIDENCE[self.evidence]
        if self.where is Place.VOTES and not known.votes:
            raise ValueError(
                f"no vote carries {self.evidence}, only gates do; set where to 'gates'"
            )
        if self.where is Place.GATES and not known.gates:
            raise ValueError(
                f"no gate carries {self.evidence}, only votes do; set where to 'votes'"
            )
        return self

    def voters(self) -> frozenset[AgentName]:
        """Whose votes it is looked at on."""
        return frozenset() if self.where is Place.GATES else EVIDENCE[self.evidence].votes

    def assessors(self) -> frozenset[AgentName]:
        """Whose answers to a gate it is looked at on."""
        return frozenset() if self.where is Place.VOTES else EVIDENCE[self.evidence].gates

    def broken(self, carried: Iterable[Evidence | GateMetric]) -> str | None:
        """How the evidence breaks the floor, with its numbers; None where it does not."""
        for reading in self._readings(carried):
            if isinstance(reading, Known) and (beyond := self._beyond(reading.value)):
                return f"floor {self.name!r}: {self.evidence} is {reading.value:.4g}, {beyond}"
        return None

    def missing(self, carried: Iterable[Evidence | GateMetric]) -> str | None:
        """Why a demanded value is not known; None when it is, or is not demanded."""
        readings = self._readings(carried) if self.required else []
        if not self.required or any(isinstance(reading, Known) for reading in readings):
            return None
        why = next((r.detail or str(r.reason) for r in readings if not isinstance(r, Known)), "")
        return f"floor {self.name!r}: {self.evidence} is unknown ({why or 'not carried'})"

    def _readings(self, carried: Iterable[Evidence | GateMetric]) -> list[Reading]:
        return [
            one.reading if isinstance(one, Evidence) else one.observed
            for one in carried
            if one.name == self.evidence
        ]

    def _beyond(self, value: float) -> str | None:
        if self.max is not None and value > self.max:
            return f"at most {self.max:.4g} is allowed"
        if self.min is not None and value < self.min:
            return f"at least {self.min:.4g} is needed"
        return None
