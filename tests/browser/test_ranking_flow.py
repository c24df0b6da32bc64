"""From one task to the next in a real Chromium: fetched ahead, sent behind, refused and taken back, ranked offline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

import pytest
from playwright.async_api import BrowserContext, Dialog, Error, Page, expect
from sqlalchemy import select, text

from app.accounts.models import User
from app.projects.models import Project
from app.rankings.models import Ranking
from app.tasks.models import Lease
from tests.browser.conftest import LiveServer, OpenPage, nothing_waits, num_waiting
from tests.factories import make_project, make_prompt, make_task, make_user

pytestmark = [pytest.mark.browser, pytest.mark.real_commits]


@dataclass
class Site:
    """A project with tasks of two answers, and an annotator."""

    server: LiveServer
    project: Project
    annotator: User

    @property
    def address(self) -> str:
        return f"/projects/{self.project.slug}/rank"

    async def add_tasks(self, num: int) -> None:
        async with self.server.sessions.begin() as session:
            for _ in range(num):
                await make_task(session, await make_prompt(session, self.project), k=3)

    async def execute(self, statement: str) -> None:
        async with self.server.sessions.begin() as session:
            await session.execute(text(statement))

    async def rankings(self) -> list[Ranking]:
        async with self.server.sessions() as session:
            return list(await session.scalars(select(Ranking).order_by(Ranking.number)))


@pytest.fixture
async def site(live_server: LiveServer) -> Site:
    """Three tasks of three answers."""
    async with live_server.sessions.begin() as session:
        project = await make_project(session, labels=[], lease_minutes=20)
        site = Site(live_server, project, await make_user(session, name="Ada"))
    await site.add_tasks(3)
    return site


async def lease_of(page: Page) -> str:
    return await page.locator("#rank").get_attribute("data-lease") or ""


async def fetched(page: Page, act: Callable[[], Awaitable[object]]) -> None:
    """Do something, and wait until the next task is fetched after it."""
    async with page.expect_response("**/rank/ahead"):
        await act()


async def open_rank(page: Page, site: Site) -> None:
    """The ranking page, with the task after it fetched."""
    await fetched(page, lambda: page.goto(site.address))


async def press(page: Page, keys: str = "123") -> None:
    for key in keys:
        await page.keyboard.press(key)
    await page.keyboard.press("Enter")


async def shown_after(page: Page, lease: str) -> str:
    """Wait until another task is on the page; gives its lease."""
    await expect(page.locator("#rank")).not_to_have_attribute("data-lease", lease)
    return await lease_of(page)


async def test_the_next_task_is_there_without_a_new_page(open_page: OpenPage, site: Site) -> None:
    page = await open_page(site.annotator)
    await open_rank(page, site)
    first = await lease_of(page)
    await page.evaluate("window.isSamePage = true")
    await press(page, "113")
    second = await shown_after(page, first)
    assert await page.evaluate("window.isSamePage")
    await expect(page.locator(".answer").first).to_be_focused()
    await expect(page.locator(".spoken")).to_have_text("Next task.")
    await nothing_waits(page)
    await fetched(page, page.reload)
    assert page.url.endswith(site.address)
    assert await lease_of(page) == second, "a reload shows the task that was on the page"
    assert [ranking.is_preloaded for ranking in await site.rankings()] == [False]


async def test_nothing_of_one_task_is_left_in_the_next(open_page: OpenPage, site: Site) -> None:
    page = await open_page(site.annotator)
    await open_rank(page, site)
    await page.get_by_label("Why this order?").fill("C is short.")
    await page.keyboard.press("Escape")
    first = await lease_of(page)
    await fetched(page, lambda: press(page))
    await shown_after(page, first)
    await expect(page.get_by_label("Why this order?")).to_have_value("")
    assert await page.locator(".places input:checked:not([value=''])").count() == 0
    await page.keyboard.press("Control+z")
    assert await page.locator(".places input:checked:not([value=''])").count() == 0
    await fetched(page, lambda: press(page, "321"))
    await nothing_waits(page)
    assert [ranking.rationale for ranking in await site.rankings()] == ["C is short.", ""]


async def test_a_ranking_says_how_it_was_made(open_page: OpenPage, site: Site) -> None:
    page = await open_page(site.annotator)
    await page.clock.install()
    await open_rank(page, site)
    await page.keyboard.press("1")
    await page.clock.run_for(20_000)
    await page.keyboard.press("2")
    await page.clock.run_for(40_000)
    await page.keyboard.press("Control+z")
    # Ten minutes at lunch are no work, but for the first of them.
    await page.clock.run_for(600_000)
    for letter, place in (("B", 3), ("C", 2)):
        await page.locator(f'.answer[data-letter="{letter}"] .places .cell:has(input[value="{place}"])').click()
    # The server's clock stood still meanwhile: for it, the task was given an hour ago.
    await site.execute("update leases set created_at = created_at - interval '1 hour'")
    await press(page, "")
    await page.clock.resume()
    await nothing_waits(page)
    (ranking,) = await site.rankings()
    assert ranking.shown_at is not None
    assert ranking.first_action_at is not None
    assert ranking.submitted_at is not None
    assert ranking.submitted_at - ranking.shown_at >= timedelta(seconds=660)
    assert ranking.active_seconds is not None
    assert 120 <= ranking.active_seconds < 140
    assert (ranking.device, ranking.num_undos) == ("desktop", 1)
    assert ranking.inputs == ["key", "pointer"]


async def test_who_is_refused_is_back_at_that_task_with_the_reasons(open_page: OpenPage, site: Site) -> None:
    """An admin turned ties off, while one was on its way. What was begun meanwhile is kept."""
    page = await open_page(site.annotator)
    await open_rank(page, site)
    first = await lease_of(page)
    await page.context.set_offline(True)
    await press(page, "112")
    second = await shown_after(page, first)
    await page.keyboard.press("3")
    await site.execute("update projects set ties_allowed = false")
    await page.context.set_offline(False)
    assert await shown_after(page, second) == first
    await expect(page.locator(".notice.bad:visible")).to_contain_text("This project has no ties")
    await press(page, "23")
    await expect(page.locator("#rank")).to_have_attribute("data-lease", second)
    assert await page.locator(".places input:checked:not([value=''])").count() == 1, "the draft is back"
    await nothing_waits(page)
    assert len(await site.rankings()) == 1


async def test_what_cant_be_stored_any_more_is_said_and_kept_until_it_was_read(open_page: OpenPage, site: Site) -> None:
    page = await open_page(site.annotator)
    await open_rank(page, site)
    first = await lease_of(page)
    await site.execute(f"update leases set state = 'released' where id = '{first}'")
    await press(page)
    await shown_after(page, first)
    await expect(page.locator("#refused")).to_contain_text("was not stored: This task was skipped or withdrawn")
    await page.reload()
    await page.get_by_role("button", name="Discard it").click()
    await expect(page.locator("#refused")).to_be_hidden()
    assert await num_waiting(page) == 0


async def test_what_waits_is_never_sent_as_somebody_elses(open_page: OpenPage, site: Site) -> None:
    page = await open_page(site.annotator)
    await open_rank(page, site)
    first = await lease_of(page)
    await page.context.set_offline(True)
    await press(page)
    await shown_after(page, first)
    async with site.server.sessions.begin() as session:
        bo = await make_user(session, name="Bo")
    await site.server.sign_in(page.context, bo)
    await page.context.set_offline(False)
    await expect(page.locator(".strip .note")).to_contain_text("1 ranking waits on this device")
    other = await page.context.new_page()
    await open_rank(other, site)
    assert (await num_waiting(other), await site.rankings()) == (1, [])
    await site.server.sign_in(page.context, site.annotator)
    await fetched(other, lambda: other.goto(site.address))
    await nothing_waits(other)
    assert [ranking.annotator_id for ranking in await site.rankings()] == [site.annotator.id]


async def test_a_pause_holds_before_the_next_task_is_begun(open_page: OpenPage, site: Site) -> None:
    page = await open_page(site.annotator)
    await open_rank(page, site)
    await site.execute("update projects set is_paused = true")
    await press(page)
    await expect(page.get_by_role("heading", name="Nothing waits for you")).to_be_visible()
    assert len(await site.rankings()) == 1


async def test_a_closed_page_gives_the_next_task_back(open_page: OpenPage, site: Site) -> None:
    page = await open_page(site.annotator)
    await open_rank(page, site)
    await page.goto("/")
    expected = {"active": "open", "preloaded": "expired"}
    for _ in range(400):
        async with site.server.sessions() as session:
            states = {kind: state for kind, state in await session.execute(select(Lease.kind, Lease.state))}
        if states == expected:
            break
        await asyncio.sleep(0.05)
    assert states == expected


# Offline

NUM_PACKED = 20


async def take_pack(page: Page, num: int = NUM_PACKED) -> None:
    await page.locator("details.menu summary").click()
    await page.get_by_role("link", name="Rank offline").click()
    await page.get_by_label("Tasks").fill(str(num))
    await page.get_by_role("button", name="Take them along").click()
    await expect(page.locator("#offline [role=status]")).to_contain_text(f"{num} tasks are on this device")
    await page.keyboard.press("Escape")


async def crash(page: Page) -> Page:
    """The tab dies without a word; gives a new one."""
    context: BrowserContext = page.context
    with pytest.raises(Error, match=r"[Cc]rash"):
        await page.goto("chrome://crash")
    await page.close()
    return await context.new_page()


@pytest.mark.slow
async def test_20_rankings_made_offline_arrive_exactly_once(open_page: OpenPage, site: Site) -> None:
    """Half an hour without a connection, a reload and a crash of the tab in between; a lease lasts 20 minutes."""
    await site.add_tasks(NUM_PACKED)
    page = await open_page(site.annotator)
    await open_rank(page, site)
    await take_pack(page)
    await page.context.set_offline(True)
    for number in range(NUM_PACKED):
        if number == 7:
            await page.reload()
        if number == 13:
            page = await crash(page)
            await page.goto(site.address)
        await expect(page.locator(".bar")).to_contain_text(f"{number} done today")
        lease = await lease_of(page)
        await press(page, ("123", "321", "112")[number % 3])
        if number < NUM_PACKED - 1:
            await shown_after(page, lease)
    await expect(page.locator(".strip .note")).to_contain_text("No connection")
    assert await num_waiting(page) == NUM_PACKED
    assert await site.rankings() == []
    for column in ("created_at", "expires_at"):
        await site.execute(f"update leases set {column} = {column} - interval '30 minutes'")
    await page.context.set_offline(False)
    await expect(page.locator(".bar")).to_contain_text(f"{NUM_PACKED} done today")
    rankings = await site.rankings()
    assert len(rankings) == len({ranking.task_id for ranking in rankings}) == NUM_PACKED
    assert {(ranking.is_offline, ranking.is_surplus) for ranking in rankings} == {(True, False)}
    assert await num_waiting(page) == 0


async def kept(page: Page, address: str, is_kept: bool) -> None:
    """Wait until a page is kept on the device, or no more."""
    for _ in range(400):
        if await page.evaluate("async (address) => !!(await caches.match(address))", address) == is_kept:
            return
        await asyncio.sleep(0.05)
    pytest.fail(f"{address} is {'not ' if is_kept else ''}kept")


async def test_nobody_sees_what_another_took_along(open_page: OpenPage, site: Site) -> None:
    """Ada's session ends by itself, and Bo signs in on her device: her pages go, her tasks wait for her."""
    page = await open_page(site.annotator)
    await open_rank(page, site)
    await take_pack(page, 2)
    lease = await lease_of(page)
    async with site.server.sessions.begin() as session:
        bo = await make_user(session, name="Bo")
    await site.server.sign_in(page.context, bo)
    await page.goto("/")
    await kept(page, site.address, False)
    await page.context.set_offline(True)
    with pytest.raises(Error, match="ERR_"):
        await page.goto(site.address)
    await page.context.set_offline(False)
    await site.server.sign_in(page.context, site.annotator)
    await page.goto(site.address)
    await kept(page, site.address, True)
    await page.context.set_offline(True)
    await page.goto(site.address)
    assert await lease_of(page) == lease


