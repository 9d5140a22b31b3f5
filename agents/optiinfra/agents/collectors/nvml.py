"""Readings of the NVIDIA GPUs of this machine through NVML, *unknown* where there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import pynvml

from optiinfra.schemas.errors import Unavailable
from optiinfra.schemas.telemetry import Reading, Sample, Unit, Unknown, UnknownReason
from optiinfra.serving.contracts import Exporter, contract_for
from optiinfra.serving.exposition import exposition_of
from optiinfra.serving.scrapes import levels


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


_CONTRACT = contract_for(Exporter.NVML)


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
    answers: dict[str, float] = {}
    refusals: list[str] = []
    for name, ask in _questions(handle).items():
        try:
            answers[name] = float(ask())
        except pynvml.NVMLError as refused:
            refusals.append(f"{name}: {refused}")
    readings = levels(_CONTRACT, exposition_of(answers))
    return GpuReadings(
        index=index,
        uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
        name=str(pynvml.nvmlDeviceGetName(handle)),
        busy_fraction=_supported(readings["gpu_busy_fraction"], refusals),
        memory_used_fraction=_supported(readings["gpu_memory_used_fraction"], refusals),
        temperature_celsius=_supported(readings["gpu_temperature_celsius"], refusals),
        power_watts=_supported(readings["gpu_power_watts"], refusals),
    )


def _questions(gpu: object) -> Mapping[str, Callable[[], float]]:
    """What the driver is asked of one GPU, by the names of the contract."""
    return {
        "nvmlDeviceGetUtilizationRates.gpu": lambda: pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
        "nvmlDeviceGetMemoryInfo.used": lambda: pynvml.nvmlDeviceGetMemoryInfo(gpu).used,
        "nvmlDeviceGetMemoryInfo.total": lambda: pynvml.nvmlDeviceGetMemoryInfo(gpu).total,
        "nvmlDeviceGetTemperature": lambda: pynvml.nvmlDeviceGetTemperature(
            gpu, pynvml.NVML_TEMPERATURE_GPU
        ),
        "nvmlDeviceGetPowerUsage": lambda: pynvml.nvmlDeviceGetPowerUsage(gpu),
    }


def _supported(reading: Reading, refusals: Sequence[str]) -> Reading:
    """A GPU that refuses a question does not support it: no question is ever left out."""
    if isinstance(reading, Unknown) and reading.reason is UnknownReason.MISSING:
        detail = f"NVML: {'; '.join(refusals)}"
        return Unknown(reason=UnknownReason.NOT_SUPPORTED, detail=detail)
    return reading
