"""The pages in a real browser, for tests: who looks, what axe finds, which pictures are kept."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright, expect

from optiinfra.portal_api.cookies import ACCESS
from optiinfra.runtime.session import Session
from tests.faults.proxy import Proxy, proxied
from tests.up_stand import Up, api, engines_of_ones_own

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
SHOWS_PAGES = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine to show pages in"),
]
"""What marks a suite that drives the browser."""
SLOW_MS = 150_000
"""How long a change may take to its end where the machine is shared."""
WIDE = {"width": 1280, "height": 900}
NARROW = {"width": 390, "height": 844}
CONNECTION = "[data-connection]"
expect.set_options(timeout=20_000)
_WCAG = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa"]}}
_TOO_WIDE = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
_WHOLE_PX = "(main) => innerHeight + main.scrollHeight - main.clientHeight"
_TALLEST_PX = 6_000


async def faults(page: Page) -> list[str]:
    """What axe finds, and whether the page is wider than its window."""
    seen = await Axe().run(page, options=_WCAG)
    found = [
        f"{one['id']} {one['nodes'][0]['target']} {one['nodes'][0]['html'][:150]}"
        for one in seen.response["violations"]
    ]
    return [*found, *(["wider than the window"] if await page.evaluate(_TOO_WIDE) else [])]


async def keep(page: Page, folder: Path | None, name: str) -> None:
    """Leaves a picture of the whole page in a folder, if one is wanted."""
    size = page.viewport_size
    if folder is None or size is None:
        return
    theme = await page.evaluate("document.documentElement.dataset.theme")
    whole = min(await page.locator("main").evaluate(_WHOLE_PX), _TALLEST_PX)
    await page.set_viewport_size({"width": size["width"], "height": whole})
    await page.screenshot(path=folder / f"{name}-{size['width']}-{theme}.png")
    await page.set_viewport_size(size)


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as play:
        browser = await play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            await browser.close()


@dataclass
class Looking:
    """A browser before an API; `complaints` are what its pages logged as errors."""

    browser: Browser
    url: str
    complaints: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def page_of(
        self, token: str, path: str, *, size: Any = WIDE, theme: Any = "light"
    ) -> AsyncIterator[Page]:
        """A page of somebody who is signed in; its clock is UTC."""
        async with await self.browser.new_context(
            viewport=size, color_scheme=theme, timezone_id="UTC"
        ) as context:
            await context.add_cookies([{"name": ACCESS, "value": token, "url": self.url}])
            page = await context.new_page()
            page.on("console", self._logged)
            page.on("pageerror", lambda error: self.complaints.append(str(error)))
            await page.goto(self.url + path)
            yield page

    def _logged(self, said: ConsoleMessage) -> None:
        if said.type == "error":
            self.complaints.append(f"{said.text} {said.location['url']}")


@dataclass
class Stand:
    """`up` with a proxy before its API, and a browser."""

    up: Up
    session: Session
    proxy: Proxy
    looking: Looking

    @property
    def url(self) -> str:
        return self.looking.url

    @property
    def browser(self) -> Browser:
        return self.looking.browser

    @property
    def complaints(self) -> list[str]:
        return self.looking.complaints

    @asynccontextmanager
    async def page(
        self, path: str = "/", *, size: Any = WIDE, theme: Any = "light"
    ) -> AsyncIterator[Page]:
        """A page of somebody who is signed in, live."""
        token = self.session.token
        async with self.looking.page_of(token, path, size=size, theme=theme) as page:
            await expect(page.locator(CONNECTION)).to_have_attribute("data-status", "live")
            yield page


async def settled(page: Page) -> None:
    """The stream is there, and nothing is awaited any more."""
    await expect(page.locator(CONNECTION)).to_have_attribute("data-status", "live")
    await expect(page.get_by_label("loading")).to_have_count(0)


async def turned(stand: Stand, *, stopped: bool) -> None:
    async with api(stand.session) as http:
        answer = await http.post("/switch", json={"stopped": stopped, "reason": "a test"})
        assert answer.status_code == 202, answer.text


@asynccontextmanager
async def standing(up: Up) -> AsyncIterator[Stand]:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(engines_of_ones_own(up))
        session = await up.start()
        proxy = await stack.enter_async_context(proxied(session.url))
        browser = await stack.enter_async_context(chromium())
        yield Stand(up, session, proxy, Looking(browser, f"http://127.0.0.1:{proxy.port}"))
