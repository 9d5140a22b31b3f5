"""Which limit binds a replica: telemetry against a decision table, unknown where it is missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from optiinfra.schemas.base import Value
from optiinfra.schemas.deployment import SLO
from optiinfra.schemas.telemetry import Known, Reading, Unit, Unknown
from optiinfra.schemas.vote import Evidence
from optiinfra.serving.bottleneck_table import Cause, Criterion, Measure, Row, Thresholds, table
from optiinfra.serving.signals import NOT_READ, Signals

DEFAULT = Thresholds()
_JUST_UNDER = 1 - 1e-9


class Missing(Value):
    """A signal without which a row cannot be judged, and why it is not known."""

    signal: str
    why: str


class Turn(Value):
    """A measure that makes the cause another one, `then`, when it alone crosses a threshold.

    `margin` is how far it is from there, ÷ the threshold.
    """

    measure: str
    unit: Unit
    now: float
    threshold: float
    margin: float
    then: Cause


class Finding(Value):
    """What binds, by which row of the table (from 1), and on what evidence.

    `turns` are the changes of one measure that would change the cause, the nearest first; `margin`
    is that of the nearest. When the cause is unknown, row `row` lacks the signals `missing`;
    without a row the replica is slow and nothing in the table explains it.
    """

    cause: Cause
    row: int | None
    evidence: tuple[Evidence, ...]
    missing: tuple[Missing, ...] = ()
    turns: tuple[Turn, ...] = ()

    @property
    def margin(self) -> float | None:
        return self.turns[0].margin if self.turns else None


@dataclass(frozen=True, slots=True)
class _Seen:
    """A measure's reading, and one that bounds it from above, by the name of its signal."""

    reading: Reading
    bound: Reading = NOT_READ
    bound_name: str = ""

    @property
    def best(self) -> Reading:
        """The reading, else its bound."""
        return self.reading if isinstance(self.reading, Known) else self.bound

    def meets(self, test: Criterion) -> bool | None:
        """Whether the test holds; None where that cannot be told.

        A bound under the threshold refutes a measure that is unknown; a measure over the threshold
        and over its bound is not believed.
        """
        is_bounded = isinstance(self.bound, Known) and self.bound.value < test.threshold
        if isinstance(self.reading, Unknown):
            return test.is_low if is_bounded else None
        is_reached = self.reading.value >= test.threshold
        if is_reached and is_bounded:
            return None
        return is_reached is not test.is_low


_Values = Mapping[Measure, _Seen]


def find(seen: Signals, slo: SLO, thresholds: Thresholds = DEFAULT) -> Finding:
    """The cause of the first row that holds, when all rows before it are known not to.

    One condition that fails refutes a row, whatever else of it is unknown; a row that only lacks
    signals leaves the cause unknown. So a signal that goes missing may make the cause unknown, and
    never makes it another one.
    """
    rows = table(thresholds)
    values = {test.measure: _seen(test.measure, seen, slo) for test in _tests(rows)}
    cause, number = _judge(rows, values)
    missing: tuple[Missing, ...] = ()
    if cause is Cause.UNKNOWN and number is not None:
        missing = tuple(_missing(rows[number - 1], seen, values))
    turns = () if missing else _turns(rows, values, cause)
    return Finding(
        cause=cause,
        row=number,
        evidence=tuple(_evidence(rows, number, values)),
        missing=missing,
        turns=tuple(sorted(turns, key=lambda turn: turn.margin)),
    )


def _seen(measure: Measure, seen: Signals, slo: SLO) -> _Seen:
    bounds = [(getattr(seen, name), name) for name in measure.at_most]
    known = [(bound.value, name) for bound, name in bounds if isinstance(bound, Known)]
    if not known:
        return _Seen(measure.reading(seen, slo))
    least, name = min(known)
    return _Seen(measure.reading(seen, slo), Known(value=least), name)


def _tests(rows: Sequence[Row]) -> Iterator[Criterion]:
    for row in rows:
        for alternatives in row.conditions:
            yield from alternatives


def _judge(rows: Sequence[Row], values: _Values) -> tuple[Cause, int | None]:
    """The cause, and the row (from 1) that gave it or could not be judged."""
    for number, row in enumerate(rows, 1):
        holds = _all(_holds(alternatives, values) for alternatives in row.conditions)
        if holds is None:
            return Cause.UNKNOWN, number
        if holds:
            return row.cause, number
    return Cause.UNKNOWN, None


def _holds(alternatives: Sequence[Criterion], values: _Values) -> bool | None:
    """A condition in three-valued logic: one test that holds is enough."""
    found = {values[test.measure].meets(test) for test in alternatives}
    if True in found:
        return True
    return None if None in found else False


def _all(conditions: Iterable[bool | None]) -> bool | None:
    """A row in three-valued logic: one condition that fails is enough."""
    found = set(conditions)
    if False in found:
        return False
    return None if None in found else True


def _missing(row: Row, seen: Signals, values: _Values) -> Iterator[Missing]:
    """The unknown signals that leave a row open, and the measures that contradict their bound."""
    names: dict[str, str] = {}
    open_ones = [one for one in row.conditions if _holds(one, values) is None]
    for test in (test for alternatives in open_ones for test in alternatives):
        value = values[test.measure]
        if value.meets(test) is None and isinstance(value.reading, Known):
            over = f"{value.reading.value:.3g} is over {value.bound_name}"
            names[test.measure.name] = over
        elif value.meets(test) is None:
            for name in test.measure.needs:
                reading = getattr(seen, name)
                if isinstance(reading, Unknown):
                    names[name] = reading.detail or reading.reason.value
    yield from (Missing(signal=name, why=why) for name, why in names.items())


def _turns(rows: Sequence[Row], values: _Values, cause: Cause) -> Iterator[Turn]:
    """Every threshold of a known measure across which the table gives another cause."""
    for measure, threshold in dict.fromkeys((t.measure, t.threshold) for t in _tests(rows)):
        now = values[measure].reading
        if isinstance(now, Unknown):
            continue
        across = threshold * _JUST_UNDER if now.value >= threshold else threshold
        moved = {**values, measure: _Seen(Known(value=across))}
        then, _ = _judge(rows, moved)
        if then is not cause:
            yield Turn(
                measure=measure.name, unit=measure.unit, now=now.value, threshold=threshold,
                margin=abs(now.value - threshold) / threshold, then=then,
            )  # fmt: skip


def _evidence(rows: Sequence[Row], number: int | None, values: _Values) -> Iterator[Evidence]:
    """What holds of row `number`, and what refutes each row before it; every test once."""
    told: set[Criterion] = set()
    for at, row in enumerate(rows[:number], 1):
        is_held = at == number
        for alternatives in row.conditions:
            if _holds(alternatives, values) is not is_held:
                continue
            for test in alternatives:
                if values[test.measure].meets(test) is is_held and test not in told:
                    told.add(test)
                    says = f"row {at} holds" if is_held else f"row {at} fails"
                    yield _told(test, values[test.measure], says)


def _told(test: Criterion, value: _Seen, says: str) -> Evidence:
    bounded = "" if isinstance(value.reading, Known) else f", at most {value.bound_name}"
    wanted = f"{'<' if test.is_low else '≥'} {test.threshold:g}"
    return Evidence(
        name=test.measure.name,
        unit=test.measure.unit,
        reading=value.best,
        threshold=test.threshold,
        source=f"{says}: wants {wanted}{bounded}",
    )
