"""The scrapes and definitions that are shared between projects, where they lie beside this one."""

from __future__ import annotations

import csv
import gzip
import json
from functools import lru_cache
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[1].parent / "shared"
METRICS = SHARED / "data" / "metrics"
REAL_VLLM = SHARED / "tools" / "real-vllm" / "metrics-0.32.0.txt"
TINY_MODEL = SHARED / "models" / "tinyqa"
needs_data = pytest.mark.skipif(not METRICS.is_dir(), reason="the shared test data are not here")


@lru_cache(maxsize=1)
def replays() -> dict[str, list[tuple[float, str]]]:
    """Series of scrapes by engine version, with their times in s."""
    found: dict[str, list[tuple[float, str]]] = {}
    with gzip.open(METRICS / "replay_scrapes.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            found.setdefault(row["engine_version"], []).append((row["t_s"], row["text"]))
    return found


@lru_cache(maxsize=1)
def captures() -> dict[str, str]:
    """Single scrapes by name."""
    with gzip.open(METRICS / "captured_scrapes.jsonl.gz", "rt", encoding="utf-8") as file:
        return {row["name"]: row["text"] for row in map(json.loads, file)}


@lru_cache(maxsize=1)
def definitions() -> list[dict[str, str]]:
    """What the sources of each engine version define."""
    path = METRICS / "engine_metric_definitions.csv.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def dcgm_counters() -> dict[str, tuple[str, str]]:
    """Type and help of the fields that dcgm-exporter can expose."""
    found: dict[str, tuple[str, str]] = {}
    for path in METRICS.glob("dcgm_*.csv"):
        for line in path.read_text("utf-8").splitlines():
            name, *rest = (part.strip() for part in line.lstrip("# ").split(",", 2))
            if name.startswith("DCGM_FI_") and len(rest) == 2:
                found[name] = (rest[0], rest[1])
    return found
