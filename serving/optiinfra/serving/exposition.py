"""Prometheus text as plain values: which series a server exposes, and what it only declares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from optiinfra.schemas.errors import Rejected


@dataclass(frozen=True, slots=True)
class Series:
    """One labelled value of a scrape; it may be NaN or infinite."""

    labels: Mapping[str, str]
    value: float

    def matches(self, where: Mapping[str, str], unless: Mapping[str, Sequence[str]]) -> bool:
        """Whether it carries every label of `where`, and no value of `unless`."""
        return all(self.labels.get(name) == wanted for name, wanted in where.items()) and not any(
            self.labels.get(name) in barred for name, barred in unless.items()
        )


@dataclass(frozen=True, slots=True)
class Exposition:
    """A parsed scrape: series by exposed name, in the order of the text.

    `declared` has the names of `# TYPE` lines (counters with `_total`), also of those without any
    series yet; `duplicated` the names that carry one label set twice.
    """

    series: Mapping[str, tuple[Series, ...]]
    declared: frozenset[str]
    duplicated: frozenset[str]

    def named(self, name: str) -> tuple[Series, ...]:
        """Series called `name`; of counters whose text lacks `_total`, the parser adds it."""
        return self.series.get(name) or self.series.get(f"{name}_total") or ()

    def declares(self, name: str) -> bool:
        """Whether there is a `# TYPE` line of it."""
        return name in self.declared or f"{name}_total" in self.declared

    def knows(self, name: str) -> bool:
        """Whether `name` is declared or has a value: a series that is absent then is at zero."""
        return self.declares(name) or bool(self.named(name))

    def repeats(self, name: str) -> bool:
        """Whether it carries one label set twice."""
        return name in self.duplicated or f"{name}_total" in self.duplicated


def parse(text: str) -> Exposition:
    """The exposition of a scrape. Raises `Rejected` when the text is not Prometheus text."""
    series: dict[str, list[Series]] = {}
    declared: set[str] = set()
    for family in _families(text):
        declared.add(f"{family.name}_total" if family.type == "counter" else family.name)
        for sample in family.samples:
            found = Series(dict(sample.labels), float(sample.value))
            series.setdefault(sample.name, []).append(found)
    return Exposition(
        series={name: tuple(found) for name, found in series.items()},
        declared=frozenset(declared),
        duplicated=frozenset(name for name, found in series.items() if _has_twins(found)),
    )


def exposition_of(values: Mapping[str, float]) -> Exposition:
    """Single values by name, as a driver gives them, in the same form."""
    series = {name: (Series({}, value),) for name, value in values.items()}
    return Exposition(series, frozenset(values), frozenset())


def _families(text: str) -> Iterator[Metric]:
    try:
        yield from text_string_to_metric_families(text)
    except ValueError as broken:
        raise Rejected(f"not Prometheus text: {broken}") from broken


def _has_twins(found: list[Series]) -> bool:
    return len({frozenset(s.labels.items()) for s in found}) < len(found)
