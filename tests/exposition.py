"""Small expositions for tests, and how to look into what was read from them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from optiinfra.schemas.telemetry import Known, Reading, Unknown, UnknownReason
from optiinfra.serving.exposition import parse
from optiinfra.serving.scrapes import Scrape, ScrapeReadings

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def lines(**values: float) -> str:
    """A small but whole vLLM 0.32 exposition; `values` override gauges and counters."""
    gauges = {"num_requests_running": 2.0, "num_requests_waiting": 1.0, "kv_cache_usage_perc": 0.5}
    counters = {"request_success_total": 10.0}
    text = []
    for kind, group in (("gauge", gauges), ("counter", counters)):
        for name, value in group.items():
            text.append(f"# TYPE vllm:{name} {kind}")
            text.append(f'vllm:{name}{{engine="0"}} {values.get(name, value)}')
    return "\n".join(text) + "\n"


def histogram(name: str, counts: dict[str, int], total: float = 0.0) -> str:
    rows = [f'{name}_bucket{{le="{le}"}} {count}' for le, count in counts.items()]
    return "\n".join([f"# TYPE {name} histogram", *rows, f"{name}_sum {total}"]) + "\n"


TTFT = "vllm:time_to_first_token_seconds"
TPOT = "vllm:request_time_per_output_token_seconds"


def scrape(text: str, after_s: float = 0.0, version: str | None = "0.32.0") -> Scrape:
    return Scrape(T0 + timedelta(seconds=after_s), parse(text), version)


def reading(readings: ScrapeReadings, metric: str, **labels: str) -> Reading:
    found = [
        s.reading
        for s in readings.samples
        if s.metric == metric and all(s.labels.get(k) == v for k, v in labels.items())
    ]
    assert len(found) == 1, f"{metric} {labels}: {len(found)} samples"
    return found[0]


def value(readings: ScrapeReadings, metric: str, **labels: str) -> float:
    found = reading(readings, metric, **labels)
    assert isinstance(found, Known), found
    return found.value


def reason(readings: ScrapeReadings, metric: str, **labels: str) -> UnknownReason:
    found = reading(readings, metric, **labels)
    assert isinstance(found, Unknown), found
    return found.reason
