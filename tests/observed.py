"""What telemetry shows of an emulated run: scrapes by the contract, the gateway's own histogram."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from optiinfra.gateway.tally import BOUNDS_S, Histogram
from optiinfra.schemas.deployment import Engine
from optiinfra.schemas.telemetry import Known, Reading, Sample, Unit
from optiinfra.serving.contracts import contract_for
from optiinfra.serving.exposition import parse
from optiinfra.serving.histograms import distribution
from optiinfra.serving.scrapes import Scrape, read
from optiinfra.serving.signals import NOT_READ, Beside, Signals, signals
from optiinfra.serving.windows import Window
from optiinfra.twin.endpoints import VERSION
from optiinfra.twin.recording import Recording
from tests.planted import EVERY_S, WARM_UP_S, WINDOW_S, Planted, Run

T0 = datetime(2026, 1, 5, tzinfo=UTC)
REPLICA = "r1"


def before_and_after(planted: Planted) -> tuple[Signals, Signals]:
    """Both runs; the hits of the healthy one are what this deployment usually reaches."""
    usual = observe(planted.healthy).prefix_hit_fraction
    return observe(planted.healthy, usual), observe(planted.bound, usual)


def observe(run: Run, reference: Reading = NOT_READ) -> Signals:
    """The signals of the run's second minute."""
    return signals(window(run.made), REPLICA, _beside(run, reference))


def window(made: Recording) -> Window:
    """The scrapes of the second minute, read by vLLM's contract, and the device's busy time."""
    series: dict[str, list[Sample]] = {}
    before: Scrape | None = None
    for shot in (shot for shot in made.shots if shot.at_s >= WARM_UP_S):
        now = Scrape(T0 + timedelta(seconds=shot.at_s), parse(shot.text), VERSION, emulated=True)
        busy = Sample(
            metric="gpu_busy_fraction", unit=Unit.FRACTION,
            reading=Known(value=shot.gpu_busy_fraction), at=now.at, replica=REPLICA,
        )  # fmt: skip
        for sample in (*read(contract_for(Engine.VLLM), REPLICA, now, before).samples, busy):
            series.setdefault(sample.metric, []).append(sample)
        before = now
    since, until = (T0 + timedelta(seconds=s) for s in (WARM_UP_S, WARM_UP_S + WINDOW_S))
    return Window(since, until, 2 * EVERY_S, series)


def _beside(run: Run, reference: Reading) -> Beside:
    """The configuration, the card, and TTFT from the gateway's own histogram."""
    tally = Histogram()
    for one in run.made.served:
        if one.first_s >= WARM_UP_S:
            tally.observe(one.ttft_s + run.setting.away_s)
    running, cumulative = 0, dict[float, float]()
    for bound, counted in zip((*BOUNDS_S, float("inf")), tally.counts, strict=True):
        running += counted
        cumulative[bound] = running
    client = distribution(cumulative, tally.sum_s)
    return Beside(
        max_num_seqs=Known(value=run.setting.config.max_num_seqs),
        client_ttft_p95_s=client.quantile(0.95),
        client_ttft_mean_s=client.mean,
        prefix_hit_reference=reference,
        card=run.setting.card,
    )
