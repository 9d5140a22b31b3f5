"""Policies that are edited while coordinators run: recorded, in force for all, then decided."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from optiinfra.coordinator.policy_keeper import PolicyKeeper
from optiinfra.events import facts as f
from optiinfra.events.envelope import Event
from optiinfra.runtime.cli_recs import card
from optiinfra.runtime.findings import Finding, Level
from optiinfra.runtime.fleet_file import load_governed
from optiinfra.runtime.policy_checks import look_at_recorded_policy
from optiinfra.runtime.policy_file import WatchedFile, load_policy
from optiinfra.runtime.settings import Settings
from optiinfra.schemas.errors import Conflict
from optiinfra.schemas.recommendation import Recommendation, Risk
from optiinfra.schemas.rules import Rules, digest_of
from optiinfra.schemas.tenant import Role
from optiinfra.storage.embedded.nats import NatsServer
from optiinfra.storage.postgres.access import Principal
from optiinfra.storage.postgres.database import open_database
from optiinfra.storage.postgres.decisions import Decision, Decisions
from optiinfra.storage.postgres.documents import Documents
from optiinfra.storage.postgres.verification import verify
from tests.coordinator_stand import BRISK, Stand, opened
from tests.factories import recommendation, rollout

QUICK = replace(BRISK, policy_s=0.1)
LOOSE: dict[str, Any] = {"approvals": [{"name": "all"}], "max_moving": 99, "movers_per_hour": 99}
STRICT: dict[str, Any] = {**LOOSE, "approvals": []}
CHANGED = "optiinfra.policy.changed.v1"


@pytest.fixture
async def stand(nats_server: Callable[[], NatsServer], database: str) -> AsyncIterator[Stand]:
    async with opened(nats_server().url, database) as made:
        await made.cast()
        yield made


def policy(folder: Path, name: str = "policy.yaml", **content: Any) -> Path:
    """Writes a policy file; `age_s` makes it older than now."""
    age_s = content.pop("age_s", 0)
    path = folder / name
    path.write_text(yaml.safe_dump(content))
    written = path.stat().st_mtime - age_s
    os.utime(path, (written, written))
    return path


def version(content: dict[str, Any]) -> str:
    return Rules.model_validate(content).version


def proposal(name: object, **changes: Any) -> Recommendation:
    return recommendation(name, **{"rollout": rollout(1.0), "deployment": f"d-{name}", **changes})


async def recorded(stand: Stand, count: int) -> list[str]:
    """The versions in order, once there are `count`."""
    await stand.until("SELECT count(*) = $1 FROM policies", count)
    rows = await stand.fetch("SELECT version FROM policies ORDER BY number")
    return [str(row["version"]) for row in rows]


async def state(stand: Stand, change: Recommendation, wanted: str) -> None:
    await stand.until("SELECT state = $2 FROM sagas WHERE change_id = $1", change.id, wanted)


async def versions_of(stand: Stand, change: Recommendation) -> set[str]:
    """Under which policies anything of the change was decided."""
    rows = await stand.fetch(
        "SELECT DISTINCT body::jsonb ->> 'rules_version' AS version FROM event_log"
        " WHERE chain = $1 AND body::jsonb ? 'rules_version'",
        change.id,
    )
    return {str(row["version"]) for row in rows if row["version"] is not None}


async def test_the_policy_of_the_start_is_recorded_and_said_before_anything_is_decided(
    stand: Stand, tmp_path: Path
) -> None:
    await stand.coordinator(QUICK, policy=policy(tmp_path, **LOOSE))
    change = proposal("a")
    await stand.propose(change)
    await state(stand, change, "completed")
    assert await recorded(stand, 1) == [version(LOOSE)]
    (said,) = await stand.fetch("SELECT * FROM event_log WHERE type = $1", CHANGED)
    fact = f.PolicyChanged.model_validate_json(str(said["body"]))
    assert (fact.number, fact.previous, fact.by) == (1, None, "file:policy.yaml")
    assert Rules.model_validate(fact.policy).version == version(LOOSE)
    assert digest_of(fact.policy) == fact.sha256
    assert said["chain"] == "tenant-acme"
    (first,) = await stand.fetch(
        "SELECT min(position) AS p FROM event_log WHERE chain = $1", change.id
    )
    assert said["position"] < first["p"]  # type: ignore[operator]
    await stand.until("SELECT count(*) = 0 FROM outbox WHERE sent_seq IS NULL")
    assert await versions_of(stand, change) == {version(LOOSE)}
    assert (await verify(stand.database)).ok


async def test_an_edit_is_recorded_before_it_decides_and_each_decision_names_its_policy(
    stand: Stand, tmp_path: Path
) -> None:
    path = policy(tmp_path, **LOOSE)
    await stand.coordinator(QUICK, policy=path)
    before, after = proposal("a"), proposal("b")
    await stand.propose(before)
    await state(stand, before, "completed")
    policy(tmp_path, **STRICT)
    assert await recorded(stand, 2) == [version(LOOSE), version(STRICT)]
    await stand.propose(after)
    await state(stand, after, "awaiting_approval")
    assert await versions_of(stand, before) == {version(LOOSE)}
    assert await versions_of(stand, after) == {version(STRICT)}
    out_of_order = await stand.fetch(
        "SELECT d.type FROM event_log d, event_log p WHERE p.type = $1"
        " AND p.body::jsonb ->> 'version' = $2"
        " AND (d.body::jsonb ->> 'rules_version' = $2) <> (d.position > p.position)"
        " AND d.body::jsonb ->> 'rules_version' IS NOT NULL",
        CHANGED,
        version(STRICT),
    )
    assert out_of_order == []
    assert (await verify(stand.database)).ok


async def test_a_broken_edit_changes_nothing_and_the_mended_one_counts(
    stand: Stand, tmp_path: Path
) -> None:
    path = policy(tmp_path, **LOOSE)
    coordinator = await stand.coordinator(QUICK, policy=path)
    await recorded(stand, 1)
    path.write_text("approvals: [{ name: x, kinds: [nonsense] }]")
    coordinator.reload()
    change = proposal("a")
    await stand.propose(change)
    await state(stand, change, "completed")
    assert await versions_of(stand, change) == {version(LOOSE)}
    policy(tmp_path, **STRICT)
    assert await recorded(stand, 2) == [version(LOOSE), version(STRICT)]


async def test_a_signal_has_the_file_read_at_once(stand: Stand, tmp_path: Path) -> None:
    coordinator = await stand.coordinator(
        replace(QUICK, policy_s=1_000.0), policy=policy(tmp_path, **LOOSE)
    )
    await recorded(stand, 1)
    policy(tmp_path, **STRICT)
    coordinator.reload()
    await recorded(stand, 2)


async def test_going_back_to_an_older_content_is_an_edit_like_any_other(
    stand: Stand, tmp_path: Path
) -> None:
    await stand.coordinator(QUICK, policy=policy(tmp_path, **LOOSE))
    await recorded(stand, 1)
    policy(tmp_path, **STRICT)
    await recorded(stand, 2)
    policy(tmp_path, **LOOSE, age_s=9_000)
    assert await recorded(stand, 3) == [version(LOOSE), version(STRICT), version(LOOSE)]


async def test_a_coordinator_with_an_older_file_follows_and_turns_nothing_back(
    stand: Stand, tmp_path: Path
) -> None:
    newer = policy(tmp_path, "newer.yaml", **STRICT, age_s=50)
    older = policy(tmp_path, "older.yaml", **LOOSE, age_s=100)
    await stand.coordinator(QUICK, policy=newer)
    await recorded(stand, 1)
    await stand.coordinator(QUICK, policy=older)
    changes = [proposal(n) for n in range(6)]
    await stand.propose(*changes)
    for change in changes:
        await state(stand, change, "awaiting_approval")
        assert await versions_of(stand, change) == {version(STRICT)}
    assert await recorded(stand, 1) == [version(STRICT)]


async def test_a_younger_file_at_a_start_counts_for_the_coordinators_that_run(
    stand: Stand, tmp_path: Path
) -> None:
    await stand.coordinator(QUICK, policy=policy(tmp_path, "a.yaml", **LOOSE, age_s=100))
    await recorded(stand, 1)
    await stand.coordinator(QUICK, policy=policy(tmp_path, "b.yaml", **STRICT, age_s=50))
    assert await recorded(stand, 2) == [version(LOOSE), version(STRICT)]
    third = {**STRICT, "max_moving": 7}
    policy(tmp_path, "a.yaml", **third)
    assert await recorded(stand, 3) == [version(LOOSE), version(STRICT), version(third)]


async def test_no_coordinator_decides_under_a_policy_that_another_has_replaced(
    stand: Stand, tmp_path: Path
) -> None:
    """This one looks at files and records so seldom that only its batches can tell it."""
    seldom = replace(QUICK, policy_s=1_000.0)
    await stand.coordinator(seldom, policy=policy(tmp_path, "a.yaml", **LOOSE, age_s=100))
    await recorded(stand, 1)
    file = WatchedFile(policy(tmp_path, "b.yaml", **STRICT, age_s=50), load_policy)
    other = PolicyKeeper("acme", file.first(), file, stand.database)

    async def unsaid(_events: Sequence[Event]) -> None:
        """The relay says it."""

    assert await other.refresh(unsaid) == 1
    change = proposal("a")
    await stand.propose(change)
    await state(stand, change, "awaiting_approval")
    assert await versions_of(stand, change) == {version(STRICT)}
    await stand.until("SELECT count(*) = 0 FROM outbox WHERE sent_seq IS NULL")


async def test_two_coordinators_that_see_the_same_edit_record_it_once(
    stand: Stand, tmp_path: Path
) -> None:
    path = policy(tmp_path, **LOOSE)
    for _ in range(2):
        await stand.coordinator(QUICK, policy=path)
        await recorded(stand, 1)
    for number in range(2, 6):
        policy(tmp_path, **LOOSE, retry_turn_s=float(number))
        await recorded(stand, number)
    (said,) = await stand.fetch("SELECT count(*) AS n FROM event_log WHERE type = $1", CHANGED)
    assert said["n"] == 5
    assert (await verify(stand.database)).ok


async def test_a_record_that_only_a_newer_release_understands_leaves_what_is_in_force(
    stand: Stand, tmp_path: Path
) -> None:
    await stand.coordinator(QUICK, policy=policy(tmp_path, **LOOSE))
    await recorded(stand, 1)
    await stand.fetch(
        "INSERT INTO policies SELECT tenant, 9, 'later@0', sha256, $1, by, written_at, now()"
        " FROM policies RETURNING number",
        json.dumps({"a_key_of_tomorrow": 1}),
    )
    change = proposal("a")
    await stand.propose(change)
    await state(stand, change, "completed")
    assert await versions_of(stand, change) == {version(LOOSE)}
    policy(tmp_path, **STRICT)
    await stand.until(
        "SELECT number = 10 AND version = $1 FROM policies ORDER BY number DESC LIMIT 1",
        version(STRICT),
    )


REFUSE_AT_COMMIT = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'not now' USING ERRCODE = '40001'; END $$;
CREATE CONSTRAINT TRIGGER refusal AFTER INSERT ON policies DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION refuse()
"""


