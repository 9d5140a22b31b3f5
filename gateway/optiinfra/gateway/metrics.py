"""The gateway's Prometheus metrics, read from its tallies at scrape time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from optiinfra.gateway.routes import Routes
from optiinfra.gateway.tally import BOUNDS_S, Histogram, Latency, Tallies
from optiinfra.gateway.tap import Tap

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_REPLICA = ("tenant", "deployment", "replica")
_EXPOSED = range(0, len(BOUNDS_S), 3)
"""Every third bound is exposed (powers of two); `/admin/counters` has them all."""
_HELP = {
    Latency.TTFT: ("ttft", "From the whole request received to its first output token"),
    Latency.TPOT: ("tpot", "Mean time per output token after the first, per request"),
    Latency.E2E: ("e2e", "From the whole request received to the end of its answer"),
    Latency.ADDED: ("added_latency", "What the gateway adds before asking and after receiving"),
}


class GatewayCollector(Collector):
    """Turns tallies, routes and the tap into metric families."""

    def __init__(self, tallies: Tallies, tap: Tap, routes: Callable[[], Routes]) -> None:
        self._tallies = tallies
        self._tap = tap
        self._routes = routes

    def collect(self) -> Iterable[Metric]:
        yield from self._requests()
        for kind in Latency:
            yield self._latency(kind)
        yield self._versions()
        yield from self._samples()

    def _requests(self) -> Iterator[Metric]:
        ended = CounterMetricFamily(
            "optiinfra_gateway_requests",
            "Requests ended, by how; replica is empty when none was reached",
            labels=[*_REPLICA, "outcome"],
        )
        retried = CounterMetricFamily(
            "optiinfra_gateway_retries",
            "Attempts that another replica took over before an answer had begun",
            labels=_REPLICA,
        )
        open_now = GaugeMetricFamily(
            "optiinfra_gateway_in_flight", "Requests now at a replica", labels=_REPLICA
        )
        for key, replica, tally in self._tallies.all():
            labels = [*key, replica or ""]
            for outcome, count in tally.outcomes.items():
                ended.add_metric([*labels, outcome], count)
            retried.add_metric(labels, tally.retried)
            open_now.add_metric(labels, tally.in_flight)
        yield from (ended, retried, open_now)

    def _latency(self, kind: Latency) -> Metric:
        name, text = _HELP[kind]
        family = HistogramMetricFamily(f"optiinfra_gateway_{name}_seconds", text, labels=_REPLICA)
        for key, replica, tally in self._tallies.all():
            histogram = tally.latency[kind]
            if replica is not None:
                family.add_metric([*key, replica], _buckets(histogram), histogram.sum_s)
        return family

    def _versions(self) -> Metric:
        family = GaugeMetricFamily(
            "optiinfra_gateway_route_version",
            "Version of the routes in force",
            labels=["tenant", "deployment"],
        )
        for table in self._routes().tables:
            family.add_metric([table.tenant, table.deployment], table.version)
        return family

    def _samples(self) -> Iterator[Metric]:
        counts = {
            "delivered": ("Samples handed to the bus", self._tap.delivered),
            "dropped": ("Samples lost to a full queue or rejected", self._tap.dropped),
            "oversized": ("Requests not sampled: a text too long", self._tap.oversized),
        }
        for name, (text, count) in counts.items():
            yield CounterMetricFamily(f"optiinfra_gateway_samples_{name}", text, value=count)
        yield GaugeMetricFamily(
            "optiinfra_gateway_samples_waiting", "Samples not yet delivered", self._tap.waiting
        )


def exposition(collector: Collector) -> Callable[[], bytes]:
    """A function that renders what `collector` knows now in Prometheus text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return lambda: generate_latest(registry)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    below = list(accumulate(histogram.counts))
    exposed = [(repr(BOUNDS_S[at]), float(below[at])) for at in _EXPOSED]
    return [*exposed, ("+Inf", float(below[-1]))]
