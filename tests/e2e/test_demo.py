"""The whole demo, as a newcomer runs it: its end, its numbers, and what it leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest

from optiinfra.agents.actuators.traffic import TrafficCounters
from optiinfra.storage.embedded.postgres import PostgresServer
from optiinfra.storage.testing.servers import reachable_home

pytestmark = [pytest.mark.story, pytest.mark.timeout(700)]
SEED = 21


class Played:
    """One run with its output and the home that it has kept."""

    def __init__(self, run: subprocess.CompletedProcess[str], folder: Path) -> None:
        self.run = run
        self.folder = folder
        (self.home,) = folder.glob("demo-*")
        self.summary: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def played() -> Iterator[Played]:
    with reachable_home() as folder:
        command = [
            *(sys.executable, "-m", "optiinfra.runtime.cli", "demo"),
            *("--fast", "--yes", "--json", "--seed", str(SEED), "--home", str(folder)),
        ]
        run = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert run.returncode == 0, run.stderr[-5000:]
        yield Played(run, folder)


@pytest.fixture(scope="module")
async def log(played: Played) -> list[dict[str, Any]]:
    """The event log as it stands in the database that the run has left, read by SQL."""
    server = PostgresServer(played.home / "postgres")
    server.start()
    try:
        connection = await asyncpg.connect(server.url)
        try:
            rows = await connection.fetch("SELECT type, at, body FROM event_log ORDER BY position")
        finally:
            await connection.close()
    finally:
        server.stop()
    return [
        {
            "kind": row["type"].removeprefix("optiinfra.").rpartition(".v")[0],
            "at": row["at"],
            "fact": json.loads(row["body"]),
        }
        for row in rows
    ]


def of_kind(log: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in log if event["kind"] == kind]


def proposal(log: list[dict[str, Any]], deployment: str, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = next(
        event["fact"]["recommendation"]
        for event in of_kind(log, "recommendation.proposed")
        if event["fact"]["recommendation"]["deployment"] == deployment
        and event["fact"]["recommendation"]["spec"]["kind"] == kind
    )
    return found


def test_the_four_plays_end_as_told(played: Played) -> None:
    assert played.summary["plays"] == {
        "migration": "completed",
        "regression": "rolled_back",
        "veto": "vetoed",
        "reclaim": "completed",
    }


def test_no_request_is_lost(played: Played) -> None:
    requests = played.summary["requests"]
    assert requests["served"] > 100
    assert (requests["failed"], requests["truncated"]) == (0, 0)


def test_the_last_line_is_the_summary_and_nothing_else_is_on_stdout(played: Played) -> None:
    assert len(played.run.stdout.splitlines()) == 1
    assert played.summary["seed"] == SEED
    assert "simulated" in played.run.stderr


def test_the_states_stand_in_the_log(played: Played, log: list[dict[str, Any]]) -> None:
    for deployment, kind, end in (
        ("chat", "spot_migration", "change.completed"),
        ("assist", "spot_migration", "change.rolled_back"),
        ("search", "spot_migration", "change.vetoed"),
        ("chat", "spot_replacement", "change.completed"),
    ):
        change = proposal(log, deployment, kind)["id"]
        assert change in [event["fact"]["change"] for event in of_kind(log, end)]


def test_the_regression_was_seen_by_the_gate(log: list[dict[str, Any]]) -> None:
    change = proposal(log, "assist", "spot_migration")["id"]
    answers = [event["fact"]["answer"] for event in of_kind(log, "gate.answered")]
    worst = [a for a in answers if a["change"] == change and a["verdict"] == "roll_back"]
    assert worst
    assert worst[-1]["quality"]["e_rollback"] >= 20
    assert worst[-1]["quality"]["mean_canary"] < worst[-1]["quality"]["mean_baseline"]


def test_the_reclaimed_replica_was_replaced_on_demand(
    played: Played, log: list[dict[str, Any]]
) -> None:
    change = proposal(log, "chat", "spot_replacement")
    assert change["spec"]["to"]["market"] == "spot"
    approvals = [event["fact"]["approval"] for event in of_kind(log, "approval.granted")]
    (mine,) = [one for one in approvals if one["change"] == change["id"]]
    assert mine["by"]["kind"] == "policy"
    assert "no spot capacity" in played.run.stderr


def test_spend_can_be_computed_again_from_the_log(
    played: Played, log: list[dict[str, Any]]
) -> None:
    before = {
        name: proposal(log, name, "spot_migration")["spend_usd_per_hour"]
        for name in ("chat", "assist", "search")
    }
    after = dict(before)
    for event in log:
        if event["kind"] == "outcome.recorded":
            outcome = event["fact"]["outcome"]
            after[outcome["deployment"]] = outcome["usd_per_hour_after"]["value"]
    spend = played.summary["usd_per_hour"]
    assert spend["before"] == pytest.approx(sum(before.values()), abs=1e-5)
    assert spend["after"] == pytest.approx(sum(after.values()), abs=1e-5)
    assert spend["after"] < spend["before"]


def test_quality_can_be_computed_again_from_the_log(
    played: Played, log: list[dict[str, Any]]
) -> None:
    change = proposal(log, "chat", "spot_migration")["id"]
    evidence = [
        event["fact"]["answer"]["quality"]
        for event in of_kind(log, "gate.answered")
        if event["fact"]["answer"]["change"] == change and event["fact"]["answer"]["quality"]
    ][-1]
    quality = played.summary["quality"]
    assert quality["before"] == evidence["mean_baseline"]
    assert quality["after"] == evidence["mean_canary"]
    assert quality["interval"] == [evidence["difference_low"], evidence["difference_high"]]
    assert quality["after"] >= 0.98 * quality["before"]


def test_decision_times_can_be_computed_again_from_the_log(
    played: Played, log: list[dict[str, Any]]
) -> None:
    began: dict[str, Any] = {}
    taken: dict[str, float] = {}
    for event in log:
        fact = event["fact"]
        if event["kind"] == "recommendation.proposed":
            began.setdefault(fact["recommendation"]["id"], event["at"])
        elif event["kind"] in {"approval.requested", "change.vetoed"}:
            taken.setdefault(fact["change"], (event["at"] - began[fact["change"]]).total_seconds())
        elif event["kind"] == "approval.granted":
            change = fact["approval"]["change"]
            taken.setdefault(change, (event["at"] - began[change]).total_seconds())
    times = sorted(taken.values())
    assert len(times) >= 4
    decision = played.summary["decision_s"]
    assert times[0] <= decision["median"] <= decision["p95"] <= times[-1]


def test_requests_and_latency_can_be_computed_again_from_the_counters(
    played: Played, log: list[dict[str, Any]]
) -> None:
    kept = (played.home / "counters.json").read_text()
    counters = TrafficCounters.model_validate_json(kept)
    assert counters.totals.served == played.summary["requests"]["served"]
    old = set(proposal(log, "chat", "spot_migration")["spec"]["replicas"])
    for kind in ("ttft", "tpot"):
        again = counters.quantile_s(kind, 0.95, old)
        assert played.summary[f"{kind}_p95_s"]["before"] == again
        assert played.summary[f"{kind}_p95_s"]["after"] is not None


def test_the_log_has_as_many_events_as_told_and_its_chains_hold(
    played: Played, log: list[dict[str, Any]]
) -> None:
    assert played.summary["audit_ok"] is True
    assert played.summary["events"] <= len(log)
    kept = (played.home / "events.jsonl").read_text().splitlines()
    assert len(kept) == played.summary["events"]


def test_no_process_is_left(played: Played) -> None:
    left = [
        process.info["cmdline"]
        for process in psutil.process_iter(["cmdline"])
        if str(played.folder) in " ".join(process.info["cmdline"] or [])
    ]
    assert left == []
