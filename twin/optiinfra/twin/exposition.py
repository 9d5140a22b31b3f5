"""The emulator's `/metrics`: vLLM 0.32's names, labels and buckets, marked as emulated."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any

Labels = Mapping[str, str]


class Histogram:
    """Cumulative buckets over fixed upper bounds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: list[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value`, `times` over."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


class Exposition:
    """Holds the values of one engine's metrics and writes them as Prometheus text."""

    def __init__(self, model_name: str, cache_config: Labels) -> None:
        self._base = {"engine": "0", "model_name": model_name}
        self._cache_config = dict(cache_config)
        self._values: dict[tuple[str, str], float] = {}
        self._histograms = {
            spec["name"]: Histogram(spec["buckets"])
            for spec in _specs()
            if spec["type"] == "histogram"
        }
        self._extra: dict[str, tuple[str, str, list[tuple[Labels, float]]]] = {}

    def histogram(self, name: str) -> Histogram:
        """The histogram `vllm:<name>`."""
        return self._histograms[f"vllm:{name}"]

    def count(self, name: str, by: float = 1.0, label: str = "") -> None:
        """Raise `vllm:<name>`; `label` is the value of its one label of its own."""
        key = (f"vllm:{name}", label)
        self._values[key] = self._values.get(key, 0.0) + by

    def set(self, name: str, value: float, label: str = "") -> None:
        """Set the gauge `vllm:<name>`."""
        self._values[f"vllm:{name}", label] = value

    def publish(self, name: str, kind: str, help_text: str, *rows: tuple[Labels, float]) -> None:
        """Set a family that is not vLLM's own."""
        self._extra[name] = (kind, help_text, list(rows))

    def render(self, hidden: frozenset[str] = frozenset()) -> str:
        """Prometheus text without the `hidden` families (named with or without `_total`)."""
        lines: list[str] = []
        for spec in _specs():
            name = spec["name"]
            if name not in hidden and name.removesuffix("_total") not in hidden:
                lines += _head(name, spec["type"], f"(emulated) {spec['help']}")
                lines += self._histogram(name) if "buckets" in spec else self._scalar(spec)
        for name, (kind, help_text, rows) in self._extra.items():
            if name not in hidden:
                lines += _head(name, kind, help_text)
                lines += [f"{name}{_braces(labels)} {value!r}" for labels, value in rows]
        return "\n".join(lines) + "\n"

    def _scalar(self, spec: dict[str, Any]) -> list[str]:
        name = spec["name"]
        base = self._base if spec.get("engine", True) else {"model_name": self._base["model_name"]}
        if name == "vllm:cache_config_info":
            own = {"engine": self._base["engine"], **spec["series"][0], **self._cache_config}
            return [f"{name}{_braces(own)} 1.0"]
        rows = []
        for own in spec.get("series", [{}]):
            value = self._values.get((name, next(iter(own.values()), "")), 0.0)
            rows.append(f"{name}{_braces({**base, **own})} {float(value)!r}")
        return rows

    def _histogram(self, name: str) -> list[str]:
        histogram, lines, running = self._histograms[name], [], 0
        bounds = [*(repr(float(bound)) for bound in histogram.bounds), "+Inf"]
        for bound, count in zip(bounds, histogram.counts, strict=True):
            running += count
            lines.append(f"{name}_bucket{_braces({**self._base, 'le': bound})} {float(running)!r}")
        braces = _braces(self._base)
        return [
            *lines,
            f"{name}_count{braces} {float(running)!r}",
            f"{name}_sum{braces} {histogram.total!r}",
        ]


@lru_cache(maxsize=1)
def _specs() -> list[dict[str, Any]]:
    text = (files("optiinfra.twin") / "data" / "vllm_metrics.json").read_text("utf-8")
    specs: list[dict[str, Any]] = json.loads(text)
    return specs


def _head(name: str, kind: str, help_text: str) -> list[str]:
    return [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]


def _braces(labels: Labels) -> str:
    if not labels:
        return ""
    pairs = (f'{key}="{_escaped(value)}"' for key, value in sorted(labels.items()))
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
