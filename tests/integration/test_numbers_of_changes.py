"""No number about a change is invented: lists, a card, a whole story, and agents, out of the log.

As in `test_numbers`, a number without a recomputation fails.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from optiinfra.events import facts as f
from optiinfra.schemas.change import TERMINAL_STATES
from optiinfra.schemas.money import Interval, PriceSource
from optiinfra.schemas.recommendation import BatchTuning, Recommendation, Risk
from optiinfra.schemas.rollout import (
    ArmEvidence,
    GateMetric,
    GateVerdict,
    SequentialEvidence,
    Step,
)
from optiinfra.schemas.telemetry import Known, Unit
from optiinfra.schemas.tuning import TrialOutcome, TuningTrial
from optiinfra.schemas.vote import VOTERS, Evidence
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.executions import ExecutionLog
from optiinfra.storage.postgres.registry import saw
from optiinfra.storage.postgres.setup import declare
from tests.factories import AT, recommendation, rollout, step_result, vote
from tests.integration.api_stand import Stand, got, standing
from tests.integration.figures_stand import MISSING, approved, completed
from tests.raw_figures import HOURS_A_MONTH, is_exactly, logged, numbers, under
from tests.telemetry import deployment

ENDS = {f"change.{state.value}" for state in TERMINAL_STATES}


def evidence(source: str, value: float, **changes: Any) -> Evidence:
    values: dict[str, Any] = {
        "name": "ttft_p95_s", "unit": Unit.SECONDS, "reading": Known(value=value, error=0.01),
        "threshold": 0.8, "window_s": 900.0, "samples": 412, "source": source,
    }  # fmt: skip
    return Evidence(**{**values, **changes})


PROPOSED: dict[str, Any] = {
    "title": "Let chat take more requests at once",
    "spec": BatchTuning(max_num_seqs=96, max_num_batched_tokens=6_144),
    "saving_usd_per_month": Interval(low=310.0, mid=420.0, high=505.0, confidence=0.85),
    "spend_usd_per_hour": 2.35,
    "price_source": PriceSource(name="list", as_of=AT),
    "evidence": (evidence("gateway", 0.41), evidence("engine", 0.37, samples=None)),
    "curve": (
        TuningTrial(knobs={"max_num_seqs": 64}, outcome=TrialOutcome.COMPLETE,
                    tokens_per_s=Known(value=810.0), served=300, took_s=41.5),
        TuningTrial(knobs={"max_num_seqs": 96}, outcome=TrialOutcome.COMPLETE,
                    tokens_per_s=Known(value=955.0, error=12.0), served=298, failed=2),
    ),
    "rollout": rollout(0.25, 1.0, soak_s=0.0, hold_limit_s=45.0),
    "rollback_seconds": 13.0,
    "risk": Risk.HIGH,
}  # fmt: skip
SHOWN_AT_GATES: dict[str, Any] = {
    "metrics": (
        GateMetric(name="ttft_p95_s", unit=Unit.SECONDS, observed=Known(value=0.39), threshold=0.8,
                   window_s=60.0, samples=77, verdict=GateVerdict.PASS),
    ),
    "quality": SequentialEvidence(
        pairs=31, e_rollback=0.4, e_promote=21.5, alpha=0.05, beta=0.1, margin=0.02,
        mean_baseline=0.91, mean_canary=0.92, difference_low=-0.01, difference_high=0.03,
        canary=ArmEvidence(answers=40, scored=38, units=31),
    ),
}  # fmt: skip


@pytest.fixture
async def stand(postgres: Database) -> AsyncIterator[Stand]:
    await declare(postgres, "acme", [deployment()])
    async with standing(postgres) as made:
        yield made


async def waiting(stand: Stand, name: str) -> Recommendation:
    """A proposal full of numbers that all agents approve of and a person is asked about."""
    proposal = recommendation(name, **PROPOSED)
    votes = [
        one.model_copy(update={"evidence": (evidence("votes", 0.4 + place / 100),)})
        for place, agent in enumerate(sorted(VOTERS))
        for one in (vote(proposal.id, agent).vote,)
    ]
    proposed = f.RecommendationProposed(recommendation=proposal)
    await stand.fleet.hear(proposed, *(f.VoteCast(vote=one) for one in votes))
    return proposal


async def facts(database: Database, kind: str, change: str) -> list[dict[str, Any]]:
    return [one["fact"] for one in await logged(database, kind) if one["chain"] == change]


async def proposal_of(database: Database, change: str) -> dict[str, Any]:
    (fact,) = await facts(database, "recommendation.proposed", change)
    found: dict[str, Any] = fact["recommendation"]
    return found


async def needed(database: Database, change: str) -> int:
    return int((await facts(database, "approval.requested", change))[-1]["needed"])


async def votes(database: Database, change: str) -> dict[str, Any]:
    """All of one round and one mind, so by agent."""
    found = [fact["vote"] for fact in await facts(database, "vote.cast", change)]
    return dict(numbers({"votes": sorted(found, key=lambda one: str(one["agent"]))}))


async def test_recommendations_as_a_list_and_one_by_one(stand: Stand, postgres: Database) -> None:
    ids = [await completed(stand, "a", Known(value=730.5)), (await waiting(stand, "b")).id]
    expected: dict[str, Any] = {}
    for one in ids:
        proposed = dict(numbers(await proposal_of(postgres, one)))
        expected |= under(f"items[{one}].recommendation", proposed)
        found = {
            **under("recommendation", proposed),
            **await votes(postgres, one),
            "approvals_needed": await needed(postgres, one),
        }
        is_exactly(await got(stand, f"/recommendations/{one}"), found)
    assert len(expected) > 30
    is_exactly(await got(stand, "/recommendations"), expected)


async def test_a_card(stand: Stand, postgres: Database) -> None:
    kind: dict[str, Any] = {"kind": "batch_tuning"}
    for name, realised in (("a", Known(value=730.5)), ("b", Known(value=365.0)), ("c", MISSING)):
        await completed(stand, name, realised, **kind)
    change = (await waiting(stand, "d")).id
    card = await got(stand, f"/recommendations/{change}/card")
    age_s = card["header"].pop("age_s")
    assert 0 <= (datetime.now(UTC) - AT).total_seconds() - age_s < 30
    proposed = await proposal_of(postgres, change)
    stages, undo_s = proposed["rollout"]["stages"], proposed["rollback_seconds"]
    spec, present = proposed["spec"], proposed["curve"][0]["knobs"]
    past = [one["fact"]["outcome"] for one in await logged(postgres, "outcome.recorded")]
    asked = await needed(postgres, change)
    expected: dict[str, Any] = {
        **under("money.saving_usd_per_month", proposed["saving_usd_per_month"]),
        "money.spend_usd_per_hour": proposed["spend_usd_per_hour"],
        "money.spend_usd_per_month": proposed["spend_usd_per_hour"] * HOURS_A_MONTH,
        **under("money.track_record", track_record(past)),
        "blast_radius.exposure_s": max(one["share"] for one in stages) * undo_s,
        **await votes(postgres, change),
        **under("evidence", dict(numbers({"rows": proposed["evidence"]}))),
        **under("evidence", dict(numbers({"curve": proposed["curve"]}))),
        "change.values[0].before": present["max_num_seqs"],
        "change.values[0].after": spec["max_num_seqs"],
        "change.values[1].after": spec["max_num_batched_tokens"],
        **under("change.spec", dict(numbers(spec))),
        **under("rollout", dict(numbers(proposed["rollout"]))),
        "rollback.seconds": undo_s,
        "decision.approvals_needed": asked,
        "decision.approvals_left": asked,
    }
    for place, stage in enumerate(stages):
        at = f"blast_radius.stages[{place}]"
        expected |= {f"{at}.share": stage["share"], f"{at}.exposure_s": stage["share"] * undo_s}
    for one in past:
        at = f"evidence.similar[{one['change']}]"
        for name in ("predicted_usd_per_month", "realised_usd_per_month"):
            expected |= under(f"{at}.{name}", dict(numbers(one[name])))
    is_exactly(card, expected)


def track_record(past: list[dict[str, Any]]) -> dict[str, float]:
    saved = [one["realised_usd_per_month"].get("value") for one in past]
    forecast = [one["predicted_usd_per_month"] for one in past]
    both = [(said, got) for said, got in zip(forecast, saved, strict=True) if got is not None]
    return {
        "finished": len(past), "known": len(both),
        "predicted_usd_per_month": sum(said["mid"] for said, _ in both),
        "realised_usd_per_month": sum(got for _, got in both),
        "within": sum(said["low"] <= got <= said["high"] for said, got in both),
    }  # fmt: skip


async def carried_out(stand: Stand, database: Database) -> str:
    """A change at whose gates numbers were shown, with what its executor wrote down; its id."""
    proposal = await waiting(stand, "a")
    stand.fleet.evidence = SHOWN_AT_GATES
    await approved(stand, proposal)
    await stand.fleet.play()
    written = ExecutionLog(database)
    for asked in await facts(database, "execution.requested", proposal.id):
        step, fence = Step.model_validate(asked["step"]), asked["fence"]
        await written.begin(proposal.id, step, fence, {})
        result = step_result(step, fence).model_copy(update={"usd_per_hour": 1.9})
        await written.finish(proposal.id, step, result.model_dump(mode="json"))
    return proposal.id


async def test_changes_as_a_list_and_the_whole_story_of_one(
    stand: Stand, postgres: Database
) -> None:
    change = await carried_out(stand, postgres)
    other = (await waiting(stand, "b")).id
    story = {one: await logged_of(postgres, one) for one in (change, other)}
    steps = [fact["step"] for fact in await facts(postgres, "execution.requested", change)]
    where = dict(numbers({"step": steps[-1]}))
    expected: dict[str, Any] = {}
    for one, events in story.items():
        expected[f"items[{one}].version"] = len(events)
    is_exactly(await got(stand, "/changes"), expected | under(f"items[{change}]", where))

    found = await got(stand, f"/changes/{change}")
    asked = await facts(postgres, "gate.requested", change)
    rounds = [fact["round"] for fact in await facts(postgres, "vote.requested", change)]
    expected = {
        "version": len(story[change]), "round": max(rounds), "look": asked[-1]["look"], **where,
        **under("recommendation", dict(numbers(await proposal_of(postgres, change)))),
        **await votes(postgres, change),
        "approvals_needed": await needed(postgres, change),
        **dict(numbers({"stages": await stages(postgres, change)})),
        **dict(numbers({"executions": await executions(postgres, change)})),
    }  # fmt: skip
    for row in story[change]:
        at = f"timeline[{row['event_id']}]"
        expected |= {f"{at}.position": row["position"], f"{at}.version": row["version"]}
        expected |= under(f"{at}.fact", dict(numbers(row["fact"])))
    assert len([name for name in expected if "quality" in name]) > 20
    is_exactly(found, expected)


async def logged_of(database: Database, change: str) -> list[dict[str, Any]]:
    return [one for one in await logged(database, "%") if one["chain"] == change]


async def stages(database: Database, change: str) -> list[dict[str, Any]]:
    """As they were planned, with the looks that were asked for and what was answered to them."""
    planned = (await proposal_of(database, change))["rollout"]["stages"]
    asked = await facts(database, "gate.requested", change)
    answers = [fact["answer"] for fact in await facts(database, "gate.answered", change)]
    return [
        {
            "stage": number, "share": plan["share"], "soak_s": plan["soak_s"],
            "looks": [
                {
                    "look": one["look"],
                    "answers": [
                        answer for answer in answers
                        if (answer["stage"], answer["look"]) == (number, one["look"])
                    ],
                }
                for one in asked if one["stage"] == number
            ],
        }
        for number, plan in enumerate(planned)
    ]  # fmt: skip


async def executions(database: Database, change: str) -> list[dict[str, Any]]:
    """What was asked for, and what the executor read back."""
    async with database.connection() as connection:
        rows = await connection.fetch("SELECT fence, result::text FROM executions")
    results = {row["fence"]: row["result"] for row in rows}
    return [
        {
            "stage": fact["step"]["stage"], "attempt": fact["step"]["attempt"],
            "fence": fact["fence"], "result": json.loads(results[fact["fence"]]),
        }
        for fact in await facts(database, "execution.requested", change)
    ]  # fmt: skip


async def test_what_was_answered_at_gates(stand: Stand, postgres: Database) -> None:
    await carried_out(stand, postgres)
    expected: dict[str, Any] = {}
    for row in await logged(postgres, "gate.answered"):
        at = f"items[{row['event_id']}]"
        expected[f"{at}.position"] = row["position"]
        expected |= under(f"{at}.answer", dict(numbers(row["fact"]["answer"])))
    assert len(expected) > 40
    is_exactly(await got(stand, "/deployments/chat/gates"), expected)


async def test_agents_and_what_lies_before_the_coordinator(
    stand: Stand, postgres: Database
) -> None:
    await completed(stand, "a", MISSING)
    await waiting(stand, "b")
    about: dict[str, Any] = {"tenant": "acme", "agent": "cost", "version": "0.2",
                             "capabilities": ("propose",), "at": AT}  # fmt: skip
    for instance, handled, failed in (("cost-1", 7, 1), ("cost-2", 40, 0)):
        await stand.fleet.hear(f.AgentRegistered(instance=instance, **about))
        beat = f.AgentHeartbeat(instance=instance, handled=handled, failed=failed, **about)
        assert await saw(postgres, beat)
    async with postgres.connection() as connection:
        rows = await connection.fetch("SELECT * FROM agents ORDER BY agent, instance")
        timers = await connection.fetch("SELECT fire_at FROM timers")
    expected = {
        f"[{place}].{name}": row[name]
        for place, row in enumerate(rows)
        for name in ("handled", "failed")
    }
    assert len(expected) == 4
    listed = await got(stand, "/agents")
    detail = await got(stand, "/agents/detail")
    now = datetime.now(UTC)
    for one, row in (*zip(listed["items"], rows, strict=True),
                     *zip(detail["agents"], rows, strict=True)):  # fmt: skip
        assert 0 <= (now - row["last_seen_at"]).total_seconds() - one.pop("silent_s") < 30
    is_exactly(listed, {f"items{name}": value for name, value in expected.items()})
    begun = {one["chain"] for one in await logged(postgres, "recommendation.proposed")}
    ended = {
        one["chain"] for one in await logged(postgres, "change.%") if one["fact"]["kind"] in ENDS
    }
    is_exactly(detail, {
        **{f"agents{name}": value for name, value in expected.items()},
        "coordinator.open_changes": len(begun - ended),
        "coordinator.overdue_timers": sum(one["fire_at"] < now for one in timers),
    })  # fmt: skip
