"""`optiinfra what-if`: the recorded log under another policy."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optiinfra.runtime import console
from optiinfra.runtime.cli_events import Since, Tenant, time_of
from optiinfra.runtime.cli_options import Home, Json, settings_of

if TYPE_CHECKING:
    from optiinfra.schemas.hindsight import Difference, Effect, WhatIf
    from optiinfra.schemas.money import Interval


def what_if(
    policy: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="The other policy, as YAML.")
    ],
    since: Since = None,
    tenant: Tenant = "default",
    as_json: Json = False,
    home: Home = None,
) -> int:
    """Says which recorded decisions would differ under another policy, why, and for how much.

    What was never recorded, such as a person's word that nobody was asked for, is unknown.
    """
    from optiinfra.coordinator.hindsight import LogHindsight
    from optiinfra.runtime.policy_file import load_policy
    from optiinfra.runtime.session import database_of
    from optiinfra.storage.postgres.database import open_database
    from optiinfra.storage.postgres.events import links_of_tenant

    rules = load_policy(policy)
    url, at = database_of(settings_of(home)), time_of(since)

    async def work() -> WhatIf:
        async with open_database(url, connections=1) as database:
            links = await links_of_tenant(database, tenant, at)
        return LogHindsight().what_if(links, rules)

    found = asyncio.run(work())
    if as_json:
        console.data(found.model_dump(mode="json"))
        return 0
    for one in found.differences:
        _tell(one)
    console.line(
        f"{len(found.differences)} of {found.changes} changes differ; realised"
        f" {_money(found.realised)}, predicted {_money(found.predicted)} a month,"
        f" {found.unknown} without a known effect"
    )
    return 0


def _tell(one: Difference) -> None:
    console.line(f"{one.change[:8]}  {one.title}  [{one.deployment}]  {one.at:%Y-%m-%d %H:%M:%S}")
    console.line(f"  recorded  {one.recorded}, in the end {one.recorded_end}")
    console.line(f"  other     {one.other}, in the end {one.other_end}")
    if one.why:
        console.line(f"  why       {one.why}")
    console.line(f"  effect    {_effect(one.effect)}")


def _effect(effect: Effect) -> str:
    if effect.basis == "none":
        return "none: it is carried out, or not, in both"
    if effect.usd_per_month is None:
        return "unknown"
    slo = f", TTFT p95 was {effect.ttft_p95_s:.2f} s" if effect.ttft_p95_s is not None else ""
    if effect.basis == "unknown":
        return f"unknown; at stake {_money(effect.usd_per_month)} a month{slo}"
    return f"{_money(effect.usd_per_month)} a month, {effect.basis}{slo}"


def _money(interval: Interval) -> str:
    if interval.low == interval.high:
        return f"{interval.mid:+,.0f} $"
    return f"{interval.mid:+,.0f} $ ({interval.low:+,.0f} … {interval.high:+,.0f})"