async def test_formulas_of_a_pack_have_their_font_offline(open_page: OpenPage, site: Site) -> None:
    turn = {"role": "user", "content": r"What is $\sum_i x_i^2$?"}
    async with site.server.sessions.begin() as session:
        await make_task(session, await make_prompt(session, site.project, messages=[turn]), k=3)
    page = await open_page(site.annotator)
    await open_rank(page, site)
    await take_pack(page, 4)
    await page.context.set_offline(True)
    while not await page.locator(".prompt .formula, .prompt code").count():
        lease = await lease_of(page)
        await press(page)
        await shown_after(page, lease)
    await expect(page.locator(".prompt math")).to_be_visible()
    states = "async () => (await document.fonts.ready, [...document.fonts].map(({ status }) => status))"
    found = await page.evaluate(states)
    assert ("loaded" in found, "error" in found) == (True, False)


async def skip(page: Page) -> None:
    await page.keyboard.press("s")
    await page.get_by_label("broken").check()
    await page.get_by_role("button", name="Skip this task").click()


async def test_a_skip_without_a_connection_arrives_once(open_page: OpenPage, site: Site) -> None:
    """And with it the report of a broken prompt; the task that was fetched ahead is there at once."""
    page = await open_page(site.annotator)
    await open_rank(page, site)
    first = await lease_of(page)
    await page.context.set_offline(True)
    await skip(page)
    await shown_after(page, first)
    await expect(page.locator(".strip .note")).to_contain_text("No connection")
    await page.context.set_offline(False)
    await nothing_waits(page)
    async with site.server.sessions() as session:
        skipped = list(await session.scalars(select(Lease).where(Lease.state == "released")))
    assert [(str(lease.id), lease.skip_kind) for lease in skipped] == [(first, "broken")]
    await fetched(page, lambda: press(page))
    await nothing_waits(page)
    assert len(await site.rankings()) == 1


