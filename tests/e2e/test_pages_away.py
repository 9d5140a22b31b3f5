"""The web pages while the network is silent, the API is gone, or a part of them is missing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.async_api import Page, expect

from tests.e2e.browser import CONNECTION, SHOWS_PAGES, Stand, settled, turned

pytestmark = SHOWS_PAGES
CHAT = "of chat to spot"
PROGRAM = "**/assets/**"


@contextmanager
def silence(stand: Stand) -> Iterator[None]:
    """Nothing comes through while the block lasts."""
    stand.proxy.open.clear()
    try:
        yield
    finally:
        stand.proxy.open.set()


async def refused(page: Page, files: str) -> None:
    await page.route(files, lambda route: route.abort())


async def test_a_silent_network_is_told_within_3_s_and_nothing_is_missed_after_it(
    stand: Stand,
) -> None:
    async with stand.page() as page:
        chip = page.locator(CONNECTION)
        await expect(page.get_by_text("nothing is wrong")).to_be_visible()
        with silence(stand):
            await expect(chip).not_to_have_attribute("data-status", "live", timeout=3_500)
            await expect(chip).to_contain_text(re.compile(r"data as of \d\d:\d\d:\d\d"))
            await turned(stand, stopped=True)
            await expect(chip).to_have_attribute("data-status", "disconnected", timeout=3_500)
        await expect(chip).to_have_attribute("data-status", "live", timeout=15_000)
        await expect(page.get_by_text("All changes are stopped")).to_be_visible(timeout=5_000)
        await expect(chip).to_have_attribute("data-gaps", "0")
        await turned(stand, stopped=False)
        await expect(page.get_by_text("nothing is wrong")).to_be_visible(timeout=5_000)


@pytest.mark.usefixtures("moved")
async def test_a_part_of_a_page_that_cannot_be_fetched_comes_later_and_the_rest_stays(
    stand: Stand,
) -> None:
    async with stand.page("/executions") as page:
        await expect(page.locator("a[data-row]", has_text=CHAT)).to_be_visible()
        await refused(page, PROGRAM)
        await page.locator("a[data-row]", has_text=CHAT).click()
        card = page.get_by_role("article")
        await expect(card).to_contain_text("completed")
        await expect(card.get_by_label("loading")).to_be_visible()
        await page.unroute(PROGRAM)
        await expect(card.get_by_label("quality of candidate and baseline")).to_be_visible()


async def test_a_program_that_stays_away_is_told_after_half_a_minute(stand: Stand) -> None:
    async with stand.page("/executions") as page:
        await settled(page)
        await refused(page, PROGRAM)
        await page.clock.install()
        await page.get_by_role("link", name="Cost").click()
        await expect(page.get_by_role("heading", name="Cost", exact=True)).to_be_visible()
        await page.clock.run_for(2_000)
        await expect(page.get_by_label("loading")).to_be_visible()
        await page.clock.run_for(60_000)
        await expect(page.get_by_role("alert")).to_contain_text("could not be fetched")
        await page.unroute(PROGRAM)
        await page.get_by_role("button", name="Reload the page").click()
        await expect(page.get_by_role("heading", name="By deployment")).to_be_visible()


async def test_a_file_that_is_missing_alone_is_told_at_once(stand: Stand) -> None:
    async with stand.page("/executions") as page:
        await settled(page)
        await page.clock.install()
        await page.clock.pause_at(await page.evaluate("Date.now() + 1000"))
        await refused(page, "**/assets/Cost-*")
        await page.get_by_role("link", name="Cost").click()
        await expect(page.get_by_role("alert")).to_contain_text("could not be fetched")
        await expect(page.get_by_role("button", name="Reload the page")).to_be_visible()


@pytest.mark.usefixtures("moved")
async def test_a_killed_api_is_told_within_3_s_and_the_stream_goes_on_where_it_was(
    stand: Stand,
) -> None:
    """A page that is opened meanwhile comes when the API is back."""
    async with stand.page("/executions") as page:
        chip = page.locator(CONNECTION)
        await page.locator("a[data-row]", has_text=CHAT).click()
        await expect(page.get_by_role("article")).to_contain_text("completed")
        await settled(page)
        await stand.up.kill()
        await expect(chip).to_have_attribute("data-status", "disconnected", timeout=3_500)
        await expect(page.get_by_role("article")).to_contain_text("completed")
        await page.get_by_role("link", name="Cost").click()
        await expect(page.get_by_role("heading", name="Cost", exact=True)).to_be_visible()
        session = await stand.up.start()
        stand.proxy.moved_to(session.url)
        await expect(chip).to_have_attribute("data-status", "live", timeout=15_000)
        await expect(page.get_by_role("heading", name="By deployment")).to_be_visible()
        await expect(chip).to_have_attribute("data-gaps", "0")
        await expect(chip).not_to_have_attribute("data-resumed", "0")
        await expect(page.get_by_role("alert")).to_have_count(0)
