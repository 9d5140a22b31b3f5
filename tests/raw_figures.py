"""Figures recomputed in plain Python out of rows as they are stored, for tests that compare."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import inf
from statistics import fmean
from typing import Any

import pytest

from optiinfra.storage.metric_rows import MetricRow
from optiinfra.storage.postgres.database import Database

HOURS_A_MONTH = 730
NAMES = ("id", "deployment", "replica", "metric", "component", "source", "gpu")
"""What tells the parts of a list apart."""


def numbers(node: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number of an answer, with the way to it."""
    match node:
        case bool() | str() | None:
            return
        case int() | float():
            yield path, node
        case dict():
            for name, part in node.items():
                yield from numbers(part, f"{path}.{name}" if path else name)
        case list():
            for place, part in enumerate(node):
                yield from numbers(part, f"{path}[{_name(part, place)}]")
        case _:
            raise AssertionError(f"{path} is a {type(node)}")


def _name(part: Any, place: int) -> str:
    if not isinstance(part, dict):
        return str(place)
    return next((str(part[name]) for name in NAMES if isinstance(part.get(name), str)), str(place))


def under(path: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{path}.{name}": value for name, value in values.items()}


def is_exactly(view: Any, expected: Mapping[str, Any]) -> None:
    """Every number has its recomputation, every recomputation its number, and they agree."""
    told = dict(numbers(view))
    assert {name: pytest.approx(value) for name, value in expected.items()} == told


async def logged(database: Database, kind: str) -> list[dict[str, Any]]:
    """The events of a kind as the log has them, in its order."""
    async with database.connection() as connection:
        rows = await connection.fetch(
            "SELECT event_id, chain, position, version, at, body FROM event_log"
            " WHERE type LIKE $1 ORDER BY position",
            f"optiinfra.{kind}.v1",
        )
    return [{**row, "fact": json.loads(row["body"])} for row in rows]


@dataclass(frozen=True)
class Raw:
    """The rows of one deployment that a window holds."""

    rows: Sequence[MetricRow]
    until: datetime
    window_s: float

    def of(self, metric: str, *, replica: str | None = "*", **labels: str) -> list[MetricRow]:
        """In the order of time; `replica` None: those of the deployment itself."""
        since = self.until - timedelta(seconds=self.window_s)
        found = [
            row
            for row in self.rows
            if row.metric == metric
            and since <= row.at < self.until
            and replica in ("*", row.replica)
            and labels.items() <= row.labels.items()
        ]
        return sorted(found, key=lambda row: row.at)

    def values(self, metric: str, **where: Any) -> list[float]:
        return [row.value for row in self.of(metric, **where) if row.value is not None]

    def newest(self, metric: str, *, replica: str | None = "*", **labels: str) -> float:
        value = self.of(metric, replica=replica, **labels)[-1].value
        assert value is not None
        return value

    def replicas(self, metric: str) -> list[str]:
        return sorted({row.replica for row in self.of(metric) if row.replica})

    def counted(self, metric: str) -> float:
        """A rate × the seconds that each reading covers."""
        return sum((row.value or 0.0) * float(row.labels["__window_s"]) for row in self.of(metric))

    def newest_of_all(self, metric: str, fold: Callable[[list[float]], float]) -> float:
        return fold([self.newest(metric, replica=one) for one in self.replicas(metric)])

    def at_each_time(self, metric: str, fold: Callable[[list[float]], float]) -> float:
        """The mean over all scrapes of what the replicas said at once."""
        at_once: dict[datetime, list[float]] = defaultdict(list)
        for row in self.of(metric):
            at_once[row.at].append(row.value or 0.0)
        return fmean(fold(values) for values in at_once.values())

    def bins(self, metric: str, *, last_s: float = inf) -> list[tuple[float, float, float]]:
        """Upper and lower end and count, by upper end."""
        counts: dict[tuple[float, float], float] = defaultdict(float)
        for row in self.of(f"{metric}_bucket"):
            if (self.until - row.at).total_seconds() <= last_s:
                ends = float(row.labels["le"]), float(row.labels["ge"])
                counts[ends] += row.value or 0.0
        return sorted((high, low, count) for (high, low), count in counts.items())

    def quantile(self, metric: str, fraction: float, *, last_s: float = inf) -> float:
        bins = self.bins(metric, last_s=last_s)
        left = fraction * sum(count for _, _, count in bins)
        for high, low, count in bins:
            if left <= count:
                return low + (high - low) * left / count
            left -= count
        raise AssertionError(f"nothing of {metric}")

    def within(self, metric: str, limit: float) -> float:
        bins = self.bins(metric)
        kept = sum(count * min(1.0, max(0.0, (limit - low) / (high - low)))
                   for high, low, count in bins)  # fmt: skip
        return kept / sum(count for _, _, count in bins)

    def requests(self, metric: str) -> int:
        return round(sum(count for _, _, count in self.bins(metric)))

    def error_share(self) -> float:
        return self.counted("errors_per_s") / self.counted("requests_per_s")