async def test_a_skip_that_comes_too_late_is_said(open_page: OpenPage, site: Site) -> None:
    """Another tab ranked the task meanwhile. A script's refusal is in the language of its page."""
    page = await open_page(site.annotator, locale="zh-CN")
    await open_rank(page, site)
    other = await page.context.new_page()
    await open_rank(other, site)
    await fetched(other, lambda: press(other))
    await nothing_waits(other)
    first = await lease_of(page)
    await page.keyboard.press("s")
    await page.locator("#skip [value=broken]").check()
    await page.locator("#skip button").click()
    await shown_after(page, first)
    await expect(page.locator("#refused")).to_contain_text("的跳过未被接受：您已经对这个任务排过序。")


# A change of mind, and leaving


async def test_a_change_of_mind_without_a_connection_arrives_once(open_page: OpenPage, site: Site) -> None:
    page = await open_page(site.annotator)
    await open_rank(page, site)
    await fetched(page, lambda: press(page))
    await nothing_waits(page)
    (ranking,) = await site.rankings()
    await page.goto(f"/rankings/{ranking.id}/change")
    await page.context.set_offline(True)
    await page.keyboard.press("3")
    await press(page, "")
    await expect(page.locator(".strip .note")).to_contain_text("No connection")
    await page.context.set_offline(False)
    await expect(page.get_by_role("heading", name="My rankings")).to_be_visible()
    assert [found.supersedes_id for found in await site.rankings()] == [None, ranking.id]


