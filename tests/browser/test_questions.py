"""The questions of a project and the scale between two answers in a real Chromium, by keys and by mouse."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from playwright.async_api import Page, expect

from app.accounts.models import Role
from app.rankings import service
from app.rankings.models import Ranking
from app.rankings.service import RankingView
from tests.browser.conftest import LiveServer, OpenPage, wider_than_the_window
from tests.factories import make_project, make_prompt, make_task, make_user

pytestmark = [pytest.mark.browser, pytest.mark.real_commits]
AxeRun = Callable[[Page], Awaitable[list[str]]]


async def open_task(live_server: LiveServer, open_page: OpenPage, **settings: Any) -> tuple[Page, Any]:
    """The ranking page of a project with these settings."""
    async with live_server.sessions.begin() as session:
        project = await make_project(session, **settings)
        annotator = await make_user(session, role=Role.ADMIN)
        await make_task(session, await make_prompt(session, project), k=project.k)
    page = await open_page(annotator)
    await page.goto(f"/projects/{project.slug}/rank")
    return page, project


async def stored(live_server: LiveServer, page: Page, project: Any) -> RankingView:
    """The one ranking, once the page has gone on."""
    await expect(page.locator(".done")).to_be_visible()
    async with live_server.sessions() as session:
        (view,) = await service.list_rankings(session, project_id=project.id)
    return view


async def left_of(page: Page, selector: str) -> float:
    """Where an element begins, in pixels from the left."""
    box = await page.locator(selector).bounding_box()
    assert box is not None
    return box["x"]


async def test_a_task_is_tried_and_leaves_nothing(live_server: LiveServer, open_page: OpenPage, axe: AxeRun) -> None:
    async with live_server.sessions.begin() as session:
        project = await make_project(session, k=3)
        admin = await make_user(session, role=Role.ADMIN)
    page = await open_page(admin)
    await page.goto(f"/projects/{project.slug}/try")
    assert await left_of(page, ".prompt") < await left_of(page, ".answers")
    assert await axe(page) == []
    for key in ("1", "2", "2", "Enter"):
        await page.keyboard.press(key)
    await expect(page.get_by_role("heading", name="This would have been taken")).to_be_visible()
    await page.get_by_role("link", name="Try again").click()
    await expect(page.locator(".places .cell:not(.none) input:checked")).to_have_count(0)
    async with live_server.sessions() as session:
        assert await service.list_rankings(session, project_id=project.id) == []


async def test_two_answers_take_one_key_and_enter(live_server: LiveServer, open_page: OpenPage, axe: AxeRun) -> None:
    page, project = await open_task(live_server, open_page, k=2)
    assert await axe(page) == []
    for key in ("2", "Enter"):
        await page.keyboard.press(key)
    view = await stored(live_server, page, project)
    assert (view.letter_order, view.ranking.strength, view.ranking.all_bad) == ([["A"], ["B"]], 2, False)


async def test_a_step_by_mouse_can_be_moved_undone_and_survives_a_reload(
    live_server: LiveServer, open_page: OpenPage
) -> None:
    page, project = await open_task(live_server, open_page, k=2)
    await page.set_viewport_size({"width": 360, "height": 740})
    assert await wider_than_the_window(page) == []
    chosen = page.locator(".scale input:checked")
    await page.get_by_role("radio", name="B is much better").check()
    await page.locator("article.answer").first.focus()
    await page.keyboard.press("ArrowLeft")
    await expect(chosen).to_have_value("2")
    await page.keyboard.press("Control+z")
    await expect(chosen).to_have_value("3")
    await expect(page.locator(".saved")).to_have_text("Draft saved")
    await page.reload()
    await expect(chosen).to_have_value("3")
    await page.get_by_role("button", name="Submit").click()
    view = await stored(live_server, page, project)
    assert (view.letter_order, view.ranking.strength) == ([["B"], ["A"]], 3)


async def test_the_questions_are_answered_by_keys_alone(
    live_server: LiveServer, open_page: OpenPage, axe: AxeRun
) -> None:
    labels = [{"key": "rude", "en": "Rude", "zh": "粗鲁", "required": True}]
    asked = {"rationale": "required", "min_rationale": 5, "confidence": "required", "asks_all_bad": True}
    page, project = await open_task(live_server, open_page, k=3, labels=labels, **asked)
    assert await axe(page) == []
    for key in ("1", "2", "2", "b", "c", "c"):
        await page.keyboard.press(key)
    for letter in "ABC":
        await page.locator(f'.answer[data-letter="{letter}"]').focus()
        for key in ("l", "ArrowRight" if letter == "A" else "Space"):
            await page.keyboard.press(key)
    await page.keyboard.press("r")
    await page.keyboard.type("A is clearer.")
    await page.keyboard.press("Control+Enter")
    view = await stored(live_server, page, project)
    ranking: Ranking = view.ranking
    assert (ranking.rationale, ranking.confidence, ranking.all_bad) == ("A is clearer.", 2, True)
    assert [view.places[key].denied for key in view.display_order] == [["rude"], [], []]
    assert [view.places[key].labels for key in view.display_order] == [[], ["rude"], ["rude"]]