async def test_a_policy_that_could_not_be_committed_is_not_in_force_and_is_tried_again(
    stand: Stand, tmp_path: Path
) -> None:
    said: list[Event] = []

    async def say(events: Sequence[Event]) -> None:
        said.extend(events)

    file = WatchedFile(policy(tmp_path, **LOOSE), load_policy)
    keeper = PolicyKeeper("acme", file.first(), file, stand.database)
    assert await keeper.refresh(say) == 1
    policy(tmp_path, **STRICT)
    async with stand.database.connection() as connection:
        await connection.execute(REFUSE_AT_COMMIT)
        with pytest.raises(Conflict):
            await keeper.refresh(say)
        assert keeper.rules().version == version(LOOSE)
        await connection.execute("DROP TRIGGER refusal ON policies")
    assert await keeper.refresh(say) == 1
    assert keeper.rules().version == version(STRICT)
    assert [event.fact.version for event in said] == [version(LOOSE), version(STRICT)]  # type: ignore[union-attr]


async def test_a_freeze_that_is_lifted_wakes_what_waits_for_its_end(
    stand: Stand, tmp_path: Path
) -> None:
    days = {"starts_at": "2020-01-01T00:00:00Z", "ends_at": "2099-01-01T00:00:00Z"}
    frozen = {**LOOSE, "freezes": [{"name": "all", **days}]}
    await stand.coordinator(QUICK, policy=policy(tmp_path, **frozen))
    change = proposal("a")
    await stand.propose(change)
    await state(stand, change, "deferred")
    await stand.until("SELECT date_part('year', fire_at) >= 2098 FROM timers WHERE name = 'turn'")
    policy(tmp_path, **LOOSE)
    await state(stand, change, "completed")


