"""Reads the stored telemetry of a deployment back as one window."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime, timedelta

from optiinfra.agents.base.readings import Telemetry
from optiinfra.schemas.deployment import Deployment
from optiinfra.serving.windows import SCRAPES, Window

LOAD = ("requests_running", "requests_waiting", "requests_per_s", SCRAPES)
"""Metrics that offered load is made of."""
LENGTHS = tuple(
    f"{metric}{part}"
    for metric in ("prompt_length_tokens", "output_length_tokens")
    for part in ("", "_bucket", "_sum")
)
"""Metrics that the live length mix is made of."""
LATENCIES = ("ttft_s", "ttft_s_bucket", "tpot_s", "tpot_s_bucket", SCRAPES)
"""Metrics that pooled latencies are made of."""


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