async def test_a_ranking_is_changed_from_the_list_of_the_last_ones(open_page: OpenPage, site: Site) -> None:
    page = await open_page(site.annotator)
    await open_rank(page, site)
    await fetched(page, lambda: press(page))
    await nothing_waits(page)
    await page.locator("details.menu summary").click()
    await page.get_by_role("button", name="Take a break").click()
    await page.get_by_role("link", name="Change").click()
    assert await page.locator(".places input:checked:not([value=''])").count() == 3
    await page.keyboard.press("3")
    await page.keyboard.press("ArrowLeft")
    await press(page, "")
    await expect(page.get_by_role("heading", name="My rankings")).to_be_visible()
    old, new = await site.rankings()
    assert (new.supersedes_id, new.is_preloaded) == (old.id, False)
    assert await page.locator("tbody tr").count() == 1


async def test_who_signs_out_leaves_nothing_and_is_asked_about_what_waits(open_page: OpenPage, site: Site) -> None:
    page = await open_page(site.annotator)
    await open_rank(page, site)
    await take_pack(page, 2)
    await page.route("**/leases/*", lambda route: route.abort())
    lease = await lease_of(page)
    await press(page)
    await shown_after(page, lease)
    asked: list[str] = []

    async def answer(dialog: Dialog) -> None:
        asked.append(dialog.message)
        await (dialog.dismiss() if len(asked) == 1 else dialog.accept())

    page.on("dialog", answer)
    await page.locator("details.menu summary").click()
    await page.get_by_role("button", name="Sign out").click()
    assert await num_waiting(page) == 1
    await page.get_by_role("button", name="Sign out").click()
    await page.wait_for_url("**/sign-in")
    assert asked == ["1 ranking on this device was not sent yet. Sign out, and drop it?"] * 2
    names = "[...Object.keys(localStorage), ...(await caches.keys())]"
    kept = f"async () => {names}.filter((name) => /draft|how|pack/.test(name))"
    assert await page.evaluate(kept) == []
