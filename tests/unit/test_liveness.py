"""The watchdog: silent while the loop runs, heard when it stands still."""

from __future__ import annotations

import asyncio
import threading
import time

from optiinfra.events.liveness import Stuck, Watchdog


async def test_a_loop_that_runs_is_left_alone() -> None:
    stuck: list[Stuck] = []
    async with Watchdog(5.0, stuck.append):
        await asyncio.sleep(0)
    assert stuck == []


async def test_a_loop_that_stands_still_is_reported_once_with_the_place() -> None:
    stuck: list[Stuck] = []
    reported = threading.Event()

    def report(found: Stuck) -> None:
        stuck.append(found)
        reported.set()

    async with Watchdog(0.1, report):
        assert reported.wait(5.0)
        time.sleep(0.1)  # noqa: ASYNC251 - the loop must stand still
    assert len(stuck) == 1
    assert stuck[0].seconds > 0.1
    assert "test_liveness" in stuck[0].where


async def test_a_second_standstill_is_reported_again() -> None:
    reports: list[Stuck] = []
    reported = threading.Semaphore(0)

    def report(found: Stuck) -> None:
        reports.append(found)
        reported.release()

    async with Watchdog(0.1, report) as watchdog:
        assert reported.acquire(timeout=5.0)
        seen = watchdog._seen_at
        while watchdog._seen_at == seen:  # noqa: ASYNC110 - the beat has no event
            await asyncio.sleep(0.005)
        assert reported.acquire(timeout=5.0)
    assert len(reports) == 2
