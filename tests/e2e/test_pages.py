"""The web pages in a real browser, before a real `optiinfra up`: what a person sees and does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

from tests.e2e.browser import (
    NARROW,
    SHOWS_PAGES,
    SLOW_MS,
    WIDE,
    Stand,
    faults,
    keep,
    settled,
)
from tests.e2e.traced import Answers, traced

pytestmark = SHOWS_PAGES
INVENTED = "(main) => main.insertAdjacentText('beforeend', ' 42 % of $1.23/h')"


async def test_the_printed_link_signs_in_once_and_leaves_no_token_in_the_address(
    stand: Stand,
) -> None:
    assert stand.session.sign_in_url is not None
    link = stand.session.sign_in_url.replace(stand.session.url, stand.url)
    page = await stand.browser.new_page()
    await page.goto(link)
    await expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    assert page.url == f"{stand.url}/"
    assert await page.evaluate("history.length") <= 2
    again = await stand.browser.new_page()
    await again.goto(link)
    await expect(again.get_by_role("alert")).to_contain_text("unknown, expired or used")
    assert "oi_once" not in again.url
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_label("One-time token")).to_be_visible()


async def open_card(page: Page, deployment: str) -> None:
    """The card of a deployment's proposal once a person is asked about it."""
    row = page.locator("a[data-row]", has_text=f"of {deployment} to spot")
    await expect(row).to_contain_text("awaiting approval", timeout=SLOW_MS)
    await row.click()
    await expect(page.get_by_role("article")).to_contain_text("Rollback")


async def test_a_person_approves_with_the_mouse_and_types_the_target_of_a_high_risk(
    stand: Stand,
) -> None:
    async with stand.page("/recommendations") as page:
        await open_card(page, "chat")
        card = page.get_by_role("article")
        for part in ("Money", "Risk", "Blast radius", "Votes", "Evidence", "Rollout", "Rollback"):
            await expect(card.get_by_role("heading", name=part, exact=True)).to_be_visible()
        await card.get_by_role("button", name="Approve").click()
        dialog = page.get_by_role("dialog")
        send = dialog.get_by_role("button", name="Approve")
        await expect(send).to_have_attribute("aria-disabled", "true")
        await expect(dialog).to_contain_text("type chat to go on")
        await dialog.get_by_label("Type the target").fill("chat")
        await send.click()
        await expect(dialog).to_have_count(0, timeout=3_000)
        await expect(card).to_contain_text("person:local operator", timeout=10_000)


async def test_a_decision_on_what_has_changed_meanwhile_is_to_be_reviewed_again(
    stand: Stand,
) -> None:
    async def older(route: Any) -> None:
        await route.continue_(headers={**route.request.headers, "if-match": '"0123456789abcdef"'})

    async with stand.page("/recommendations") as page:
        await page.route("**/reject", older)
        await open_card(page, "search")
        await page.get_by_role("article").get_by_role("button", name="Reject").click()
        dialog = page.get_by_role("dialog")
        await dialog.get_by_label("Reason").fill("not now")
        await dialog.get_by_role("button", name="Reject").click()
        await expect(dialog.get_by_role("alert")).to_contain_text("this changed, review again")
        await expect(dialog.get_by_role("alert")).to_contain_text("request")
        await dialog.get_by_role("button", name="This changed: review it again").click()
        await expect(dialog).to_have_count(0)
    stand.complaints.clear()  # the browser logs the 412 that was provoked


@pytest.mark.parametrize(
    ("path", "opens", "least"),
    [
        ("/", False, 30),
        ("/cost?range=1h", False, 20),
        ("/performance?range=1h", False, 30),
        ("/resources?range=1h", False, 15),
        ("/application?range=1h", False, 15),
        ("/recommendations", True, 30),
        ("/executions?tab=over", True, 30),
        ("/events?range=1h", True, 30),
        ("/events?view=audit", False, 1),
        ("/settings", False, 0),
        ("/settings?view=policy", False, 10),
    ],
)
@pytest.mark.usefixtures("moved")
async def test_every_number_on_a_page_is_one_of_an_answer(
    stand: Stand, path: str, *, opens: bool, least: int
) -> None:
    """While one change is done and another one waits, so that each page has much to tell."""
    answers = Answers()
    async with stand.page() as page:
        await page.goto("about:blank")
        await page.route("**/api/v1/**", answers.give)
        await page.goto(stand.url + path)
        await settled(page)
        if opens:
            await page.locator("[data-row]").first.click()
            await expect(page.locator("[data-action=close]")).to_be_visible()
            await settled(page)
        found = await traced(page, answers)
        assert found.invented == []
        assert found.explained >= least
        await page.locator("main").evaluate(INVENTED)
        assert len((await traced(page, answers)).invented) == 2
        await page.unroute_all(behavior="ignoreErrors")


async def test_another_approves_with_the_keyboard_alone(stand: Stand) -> None:
    async with stand.page() as page:
        await page.keyboard.press("?")
        await expect(page.get_by_role("dialog")).to_contain_text("approve / reject")
        await page.keyboard.press("Escape")
        await page.keyboard.press("g")
        await page.keyboard.press("r")
        await expect(page.get_by_role("heading", name="Recommendations")).to_be_visible()
        await page.keyboard.press("/")
        await page.keyboard.type("of search to spot")
        await page.keyboard.press("Escape")
        row = page.locator("a[data-row]")
        await expect(row).to_have_count(1)
        await expect(row).to_contain_text("awaiting approval", timeout=SLOW_MS)
        await page.keyboard.press("j")
        await page.keyboard.press("Enter")
        await expect(page.locator("[data-action=approve]:not([aria-disabled])")).to_be_visible()
        await page.keyboard.press("a")
        await page.keyboard.type("search")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("dialog")).to_have_count(0, timeout=3_000)
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("article")).to_have_count(0)


