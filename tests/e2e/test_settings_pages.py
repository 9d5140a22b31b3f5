"""The settings in a real browser: people, keys, the policy and its next draft, notifications."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from playwright.async_api import Page, expect

from optiinfra.runtime.session import Session
from optiinfra.schemas.tenant import Role
from optiinfra.storage.postgres.access import AccessTokens, issue_one_time_token
from optiinfra.storage.testing.servers import reachable_home
from tests.e2e.browser import (
    CONNECTION,
    NARROW,
    SHOWS_PAGES,
    WIDE,
    Stand,
    faults,
    keep,
    settled,
    standing,
    turned,
)
from tests.integration.test_notifier import Receiver, receiving
from tests.up_stand import Up, api, fleet

pytestmark = SHOWS_PAGES
VIEWS = ("people", "keys", "policy", "notifications")
POLICY: dict[str, Any] = {
    "name": "office-hours",
    "approvals": [
        {"name": "small-savings", "kinds": ["spot_migration"], "max_per_day": 6},
        {"name": "other-precision", "kinds": ["quantisation"], "decision": "ask_two"},
    ],
    "freezes": [{"name": "weekend", "weekly": {"days": ["sat", "sun"]}}],
    "floors": [{"name": "first-token", "evidence": "ttft_p95_s", "max": 0.8}],
}
SWITCH: dict[str, Any] = {"notices": ["switch.turned"], "targets": ["pager", "refuses"]}


@dataclass
class Settings:
    """What an admin and a viewer see of one `up` whose second target refuses what it is sent."""

    admin: Stand
    viewer: Stand
    pager: Receiver


def declare(folder: Path, pager: Receiver, refuses: Receiver) -> dict[str, Any]:
    """The fleet with a policy in a file of its own, and two webhooks."""
    secret = "whsec_" + base64.b64encode(bytes(range(32))).decode()
    (folder / "hook.secret").write_text(secret)
    (folder / "policy.yaml").write_text(yaml.safe_dump(POLICY))
    targets = [
        {"name": name, "kind": "webhook", "url": one.url, "secret_file": "hook.secret"}
        for name, one in (("pager", pager), ("refuses", refuses))
    ]
    told = {"portal_url": "https://optiinfra.example.com", "targets": targets, "rules": [SWITCH]}
    (folder / "notifications.yaml").write_text(yaml.safe_dump(told))
    return fleet(policy="policy.yaml", notifications="notifications.yaml")


async def viewers(up: Up, session: Session) -> Session:
    """The session of somebody who may only look."""
    async with up.database() as database:
        issue = AccessTokens(database).issue
        token = await issue("default", "vic@acme.example", Role.VIEWER, lasts_s=3_600)
    return session.model_copy(update={"token": token})


@pytest.fixture(scope="module")
async def settings() -> AsyncIterator[Settings]:
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(reachable_home())
        pager = await stack.enter_async_context(receiving())
        refuses = await stack.enter_async_context(receiving())
        refuses.statuses = [410] * 100
        up = Up(folder, declare(folder, pager, refuses))
        admin = await stack.enter_async_context(standing(up))
        viewer = replace(admin, session=await viewers(up, admin.session))
        async with api(admin.session) as http:
            dora = {"email": "dora@acme.example", "name": "Dora", "role": "operator"}
            (await http.post("/users", json=dora)).raise_for_status()
        yield Settings(admin, viewer, pager)


async def audited(stand: Stand, action: str) -> list[dict[str, Any]]:
    async with api(stand.session) as http:
        items = (await http.get("/audit?limit=200")).json()["items"]
    return [row for row in items if row["action"] == action]


async def test_an_admin_adds_somebody_gives_a_role_and_shuts_the_door(settings: Settings) -> None:
    async with settings.admin.page() as page:
        await page.keyboard.press("g")
        await page.keyboard.press("s")
        await expect(page.get_by_role("heading", name="Settings")).to_be_visible()
        await page.get_by_role("button", name="Add somebody").click()
        dialog = page.get_by_role("dialog")
        send = dialog.get_by_role("button", name="Add", exact=True)
        await expect(send).to_have_attribute("aria-disabled", "true")
        await expect(dialog).to_contain_text("the e-mail is needed")
        await dialog.get_by_label("E-mail").fill("Ann@acme.example")
        await dialog.get_by_label("Name").fill("Ann")
        await dialog.get_by_label("Role").select_option("operator")
        await page.keyboard.press("Enter")
        await expect(dialog).to_have_count(0)
        row = page.get_by_role("listitem").filter(has_text="ann@acme.example")
        await expect(row).to_contain_text("operator")
        await row.get_by_role("button", name="change the role of ann").click()
        await dialog.get_by_label("Role").select_option("approver")
        await dialog.get_by_role("button", name="Change the role").click()
        await expect(row).to_contain_text("approver")
        await row.get_by_role("button", name="disable ann").click()
        await expect(dialog).to_contain_text("for good")
        await dialog.get_by_role("button", name="Disable").click()
        await expect(row).to_contain_text("disabled")
    assert len(await audited(settings.admin, "user.change")) == 2


async def test_what_the_api_refuses_is_said_in_the_dialog(settings: Settings) -> None:
    async with settings.admin.page("/settings") as page:
        dialog = page.get_by_role("dialog")
        for _ in range(2):
            await expect(dialog).to_have_count(0)
            await page.get_by_role("button", name="Add somebody").click()
            await dialog.get_by_label("E-mail").fill("bob@acme.example")
            await dialog.get_by_label("Name").fill("Bob")
            await dialog.get_by_role("button", name="Add", exact=True).click()
        await expect(dialog.get_by_role("alert")).to_contain_text("there is a user bob")
        await expect(dialog.get_by_role("alert")).to_contain_text("request")
    settings.admin.complaints.clear()  # the browser logs the 409 that was provoked


async def test_a_key_is_shown_once_works_and_is_revoked(settings: Settings) -> None:
    stand = settings.admin
    async with stand.page("/settings?view=keys") as page:
        await page.get_by_role("button", name="Make a key").click()
        dialog = page.get_by_role("dialog")
        await dialog.get_by_label("What it is for").fill("nightly report")
        await expect(dialog.get_by_role("checkbox", name=re.compile("^keys"))).to_be_disabled()
        await dialog.get_by_role("checkbox", name=re.compile("^audit")).check()
        await dialog.get_by_label("days").fill("0")
        await expect(dialog).to_contain_text("it lasts 1 to 365 days")
        await dialog.get_by_label("days").fill("3")
        await dialog.get_by_role("button", name="Make it").click()
        secret = await dialog.get_by_label("nightly report").input_value()
        assert secret.startswith("oi_k-")
        keyed = stand.session.model_copy(update={"token": secret})
        async with api(keyed) as http:
            assert (await http.get("/audit")).status_code == 200
        await dialog.get_by_role("button", name="I have kept it").click()
        row = page.get_by_role("listitem").filter(has_text="nightly report")
        await expect(row).to_contain_text("in 3 days")
        await expect(row).to_contain_text("audit")
        assert secret not in await page.content()
        await row.get_by_role("button", name="revoke nightly report").click()
        await expect(dialog).to_contain_text("for good")
        await dialog.get_by_role("button", name="Revoke").click()
        await expect(page.get_by_text("There is no key.")).to_be_visible()
        async with api(keyed) as http:
            assert (await http.get("/audit")).status_code == 401


async def check_draft(page: Page, text: str) -> None:
    await expect(page.locator(CONNECTION)).to_have_attribute("data-status", "live")
    await page.get_by_label("draft of the policy").fill(text)
    await page.keyboard.press("Control+Enter")


async def test_a_wrong_draft_is_told_at_its_place_and_a_good_one_how_it_gets_in_force(
    settings: Settings,
) -> None:
    async with settings.admin.page("/settings?view=policy") as page:
        in_force = page.get_by_role("list", name="recorded policies")
        await expect(in_force).to_contain_text("in force")
        await expect(page.get_by_text("small-savings").first).to_be_visible()
        await expect(page.get_by_text("ttft_p95_s at most 0.800").first).to_be_visible()
        await check_draft(page, "name: careful\nmax_movin: 1\n")
        findings = page.get_by_role("list", name="findings")
        await expect(findings).to_contain_text("did you mean 'max_moving'?")
        await expect(page.locator("[data-found=error]")).to_have_text("✕ 2")
        await findings.get_by_role("button", name="line 2").click()
        marked = "document.getSelection().toString() || (e => e.value.slice(e.selectionStart, "
        marked += "e.selectionEnd))(document.activeElement)"
        assert await page.evaluate(marked) == "max_movin: 1"
        wrong = "approvals:\n- name: night\n  deployments: [chta]\n"
        await check_draft(page, wrong)
        await expect(findings).to_contain_text("did you mean 'chat'?")
        await expect(page.locator("[data-found=error]")).to_have_text("✕ 3")
        await check_draft(page, "max_moving: [\n")
        await expect(findings).to_contain_text("this is not YAML")
        await page.get_by_role("button", name="Begin with the one in force").click()
        await page.get_by_role("button", name="Check", exact=True).click()
        await expect(page.get_by_text(", which is in force")).to_be_visible()
        await expect(page.get_by_label("how it gets in force")).to_contain_text("policy.yaml")


async def test_an_edited_file_is_shown_as_soon_as_it_is_in_force(settings: Settings) -> None:
    stand = settings.admin
    async with stand.page("/settings?view=policy") as page:
        rows = page.get_by_role("listitem").filter(has_text="in force")
        await expect(rows).to_contain_text("office-hours@")
        edited = yaml.safe_dump({**POLICY, "name": "later-hours"})
        (stand.up.folder / "policy.yaml").write_text(edited)
        await expect(rows).to_contain_text("later-hours@")
        await page.get_by_role("button", name="show office-hours@").click()
        older = page.get_by_role("region", name="policy 1")
        await older.get_by_role("button", name="As YAML").click()
        await expect(older.get_by_label("policy as YAML")).to_contain_text("name: office-hours")


async def test_targets_show_what_they_took_what_they_refused_and_take_a_test(
    settings: Settings,
) -> None:
    stand = settings.admin
    await turned(stand, stopped=True)
    await turned(stand, stopped=False)
    async with stand.page("/settings?view=notifications") as page:
        lately = page.get_by_role("region", name="notices that the target has taken")
        await expect(lately).to_have_count(1, timeout=40_000)
        await expect(lately.get_by_role("row")).to_have_count(3)
        letters = page.get_by_role("list", name="dead letters")
        await expect(letters).to_contain_text("answered 410", timeout=40_000)
        assert settings.pager.url not in await page.content()
        before = len(settings.pager.came)
        await page.get_by_role("button", name="send a test to pager").click()
        dialog = page.get_by_role("dialog")
        await dialog.get_by_role("button", name="Send").click()
        await expect(dialog).to_contain_text("pager has taken it")
        assert len(settings.pager.came) == before + 1
        await dialog.get_by_role("button", name="Close").click()
        await page.get_by_role("button", name="send a test to refuses").click()
        await dialog.get_by_role("button", name="Send").click()
        await expect(dialog).to_contain_text("answered 410")
        await dialog.get_by_role("button", name="Close").click()
        await letters.get_by_role("button", name="Drop").first.click()
        await dialog.get_by_label("Reason").fill("the receiver is gone")
        await dialog.get_by_role("button", name="Drop").click()
        await expect(letters).to_contain_text("dropped")
    sent = [row["detail"]["sent"] for row in await audited(stand, "notification.test")]
    assert sent == [False, True]


async def test_a_viewer_is_told_what_it_needs_and_asks_the_api_for_none_of_it(
    settings: Settings,
) -> None:
    async with settings.viewer.page("/settings") as page:
        await expect(page.get_by_text("vic@acme.example").first).to_be_visible()
        for view, needed in (
            ("people", "admin"),
            ("keys", "operator"),
            ("notifications", "operator"),
        ):
            await page.goto(f"{settings.viewer.url}/settings?view={view}")
            await expect(page.get_by_text("forbidden")).to_be_visible()
            await expect(page.get_by_role("main")).to_contain_text(f"needs the role {needed}")
        await page.goto(f"{settings.viewer.url}/settings?view=policy")
        await check_draft(page, "max_moving: 0\n")
        await expect(page.get_by_role("list", name="findings")).to_contain_text("max_moving")
    assert [row for row in await audited(settings.admin, "users") if not row["allowed"]] == []


async def test_without_a_connection_nothing_can_be_done_and_the_buttons_say_why(
    settings: Settings,
) -> None:
    async with settings.admin.page("/settings") as page:
        add = page.get_by_role("button", name="Add somebody")
        await expect(add).not_to_have_attribute("aria-disabled", "true")
        settings.admin.proxy.open.clear()
        await expect(add).to_have_attribute("aria-disabled", "true", timeout=5_000)
        await expect(add).to_have_attribute("title", re.compile("not connected"))
        await expect(page.get_by_text("ann@acme.example")).to_be_visible()
        settings.admin.proxy.open.set()
        await expect(add).not_to_have_attribute("aria-disabled", "true")
    settings.admin.complaints.clear()  # what the cut connection has cost


async def test_one_sees_where_one_is_signed_in_and_signs_out_there(settings: Settings) -> None:
    async with settings.viewer.page("/settings") as page:
        async with settings.viewer.up.database() as database:
            once = await issue_one_time_token(
                AccessTokens(database), "default", "vic@acme.example", role=Role.VIEWER
            )
        headers = {"Authorization": f"Bearer {once}", "User-Agent": "night shell"}
        async with httpx.AsyncClient(base_url=settings.viewer.url, trust_env=False) as http:
            shell = (await http.post("/api/v1/session", headers=headers)).json()["token"]
        await page.reload()
        mine = page.get_by_role("list", name="your sessions")
        await expect(mine.get_by_role("listitem").filter(has_text="this one")).to_have_count(1)
        row = mine.get_by_role("listitem").filter(has_text="night shell")
        await row.get_by_role("button", name="sign out of night shell").click()
        await page.get_by_role("dialog").get_by_role("button", name="Sign out").click()
        await expect(row).to_have_count(0)
    async with api(settings.viewer.session.model_copy(update={"token": shell})) as http:
        assert (await http.get("/session")).status_code == 401


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["1280", "390"])
async def test_every_setting_is_accessible_and_fits(
    settings: Settings, screenshots: Path | None, size: Any, theme: str
) -> None:
    found = []
    for role, stand in (("admin", settings.admin), ("viewer", settings.viewer)):
        async with stand.page(size=size, theme=theme) as page:
            for view in VIEWS:
                await page.goto(f"{stand.url}/settings?view={view}")
                await settled(page)
                if view == "policy":
                    await check_draft(page, "name: a\nmax_movin: 1\n")
                    await expect(page.get_by_role("list", name="findings")).to_be_visible()
                found += [f"{role} {view}: {one}" for one in await faults(page)]
                if role == "admin":
                    await keep(page, screenshots, f"settings-{view}")
    assert found == []


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_every_dialog_is_accessible(settings: Settings, theme: str) -> None:
    found = []
    async with settings.admin.page("/settings", theme=theme, size=NARROW) as page:
        for view, button in (
            ("people", "Add somebody"),
            ("people", "End this session"),
            ("people", "Sign in elsewhere"),
            ("people", "Sign out everywhere"),
            ("people", "end the sessions of dora"),
            ("people", "disable dora"),
            ("keys", "Make a key"),
            ("notifications", "send a test to pager"),
        ):
            await page.goto(f"{settings.admin.url}/settings?view={view}")
            await page.get_by_role("button", name=button).click()
            await expect(page.get_by_role("dialog")).to_be_visible()
            found += [f"{button}: {one}" for one in await faults(page)]
            await page.keyboard.press("Escape")
            await expect(page.get_by_role("dialog")).to_have_count(0)
    assert found == []


async def test_no_setting_has_logged_an_error(settings: Settings) -> None:
    assert settings.admin.complaints == []
