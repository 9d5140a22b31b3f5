"""Readings of the NVIDIA GPUs of this machine through NVML, *unknown* where there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import pynvml

from optiinfra.schemas.errors import Unavailable
from optiinfra.schemas.telemetry import Known, Reading, Sample, Unit, Unknown, UnknownReason


@dataclass(frozen=True, slots=True)
class GpuReadings:
    """One GPU: what the driver can tell, the rest unknown.

    `busy_fraction` is time with a kernel running, not work done; `memory_used_fraction` stays high
    for engines that reserve their KV cache at the start. Neither says how loaded a replica is.
    """

    index: int
    uuid: str
    name: str
    busy_fraction: Reading
    memory_used_fraction: Reading
    temperature_celsius: Reading
    power_watts: Reading


class GpuSource(Protocol):
    """Where GPU readings come from."""

    def gpus(self) -> Sequence[GpuReadings]:
        """All GPUs of the machine. Raises `Unavailable` when the driver cannot be asked."""
        ...


class Nvml:
    """The driver of this machine; opened and closed on each call, so that it may come and go."""

    def gpus(self) -> Sequence[GpuReadings]:
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as missing:
            raise Unavailable(f"NVML: {missing}") from missing
        try:
            return [_gpu(index) for index in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError as failed:
            raise Unavailable(f"NVML: {failed}") from failed
        finally:
            pynvml.nvmlShutdown()


class GpuCollector:
    """Turns GPU readings into samples labelled with the host and the GPU."""

    def __init__(self, source: GpuSource | None = None, *, host: str) -> None:
        self._source = source or Nvml()
        self._host = host

    def collect(self, at: datetime) -> tuple[Sample, ...]:
        """Four samples a GPU; one unknown each, of `Unknown(NOT_SUPPORTED)`, without a driver."""
        try:
            gpus = self._source.gpus()
        except Unavailable as missing:
            why = Unknown(reason=UnknownReason.NOT_SUPPORTED, detail=missing.message)
            none = GpuReadings(0, "", "", why, why, why, why)
            return _samples(none, at, {"host": self._host})
        return tuple(
            sample
            for gpu in gpus
            for sample in _samples(
                gpu,
                at,
                {"host": self._host, "gpu": str(gpu.index), "uuid": gpu.uuid, "name": gpu.name},
            )
        )


def _samples(gpu: GpuReadings, at: datetime, labels: dict[str, str]) -> tuple[Sample, ...]:
    readings = (
        ("gpu_busy_fraction", Unit.FRACTION, gpu.busy_fraction),
        ("gpu_memory_used_fraction", Unit.FRACTION, gpu.memory_used_fraction),
        ("gpu_temperature_celsius", Unit.CELSIUS, gpu.temperature_celsius),
        ("gpu_power_watts", Unit.WATTS, gpu.power_watts),
    )
    return tuple(
        Sample(metric=metric, unit=unit, reading=reading, at=at, labels=labels)
        for metric, unit, reading in readings
    )


def _gpu(index: int) -> GpuReadings:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    return GpuReadings(
        index=index,
        uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
        name=str(pynvml.nvmlDeviceGetName(handle)),
        busy_fraction=_asked(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100),
        memory_used_fraction=_asked(lambda: _memory_fraction(handle)),
        temperature_celsius=_asked(
            lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
        ),
        power_watts=_asked(lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000),
    )


def _memory_fraction(handle: object) -> float:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return float(memory.used) / float(memory.total)


def _asked(ask: Callable[[], float]) -> Reading:
    """One query of the driver; what this GPU does not support is unknown."""
    try:
        return Known(value=float(ask()))
    except pynvml.NVMLError as refused:
        return Unknown(reason=UnknownReason.NOT_SUPPORTED, detail=f"NVML: {refused}")
