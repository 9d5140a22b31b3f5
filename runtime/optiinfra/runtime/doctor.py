"""`optiinfra doctor`: looks at the machine, the settings, the fleet file and all they name."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TextIO

from optiinfra.runtime.deep_checks import look_deep
from optiinfra.runtime.findings import Finding, Level, checked, checking, failed
from optiinfra.runtime.fleet import Fleet
from optiinfra.runtime.fleet_file import load_governed
from optiinfra.runtime.logs import configure_logs
from optiinfra.runtime.machine import look_at_machine
from optiinfra.runtime.outside import look_at_clouds, look_at_gateway
from optiinfra.runtime.policy_checks import look_at_policy, look_at_recorded_policy
from optiinfra.runtime.preflight import require_golden
from optiinfra.runtime.settings import Settings
from optiinfra.runtime.store_checks import look_at_stores
from optiinfra.schemas.errors import Rejected


def run(settings: Settings, as_json: bool, deep: bool = False) -> int:  # noqa: FBT001 - flags of the command line
    """Prints what it finds; 0 when nothing fails, else 1. Changes nothing, shows no secret.

    `deep` looks at the work as well: changes, consumers, letters, agents, clocks.
    """
    configure_logs(settings.model_copy(update={"log_level": "critical"}))
    found = asyncio.run(_examine_all(settings) if deep else examine(settings))
    (_print_json if as_json else _print_lines)(found, sys.stdout)
    return 1 if any(one.level is Level.FAIL for one in found) else 0


async def _examine_all(settings: Settings) -> list[Finding]:
    return [*await examine(settings), *await look_deep(settings)]


async def examine(settings: Settings) -> list[Finding]:
    """All findings, those of the machine first."""
    found = look_at_machine(settings)
    fleet = _read_fleet(settings, found)
    found += await look_at_stores(settings)
    if fleet is None:
        return found
    assert settings.config is not None
    found += look_at_policy(fleet, settings.config, datetime.now(tz=UTC))
    found += await look_at_recorded_policy(settings, fleet)
    found.append(checked("golden set", lambda: f"{require_golden(fleet)} prompts"))
    found += await look_at_gateway(settings, fleet)
    found += await look_at_clouds(settings, fleet)
    return found


def _read_fleet(settings: Settings, found: list[Finding]) -> Fleet | None:
    if settings.config is None:
        found.append(
            Finding(
                Level.WARN,
                "fleet file",
                "none is given, so clouds, gateway and replicas were not looked at",
                "give one with --config or OPTIINFRA_CONFIG; docs/fleet.md shows how",
            )
        )
        return None
    try:
        fleet = load_governed(settings.config, settings.policy)
    except Rejected as bad:
        found.append(failed("fleet file", bad))
        return None
    with checking(found, "fleet file") as said:
        said(f"{len(fleet.deployments)} deployments, mode {fleet.mode}")
    found.extend(_without_card(fleet))
    return fleet


def _without_card(fleet: Fleet) -> list[Finding]:
    return [
        Finding(
            Level.WARN,
            f"deployment {one.id}",
            "it names no perf card, so capacity and latency forecasts are unknown",
            "name one under perf_card; docs/fleet.md lists them",
        )
        for one in fleet.deployments
        if one.perf_card is None
    ]


def _print_json(found: Sequence[Finding], out: TextIO) -> None:
    ok = all(one.level is not Level.FAIL for one in found)
    json.dump({"ok": ok, "findings": [asdict(one) for one in found]}, out)
    out.write("\n")


def _print_lines(found: Sequence[Finding], out: TextIO) -> None:
    for one in found:
        out.write(f"{one.level.value:<4}  {one.what}: {one.said}\n")
        if one.level is Level.OK:
            continue
        if one.why:
            out.write(f"      {one.why}\n")
        if one.todo:
            out.write(f"      → {one.todo}\n")
    levels = [one.level for one in found]
    fails, warns = levels.count(Level.FAIL), levels.count(Level.WARN)
    out.write(f"{len(found)} checks: {fails} fail, {warns} warn\n")
