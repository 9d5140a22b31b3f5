"""The story of a rollout, stage by stage, read out of a change's events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optiinfra.schemas.rollout import StepKind

Told = Mapping[str, Any]
"""An `EventView` as decoded JSON; its fact was checked when it was written down."""


@dataclass(slots=True)
class _Stage:
    requested: Told | None = None
    staged: Told | None = None
    finished: bool = False
    failed: bool = False
    looks: dict[int, dict[str, Any]] = field(default_factory=dict)

    def look(self, number: int) -> dict[str, Any]:
        blank: dict[str, Any] = {
            "look": number,
            "verdict": None,
            "reasons": [],
            "answers": [],
            "asked_at": None,
            "closed_at": None,
        }
        return self.looks.setdefault(number, blank)


def stages_of(planned: Sequence[Told], told: Sequence[Told]) -> list[dict[str, Any]]:
    """Each planned stage (a `StagePlan`) with what the events tell of it, as a `StageView`.

    A repeated event changes nothing.
    """
    found = [_Stage() for _ in planned]
    for event in told:
        handler = _HANDLERS.get(event["kind"])
        number = _stage_number(event)
        if handler is not None and number is not None and number < len(found):
            handler(found[number], event)
    return [
        {
            "stage": number,
            "share": plan["share"],
            "soak_s": plan["soak_s"],
            "status": _status(stage),
            "requested_at": stage.requested["at"] if stage.requested else None,
            "in_force_at": stage.staged["at"] if stage.staged else None,
            "looks": [stage.looks[look] for look in sorted(stage.looks)],
        }
        for number, (plan, stage) in enumerate(zip(planned, found, strict=True))
    ]


def _stage_number(event: Told) -> int | None:
    """The stage that an event is about; None for steps that undo.

    The finish is about the last one: it carries that out, unless it has been.
    """
    fact = event["fact"]
    fact = fact.get("answer") or fact.get("result") or fact
    step = fact.get("step")
    if step is not None and step["kind"] == StepKind.ROLLBACK:
        return None
    found = step["stage"] if step is not None else fact.get("stage")
    return found if isinstance(found, int) else None


def _requested(stage: _Stage, event: Told) -> None:
    stage.requested = stage.requested or event


def _staged(stage: _Stage, event: Told) -> None:
    stage.staged = stage.staged or event
    stage.finished |= event["fact"]["result"]["step"]["kind"] == StepKind.FINISH


def _failed(stage: _Stage, event: Told) -> None:
    stage.failed = stage.staged is None or stage.staged["version"] > event["version"]


def _asked(stage: _Stage, event: Told) -> None:
    look = stage.look(event["fact"]["look"])
    look["asked_at"] = look["asked_at"] or event["at"]


def _answered(stage: _Stage, event: Told) -> None:
    answer = event["fact"]["answer"]
    answers = stage.look(answer["look"])["answers"]
    if answer not in answers:
        answers.append(answer)


def _closed(stage: _Stage, event: Told) -> None:
    fact, look = event["fact"], stage.look(event["fact"]["look"])
    look.update(verdict=fact["verdict"], reasons=fact["reasons"], closed_at=event["at"])


def _status(stage: _Stage) -> str:
    verdicts = {look["verdict"] for look in stage.looks.values()}
    if stage.failed or "roll_back" in verdicts:
        return "failed"
    if "pass" in verdicts or stage.finished:
        return "passed"
    if stage.staged is not None:
        return "in_force"
    return "applying" if stage.requested is not None else "pending"


_HANDLERS = {
    "execution.requested": _requested,
    "execution.staged": _staged,
    "execution.failed": _failed,
    "gate.requested": _asked,
    "gate.answered": _answered,
    "gate.closed": _closed,
}