@pytest.mark.usefixtures("moved")
async def test_the_change_is_watched_to_its_end_without_a_reload(stand: Stand) -> None:
    async with stand.page("/executions") as page:
        row = page.locator("a[data-row]", has_text="of chat to spot")
        await row.click()
        story = page.get_by_role("article")
        await expect(story.get_by_text("completed", exact=True).first).to_be_visible(
            timeout=SLOW_MS
        )
        await expect(story.locator("h3", has_text="passed")).to_have_count(2)
        for column in ("metric", "observed", "threshold", "window", "verdict"):
            await expect(story.get_by_role("columnheader", name=column).first).to_be_attached()
        await expect(story).to_contain_text("nothing more can be asked of it")
        await expect(story).to_contain_text("approved by local operator")


@pytest.mark.usefixtures("moved")
async def test_charts_tell_the_hour_the_latencies_and_the_forecasts(stand: Stand) -> None:
    async with stand.page() as page:
        lane = page.get_by_role("listbox", name="coordinator: what it did")
        done = lane.get_by_role("option", name=re.compile("of chat to spot.*: completed"))
        await expect(done.first).to_be_attached()
        await lane.focus()
        await page.keyboard.press("Home")
        await expect(page.locator("[data-chosen]")).to_contain_text("coordinator")
        await page.keyboard.press("End")
        await page.keyboard.press("Enter")
        await expect(page).to_have_url(re.compile(r"/(executions.*id=|events.*event=)[0-9a-f]+"))
        await page.keyboard.press("g")
        await page.keyboard.press("o")
        await page.keyboard.press("t")
        table = page.get_by_role("table", name="The last hour, lane by lane")
        await expect(table.get_by_role("row", name="begins a step").first).to_be_visible()
        await page.goto(f"{stand.url}/performance?deployment=chat&range=15m")
        await expect(page.get_by_role("img", name="TTFT heat map")).to_be_visible()
        await expect(page.locator("svg rect[fill-opacity]").first).to_be_attached()
        await page.keyboard.press("t")
        await expect(page.get_by_role("columnheader", name="requests").first).to_be_visible()
        await page.goto(f"{stand.url}/resources?deployment=chat&range=15m")
        await expect(page.get_by_text(re.compile(r"\d+ of \d+ forecasts held"))).to_be_visible()
        await page.keyboard.press("t")
        await expect(page.get_by_role("columnheader", name="with head-room")).to_be_visible()


async def test_a_reading_that_stands_alone_is_seen(stand: Stand) -> None:
    """As the first one of a new stack does in a long range: no line leads to it."""

    async def first_only(route: Any) -> None:
        answer = await route.fetch()
        told = await answer.json()
        for one in told["series"]:
            known = [step for step, value in enumerate(one["values"]) if value is not None]
            one["values"] = [
                value if step in known[:1] else None for step, value in enumerate(one["values"])
            ]
        await route.fulfill(response=answer, json=told)

    async with stand.page() as page:
        await page.route("**/api/v1/series?*", first_only)
        await page.goto(f"{stand.url}/performance?deployment=chat&range=15m")
        await expect(page.locator("circle[data-lone]").first).to_be_visible()
        await page.unroute_all(behavior="ignoreErrors")


async def test_the_log_is_searched_and_an_event_names_its_cause(stand: Stand) -> None:
    async with stand.page("/events?kind=vote.cast") as page:
        await page.locator("button[data-row]").first.click()
        drawer = page.get_by_role("complementary", name="event")
        await expect(drawer).to_contain_text("vote.cast")
        await drawer.get_by_role("button", name="the agents are asked").last.click()
        await expect(drawer).to_contain_text("vote.requested")
        await page.get_by_role("button", name="Audit trail").click()
        await expect(page.get_by_role("table")).to_contain_text("recommendation.approve")
        await page.get_by_role("button", name="Verify the log").click()
        await expect(page.get_by_role("status").filter(has_text="whole")).to_contain_text("chains")


EMULATED = "[data-connection] + [data-simulated]"
"""What the bar above each page says of what it shows."""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["1280", "390"])
@pytest.mark.usefixtures("moved")
async def test_every_page_is_accessible_and_fits(
    stand: Stand, screenshots: Path | None, size: Any, theme: str
) -> None:
    found = []
    async with stand.page(size=size, theme=theme) as page:
        for name, path, row in (
            ("overview", "/", False),
            ("recommendations", "/recommendations?tab=done", True),
            ("executions", "/executions", True),
            ("event", "/events", True),
            ("audit-trail", "/events?view=audit", False),
            ("cost", "/cost", False),
            ("performance", "/performance", False),
            ("resources", "/resources", False),
            ("application", "/application", False),
        ):
            await page.goto(stand.url + path)
            await settled(page)
            if row:
                await page.locator("[data-row]").first.click()
                await expect(page.locator("[data-action=close]")).to_be_visible()
                await settled(page)
            shown = 0 if path.startswith("/events") else 1
            await expect(page.locator(EMULATED)).to_have_count(shown)
            found += [f"{path}: {one}" for one in await faults(page)]
            await keep(page, screenshots, name)
    assert found == []


async def test_no_page_has_logged_an_error(stand: Stand) -> None:
    assert stand.complaints == []
