"""The ranking page, further: chips by finger, arrows, projects without ties, an overloaded server, two languages."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.async_api import Page, Route, expect
from sqlalchemy import func, select

from app.accounts.models import User
from app.rankings.models import Ranking
from tests.browser.conftest import PHONE, LiveServer, OpenPage, nothing_waits
from tests.factories import make_project, make_prompt, make_task, make_user

pytestmark = [pytest.mark.browser, pytest.mark.real_commits]


async def make_site(live_server: LiveServer, **settings: Any) -> tuple[str, User]:
    """The address of a project with two tasks of three answers, and an annotator."""
    async with live_server.sessions.begin() as session:
        project = await make_project(session, **settings)
        for _ in range(2):
            await make_task(session, await make_prompt(session, project), k=3)
        return f"/projects/{project.slug}/rank", await make_user(session)


async def strip(page: Page) -> list[str]:
    """The letters in each place of the strip; the last one is `To place`."""
    found: list[str] = await page.eval_on_selector_all(
        ".strip .place",
        "boxes => boxes.map(box => [...box.querySelectorAll('.chip')].map(chip => chip.textContent).join(''))",
    )
    return found


async def middle(page: Page, selector: str) -> tuple[float, float]:
    box = await page.locator(selector).bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


async def swipe(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """One finger from here to there."""
    client = await page.context.new_cdp_session(page)
    await client.send(
        "Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": start[0], "y": start[1]}]}
    )
    for part in range(1, 9):
        x, y = (a + (b - a) * part / 8 for a, b in zip(start, end, strict=True))
        await client.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": x, "y": y}]})
    await client.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


async def test_a_finger_moves_a_chip_and_scrolls_the_text(open_page: OpenPage, live_server: LiveServer) -> None:
    address, annotator = await make_site(live_server)
    page = await open_page(annotator, viewport=PHONE, has_touch=True, is_mobile=True)
    await page.goto(address)
    await swipe(page, await middle(page, '.chip:text-is("B")'), await middle(page, '.place[data-place="1"]'))
    assert await strip(page) == ["B", "", "", "AC"]
    assert await page.evaluate("scrollY") == 0
    await swipe(page, (200, 500), (200, 200))
    await page.wait_for_function("scrollY > 100")


async def test_a_chip_that_is_let_go_nowhere_stays(open_page: OpenPage, live_server: LiveServer) -> None:
    address, annotator = await make_site(live_server)
    page = await open_page(annotator)
    await page.goto(address)
    await page.mouse.move(*await middle(page, '.chip:text-is("A")'))
    await page.mouse.down()
    await page.mouse.move(400, 300, steps=5)
    await page.mouse.up()
    assert await strip(page) == ["", "", "", "ABC"]


async def test_a_second_press_takes_a_place_away(open_page: OpenPage, live_server: LiveServer) -> None:
    address, annotator = await make_site(live_server)
    page = await open_page(annotator)
    await page.goto(address)
    button = page.locator('.answer[data-letter="A"] .places .cell:has(input[value="2"])')
    await button.click()
    assert await strip(page) == ["", "A", "", "BC"]
    await button.click()
    assert await strip(page) == ["", "", "", "ABC"]


async def test_arrows_move_a_chip_and_zero_takes_it_out(open_page: OpenPage, live_server: LiveServer) -> None:
    address, annotator = await make_site(live_server)
    page = await open_page(annotator)
    await page.goto(address)
    await page.keyboard.press("2")
    await page.keyboard.press("Shift+Tab")
    seen = []
    for key in ("ArrowLeft", "ArrowLeft", "ArrowRight", "0"):
        await page.keyboard.press(key)
        seen.append(await strip(page))
    assert seen == [["A", "", "", "BC"], ["A", "", "", "BC"], ["", "A", "", "BC"], ["", "", "", "ABC"]]


async def test_tab_walks_the_cards(open_page: OpenPage, live_server: LiveServer) -> None:
    address, annotator = await make_site(live_server)
    page = await open_page(annotator)
    await page.goto(address)
    seen = []
    for key in ("Tab", "Tab", "Shift+Tab"):
        await page.keyboard.press(key)
        seen.append(await page.evaluate("document.activeElement.dataset.letter"))
    assert seen == ["B", "C", "B"]


async def test_without_ties_the_card_that_stood_there_gives_way(open_page: OpenPage, live_server: LiveServer) -> None:
    address, annotator = await make_site(live_server, ties_allowed=False)
    page = await open_page(annotator)
    await page.goto(address)
    await page.keyboard.press("1")
    await page.keyboard.press("1")
    assert await strip(page) == ["B", "", "", "AC"]
    await expect(page.locator(".strip .note")).to_contain_text("A went back")


async def test_the_digits_of_a_reason_place_nothing(open_page: OpenPage, live_server: LiveServer) -> None:
    address, annotator = await make_site(live_server)
    page = await open_page(annotator)
    await page.goto(address)
    await page.get_by_label("Why this order?").press_sequentially("1 2 3")
    assert await strip(page) == ["", "", "", "ABC"]


async def test_an_overloaded_server_gets_the_ranking_once_it_can(open_page: OpenPage, live_server: LiveServer) -> None:
    address, annotator = await make_site(live_server)
    page = await open_page(annotator)
    await page.goto(address)
    tries = []

    async def refuse_twice(route: Route) -> None:
        tries.append((route.request.post_data or "").partition("&how=")[0])
        await (route.fulfill(status=503) if len(tries) < 3 else route.continue_())

    await page.route("**/leases/*", refuse_twice)
    for key in ("1", "2", "3", "Enter", "Enter"):
        await page.keyboard.press(key)
    await expect(page.locator(".strip .note")).to_contain_text("(503)")
    await expect(page.locator(".bar")).to_contain_text("1 done today")
    await nothing_waits(page)
    # A slow machine may send a fourth before it has heard of the third: the same bytes, and still one ranking.
    assert len(tries) >= 3
    assert len(set(tries)) == 1
    async with live_server.sessions() as session:
        assert await session.scalar(select(func.count()).select_from(Ranking)) == 1


async def test_what_is_announced_is_in_the_language_of_the_page(open_page: OpenPage, live_server: LiveServer) -> None:
    address, annotator = await make_site(live_server)
    page = await open_page(annotator, locale="zh-CN")
    await page.goto(address)
    await page.keyboard.press("2")
    await expect(page.locator(".strip [role=status]")).to_have_text("A：第 2。 下一个：B。")


async def test_guidelines_open_by_key_and_close_by_escape(open_page: OpenPage, live_server: LiveServer) -> None:
    address, annotator = await make_site(live_server, guidelines="Read **all** of them.")
    page = await open_page(annotator)
    await page.goto(address)
    await page.keyboard.press("g")
    await expect(page.locator("#guidelines strong")).to_have_text("all")
    await page.keyboard.press("Escape")
    await expect(page.locator("#guidelines")).to_be_hidden()


async def test_nothing_in_the_source_tells_who_wrote_an_answer(open_page: OpenPage, live_server: LiveServer) -> None:
    address, annotator = await make_site(live_server)
    page = await open_page(annotator)
    await page.goto(address)
    source = (await page.content()).lower()
    assert [word for word in ("version", "model", "policy", "pocket", "sampling") if word in source] == []
