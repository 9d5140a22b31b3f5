"""The recommendation card in a real browser: what the API says, in the order of deciding."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

from optiinfra.storage.testing.servers import reachable_home
from tests.e2e.browser import NARROW, SHOWS_PAGES, SLOW_MS, WIDE, Stand, faults, keep, standing
from tests.up_stand import Up, api, fleet

pytestmark = SHOWS_PAGES
PARTS = [
    "Money", "Risk", "Blast radius", "Votes", "Evidence", "The change", "Rollout", "Rollback",
]  # fmt: skip


@pytest.fixture(scope="module")
async def stand() -> AsyncIterator[Stand]:
    with reachable_home() as folder:
        up = Up(folder, fleet(rules={"revote_after_s": 1, "max_vote_rounds": 200}))
        async with standing(up) as made:
            yield made


async def shown(page: Page) -> Any:
    """The card of the one proposal, once a person is asked."""
    row = page.locator("a[data-row]", has_text="of chat to spot")
    await expect(row).to_contain_text("awaiting approval", timeout=SLOW_MS)
    await row.click()
    card = page.get_by_role("article")
    await expect(card.locator("[data-action=approve]")).to_be_visible()
    return card


async def told(stand: Stand, page: Page) -> Any:
    """What the API says of the card that is shown."""
    found = re.search(r"id=([0-9a-f]{32})", page.url)
    assert found is not None, page.url
    async with api(stand.session) as http:
        answer = await http.get(f"/recommendations/{found.group(1)}/card")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_the_card_reads_in_the_order_of_deciding(stand: Stand) -> None:
    async with stand.page("/recommendations") as page:
        card = await shown(page)
        assert await card.locator("h3").all_inner_texts() == [part.upper() for part in PARTS]
        says = await told(stand, page)
        await expect(card).to_contain_text(says["header"]["version_hash"])
        await expect(card).to_contain_text(re.compile(r"expires in \d+"))
        await expect(card.get_by_role("region", name="Money").first).to_contain_text("prices:")
        blast = card.get_by_role("region", name="Blast radius")
        await expect(blast).to_contain_text(says["blast_radius"]["model"])
        for replica in says["blast_radius"]["replicas"]:
            await expect(blast).to_contain_text(replica)
        await expect(blast).to_contain_text("of all traffic")
        votes = card.get_by_role("region", name="Votes").locator("li > div > strong")
        last = max(one["round"] for one in says["votes"])
        agents = [one["agent"] for one in says["votes"] if one["round"] == last]
        assert await votes.all_inner_texts() == agents
        await expect(card).to_contain_text("No spot migration has completed here before.")
        await expect(card).to_contain_text("No similar change has ended before.")


async def test_the_raw_diff_shows_what_changes_and_then_all(stand: Stand) -> None:
    async with stand.page("/recommendations") as page:
        card = await shown(page)
        lines = (await told(stand, page))["change"]["diff"].split("\n")[3:]
        changing = [line for line in lines if line[0] in "+-"]
        assert any(line.endswith(".market: spot") for line in changing)
        diff = card.get_by_label("raw diff").locator("span")
        await expect(diff).to_have_text(changing)
        await card.get_by_role("button", name="Whole configuration").click()
        await expect(diff).to_have_count(len(lines))
        await expect(diff.filter(has_text="engine.max_num_seqs: unknown")).to_have_count(1)


async def test_figures_of_emulated_replicas_are_marked_one_by_one(stand: Stand) -> None:
    async with stand.page("/recommendations") as page:
        card = await shown(page)
        assert (await told(stand, page))["simulated"] == ["chat"]
        for part in ("Money", "Votes"):
            marks = card.get_by_role("region", name=part, exact=True).locator("[data-simulated]")
            await expect(marks.first).to_have_text("simulated")
        listed = card.locator("tr", has_text="price list").filter(has_text="on demand")
        await expect(listed).to_have_count(1)
        await expect(listed.locator("[data-simulated]")).to_have_count(0)
        await page.goto(f"{stand.url}/")
        spend = page.locator("div", has=page.get_by_text("Spend", exact=True)).last
        await expect(spend.locator("[data-simulated]")).to_have_text("simulated")


async def test_what_is_snoozed_is_out_of_the_way_until_it_is_woken(stand: Stand) -> None:
    async with stand.page("/recommendations", size=NARROW) as page:
        card = await shown(page)
        dialog, approve = page.get_by_role("dialog"), card.locator("[data-action=approve]")
        await page.keyboard.press("z")
        await expect(dialog).to_contain_text("choose until when")
        await dialog.get_by_label("for 1 hour").check()
        await dialog.get_by_label("Reason").fill("peak hours")
        assert await faults(page) == []
        await dialog.get_by_role("button", name="Snooze").click()
        await expect(card).to_contain_text(re.compile(r"in \d+ min, by person:.*: peak hours"))
        await expect(approve).to_have_attribute("title", re.compile("wake it first"))
        await page.goto(f"{stand.url}/")
        await expect(page.get_by_text("nothing to decide")).to_be_visible()
        await page.goto(f"{stand.url}/recommendations")
        await expect(page.get_by_text("Nothing waits for a decision.")).to_be_visible()
        await page.get_by_role("button", name=re.compile("^snoozed 1$")).click()
        await expect(page.locator("a[data-row]")).to_contain_text("snoozed until")
        await page.locator("a[data-row]").click()
        await card.get_by_role("button", name="Wake").click()
        await dialog.get_by_role("button", name="Wake").click()
        await expect(approve).not_to_have_attribute("aria-disabled", "true")
        await expect(card).not_to_contain_text("peak hours")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["1280", "390"])
async def test_the_card_is_accessible_and_fits(
    stand: Stand, screenshots: Path | None, size: Any, theme: str
) -> None:
    async with stand.page("/recommendations", size=size, theme=theme) as page:
        card = await shown(page)
        await card.get_by_role("button", name="Whole configuration").click()
        assert await faults(page) == []
        await keep(page, screenshots, "card")


async def test_no_page_has_logged_an_error(stand: Stand) -> None:
    assert stand.complaints == []