async def test_a_rule_counts_what_it_has_approved_and_asks_beyond_its_limit(
    stand: Stand, tmp_path: Path
) -> None:
    limited = {**LOOSE, "approvals": [{"name": "two", "max_per_hour": 2}]}
    await stand.coordinator(QUICK, policy=policy(tmp_path, **limited))
    for number in range(3):
        change = proposal(number)
        await stand.propose(change)
        await state(stand, change, "completed" if number < 2 else "awaiting_approval")
    (asked,) = await stand.fetch(
        "SELECT body FROM event_log WHERE type LIKE '%approval.requested%'"
    )
    assert (
        "it has approved 2 in the last hour, its limit is 2"
        in json.loads(str(asked["body"]))["reason"]
    )


async def test_a_target_that_moved_often_enough_waits(stand: Stand, tmp_path: Path) -> None:
    limited = {**LOOSE, "movers_per_hour_per_target": 1}
    await stand.coordinator(QUICK, policy=policy(tmp_path, **limited))
    first, second, other = (
        proposal("a", deployment="chat"),
        proposal("b", deployment="chat"),
        proposal("c", deployment="search"),
    )
    await stand.propose(first)
    await state(stand, first, "completed")
    await stand.propose(second, other)
    await state(stand, other, "completed")
    await stand.until(
        "SELECT body::jsonb ->> 'waiting' LIKE '1 changes of chat in the last hour%'"
        " FROM sagas WHERE change_id = $1",
        second.id,
    )


