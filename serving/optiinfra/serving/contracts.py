"""Telemetry contracts: what each engine version exposes, and what it is called here.

Our metrics (fixed names). Histograms become samples with the label `quantile` = p50, p95, p99 or
mean; pooled ones also `<metric>_bucket` (observations in (`ge`, `le`]) and `<metric>_sum`, so that
any window over any replicas can be put together again exactly.

| metric | unit | what |
|---|---|---|
| `ttft_s` `tpot_s` `itl_s` `e2e_s` `queue_time_s` | s | latencies; `ttft_s` and `tpot_s` pooled |
| `prompt_length_tokens` `output_length_tokens` | tokens | lengths of finished requests; pooled |
| `requests_running` `requests_waiting` | count | now |
| `requests_per_s` `errors_per_s` `preemptions_per_s` | per_s | finished, failed, preempted |
| `prompt_tokens_per_s` `generation_tokens_per_s` | per_s | token throughput |
| `kv_usage_fraction` `prefix_cache_hit_fraction` | fraction | of the KV cache; of queried tokens |
| `kv_capacity_tokens` `max_num_seqs` | tokens, count | configuration, where exposed |
| `scrape_window_s` | s | time since the scrape before; what rates and buckets cover |
"""

from __future__ import annotations

import json
import re
from enum import StrEnum
from functools import lru_cache
from importlib.resources import files
from typing import Self

from pydantic import Field, model_validator

from optiinfra.schemas.base import Value
from optiinfra.schemas.deployment import Engine
from optiinfra.schemas.errors import NotFound
from optiinfra.schemas.telemetry import Unit

_TABLES = files("optiinfra.serving") / "data" / "contracts"
_VERSION = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?")

Version = tuple[int, int, int]


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


class Source(Value):
    """One exposed name, valid in [since, until); bounds lie where the sources prove the change.

    `where` selects label values. `per` divides the rate by that of another counter. `labels` names
    the numbers of an `info` metric, multiplied. `first_use` says that a label value appears with
    its first count, so that its absence beside other series is a true zero. `basis` tells apart
    what one name means: "token" where a latency is observed once a token instead of a request.
    """

    name: str
    type: ExposedType
    since: str | None = None
    until: str | None = None
    where: dict[str, str] = Field(default_factory=dict)
    per: str | None = None
    labels: tuple[str, ...] = ()
    first_use: bool = False
    basis: str | None = None

    def covers(self, version: Version | None) -> bool:
        """Whether `version` is in its range; an unknown version may be any."""
        if version is None:
            return True
        return not (
            (self.since is not None and version < version_of(self.since))
            or (self.until is not None and version >= version_of(self.until))
        )


class Promise(Value):
    """One of our metrics and the names it may have, the preferred one first.

    A reading outside [low, high] is implausible. Only what is `required` leaves a gap when absent.
    """

    metric: str
    unit: Unit
    required: bool = False
    pooled: bool = False
    combine: Combine = Combine.SUM
    low: float = 0.0
    high: float | None = None
    sources: tuple[Source, ...] = ()


class Contract(Value):
    """All promises of one engine, checked from version `since` up to, not including, `until`."""

    engine: Engine
    since: str
    until: str
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
        if found is None:
            return None, False
        return found, version_of(self.since) <= found < version_of(self.until)


def parse_version(text: str | None) -> Version | None:
    """(major, minor, patch) of a version such as `0.6.6.post1` or `v0.33`; None if it is none."""
    match = _VERSION.match(text or "")
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None


def version_of(text: str) -> Version:
    """As `parse_version`, for versions that must be valid. Raises `NotFound`."""
    version = parse_version(text)
    if version is None:
        raise NotFound(f"{text!r} is not a version")
    return version


@lru_cache(maxsize=len(Engine))
def contract_for(engine: Engine) -> Contract:
    """The shipped contract of an engine. Raises `NotFound` when there is none yet."""
    table = _TABLES / f"{engine.value}.json"
    if not table.is_file():
        raise NotFound(f"no telemetry contract for {engine.value!r}", hint="use vllm or sglang")
    return Contract.model_validate(json.loads(table.read_text("utf-8")))
