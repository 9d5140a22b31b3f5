"""Cards and policies over HTTP, out of a real log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest
import yaml

from optiinfra.events import facts as f
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.deployment import Provider
from optiinfra.schemas.money import Interval, PriceSource
from optiinfra.schemas.outcome import Outcome
from optiinfra.schemas.recommendation import (
    BatchTuning,
    CommitmentPurchase,
    Consolidation,
    GateTightening,
    KvCacheTuning,
    Precision,
    PredictiveScaling,
    Quantisation,
    RevertChange,
)
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.telemetry import Known, Reading, Unknown, UnknownReason
from optiinfra.schemas.tenant import Role
from optiinfra.schemas.tuning import TrialOutcome, TuningTrial
from optiinfra.schemas.vote import Verdict
from optiinfra.storage.embedded.servers import Addresses
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.setup import declare
from tests.factories import AT, recommendation, rollout, vote
from tests.integration.api_stand import Stand, got, standing
from tests.measured import just_now, metric_store, price, record, sample
from tests.telemetry import deployment

MISSING = Unknown(reason=UnknownReason.MISSING, detail="not asked")


@pytest.fixture
async def stand(postgres: Database) -> AsyncIterator[Stand]:
    await declare(postgres, "acme", [deployment()])
    async with standing(postgres) as made:
        yield made


async def finished(stand: Stand, name: str, realised: Reading, minute: int) -> str:
    """A change that was proposed, and how it turned out."""
    proposal = recommendation(name, title=f"Move {name} to spot", deployment=f"old-{name}")
    outcome = Outcome(
        change=proposal.id, deployment=proposal.deployment, kind="spot_migration",
        terminal=ChangeState.COMPLETED,
        predicted_usd_per_month=Interval(low=500.0, mid=700.0, high=900.0),
        realised_usd_per_month=realised, usd_per_hour_before=MISSING, usd_per_hour_after=MISSING,
        ttft_p95_s=MISSING, tpot_p95_s=MISSING, quality_mean=MISSING, features={},
        at=AT + timedelta(minutes=minute),
    )  # fmt: skip
    await stand.fleet.hear(
        f.RecommendationProposed(recommendation=proposal), f.OutcomeRecorded(outcome=outcome)
    )
    return proposal.id


async def test_a_card_has_all_that_a_person_decides_on(stand: Stand) -> None:
    outcomes: dict[str, Reading] = {"a": Known(value=800.0), "b": Known(value=100.0), "c": MISSING}
    ids = [
        await finished(stand, name, realised, minute)
        for minute, (name, realised) in enumerate(outcomes.items())
    ]
    proposal = await stand.fleet.awaiting(
        "d",
        saving_usd_per_month=Interval(low=300.0, mid=400.0, high=500.0),
        spend_usd_per_hour=2.0,
        price_source=PriceSource(name="list", as_of=AT),
        rollout=rollout(0.1, 1.0),
        rollback_seconds=5.0,
        risk_reasons=("spot can be reclaimed",),
    )
    async with stand.client(Role.VIEWER) as client:
        answer = await client.get(f"/api/v1/recommendations/{proposal.id}/card")
    assert answer.headers["etag"] == f'"{proposal.version_hash}"'
    found = answer.json()
    assert found["header"]["title"] == "Move chat to spot"
    assert found["header"]["age_s"] > 0
    assert found["header"]["expires_at"] is not None
    assert found["money"]["spend_usd_per_month"] == 1_460.0
    assert found["money"]["track_record"] == {
        "kind": "spot_migration", "finished": 3, "known": 2, "predicted_usd_per_month": 1_400.0,
        "realised_usd_per_month": 900.0, "within": 1, "deployments": ["old-a", "old-b", "old-c"],
    }  # fmt: skip
    assert found["blast_radius"]["model"] == "8b"
    assert found["blast_radius"]["stages"] == [
        {"share": 0.1, "exposure_s": 0.5}, {"share": 1.0, "exposure_s": 5.0},
    ]  # fmt: skip
    assert [one["id"] for one in found["evidence"]["similar"]] == ids[::-1]
    assert found["evidence"]["similar"][0]["realised_usd_per_month"]["state"] == "unknown"
    assert found["decision"]["awaited"] is True
    assert found["decision"]["asked_because"]
    assert (found["decision"]["approvals_left"], found["decision"]["reason"]) == (1, None)
    assert found["decision"]["type_to_confirm"] == "chat"
    assert [one["name"] for one in found["change"]["values"]] == ["replicas", "to"]
    assert set(found["unknown"]) == {"change.values.before", "simulated"}


async def test_what_a_card_does_not_know_has_a_reason(stand: Stand, postgres: Database) -> None:
    await declare(postgres, "acme", [])
    proposal = recommendation("a")
    await stand.fleet.hear(f.RecommendationProposed(recommendation=proposal))
    found = await got(stand, f"/recommendations/{proposal.id}/card")
    assert found["money"]["saving_usd_per_month"] is None
    assert set(found["unknown"]) == {
        "header.expires_at", "money.saving_usd_per_month", "money.spend_usd_per_hour",
        "money.price_source", "money.track_record", "blast_radius.model", "change.values.before",
        "simulated",
    }  # fmt: skip
    assert all(found["unknown"].values())
    decision = found["decision"]
    assert (decision["awaited"], decision["type_to_confirm"]) == (False, None)
    assert decision["reason"].startswith("it is voting")


async def test_dissent_comes_first(stand: Stand) -> None:
    proposal = recommendation("a")
    await stand.fleet.hear(
        f.RecommendationProposed(recommendation=proposal),
        vote(proposal.id, "application"),
        vote(proposal.id, "performance", Verdict.REJECT),
    )
    found = await got(stand, f"/recommendations/{proposal.id}/card")
    assert [one["agent"] for one in found["votes"]] == ["performance", "application"]


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        (
            Quantisation(from_precision=Precision.BF16, to_precision=Precision.FP8),
            [{"name": "precision", "before": "bf16", "after": "fp8"}],
        ),
        (
            PredictiveScaling(from_replicas=2, to_replicas=3),
            [{"name": "replicas", "before": 2, "after": 3}],
        ),
    ],
)
async def test_a_value_is_shown_before_and_after(stand: Stand, spec: Any, values: Any) -> None:
    proposal = recommendation("a", spec=spec)
    await stand.fleet.hear(f.RecommendationProposed(recommendation=proposal))
    found = await got(stand, f"/recommendations/{proposal.id}/card")
    assert found["change"]["values"] == values
    assert "change.values.before" not in found["unknown"]


async def diff_of(stand: Stand, **proposed: Any) -> list[str]:
    proposal = recommendation("a", **proposed)
    await stand.fleet.hear(f.RecommendationProposed(recommendation=proposal))
    found = await got(stand, f"/recommendations/{proposal.id}/card")
    lines: list[str] = found["change"]["diff"].splitlines()
    assert lines[:2] == ["--- now", "+++ after"]
    return lines[3:]


def changed_in(lines: list[str]) -> list[str]:
    return [line for line in lines if line[0] in "+-"]


async def test_the_diff_holds_the_whole_configuration_and_says_what_is_unknown(
    stand: Stand,
) -> None:
    lines = await diff_of(stand, spec=BatchTuning(max_num_seqs=64))
    assert changed_in(lines) == ["-engine.max_num_seqs: unknown", "+engine.max_num_seqs: 64"]
    for line in (
        "deployment: chat",
        "model: 8b",
        "engine: vllm",
        "engine.chunked_prefill: unknown",
    ):
        assert f" {line}" in lines


async def test_the_diff_knows_the_present_from_the_first_trial(stand: Stand) -> None:
    present = TuningTrial(knobs={"kv_block_tokens": 16}, outcome=TrialOutcome.COMPLETE)
    lines = await diff_of(stand, spec=KvCacheTuning(block_tokens=32), curve=(present,))
    assert changed_in(lines) == ["-engine.kv_block_tokens: 16", "+engine.kv_block_tokens: 32"]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (
            Quantisation(
                from_precision=Precision.BF16, to_precision=Precision.FP8, weights="8b-fp8"
            ),
            ["-engine.precision: bf16", "+engine.precision: fp8",
             "-engine.weights: unknown", "+engine.weights: 8b-fp8"],
        ),
        (PredictiveScaling(from_replicas=2, to_replicas=3), ["-replicas: 2", "+replicas: 3"]),
        (
            GateTightening(max_relative_drop=0.02),
            ["-quality.max_relative_drop: 0.05", "+quality.max_relative_drop: 0.02"],
        ),
        (
            RevertChange(change=recommendation("b").id),
            [f"-change {recommendation('b').id}: in force",
             f"+change {recommendation('b').id}: undone"],
        ),
        (
            CommitmentPurchase(
                provider=Provider.AWS, instance_type="g5.xlarge", region="us-east-1", count=2,
                term_years=1, payment="no_upfront",
            ),
            ["+new commitment.count: 2", "+new commitment.instance_type: g5.xlarge",
             "+new commitment.payment: no_upfront", "+new commitment.provider: aws",
             "+new commitment.region: us-east-1", "+new commitment.term_years: 1"],
        ),
        (
            Consolidation(replicas=("chat-1", "chat-2"), onto=("chat-2",)),
            [f"-replica chat-1.{part}: unknown"
             for part in ("instance_type", "market", "provider", "region", "zone")],
        ),
    ],
)  # fmt: skip
async def test_the_diff_of_each_kind_shows_what_it_changes(
    stand: Stand, spec: Any, expected: list[str]
) -> None:
    assert sorted(changed_in(await diff_of(stand, spec=spec))) == sorted(expected)


async def test_the_present_of_a_replica_is_what_telemetry_tells(
    postgres: Database, servers: Addresses
) -> None:
    await declare(postgres, "acme", [deployment()])
    here = {"instance_type": "g5.xlarge", "market": "on_demand"}
    proposal = recommendation("a")
    (replica,) = proposal.spec.replicas  # type: ignore[union-attr]
    async with metric_store(servers.clickhouse_url) as store, AsyncExitStack() as stack:
        before = await stack.enter_async_context(standing(postgres, metrics=store))
        await before.fleet.hear(f.RecommendationProposed(recommendation=proposal))
        real = await got(before, f"/recommendations/{proposal.id}/card")
        assert real["simulated"] == []
        stand = await stack.enter_async_context(standing(postgres, metrics=store))
        at = just_now()
        await record(store, [price(2.0, at=at, replica=replica, **here)], family="cost")
        scrape = sample("scrape_window_s", 1.0, at=at, replica=replica, emulated="true")
        await record(store, [scrape])
        found = await got(stand, f"/recommendations/{proposal.id}/card")
    assert found["simulated"] == ["chat"]
    lines = found["change"]["diff"].splitlines()
    assert f"-replica {replica}.market: on_demand" in lines
    assert f"+replica {replica}.market: spot" in lines
    assert f"-replica {replica}.region: unknown" in lines
    assert f" replica {replica}.instance_type: g5.xlarge" in lines


async def test_a_card_of_somebody_else_is_not_there(stand: Stand) -> None:
    proposal = await stand.fleet.awaiting("a")
    path = f"/recommendations/{proposal.id}/card"
    assert (await got(stand, path, tenant="other", status=404))["status"] == 404


def changed(rules: Rules, number: int) -> f.PolicyChanged:
    return f.PolicyChanged(
        tenant="acme", number=number, version=rules.version, sha256=rules.sha256,
        policy=rules.model_dump(mode="json"), by="file:policy.yaml", written_at=AT, at=AT,
    )  # fmt: skip


SWALLOWED = {"name": "odd", "approvals": [{"name": "all", "max_risk": "critical"}, {"name": "b"}]}


async def test_policies_are_listed_and_shown_whole(stand: Stand) -> None:
    assert "no policy" in (await got(stand, "/policies/current", status=404))["detail"]
    first, second = Rules(name="first"), Rules.model_validate(SWALLOWED)
    await stand.fleet.hear(changed(first, 1), changed(second, 2))
    page = await got(stand, "/policies?limit=1")
    assert [(one["number"], one["in_force"]) for one in page["items"]] == [(2, True)]
    rest = await got(stand, page["next"].removeprefix("/api/v1"))
    assert [(one["number"], one["in_force"]) for one in rest["items"]] == [(1, False)]
    current = await got(stand, "/policies/current")
    assert (current["version"], current["policy"]["name"]) == (second.version, "odd")
    assert current["warnings"][0].startswith("approvals.1 (b): it never matches")
    old = await got(stand, "/policies/1")
    assert (old["version"], old["in_force"], old["warnings"]) == (first.version, False, [])
    assert "policy 3" in (await got(stand, "/policies/3", status=404))["detail"]
    assert (await got(stand, "/policies", tenant="other"))["items"] == []


async def test_a_policy_with_keys_of_another_release_is_shown_all_the_same(stand: Stand) -> None:
    newer = changed(Rules(name="a"), 1)
    newer = newer.model_copy(update={"policy": {**newer.policy, "from_next_year": 1}})
    await stand.fleet.hear(newer)
    found = await got(stand, "/policies/current")
    assert found["policy"]["from_next_year"] == 1
    assert found["warnings"][0].startswith("from_next_year: there is no such key")


async def checked(stand: Stand, policy: Any) -> Any:
    async with stand.client(Role.VIEWER) as client:
        answer = await client.post("/api/v1/policies/check", json={"policy": policy})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_policy_is_checked_as_the_command_line_does(
    stand: Stand, postgres: Database
) -> None:
    wrong = await checked(stand, {"max_movin": 1})
    assert wrong["errors"] == ["max_movin: there is no such key; did you mean 'max_moving'?"]
    assert (wrong["ok"], wrong["version"], wrong["warnings"]) == (False, None, [])
    named = await checked(stand, {"approvals": [{"name": "a", "deployments": ["chta"]}]})
    assert named["errors"] == [
        "approvals.0 (a).deployments: the fleet has no deployment 'chta'; did you mean 'chat'?"
    ]
    good = await checked(stand, SWALLOWED)
    rules = Rules.model_validate(SWALLOWED)
    assert (good["ok"], good["version"], good["sha256"]) == (True, rules.version, rules.sha256)
    assert good["warnings"][0].startswith("approvals.1 (b): it never matches")
    async with postgres.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM policies") == 0


async def test_a_policy_as_text_is_told_where_it_is_wrong(stand: Stand) -> None:
    broken = await checked(stand, "name: a\nmax_moving: [\n")
    assert (broken["ok"], broken["findings"][0]["line"]) == (False, 3)
    wrong = await checked(stand, "name: a\nmax_movin: 1\nmax_moving: 0\n")
    told = {one["line"]: one["says"].partition(":")[0] for one in wrong["findings"]}
    assert told == {2: "max_movin", 3: "max_moving"}
    assert [one["says"] for one in wrong["findings"]] == wrong["errors"]
    named = "approvals:\n- name: a\n  deployments: [chta]\n- {name: b}\n- {name: c}\n"
    found = (await checked(stand, named))["findings"]
    assert [(one["kind"], one["line"]) for one in found] == [("error", 3), ("warning", 5)]
    odd = await checked(stand, 'approvals: [{name: a, kinds: ["\\ud800"]}]')
    assert odd["findings"][0]["line"] == 1
    good = await checked(stand, yaml.safe_dump(SWALLOWED))
    rules = Rules.model_validate(SWALLOWED)
    assert (good["ok"], good["version"]) == (True, rules.version)
    assert (await checked(stand, {"max_movin": 1}))["findings"][0]["line"] is None
    async with stand.client(Role.VIEWER) as client:
        long = {"policy": "a" * 32_001}
        assert (await client.post("/api/v1/policies/check", json=long)).status_code == 400


async def test_a_recorded_policy_is_told_as_text_too(stand: Stand) -> None:
    rules = Rules(name="a", max_moving=3)
    await stand.fleet.hear(changed(rules, 1))
    assert (await got(stand, "/policies/current"))["text"] == "name: a\nmax_moving: 3\n"
