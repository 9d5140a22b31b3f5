"""What is paid for what: by component with idle apart, and for each million tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel

from optiinfra.portal_api.figures.measured import Band, Measured, added, known, unknown
from optiinfra.portal_api.figures.seen import NOTHING, Seen, Span
from optiinfra.portal_api.measures import SCRAPES, SPEND
from optiinfra.schemas.money import HOURS_PER_MONTH
from optiinfra.storage.clickhouse_summaries import Summary

LOADS = ("requests_running", "requests_waiting", "requests_per_s")
TOKENS = ("prompt_tokens_per_s", "generation_tokens_per_s")
METRICS = (SPEND, SCRAPES, *LOADS, *TOKENS)
WATCHED = 0.8
"""So much of the window a replica must have been watched before it is called idle."""
MILLION = 1e6
PER_MILLION = "usd_per_million_tokens"
PER_MONTH = "usd_per_month"


class Use(StrEnum):
    """What a replica did in the window; unknown where it was not watched throughout."""

    BUSY = "busy"
    IDLE = "idle"
    UNKNOWN = "unknown"


class Component(BaseModel):
    """Busy replicas by market; idle and unmeasured ones apart."""

    component: str
    usd_per_hour: float


@dataclass(frozen=True, slots=True)
class Priced:
    """A replica, what it costs and what it does."""

    replica: str
    usd: Measured
    use: Use
    labels: Mapping[str, str]

    @property
    def component(self) -> str:
        if self.use is Use.IDLE:
            return "idle"
        if self.use is Use.UNKNOWN:
            return "unmeasured"
        return self.labels.get("market", "unmeasured")


def priced(seen: Seen) -> list[Priced]:
    """The replicas that are paid for now, by name: those of the newest look at the fleet.

    Parts and whole are of one look, so a replica that has gone since is in neither.
    """
    found = []
    looked_at = max((row.last_at for row in seen.of(SPEND, replica="")), default=None)
    for replica in sorted({row.replica for row in seen.of(SPEND)} - {""}):
        usd = seen.newest(SPEND, replica=replica)
        row = max(seen.of(SPEND, replica=replica), key=lambda one: one.last_at)
        if seen.is_fresh(row) and (looked_at is None or row.last_at >= looked_at):
            found.append(Priced(replica, usd, use_of(seen, replica), row.labels))
    return found


def use_of(seen: Seen, replica: str) -> Use:
    """Idle is only what was watched nearly all the time and never had a request."""
    rows = {metric: seen.of(metric, replica=replica) for metric in LOADS}
    if any(row.high for several in rows.values() for row in several):
        return Use.BUSY
    quiet = all(several and _watched(several, seen.span) for several in rows.values())
    return Use.IDLE if quiet else Use.UNKNOWN


def _watched(rows: list[Summary], span: Span) -> bool:
    first, last = min(row.first_at for row in rows), max(row.last_at for row in rows)
    is_whole = (last - first).total_seconds() >= WATCHED * span.seconds
    return is_whole and all(row.unknown == 0 for row in rows)


def rate(seen: Seen) -> Measured:
    """What the deployment costs now, as its agent added it up."""
    return seen.newest(SPEND, replica="")


def components(replicas: list[Priced]) -> list[Component]:
    """What is known of the parts; replicas without a price are in none."""
    sums: dict[str, float] = {}
    for one in replicas:
        if one.usd.value is not None:
            sums[one.component] = sums.get(one.component, 0.0) + one.usd.value
    return [Component(component=name, usd_per_hour=usd) for name, usd in sorted(sums.items())]


def idle_rate(replicas: list[Priced], total: Measured) -> Measured:
    """What idle replicas cost; unknown where one is not watched, or nobody knows the fleet."""
    if not replicas and total.value != 0:
        return unknown(total.reason or "no replica is priced", "usd_per_hour")
    dark = next((one for one in replicas if one.use is Use.UNKNOWN), None)
    if dark is not None:
        return unknown(f"{dark.replica}: its load is not known", "usd_per_hour")
    idle = [(one.replica, one.usd) for one in replicas if one.use is Use.IDLE]
    return added(idle, "usd_per_hour", "") if idle else known(0.0, "usd_per_hour", total.at)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens that replicas were seen to handle; None where one does not tell."""

    prompt: float | None
    generated: float | None

    @property
    def both(self) -> float | None:
        if self.prompt is None or self.generated is None:
            return None
        return self.prompt + self.generated


def tokens(seen: Seen) -> Tokens:
    """Over the window, of all replicas that were scraped in it."""
    return Tokens(*(_counted(seen, metric) for metric in TOKENS))


def _counted(seen: Seen, metric: str) -> float | None:
    rows = seen.of(metric)
    scraped = {row.replica for row in seen.of(SCRAPES) if row.known}
    told = {row.replica for row in rows if row.known}
    return sum(row.weighted for row in rows) if rows and scraped <= told else None


def per_million(seen: Seen) -> Measured:
    """What was paid for the time in which replicas were watched ÷ the tokens of that time."""
    total = tokens(seen).both
    if total is None:
        why = "a replica does not tell its tokens" if seen.of(SCRAPES) else NOTHING
        return unknown(why, PER_MILLION)
    if not total:
        return unknown("no_traffic", PER_MILLION)
    paid = 0.0
    for replica in sorted({row.replica for row in seen.of(TOKENS[1])}):
        usd = _mean_price(seen, replica)
        if usd is None:
            return unknown(f"{replica}: what it cost is not known", PER_MILLION)
        watched_s = sum(row.covered_s for row in seen.of(TOKENS[1], replica=replica))
        paid += usd * watched_s / 3_600
    return known(paid / total * MILLION, PER_MILLION)


def _mean_price(seen: Seen, replica: str) -> float | None:
    rows = [row for row in seen.of(SPEND, replica=replica) if row.mean is not None]
    readings = sum(row.known for row in rows)
    if not readings:
        return None
    return sum((row.mean or 0.0) * row.known for row in rows) / readings


def per_million_good(every: Measured, goodput: Band) -> Band:
    """The same for tokens of requests that keep their objectives, as if all were as long."""
    if every.value is None or goodput.low is None or goodput.high is None:
        return Band(low=None, high=None, reason=every.reason or goodput.reason)
    if not goodput.high:
        return Band(low=None, high=None, reason="no request kept its objectives")
    worst = every.value / goodput.low if goodput.low else None
    return Band(low=every.value / goodput.high, high=worst)


def a_month(usd_per_hour: Measured) -> Measured:
    return usd_per_hour.times(HOURS_PER_MONTH, PER_MONTH)
