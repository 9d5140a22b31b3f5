"""Charts that the server thins: the heat map's rows, lanes' marks and spans, judged forecasts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import inf
from typing import Any

from optiinfra.portal_api.figures.forecast import MOST_POINTS, NOT_OVER, NOT_WATCHED, forecast_view
from optiinfra.portal_api.figures.heat import columns_in, heat_view, merged, reaching, rows_of
from optiinfra.portal_api.figures.lanes import (
    LANES,
    MOST_MARKS,
    MOST_ROWS,
    SpanKind,
    SpanView,
    lanes_view,
    packed,
    silences,
    step_spans,
    thinned,
)
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.deployment import SLO
from optiinfra.storage.clickhouse_forecasts import Made, Recorded
from optiinfra.storage.clickhouse_heat import Heat, HeatBin, HeatScrapes
from optiinfra.storage.postgres.lanes import LanesTold, Marked, Moved, Sign, Told
from tests.telemetry import NOW, deployment


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


# The heat map


def bins(*edges: tuple[float, float], count: float = 1.0, step: int = 0) -> list[HeatBin]:
    return [HeatBin(step, low, high, count) for low, high in edges]


def test_rows_are_the_buckets_and_what_lies_between_them() -> None:
    assert rows_of(bins((0.5, 1.0), (0.1, 0.25), (0.1, 0.25), (1.0, inf))) == [
        (0.1, 0.25), (0.25, 0.5), (0.5, 1.0), (1.0, inf),
    ]  # fmt: skip
    assert rows_of([]) == reaching([], 0.5) == []


def test_buckets_of_two_engine_versions_become_rows_that_cut_none_apart() -> None:
    assert rows_of(bins((0.1, 0.2), (0.2, 0.4), (0.1, 0.3), (0.4, 0.8))) == [(0.1, 0.4), (0.4, 0.8)]


def test_the_objective_has_a_place_on_either_side_of_all_that_was_observed() -> None:
    rows = [(0.1, 0.2)]
    assert reaching(rows, 0.5) == [(0.1, 0.2), (0.2, 0.5)]
    assert reaching(rows, 0.05) == [(0.0, 0.1), (0.1, 0.2)]
    assert reaching(rows, 0.15) == rows


def test_too_many_rows_are_put_together_where_there_is_least_and_nothing_is_lost() -> None:
    seen = [HeatBin(0, n, n + 1.0, float(n)) for n in range(40)]
    rows = merged(rows_of(seen), seen, 24)
    assert len(rows) == 24
    assert (rows[0][0], rows[-1]) == (0, (39, 40))
    found = heat_view(deployment(), Heat(NOW, 30.0, seen, {0: HeatScrapes(1, 0, "")}), at(30))
    assert sum(found.columns[0].counts or []) == sum(range(40))
    assert len(found.rows) == 24


def test_a_gap_is_unknown_a_quiet_time_is_none_and_a_part_that_is_dark_is_told() -> None:
    scrapes = {0: HeatScrapes(2, 0, ""), 1: HeatScrapes(0, 2, "unreachable"),
               2: HeatScrapes(1, 1, "unreachable")}  # fmt: skip
    seen = Heat(NOW, 30.0, bins((0.1, 0.2), count=3.0, step=2), scrapes)
    found = heat_view(deployment(slo=SLO(ttft_p95_s=0.15)), seen, at(120))
    assert [one.counts for one in found.columns] == [[0], None, [3], None]
    assert [one.unread for one in found.columns] == [0, 2, 1, 0]
    assert found.columns[1].reason == "unreachable"
    assert found.columns[3].reason == "nothing was measured in this time"
    assert [one.at for one in found.columns] == [at(0), at(30), at(60), at(90)]


def test_a_map_has_at_most_60_columns_of_at_least_30_s() -> None:
    assert [columns_in(s) for s in (10, 60, 900, 1_800, 86_400)] == [1, 2, 30, 60, 60]


# Lanes


def mark(second: float, kind: str = "vote.cast", detail: str | None = "approve") -> Marked:
    return Marked("cost", kind, detail, at(second), at(second), 1, f"{second}", None, None)


def told(*marks: Marked, **values: Any) -> LanesTold:
    given: dict[str, Any] = {"changes": [], "more_changes": False, "signs": []}
    return LanesTold(since=at(0), until=at(3_600), marks=list(marks), **{**given, **values})


def test_many_marks_become_few_that_say_how_many_they_stand_for() -> None:
    many = [mark(n / 2, detail="reject" if n == 999 else "approve") for n in range(7_000)]
    found = lanes_view(told(*many))
    lane = next(one for one in found.lanes if one.lane == "cost")
    assert len(lane.marks) <= MOST_MARKS
    assert lane.events == sum(one.count for one in lane.marks) == 7_000
    assert [one.count for one in lane.marks if one.detail == "reject"] == [1]
    assert max(one.last_at for one in lane.marks) == many[-1].at
    assert thinned(many[:MOST_MARKS], 15.0, MOST_MARKS) == many[:MOST_MARKS]


def test_every_agent_has_a_lane_and_so_has_who_else_speaks() -> None:
    stranger = Marked("stranger", "x.y", None, at(1), at(1), 1, "e", None, None)
    assert [one.lane for one in lanes_view(told(stranger)).lanes] == [*LANES, "stranger"]


def span(since: float, until: float | None, title: str = "") -> SpanView:
    end = None if until is None else at(until)
    return SpanView(kind=SpanKind.CHANGE, since=at(since), until=end, state="x", title=title)


def test_spans_lie_in_rows_without_touching_and_what_finds_no_room_is_counted() -> None:
    spans = [span(0, None, "a"), span(10, 20, "b"), span(25, 30, "c"), span(21, 40, "d")]
    rows = {one.title: one.row for one in packed(spans, 2, apart_s=2)}
    assert rows == {"a": 0, "b": 1, "c": 1}
    crowd = [moved(change=f"{n}", title=f"{n}", opened_at=at(n)) for n in range(9)]
    coordinator = lanes_view(told(changes=crowd)).lanes[1]
    assert (len(coordinator.spans), coordinator.spans_left_out) == (MOST_ROWS, 9 - MOST_ROWS)


def moved(*steps: Told, **values: Any) -> Moved:
    given: dict[str, Any] = {
        "change": "c" * 32, "title": "Move chat", "deployment": "chat", "executor": "cost",
        "state": ChangeState.EXECUTING, "opened_at": at(0),
    }  # fmt: skip
    return Moved(**{**given, **values}, told=list(steps))


def step(
    second: float, kind: str, step: str | None = None, stage: int | None = None,
    verdict: str | None = None,
) -> Told:  # fmt: skip
    return Told(kind, at(second), f"e{second}", step, stage, 0.1 if step else None, verdict)


def test_stages_last_from_their_beginning_to_their_gate() -> None:
    found = step_spans(moved(
        step(1, "execution.started", "apply", 0), step(2, "execution.staged", "apply", 0),
        step(3, "gate.closed", stage=0, verdict="hold"),
        step(4, "gate.closed", stage=0, verdict="pass"),
        step(5, "execution.staged", "apply", 1), step(6, "gate.closed", stage=1, verdict="pass"),
        step(7, "execution.started", "finish", 1), step(8, "execution.staged", "finish", 1),
        step(9, "change.completed"),
    ))  # fmt: skip
    assert [(one.kind, one.stage, one.since, one.until, one.state) for one in found] == [
        ("stage", 0, at(1), at(4), "passed"),
        ("stage", 1, at(5), at(6), "passed"),
        ("finish", 1, at(7), at(8), "done"),
    ]
    assert found[0].event == "e1"


def test_a_finish_that_carries_the_last_stage_is_that_stage() -> None:
    found = step_spans(moved(
        step(1, "execution.started", "finish", 0), step(2, "execution.staged", "apply", 0),
        step(3, "execution.started", "finish", 0), step(4, "execution.staged", "finish", 0),
    ))  # fmt: skip
    assert [(one.kind, one.stage, one.since, one.until, one.state) for one in found] == [
        ("stage", 0, at(1), at(4), "passed"),
    ]


def test_a_finish_that_is_held_up_ends_and_begins_again() -> None:
    found = step_spans(moved(
        step(1, "execution.started", "apply", 0), step(2, "gate.closed", stage=0, verdict="pass"),
        step(3, "execution.started", "finish", 0), step(4, "execution.staged", "apply", 0),
        step(5, "execution.started", "finish", 0), step(6, "execution.staged", "finish", 0),
    ))  # fmt: skip
    assert [(one.kind, one.until, one.state) for one in found] == [
        ("stage", at(2), "passed"), ("finish", at(4), "held"), ("finish", at(6), "done"),
    ]  # fmt: skip


def test_what_is_undone_ends_its_stage_and_says_whether_it_was_proved() -> None:
    began = step(1, "execution.started", "apply", 0)
    asked = step(3, "rollback.requested")
    for verdict, state in (("true", "undone"), ("false", "not proved")):
        done = step(5, "rollback.completed", verdict=verdict)
        undoing = step(4, "execution.started", "rollback", 0)
        found = step_spans(moved(began, asked, undoing, done))
        assert [(one.kind, one.until, one.state) for one in found] == [
            ("stage", at(3), "broken off"), ("rollback", at(5), state),
        ]  # fmt: skip
    failed = step_spans(moved(began, step(2, "gate.closed", stage=0, verdict="roll_back"), asked))
    assert [(one.kind, one.state) for one in failed] == [
        ("stage", "failed"), ("rollback", "under way"),
    ]  # fmt: skip
    broken = step_spans(moved(began, step(2, "execution.failed", "apply", 0)))
    assert [one.state for one in broken] == ["failed"]
    ended = step_spans(moved(began, step(2, "change.failed")))
    assert [one.state for one in ended] == ["failed"]


def sign(second: float, instance: str = "i1", *, lost: bool = False) -> Sign:
    seen = at(second - 45) if lost else None
    return Sign("cost", instance, lost, at(second), seen, f"s{second}")


def test_a_silence_ends_when_the_instance_or_one_in_its_place_is_heard() -> None:
    def ends(*signs: Sign) -> list[tuple[datetime, datetime | None, str]]:
        return [(one.since, one.until, one.state) for _, one in silences(signs)]

    assert ends(sign(0), sign(60, lost=True)) == [(at(15), None, "silent")]
    assert ends(sign(60, lost=True), sign(90)) == [(at(15), at(90), "heard again")]
    assert ends(sign(60, lost=True), sign(70, "i2")) == [(at(15), at(70), "heard again")]
    replaced = (sign(0), sign(20, "i2"), sign(60, lost=True))
    assert ends(*replaced) == [(at(15), at(20), "heard again")]


def test_what_ended_before_the_window_is_not_shown() -> None:
    old = moved(step(-50, "change.completed"), opened_at=at(-100), state=ChangeState.COMPLETED)
    assert lanes_view(told(changes=[old])).lanes[1].spans == []


# Forecasts


def made(second: float, high: float | None = 10.0, *, reason: str = "") -> Made:
    expected = None if high is None else high - 2
    return Made(at(second), expected, high, reason, "level", 100.0, 0.95)


def came(*loads: tuple[float, float]) -> list[tuple[datetime, float]]:
    return [(at(second), load) for second, load in loads]


def test_a_forecast_is_judged_by_the_peak_of_its_own_time_alone() -> None:
    loads = came((0, 99), (20, 3), (40, 9), (60, 4), (80, 5), (100, 6), (101, 99))
    view = forecast_view("chat", Recorded([made(0)], loads, at(-9)), at(-10), at(150))
    (point,) = view.points
    assert (point.due_at, point.came_rps, point.held) == (at(100), 9, True)
    assert (view.held, view.over, view.recorded_since) == (1, 1, at(-9))
    higher = forecast_view("chat", Recorded([made(0, 8.0)], loads, at(0)), at(-10), at(150))
    assert (higher.points[0].held, higher.held, higher.over) == (False, 0, 1)


def test_what_is_not_over_or_was_not_watched_is_not_judged() -> None:
    loads = came((20, 3), (40, 9), (60, 4))
    found = Recorded([made(0), made(60), made(61, None, reason="too short")], loads, at(0))
    view = forecast_view("chat", found, at(-10), at(120))
    assert [one.came_reason for one in view.points] == [NOT_WATCHED, NOT_OVER, NOT_OVER]
    assert [one.held for one in view.points] == [None, None, None]
    assert (view.points[2].high_rps, view.points[2].reason) == (None, "too short")
    assert (view.forecasts, view.over, view.horizon_s, view.aims_at) == (3, 0, 100.0, 0.95)


def test_of_many_forecasts_the_worst_of_each_stretch_is_shown_and_all_are_counted() -> None:
    loads = came(*((10.0 * n, 20.0 if n == 501 else 5.0) for n in range(1_100)))
    found = Recorded([made(10.0 * n) for n in range(1_000)], loads, at(0))
    view = forecast_view("chat", found, at(-10), at(20_000))
    assert len(view.points) <= MOST_POINTS
    assert (view.over, view.held) == (1_000, 990)
    assert any(one.held is False for one in view.points)
    assert view.points == sorted(view.points, key=lambda one: one.made_at)


def test_no_forecast_is_no_point_and_says_that_none_was_ever_recorded() -> None:
    view = forecast_view("chat", Recorded([], [], None), at(0), datetime(2027, 1, 1, tzinfo=UTC))
    assert (view.points, view.recorded_since, view.horizon_s) == ([], None, None)
