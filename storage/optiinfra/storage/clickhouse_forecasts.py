"""Forecasts of offered load as they were recorded when they were made, and the load that came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from optiinfra.storage import clickhouse_queries as queries
from optiinfra.storage.clickhouse_queries import Question, milliseconds, moment

STEPS = 1_440
"""Of each step the last forecast and the highest load are read: of a day the minutes."""
_LEAST_MS = 1_000
_SPAN = f"{queries.SERIES} AND {queries.BETWEEN}"
_STEP = "intDiv(toUnixTimestamp64Milli(ts), {width_ms:Int64})"
_MADE = f"""
SELECT toUnixTimestamp64Milli(ts), value, unknown_reason, labels FROM metrics WHERE {_SPAN}
ORDER BY ts DESC LIMIT 1 BY {_STEP} LIMIT {STEPS + 1}
"""  # noqa: S608 - constants only
_CAME = f"""
SELECT max(toUnixTimestamp64Milli(ts)), max(value) FROM metrics WHERE {_SPAN} AND isNotNull(value)
GROUP BY {_STEP} ORDER BY 1 LIMIT {STEPS + 1}
"""  # noqa: S608 - constants only
_FIRST = f"""
SELECT toUnixTimestamp64Milli(ts) FROM metrics WHERE {queries.SERIES} ORDER BY ts LIMIT 1
"""  # noqa: S608 - constants only


@dataclass(frozen=True, kw_only=True)
class ForecastQuery:
    """What was forecast of a deployment in [since, until), and `came` metric for metric."""

    tenant: str
    deployment: str
    forecast: str
    came: str
    since: datetime
    until: datetime

    def of(self, metric: str) -> dict[str, Any]:
        span_ms = milliseconds(self.until) - milliseconds(self.since)
        return {
            "tenant": self.tenant,
            "deployment": self.deployment,
            "metric": metric,
            "since_ms": milliseconds(self.since),
            "until_ms": milliseconds(self.until),
            "width_ms": max(_LEAST_MS, -(-span_ms // STEPS)),
        }


@dataclass(frozen=True, slots=True)
class Made:
    """A forecast of the peak of the next `horizon_s`; None, and why, where none could be made."""

    at: datetime
    expected_rps: float | None
    high_rps: float | None
    reason: str
    method: str
    horizon_s: float
    aims_at: float | None


@dataclass(frozen=True, slots=True)
class Recorded:
    """All by time; `first_at` is the oldest forecast that is kept of this deployment at all."""

    made: list[Made]
    came: list[tuple[datetime, float]]
    first_at: datetime | None


def questions(query: ForecastQuery) -> tuple[Question, Question, Question]:
    """The forecasts, the load that came, and when the first forecast was recorded."""
    forecast = query.of(query.forecast)
    return (
        Question(_MADE, forecast),
        Question(_CAME, query.of(query.came)),
        Question(_FIRST, forecast),
    )


def recorded(
    made: Sequence[Sequence[Any]], came: Sequence[Sequence[Any]], first: Sequence[Sequence[Any]]
) -> Recorded:
    """The answers to the three questions."""
    return Recorded(
        made=[_made(*row) for row in reversed(made)],
        came=[(moment(at_ms), value) for at_ms, value in came],
        first_at=moment(first[0][0]) if first else None,
    )


def _made(at_ms: int, high: float | None, reason: str, labels: dict[str, str]) -> Made:
    """The error of a forecast is how far its head-room reaches beyond what was expected."""
    return Made(
        at=moment(at_ms),
        expected_rps=None if high is None else high - float(labels.get("__error", 0.0)),
        high_rps=high,
        reason=labels.get("__detail", reason),
        method=labels.get("method", ""),
        horizon_s=float(labels["horizon_s"]),
        aims_at=float(labels["aims_at"]) if "aims_at" in labels else None,
    )
