"""Telemetry contracts: what each engine version exposes, and what it is called here.

Our metrics (fixed names). Histograms become samples with the label `quantile` = p50, p95, p99 or
mean; pooled ones also `<metric>_bucket` (observations in (`ge`, `le`]) and `<metric>_sum`, so that
any window over any replicas can be put together again exactly. Where several engines answer behind
one endpoint, `<metric>_by_engine` has each one's own value.

| metric | unit | what |
|---|---|---|
| `ttft_s` `tpot_s` `itl_s` `e2e_s` `queue_time_s` | s | latencies; `ttft_s` and `tpot_s` pooled |
| `prompt_length_tokens` `output_length_tokens` | tokens | lengths of finished requests; pooled |
| `requests_running` `requests_waiting` | count | now |
| `requests_per_s` `errors_per_s` `preemptions_per_s` | per_s | finished, failed, preempted |
| `prompt_tokens_per_s` `generation_tokens_per_s` | per_s | token throughput |
| `prefill_seconds_per_s` | per_s | time that finished requests spent in prefill, added up |
| `kv_usage_fraction` `prefix_cache_hit_fraction` | fraction | of the KV cache; of queried tokens |
| `kv_capacity_tokens` `max_num_seqs` | tokens, count | configuration, where exposed |
| `scrape_window_s` | s | time since the scrape before; what rates and buckets cover |
| `gpu_busy_fraction` | fraction | time with a kernel running: no measure of work done |
| `gpu_tensor_active_fraction` `gpu_dram_active_fraction` | fraction | cycles that a unit works |
| `gpu_memory_used_fraction` | fraction | stays high where an engine reserves its KV cache |
| `gpu_temperature_celsius` `gpu_power_watts` `gpu_power_mean_watts` | | now; over the window |
| `host_cpu_busy_fraction` `host_memory_used_fraction` `host_disk_used_fraction` | fraction | |
| `host_received_bytes_per_s` `host_sent_bytes_per_s` | per_s | all devices but the loopback |
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from enum import StrEnum
from functools import lru_cache
from importlib.resources import files
from typing import Self

from pydantic import Field, model_validator

from optiinfra.schemas.base import Value
from optiinfra.schemas.deployment import Engine
from optiinfra.schemas.telemetry import Unit
from optiinfra.serving.units import ExposedUnit, factor
from optiinfra.serving.versions import Version, parse_version, within

_TABLES = files("optiinfra.serving") / "data" / "contracts"


class Exporter(StrEnum):
    """What exposes a machine or its GPUs instead of an engine."""

    DCGM = "dcgm_exporter"
    NODE = "node_exporter"
    NVML = "nvml"


class ExposedType(StrEnum):
    """How the engine exposes a quantity; `info` carries numbers in the labels of a constant."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    INFO = "info"


class Combine(StrEnum):
    """How the series of several engines behind one endpoint become one value."""

    SUM = "sum"
    MEAN = "mean"


class Selection(Value):
    """Series of one name, with the label values of `where` and with none of those of `unless`."""

    name: str
    where: dict[str, str] = Field(default_factory=dict)
    unless: dict[str, tuple[str, ...]] = Field(default_factory=dict)


class Source(Selection):
    """One exposed name, valid in [since, until); bounds lie where the sources prove the change.

    Counters are named as in the text, which may lack the `_total` that parsers add. `times`
    multiplies by other quantities, `per` divides by the sum of others (of their counts in the
    window, for counters), `complement` takes it from 1; `unit` is that of the result. `labels`
    names the numbers of an `info` metric, multiplied. `first_use` says that a label value appears
    with its first count, so that its absence beside other series is a true zero. `basis` tells
    apart what one name means: "token" where a latency is observed once a token instead of a
    request. `none_is` is the value that stands for having none. `buckets` has the upper bounds
    that its versions ship with, one list for each set; samples over others carry the label
    `buckets=other`.
    """

    type: ExposedType
    unit: ExposedUnit
    since: str | None = None
    until: str | None = None
    times: tuple[Selection, ...] = ()
    per: tuple[Selection, ...] = ()
    complement: bool = False
    labels: tuple[str, ...] = ()
    first_use: bool = False
    basis: str | None = None
    none_is: float | None = None
    buckets: tuple[tuple[float, ...], ...] = ()

    def covers(self, version: Version | None) -> bool:
        """Whether `version` is in its range; an unknown version may be any."""
        return version is None or within(version, self.since, self.until)

    def selections(self) -> Iterable[Selection]:
        """All that it is made of."""
        return (self, *self.times, *self.per)


class Promise(Value):
    """One of our metrics and the names it may have, the preferred one first.

    A reading outside [low, high] is implausible. What is missing leaves a gap unless it is
    `optional`, which an engine may leave out by its configuration; what is `required` is also told
    as unknown where the server cannot be reached.
    """

    metric: str
    unit: Unit
    required: bool = False
    optional: bool = False
    pooled: bool = False
    combine: Combine = Combine.SUM
    low: float = 0.0
    high: float | None = None
    sources: tuple[Source, ...] = ()

    @model_validator(mode="after")
    def _units_measure_the_same(self) -> Self:
        for source in self.sources:
            if factor(source.unit, self.unit) is None:
                raise ValueError(
                    f"{self.metric} is in {self.unit}: {source.name} in {source.unit} is another"
                    " quantity"
                )
        return self


class Identity(Value):
    """The labels that tell the series behind one endpoint apart.

    Those of different models are never put together. `engine` numbers the engines that share the
    load. `copies` are ranks that all tell the same, of which the lowest is read. `apart` (ours by
    theirs) tells devices apart: each has samples of its own, with our labels.
    """

    model: str | None = None
    engine: str | None = None
    copies: tuple[str, ...] = ()
    apart: dict[str, str] = Field(default_factory=dict)

    @property
    def ours(self) -> dict[str, str]:
        """Our names of the labels that tell engines or devices apart, by theirs."""
        return {**self.apart, self.engine: "engine"} if self.engine else self.apart


class VersionAt(Value):
    """Where a server tells its version: `field` of a JSON answer, or `version` of a metric."""

    paths: tuple[str, ...] = ()
    field: str = "version"
    metric: str | None = None


class Contract(Value):
    """All promises of one engine or exporter, checked from version `since` up to `until`.

    Without the two it was checked against documents only. `started` names the metric whose change
    means that all counters begin anew.
    """

    engine: Engine | Exporter
    since: str | None = None
    until: str | None = None
    version_at: VersionAt = VersionAt()
    identity: Identity = Identity()
    started: str | None = None
    promises: tuple[Promise, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _metrics_are_unique(self) -> Self:
        names = [promise.metric for promise in self.promises]
        if len(names) != len(set(names)):
            raise ValueError("a metric is promised twice")
        return self

    def resolve(self, version: str | None) -> tuple[Version | None, bool]:
        """The version to read by, and whether the table was checked against it.

        A later version is read by the newest rules and an unknown one by all; neither is checked.
        """
        found = parse_version(version)
        if found is None or self.since is None:
            return found, False
        return found, within(found, self.since, self.until)


@lru_cache(maxsize=len(Engine) + len(Exporter))
def contract_for(engine: Engine | Exporter) -> Contract:
    """The contract that ships for an engine or exporter."""
    table = _TABLES / f"{engine.value}.json"
    return Contract.model_validate(json.loads(table.read_text("utf-8")))
