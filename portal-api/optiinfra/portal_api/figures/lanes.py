"""The last hour as swim lanes: what people, the coordinator and each agent did, and when."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from enum import StrEnum

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from optiinfra.events.facts import TERMINAL_FACTS
from optiinfra.portal_api.examples import shown_as
from optiinfra.schemas.rollout import GateVerdict, StepKind
from optiinfra.schemas.vote import AgentName
from optiinfra.storage.postgres.lanes import (
    COORDINATOR,
    PEOPLE,
    LanesTold,
    Marked,
    Moved,
    Sign,
    Told,
)

LANES = (PEOPLE, COORDINATOR, *AgentName)
MOST_MARKS = 500
SLOTS = 240
"""A window is so many slots; events of one kind in one slot are one mark."""
MOST_ROWS = 4
"""So many spans lie above each other in a lane; what finds no place is counted."""
UNDER_WAY = "under way"


class SpanKind(StrEnum):
    CHANGE = "change"
    STAGE = "stage"
    FINISH = "finish"
    ROLLBACK = "rollback"
    SILENCE = "silence"


class MarkView(BaseModel):
    """`count` events of one kind from `at` to `last_at`; `event` is the first, the rest is its."""

    model_config = ConfigDict(from_attributes=True)

    at: AwareDatetime
    last_at: AwareDatetime
    kind: str
    detail: str | None = Field(description="a verdict, where the kind has one")
    count: int
    event: str
    change: str | None
    title: str | None = Field(description="of the change")


class SpanView(BaseModel):
    """What lasted. `row` keeps the spans of a lane from lying over one another."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    kind: SpanKind
    since: AwareDatetime
    until: AwareDatetime | None = Field(default=None, description="null: it goes on")
    row: int = 0
    state: str = Field(description="where it stands, or how it ended")
    title: str
    stage: int | None = None
    share: float | None = Field(default=None, description="of the traffic, in this stage")
    change: str | None = None
    event: str | None = Field(default=None, description="with which it began")

    def ended(self, at: datetime, state: str) -> SpanView:
        return self.model_copy(update={"until": at, "state": state})


class LaneView(BaseModel):
    lane: str
    events: int = Field(description="that the marks stand for")
    marks: list[MarkView]
    spans: list[SpanView]
    spans_left_out: int


class LanesView(BaseModel):
    model_config = shown_as("lanes")

    since: AwareDatetime
    until: AwareDatetime
    lanes: list[LaneView]
    more_changes: bool = Field(description="more changes moved than are looked at")


def lanes_view(told: LanesTold) -> LanesView:
    """All lanes, also those of agents that did nothing."""
    marks: dict[str, list[Marked]] = {lane: [] for lane in LANES}
    for one in told.marks:
        marks.setdefault(one.lane, []).append(one)
    spans: dict[str, list[SpanView]] = {lane: [] for lane in marks}
    for moved in told.changes:
        spans[COORDINATOR].append(change_span(moved))
        spans.setdefault(moved.executor or COORDINATOR, []).extend(step_spans(moved))
    for lane, silence in silences(told.signs):
        spans.setdefault(lane, []).append(silence)
    return LanesView(
        since=told.since,
        until=told.until,
        lanes=[_lane(lane, marks.get(lane, []), spans[lane], told) for lane in spans],
        more_changes=told.more_changes,
    )


def _lane(lane: str, marks: list[Marked], spans: list[SpanView], told: LanesTold) -> LaneView:
    slot_s = (told.until - told.since).total_seconds() / SLOTS
    seen = [one for one in spans if one.until is None or one.until >= told.since]
    placed = list(packed(seen, MOST_ROWS, slot_s))
    return LaneView(
        lane=lane,
        events=sum(one.count for one in marks),
        marks=[MarkView.model_validate(one) for one in thinned(marks, slot_s, MOST_MARKS)],
        spans=placed,
        spans_left_out=len(seen) - len(placed),
    )