async def test_two_people_let_a_risky_change_go(stand: Stand, tmp_path: Path) -> None:
    await stand.coordinator(QUICK, policy=policy(tmp_path, **LOOSE, four_eyes_from="high"))
    change = proposal("a", risk=Risk.HIGH)
    await stand.propose(change)
    await state(stand, change, "awaiting_approval")
    portal = Decisions(stand.database, stand.publisher)
    word = Decision(change.id, granted=True, version_hash=change.version_hash, reason="yes")
    ana, bob = (
        Principal(f"t-{name}", "acme", name, Role.APPROVER, None) for name in ("ana", "bob")
    )
    first = await portal.decide(ana, word)
    again = await portal.decide(ana, word)
    assert (again.repeated, again.event_id) == (True, first.event_id)
    await stand.until("SELECT count(*) = 1 FROM approvals WHERE granted")
    await state(stand, change, "awaiting_approval")
    shown = await Documents(stand.database).recommendation("acme", change.id)
    found = json.loads(shown.text)
    assert (len(found["approvals"]), found["approvals_needed"]) == (1, 2)
    assert any(line.endswith("; 1 of 2 have said yes") for line in card(found))
    assert not (await portal.decide(bob, word)).repeated
    await state(stand, change, "completed")
    (row,) = await stand.fetch("SELECT body FROM event_log WHERE type LIKE '%change.approved%'")
    assert json.loads(str(row["body"]))["by"] == "person:ana, person:bob"


async def test_the_doctor_tells_whether_the_policy_on_file_is_in_force(
    database: str, tmp_path: Path
) -> None:
    fleet_file = tmp_path / "fleet.yaml"
    fleet_file.write_text(
        "tenant: acme\npolicy: policy.yaml\nclouds: { local: { command: [engine] } }\n"
        "deployments: [{ id: chat, model: m, provider: local }]\n"
    )
    file = WatchedFile(policy(tmp_path, **LOOSE), load_policy)
    settings = Settings(postgres_url=database)

    async def said_by_nobody(_events: Sequence[Event]) -> None:
        """There is no bus here."""

    async def found() -> Finding:
        (one,) = await look_at_recorded_policy(settings, load_governed(fleet_file))
        return one

    assert "none was recorded yet" in (await found()).said
    async with open_database(database) as opened_database:
        await PolicyKeeper("acme", file.first(), file, opened_database).refresh(said_by_nobody)
    assert (await found()).said == f"{version(LOOSE)}, number 1"
    policy(tmp_path, **STRICT)
    differs = await found()
    assert differs.level is Level.WARN
    assert version(LOOSE) in differs.said
    assert version(STRICT) in differs.said
