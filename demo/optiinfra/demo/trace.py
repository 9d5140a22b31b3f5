"""The shipped Azure trace, cut and stretched to what one deployment of the story is asked."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from pydantic import Field

from optiinfra.schemas.base import Value
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.ids import derived_id

_FILE = "azure_llm_2023_conv.csv.gz"


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: when it comes, s since the start, and its lengths in tokens."""

    at_s: float
    prompt_tokens: int
    output_tokens: int


class Mix(Value):
    """How a part of the trace becomes the load of one deployment.

    Lengths are multiplied by the scale and kept within the bounds; arrivals are stretched so that
    their mean rate over the part is `rate_rps` (requests/s), bursts included.
    """

    rate_rps: float = Field(gt=0)
    prompt_scale: float = Field(gt=0)
    prompt_bounds: tuple[int, int]
    output_scale: float = Field(gt=0)
    output_bounds: tuple[int, int]


@lru_cache(maxsize=1)
def azure_trace() -> tuple[Arrival, ...]:
    """All requests of the trace in the order of time."""
    packed = (files("optiinfra.demo.data") / _FILE).read_bytes()
    rows = csv.DictReader(io.StringIO(gzip.decompress(packed).decode()))
    return tuple(
        Arrival(float(row["t_s"]), int(row["prompt_tokens"]), int(row["output_tokens"]))
        for row in rows
    )


def schedule(
    trace: Sequence[Arrival], mix: Mix, count: int, *, seed: int, name: str
) -> list[Arrival]:
    """`count` consecutive requests from a point that seed and name decide, as `mix` says.

    The first comes after one mean gap. Raises `Rejected` when the trace is shorter than `count`.
    """
    if count >= len(trace):
        raise Rejected(f"the trace has {len(trace)} requests, {count} are too many")
    start = int(derived_id("trace", seed, name), 16) % (len(trace) - count)
    part = trace[start : start + count]
    span_s = trace[start + count].at_s - part[0].at_s
    stretch = count / mix.rate_rps / span_s
    return [
        Arrival(
            1 / mix.rate_rps + (one.at_s - part[0].at_s) * stretch,
            _bounded(one.prompt_tokens * mix.prompt_scale, mix.prompt_bounds),
            _bounded(one.output_tokens * mix.output_scale, mix.output_bounds),
        )
        for one in part
    ]


def _bounded(value: float, bounds: tuple[int, int]) -> int:
    low, high = bounds
    return min(max(round(value), low), high)
