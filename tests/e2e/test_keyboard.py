"""The letters of the keyboard, in a real browser before a real `optiinfra up`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import expect

from optiinfra.storage.testing.servers import reachable_home
from tests.e2e.browser import SHOWS_PAGES, Stand, standing
from tests.up_stand import Up, fleet

pytestmark = SHOWS_PAGES


@pytest.fixture(scope="module")
async def stand() -> AsyncIterator[Stand]:
    with reachable_home() as folder:
        async with standing(Up(folder, fleet())) as made:
            yield made


async def test_letters_are_heard_in_the_moment_in_which_a_dialog_closes(stand: Stand) -> None:
    async with stand.page() as page:
        await page.keyboard.press("?")
        await expect(page.get_by_role("dialog")).to_contain_text("approve / reject")
        await page.evaluate("""() => {
            document.querySelector("dialog").close();
            for (const key of "gr") {
                const pressed = new KeyboardEvent("keydown", { key, bubbles: true });
                document.activeElement.dispatchEvent(pressed);
            }
        }""")
        await expect(page.get_by_role("heading", name="Recommendations")).to_be_visible()


async def test_g_waits_for_its_letter_until_something_else_is_done(stand: Stand) -> None:
    async with stand.page() as page:
        await page.keyboard.press("g")
        await page.wait_for_timeout(2_000)  # a slow hand
        await page.keyboard.press("c")
        cost = page.get_by_role("heading", name="Cost", level=1)
        await expect(cost).to_be_visible()
        await page.keyboard.press("g")
        await page.keyboard.press("j")
        await page.keyboard.press("r")
        await page.keyboard.press("g")
        await cost.click()
        await page.keyboard.press("r")
        await page.keyboard.press("g")
        await page.keyboard.press("x")
        await expect(page.get_by_role("heading", name="Executions", level=1)).to_be_visible()
        await page.go_back()  # to the page before, which none of the letters between has left
        await expect(cost).to_be_visible()
