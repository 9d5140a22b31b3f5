"""Readings of the machine that this process runs on: processor, memory, disk, network."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import psutil

from optiinfra.schemas.telemetry import Known, Reading, Sample, Unit, Unknown, UnknownReason


@dataclass(frozen=True, slots=True)
class HostCounters:
    """Counters and levels of one machine at one time; bytes and seconds."""

    cpu_busy_s: float
    cpu_total_s: float
    memory_used_bytes: float
    memory_total_bytes: float
    disk_used_bytes: float
    disk_total_bytes: float
    received_bytes: float
    sent_bytes: float


class HostSource(Protocol):
    """Where the counters come from."""

    def counters(self) -> HostCounters: ...


class LocalHost:
    """The machine under this process, through psutil; `disk` is the mount point that is watched."""

    def __init__(self, disk: str = "/") -> None:
        self._disk = disk

    def counters(self) -> HostCounters:
        times = psutil.cpu_times()
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(self._disk)
        network = psutil.net_io_counters()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # Linux counts guest time within user time already.
        guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
        total = sum(times) - guest
        return HostCounters(
            cpu_busy_s=total - idle,
            cpu_total_s=total,
            memory_used_bytes=float(memory.total - memory.available),
            memory_total_bytes=float(memory.total),
            disk_used_bytes=float(disk.used),
            disk_total_bytes=float(disk.total),
            received_bytes=float(network.bytes_recv) if network else 0.0,
            sent_bytes=float(network.bytes_sent) if network else 0.0,
        )


class HostCollector:
    """Turns counters into samples labelled with the host's name; rates need a second round."""

    def __init__(self, source: HostSource | None = None, *, host: str | None = None) -> None:
        self._source = source or LocalHost()
        self._labels = {"host": host or platform.node() or "unknown"}
        self._before: tuple[datetime, HostCounters] | None = None

    def collect(self, at: datetime) -> tuple[Sample, ...]:
        """Fractions of processor, memory and disk in use, and network bytes/s, at `at`."""
        now = self._source.counters()
        before, self._before = self._before, (at, now)
        window_s = (at - before[0]).total_seconds() if before else 0.0
        readings: list[tuple[str, Unit, Reading]] = [
            ("host_memory_used_fraction", Unit.FRACTION,
             _ratio(now.memory_used_bytes, now.memory_total_bytes)),
            ("host_disk_used_fraction", Unit.FRACTION,
             _ratio(now.disk_used_bytes, now.disk_total_bytes)),
        ]  # fmt: skip
        if before is not None and window_s > 0:
            readings += _rates(before[1], now, window_s)
        return tuple(
            Sample(
                metric=metric, unit=unit, reading=reading, at=at, window_s=window_s,
                labels=self._labels,
            )
            for metric, unit, reading in readings
        )  # fmt: skip


def _rates(
    before: HostCounters, now: HostCounters, window_s: float
) -> list[tuple[str, Unit, Reading]]:
    busy, total = now.cpu_busy_s - before.cpu_busy_s, now.cpu_total_s - before.cpu_total_s
    received, sent = now.received_bytes - before.received_bytes, now.sent_bytes - before.sent_bytes
    return [
        ("host_cpu_busy_fraction", Unit.FRACTION, _ratio(busy, total)),
        ("host_received_bytes_per_s", Unit.PER_SECOND, _rate(received, window_s)),
        ("host_sent_bytes_per_s", Unit.PER_SECOND, _rate(sent, window_s)),
    ]


def _ratio(part: float, whole: float) -> Reading:
    if whole <= 0 or part < 0:
        detail = f"{part:g} of {whole:g}"
        return Unknown(reason=UnknownReason.IMPLAUSIBLE, detail=detail)
    return Known(value=min(1.0, part / whole))


def _rate(count: float, window_s: float) -> Reading:
    if count < 0:
        return Unknown(reason=UnknownReason.IMPLAUSIBLE, detail="a counter fell")
    return Known(value=count / window_s)
