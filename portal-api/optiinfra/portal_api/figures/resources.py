"""What a deployment runs on: its replicas, which of them idle, and the GPUs of our machines."""

from __future__ import annotations

from pydantic import AwareDatetime, BaseModel, Field

from optiinfra.portal_api.examples import shown_as
from optiinfra.portal_api.figures import spending
from optiinfra.portal_api.figures.measured import Measured, added, known, unknown
from optiinfra.portal_api.figures.seen import NOTHING, Seen
from optiinfra.portal_api.figures.spending import Priced, Use, priced, use_of
from optiinfra.portal_api.measures import MEASURES, OFFERED, SPEND
from optiinfra.schemas.telemetry import Unit

HOST = "host"
"""The deployment under which the machines that agents run on are kept."""
LEVELS = {
    "kv_usage": "kv_usage_fraction",
    "kv_capacity_tokens": "kv_capacity_tokens",
    "running": "requests_running",
    "waiting": "requests_waiting",
    "requests_per_s": "requests_per_s",
}
GPU_LEVELS = {
    "busy": "gpu_busy_fraction",
    "memory_used": "gpu_memory_used_fraction",
    "temperature": "gpu_temperature_celsius",
    "power": "gpu_power_watts",
}
METRICS = tuple(dict.fromkeys((*spending.METRICS, OFFERED, *LEVELS.values(), *GPU_LEVELS.values())))


class ReplicaView(BaseModel):
    """One replica that was priced or scraped in the window."""

    replica: str
    state: Use = Field(description="over the window; unknown where it was not watched throughout")
    instance_type: str | None
    market: str | None
    last_seen_at: AwareDatetime
    usd_per_hour: Measured
    kv_usage: Measured
    kv_capacity_tokens: Measured
    running: Measured
    waiting: Measured
    requests_per_s: Measured


class Idle(BaseModel):
    """Replicas that had no request in the whole window."""

    replicas: list[str]
    usd_per_hour: Measured
    usd_in_window: Measured


class GpuView(BaseModel):
    host: str
    gpu: str
    name: str | None
    busy: Measured = Field(description="time with a kernel running: no measure of work done")
    memory_used: Measured
    temperature: Measured
    power: Measured


class ResourcesView(BaseModel):
    model_config = shown_as("resources")

    deployment: str
    at: AwareDatetime
    window_s: float
    simulated: bool
    replicas: list[ReplicaView]
    idle: Idle
    gpus: list[GpuView] = Field(description="of the machines that agents run on")
    offered_rps: Measured


def resources(seen: Seen, machines: Seen) -> ResourcesView:
    """All figures of one deployment."""
    paid = priced(seen)
    return ResourcesView(
        deployment=seen.deployment,
        at=seen.span.until,
        window_s=seen.span.seconds,
        simulated=seen.is_emulated,
        replicas=[_replica(seen, name) for name in seen.replicas],
        idle=_idle(paid, seen),
        gpus=_gpus(machines),
        offered_rps=seen.newest(OFFERED, replica=""),
    )


def _replica(seen: Seen, name: str) -> ReplicaView:
    prices = seen.of(SPEND, replica=name)
    labels = max(prices, key=lambda row: row.last_at).labels if prices else {}
    levels = {key: seen.newest(metric, replica=name) for key, metric in LEVELS.items()}
    return ReplicaView(
        replica=name,
        state=use_of(seen, name),
        instance_type=labels.get("instance_type"),
        market=labels.get("market"),
        last_seen_at=max(row.last_at for row in seen.rows if row.replica == name),
        usd_per_hour=seen.newest(SPEND, replica=name),
        **levels,
    )


def _idle(paid: list[Priced], seen: Seen) -> Idle:
    idle = [(one.replica, one.usd) for one in paid if one.use is Use.IDLE]
    usd = added(idle, Unit.USD_PER_HOUR, "") if idle else _none(paid)
    return Idle(
        replicas=[name for name, _ in idle],
        usd_per_hour=usd,
        usd_in_window=usd.times(seen.span.seconds / 3_600, "usd"),
    )


def _none(paid: list[Priced]) -> Measured:
    """Nothing idles: that is only known where something is paid for and watched."""
    dark = next((one for one in paid if one.use is Use.UNKNOWN), None)
    if dark is not None:
        return unknown(f"{dark.replica}: its load is not known", Unit.USD_PER_HOUR)
    return known(0.0, Unit.USD_PER_HOUR) if paid else unknown(NOTHING, Unit.USD_PER_HOUR)


def _gpus(machines: Seen) -> list[GpuView]:
    found = {
        (row.labels.get("host", ""), row.labels["gpu"]): row.labels.get("name")
        for metric in GPU_LEVELS.values()
        for row in machines.of(metric)
        if "gpu" in row.labels
    }
    return [_gpu(machines, host, gpu, name) for (host, gpu), name in sorted(found.items())]


def _gpu(machines: Seen, host: str, gpu: str, name: str | None) -> GpuView:
    levels = {key: _level(machines, metric, host, gpu) for key, metric in GPU_LEVELS.items()}
    return GpuView(host=host, gpu=gpu, name=name, **levels)


def _level(machines: Seen, metric: str, host: str, gpu: str) -> Measured:
    rows = machines.of(metric, host=host, gpu=gpu)
    if not rows:
        return unknown(NOTHING, MEASURES[metric].unit)
    return machines.newest(metric, replica=rows[0].replica, host=host, gpu=gpu)
