"""`optiinfra up` finds what binds a real engine process, tunes it in staging, and rolls it out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import aiohttp
import httpx
import psutil
import pytest
import yaml

from optiinfra.agents.application.golden import load_golden
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.tuning import TrialOutcome
from tests.integration.test_up import Make, until_routed, up
from tests.up_stand import ENGINE, FAST, Up, api, fleet, until_answered

__all__ = ["up"]
NOW = {"engine": "vllm", "model": "emulated-8b", "max_num_seqs": 2}
USERS = 12
QUESTIONS = load_golden().items


def tuned_fleet() -> dict[str, Any]:
    content = fleet(
        rules={
            "approvals": [{"name": "all", "max_risk": "critical"}],
            "revote_after_s": 1,
            "max_vote_rounds": 200,
        },
        sample_fraction=0.5,
        timing={**FAST, "golden_per_look": 60},
    )
    slower = ["4" if word == "20" else word for word in ENGINE]  # it leaves a machine some rest
    content["clouds"]["local"]["command"] = [*slower, "{engine_arguments}"]
    content["deployments"][0].update(
        engine_file="engine.yaml",
        interruptible=False,
        slo={"ttft_p95_s": 0.1, "tpot_p95_s": 1.0},
        tuning={
            "trials": 4, "window_s": 20, "traffic_s": 300, "requests": 60, "min_requests": 40,
            "every_s": 1, "measure_s": 2,
        },
    )  # fmt: skip
    return content


@asynccontextmanager
async def users(url: str) -> AsyncIterator[list[bool]]:
    """More than the engine takes at once; whether each answer came to its end."""
    whole: list[bool] = []
    numbers, stop = count(), asyncio.Event()

    async def ask(http: aiohttp.ClientSession) -> None:
        while not stop.is_set():
            number = next(numbers)
            body = {
                "model": "emulated-8b", "prompt": QUESTIONS[number % len(QUESTIONS)].prompt,
                "max_tokens": 24, "ignore_eos": True, "stream": True,
            }  # fmt: skip
            headers = {"X-Session-Id": f"session-{number}"}
            async with http.post(f"{url}/v1/completions", json=body, headers=headers) as answer:
                whole.append("data: [DONE]" in await answer.text())

    async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as group:
        for _ in range(USERS):
            group.create_task(ask(http))
        try:
            yield whole
        finally:
            stop.set()


async def ended(http: httpx.AsyncClient, one: Up) -> dict[str, Any]:
    """The first change, once it is over."""
    found: dict[str, Any] = {}
    for _ in range(900):
        items = (await http.get("/changes")).json()["items"]
        if items:
            found = (await http.get(f"/changes/{items[0]['id']}")).json()
            if found["state"] in ("completed", "rolled_back", "vetoed", "failed", "expired"):
                return found
        await asyncio.sleep(0.2)
    raise AssertionError(f"{found.get('state', 'nothing was proposed')}: {one.errors[-6000:]}")


def told(change: dict[str, Any]) -> list[dict[str, Any]]:
    """What the gates answered last, and how it ended."""
    facts = [one["fact"] for one in change["timeline"]]
    answers = [one["answer"] for one in facts if one["kind"] == "gate.answered"]
    return [*({k: one[k] for k in ("assessor", "reason")} for one in answers[-4:]), facts[-1]]


def batches(one: Up) -> set[int]:
    """What the running engines were really started with."""
    found = set()
    for pid in one.engines():
        words = psutil.Process(pid).cmdline()
        if "--max-num-seqs" in words:
            found.add(int(words[words.index("--max-num-seqs") + 1]))
    return found


@pytest.mark.timeout(400)
async def test_a_capped_engine_is_tuned_in_staging_and_rolled_out_without_a_lost_request(
    up: Make,
) -> None:
    one = up(tuned_fleet())
    (one.folder / "engine.yaml").write_text(yaml.safe_dump(NOW))
    session = await one.start()
    assert session.gateway_url is not None
    await until_answered(session.gateway_url)
    assert batches(one) == {2}
    await until_routed(session, 2)
    async with api(session) as http, users(session.gateway_url) as whole:
        change = await ended(http, one)
        assert change["state"] == "completed", told(change)
    assert all(whole)
    assert len(whole) > 100
    proposed = next(
        one["fact"]["recommendation"]
        for one in change["timeline"]
        if one["kind"] == "recommendation.proposed"
    )
    recommended = Recommendation.model_validate(proposed)
    now, best = recommended.curve[:2]
    assert now.knobs["max_num_seqs"] == 2
    assert now.outcome is best.outcome is TrialOutcome.COMPLETE
    assert (best.throughput or 0) > 1.5 * (now.throughput or 0)
    assert any(e.name == "running_per_cap" for e in recommended.evidence), "what binds it"
    assert batches(one) == {best.knobs["max_num_seqs"]}
    assert '"deployment": "chat-staging"' not in one.errors, "no agent watches a staging replica"
