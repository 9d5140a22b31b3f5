"""Reads the stored telemetry of a deployment back as one window."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from optiinfra.agents.base.readings import Telemetry
from optiinfra.schemas.answers import ANSWER_SCORE
from optiinfra.schemas.deployment import Deployment
from optiinfra.schemas.telemetry import Reading
from optiinfra.serving.windows import SCRAPES, Window

LOAD = ("requests_running", "requests_waiting", "requests_per_s", SCRAPES)
"""Metrics of what a replica does."""
ARRIVALS = (*LOAD, ANSWER_SCORE)
"""Metrics that offered load is made of: what a replica does, and its golden prompts."""
LENGTHS = tuple(
    f"{metric}{part}"
    for metric in ("prompt_length_tokens", "output_length_tokens")
    for part in ("", "_bucket", "_sum")
)
"""Metrics that the live length mix is made of."""
LATENCIES = ("ttft_s", "ttft_s_bucket", "tpot_s", "tpot_s_bucket", SCRAPES)
"""Metrics that pooled latencies are made of."""

SIGNALS = (
    *LOAD,
    *(
        f"{metric}{part}"
        for metric in ("ttft_s", "tpot_s", "prompt_length_tokens")
        for part in ("", "_bucket", "_sum")
    ),
    "kv_usage_fraction",
    "kv_capacity_tokens",
    "preemptions_per_s",
    "prefill_seconds_per_s",
    "prompt_tokens_per_s",
    "generation_tokens_per_s",
    "prefix_cache_hit_fraction",
    "max_num_seqs",
    "gpu_busy_fraction",
)
"""Metrics that the bottleneck finder reads."""


async def stored_window(
    telemetry: Telemetry,
    deployment: Deployment,
    metrics: Iterable[str],
    *,
    since: datetime,
    until: datetime,
    stale_s: float,
) -> Window:
    """All samples of `metrics` in [since, until], asked for at once.

    Raises what the store raises (`Unavailable`).
    """
    names = tuple(dict.fromkeys(metrics))
    after = until + timedelta(milliseconds=1)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    telemetry.window(
                        deployment.tenant, deployment.id, metric, since=since, until=after
                    )
                )
                for metric in names
            ]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed
    found = {name: tuple(task.result()) for name, task in zip(names, tasks, strict=True)}
    return Window(since, until, stale_s, found)


def offered(window: Window, replicas: Sequence[str], golden_settle_s: float) -> Reading:
    """Requests/s that clients offer to `replicas`, without golden prompts.

    The end of the window, in which golden prompts may be unrecorded yet, is left out:
    `golden_settle_s`, but at most a third of the window.
    """
    return window.offered(replicas, settle_s=min(golden_settle_s, window.span_s / 3))
