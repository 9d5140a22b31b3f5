"""How often the bottleneck finder names a planted cause, beside two naive rules.

Each run is an emulated replica that is healthy, and the same with one thing made worse; what is
told apart is read from its scrapes by the telemetry contract. A verdict that changes when a signal
goes missing must become unknown: every signal is taken away from every run, one at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass

from optiinfra.schemas.deployment import SLO
from optiinfra.schemas.telemetry import Known
from optiinfra.serving.bottleneck import find
from optiinfra.serving.bottleneck_table import Cause
from optiinfra.serving.signals import Signals
from tests.observed import before_and_after
from tests.planted import CAUSES, plant


def highest_utilisation(seen: Signals, slo: SLO) -> Cause:
    """Whatever is fullest: GPU, KV cache or batch; nothing while latencies are inside the SLO."""
    if _value(seen, "ttft_p95_s") < slo.ttft_p95_s and _value(seen, "tpot_p95_s") < slo.tpot_p95_s:
        return Cause.NONE
    shares = {
        Cause.COMPUTE: _value(seen, "gpu_busy_fraction"),
        Cause.KV_CAPACITY: _value(seen, "kv_usage_fraction"),
        Cause.SCHEDULER_CAP: _value(seen, "running") / _value(seen, "max_num_seqs"),
    }
    return max(shares, key=lambda cause: shares[cause])


def written_order(seen: Signals, slo: SLO) -> Cause:
    """The design's bottleneck table as it is written, top to bottom, the first line that fits.

    It has one cause for preemptions and a full cache; any preemption is called `preemption` here.
    """
    waits, usage = _value(seen, "waiting") >= 1, _value(seen, "kv_usage_fraction")
    at_cap = _value(seen, "running") >= 0.95 * _value(seen, "max_num_seqs")
    computed = _value(seen, "prompt_tokens_per_s") * (1 - _value(seen, "prefix_hit_fraction"))
    lines: tuple[tuple[bool, Cause], ...] = (
        (waits and at_cap and usage < 0.5, Cause.SCHEDULER_CAP),
        (_value(seen, "preemptions_per_s") > 0, Cause.PREEMPTION),
        (usage > 0.9, Cause.KV_CAPACITY),
        (
            _value(seen, "ttft_p95_s") >= slo.ttft_p95_s
            and computed >= 0.7 * _value(seen, "prefill_limit_tokens_per_s"),
            Cause.COMPUTE,
        ),
        (_value(seen, "tpot_p95_s") >= slo.tpot_p95_s, Cause.MEMORY_BANDWIDTH),
        (_value(seen, "client_ttft_p95_s") >= slo.ttft_p95_s and not waits, Cause.NETWORK),
        (waits and _value(seen, "prefix_hit_fraction") < 0.5, Cause.PREFIX_MISSES),
        (waits, Cause.QUEUE),
    )
    return next((cause for fits, cause in lines if fits), Cause.NONE)


PEERS: dict[str, Callable[[Signals, SLO], Cause]] = {
    "highest_utilisation": highest_utilisation,
    "written_order": written_order,
}


CARD_ERROR = 0.3
"""Relative error of a wrong card: the widest band that shipped cards have."""


@dataclass(frozen=True)
class Tried:
    """One run: what was said of it, by whom, and what became of it as signals went missing."""

    cause: str
    seed: int
    draws: int
    ours: str
    healthy: str
    card_too_fast: str
    card_too_slow: str
    peers: dict[str, str]
    without_all: str
    became_unknown: int
    became_another: int


def tried(cause: Cause, seed: int) -> Tried:
    """Run one seed and judge it."""
    found = plant(cause, seed)
    slo = found.bound.setting.slo
    healthy, bound = before_and_after(found)
    verdict, bare = find(bound, slo).cause, Signals()
    lacking = [
        find(bound.model_copy(update={name: getattr(bare, name)}), slo).cause
        for name in Signals.model_fields
    ]
    return Tried(
        cause=cause.value,
        seed=seed,
        draws=found.draws,
        ours=verdict.value,
        healthy=find(healthy, slo).cause.value,
        card_too_fast=find(paced(bound, 1 + CARD_ERROR), slo).cause.value,
        card_too_slow=find(paced(bound, 1 / (1 + CARD_ERROR)), slo).cause.value,
        peers={name: rule(bound, slo).value for name, rule in PEERS.items()},
        without_all=find(bare, slo).cause.value,
        became_unknown=sum(one is Cause.UNKNOWN for one in lacking),
        became_another=sum(one not in {verdict, Cause.UNKNOWN} for one in lacking),
    )


def paced(seen: Signals, faster: float) -> Signals:
    """The same telemetry beside a card that is `faster` times as fast."""
    times = {
        "prefill_limit_tokens_per_s": faster,
        "prefill_alone_s": 1 / faster,
        "decode_step_s": 1 / faster,
    }
    return seen.model_copy(
        update={name: Known(value=_value(seen, name) * by) for name, by in times.items()}
    )


def _value(seen: Signals, name: str) -> float:
    """The signal's value, and 0 where it is unknown: naive rules know no better."""
    reading = getattr(seen, name)
    return reading.value if isinstance(reading, Known) else 0.0


def _said(cause: str, named: str) -> str:
    return "right" if named == cause else f"{cause} named {named}"


def right(runs: list[Tried], who: str) -> float:
    """Share of runs whose cause `who` names: ours, or a peer."""
    said = [one.ours if who == "ours" else one.peers[who] for one in runs]
    return sum(name == one.cause for name, one in zip(said, runs, strict=True)) / len(runs)


def table(runs: list[Tried]) -> dict[str, dict[str, float]]:
    """Share named right by cause, for ours and each peer; printed as it is made."""
    print(f"{'cause':18}{'runs':>6}{'ours':>8}" + "".join(f"{name:>22}" for name in PEERS))
    rows = {}
    for cause in (*CAUSES, None):
        of_it = [one for one in runs if cause is None or one.cause == cause.value]
        row = {who: right(of_it, who) for who in ("ours", *PEERS)}
        label = cause.value if cause else "all"
        print(
            f"{label:18}{len(of_it):6}{row['ours']:8.1%}"
            + "".join(f"{row[name]:22.1%}" for name in PEERS)
        )
        rows[label] = row
    return rows


def main() -> None:
    """Print a table, what was named wrong, then one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    started_s = time.perf_counter()
    wanted = [(CAUSES[n % len(CAUSES)], given.seed + n // len(CAUSES)) for n in range(given.runs)]
    with ProcessPoolExecutor(given.processes) as pool:
        runs = list(pool.map(tried, *zip(*wanted, strict=True)))
    rows = table(runs)
    for one in runs:
        if one.ours != one.cause:
            print(f"wrong: {one.cause} seed {one.seed} named {one.ours}")
    print(
        json.dumps(
            {
                "bench": "bottleneck",
                "runs": len(runs),
                "seed": given.seed,
                "named_right": rows,
                "healthy_twins": Counter(one.healthy for one in runs),
                "card_30_percent_too_fast": Counter(_said(o.cause, o.card_too_fast) for o in runs),
                "card_30_percent_too_slow": Counter(_said(o.cause, o.card_too_slow) for o in runs),
                "unknown_without_telemetry": sum(o.without_all == "unknown" for o in runs),
                "signals_taken": len(runs) * len(Signals.model_fields),
                "became_unknown": sum(one.became_unknown for one in runs),
                "became_another_cause": sum(one.became_another for one in runs),
                "draws": sum(one.draws for one in runs),
                "wrong": [asdict(one) for one in runs if one.ours != one.cause],
                "seconds": round(time.perf_counter() - started_s, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