def thinned(marks: Sequence[Marked], slot_s: float, most: int) -> list[Marked]:
    """At most `most` marks: those of one kind and verdict in ever wider slots become one."""
    found = list(marks)
    while len(found) > most:
        slot_s *= 2
        slots: dict[tuple[str, str | None, int], Marked] = {}
        for one in found:
            key = one.kind, one.detail, int(one.at.timestamp() // slot_s)
            slots[key] = _joined(slots[key], one) if key in slots else one
        found = list(slots.values())
    return found


def _joined(first: Marked, other: Marked) -> Marked:
    last_at = max(first.last_at, other.last_at)
    return replace(first, last_at=last_at, count=first.count + other.count)


def packed(spans: Iterable[SpanView], most: int, apart_s: float) -> Iterator[SpanView]:
    """Each span with the first of `most` rows in which it is free; earlier ones choose first."""
    rows: list[list[SpanView]] = [[] for _ in range(most)]
    for span in spans:
        for number, row in enumerate(rows):
            if not any(_overlap(span, other, apart_s) for other in row):
                row.append(span)
                yield span.model_copy(update={"row": number})
                break


def _overlap(one: SpanView, other: SpanView, apart_s: float) -> bool:
    apart = timedelta(seconds=apart_s)
    starts_within = other.until is None or one.since < other.until + apart
    ends_within = one.until is None or other.since < one.until + apart
    return starts_within and ends_within


def change_span(moved: Moved) -> SpanView:
    """From its beginning to the one fact that ended it."""
    return SpanView(
        kind=SpanKind.CHANGE,
        since=moved.opened_at,
        until=next((one.at for one in moved.told if one.kind in TERMINAL_FACTS), None),
        state=moved.state.value,
        title=_name(moved),
        change=moved.change,
    )


def _name(moved: Moved) -> str:
    return moved.title or f"change {moved.change[:8]}"


def step_spans(moved: Moved) -> list[SpanView]:
    """Stages from their beginning to their gate's word, releasing what is old, and undoing."""
    done: list[SpanView] = []
    going: SpanView | None = None
    for one in moved.told:
        if going is not None and (state := _end(one, going)) is not None:
            done.append(going.ended(one.at, state))
            going = None
        if going is None:
            going = _begun(moved, one, {span.stage for span in done})
    return done if going is None else [*done, going]


def _begun(moved: Moved, one: Told, carried: Collection[int | None]) -> SpanView | None:
    """The step that begins here; a stage that was not said to begin begins when it is in force.

    A finish is the last stage where that is not among those `carried` before.
    """
    match one.kind, one.step:
        case "rollback.requested", _:
            kind = SpanKind.ROLLBACK
        case "execution.started", StepKind.FINISH:
            kind = SpanKind.FINISH if one.stage in carried else SpanKind.STAGE
        case (("execution.started" | "execution.staged"), StepKind.APPLY) if (
            one.stage not in carried
        ):
            kind = SpanKind.STAGE
        case _:
            return None
    return SpanView(
        kind=kind, since=one.at, state=UNDER_WAY, title=_name(moved), stage=one.stage,
        share=one.share, change=moved.change, event=one.event,
    )  # fmt: skip


def _end(one: Told, going: SpanView) -> str | None:
    """How `one` ends the step that goes on, if it does."""
    match one.kind:
        case "gate.closed" if one.stage == going.stage and one.verdict == GateVerdict.PASS:
            return "passed"
        case "gate.closed" if one.stage == going.stage and one.verdict == GateVerdict.ROLL_BACK:
            return "failed"
        case "execution.failed":
            return "failed"
        case "execution.staged" if going.kind is SpanKind.FINISH:
            return "done" if one.step == StepKind.FINISH else "held"
        case "execution.staged" if one.step == StepKind.FINISH:
            return "passed"
        case "rollback.requested" if going.kind is not SpanKind.ROLLBACK:
            return "broken off"
        case "rollback.completed" if going.kind is SpanKind.ROLLBACK:
            return "undone" if one.verdict == "true" else "not proved"
        case kind if kind in TERMINAL_FACTS:
            return TERMINAL_FACTS[kind].value
        case _:
            return None


def silences(signs: Sequence[Sign]) -> Iterator[tuple[str, SpanView]]:
    """From the last sign of an instance until it, or another one in its place, was heard."""
    for place, sign in enumerate(signs):
        if not sign.is_lost:
            continue
        since = sign.last_seen_at or sign.at
        heard = (
            other.at
            for number, other in enumerate(signs)
            if other.agent == sign.agent and not other.is_lost
            if number > place or (other.instance != sign.instance and other.at > since)
        )
        until = next(heard, None)
        yield (
            sign.agent,
            SpanView(
                kind=SpanKind.SILENCE,
                since=since,
                until=until,
                state="silent" if until is None else "heard again",
                title=sign.instance,
                event=sign.event,
            ),
        )
