"""Messages that come again and again, in any order, or at the wrong hour."""

from __future__ import annotations

import itertools

from optiinfra.events import facts as f
from optiinfra.events.publish import Publisher
from optiinfra.runtime.stores import new_id, now
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.vote import VOTERS
from tests.factories import vote
from tests.faults.child import SLOW_S
from tests.faults.stand import Stand, playing

HOUR_S = 3_600.0


async def test_each_message_three_times_beyond_the_window_has_one_effect(stand: Stand) -> None:
    roles = (stand.role("coordinator"), stand.role("coordinator"), stand.role("agents", times=3))
    async with playing(*roles):
        await stand.propose(6, soak_s=0.3)
        await stand.all_completed()
    assert await stand.dead_letters() == 0


async def test_a_target_slower_than_the_broker_waits_is_asked_once(stand: Stand) -> None:
    slow = [stand.role("agents", slow_s=SLOW_S) for _ in range(2)]
    async with playing(stand.role("coordinator"), *slow):
        [made] = await stand.propose(1)
        await stand.all_completed()
    assert stand.target.asked(made.deployment) == 1


async def test_votes_in_every_order_before_and_after_the_proposal_decide_the_same(
    stand: Stand,
) -> None:
    orders = list(itertools.permutations((*sorted(VOTERS), "proposal")))
    async with playing(stand.role("coordinator"), stand.role("agents")):
        publisher = Publisher(stand.bus, "cost", now, new_id)
        made = stand.prepared(len(orders))
        for one, order in zip(made, orders, strict=True):
            facts: dict[str, f.Fact] = {name: vote(one.id, name) for name in VOTERS}
            facts["proposal"] = f.RecommendationProposed(recommendation=one)
            for name in order:
                await publisher.publish(
                    publisher.event(facts[name], tenant="acme", id=derived_id(one.id, name))
                )
        await stand.all_completed()
    assert await stand.count("SELECT count(DISTINCT chain) FROM event_log") >= len(orders)


async def test_clocks_that_are_an_hour_off_decide_nothing(stand: Stand) -> None:
    roles = (
        stand.role("coordinator", clock_off_s=HOUR_S),
        stand.role("coordinator", clock_off_s=-HOUR_S),
        stand.role("agents", clock_off_s=HOUR_S),
        stand.role("agents", clock_off_s=-HOUR_S),
    )
    async with playing(*roles):
        await stand.propose(8, soak_s=1.0)
        await stand.all_completed()
    early = await stand.count(_EARLY)
    assert early == 0


async def test_poison_among_the_messages_is_buried_and_harms_no_other(stand: Stand) -> None:
    async with playing(stand.role("coordinator"), stand.role("agents")):
        for number, (body, headers) in enumerate(POISON):
            await stand.bus.js.publish(f"vote.cast.acme.{number:032x}.cost", body, headers=headers)
        await stand.propose(6, soak_s=0.3)
        await stand.all_completed()
        await stand.until_dead_letters(len(POISON))


POISON: tuple[tuple[bytes, dict[str, str] | None], ...] = (
    (b"{", None),
    (b"not json", {"ce-id": "a" * 32}),
    (b"[" * 10_000, {"ce-id": "b" * 32, "ce-source": "x", "ce-tenant": "acme", "ce-time": "now"}),
    (b'{"kind":"vote.cast"}', {"ce-id": "c" * 32, "ce-source": "x", "ce-tenant": "acme",
                               "ce-time": "2026-01-01T00:00:00Z"}),
)  # fmt: skip
_EARLY = """
SELECT count(*) FROM event_log AS staged JOIN event_log AS fired ON fired.chain = staged.chain
WHERE staged.type LIKE 'optiinfra.execution.staged.%' AND fired.type LIKE 'optiinfra.timer.fired.%'
AND fired.body::jsonb ->> 'name' = 'soak'
AND fired.body::jsonb ->> 'key' = staged.body::jsonb #>> '{result,step,stage}'
AND staged.body::jsonb #>> '{result,step,kind}' = 'apply'
AND fired.at < staged.at + interval '1 second'
"""
