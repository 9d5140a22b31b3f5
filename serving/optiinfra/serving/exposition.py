"""Prometheus text as plain values: which series a server exposes, and what it only declares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from optiinfra.schemas.errors import Rejected

_BUCKET, _SUM = "_bucket", "_sum"


@dataclass(frozen=True, slots=True)
class Series:
    """One labelled value of a scrape; it may be NaN or infinite."""

    labels: Mapping[str, str]
    value: float

    def matches(self, where: Mapping[str, str]) -> bool:
        """Whether it carries every label of `where`."""
        return all(self.labels.get(name) == wanted for name, wanted in where.items())


@dataclass(frozen=True, slots=True)
class Exposition:
    """A parsed scrape: series by exposed name, in the order of the text.

    `declared` has the names of `# TYPE` lines (counters with `_total`), also of those without any
    series yet; `duplicated` the names that carry one label set twice.
    """

    series: Mapping[str, tuple[Series, ...]]
    declared: frozenset[str]
    duplicated: frozenset[str]

    def knows(self, name: str) -> bool:
        """Whether `name` is declared or has a value: a series that is absent then is at zero."""
        return name in self.declared or name in self.series

    def select(self, name: str, where: Mapping[str, str]) -> tuple[Series, ...]:
        """Series called `name` (counters with `_total`) that carry the labels of `where`."""
        return tuple(s for s in self.series.get(name, ()) if s.matches(where))

    def buckets(self, name: str, where: Mapping[str, str]) -> dict[float, float]:
        """Cumulative counts by upper bound of a histogram, summed over its label sets."""
        counts: dict[float, float] = {}
        for series in self.select(name + _BUCKET, where):
            bound = float(series.labels.get("le", inf))
            counts[bound] = counts.get(bound, 0.0) + series.value
        return counts

    def sum_of(self, name: str, where: Mapping[str, str]) -> float:
        """Sum of the observed values of a histogram over its label sets."""
        return sum(s.value for s in self.select(name + _SUM, where))


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


def _families(text: str) -> Iterator[Metric]:
    try:
        yield from text_string_to_metric_families(text)
    except ValueError as broken:
        raise Rejected(f"not Prometheus text: {broken}") from broken


def _has_twins(found: list[Series]) -> bool:
    return len({frozenset(s.labels.items()) for s in found}) < len(found)
