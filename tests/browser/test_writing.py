"""Writing in a real Chromium: a draft that saves itself, survives a lost connection, and is reviewed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from playwright.async_api import Page, expect
from sqlalchemy import select

from app.accounts.models import Role
from app.prompts.models import Completion
from tests.browser.conftest import LiveServer, OpenPage, cross, wider_than_the_window
from tests.factories import make_project, make_prompt, make_user

pytestmark = [pytest.mark.browser, pytest.mark.real_commits]
SMALL = {"width": 360, "height": 740}
AxeRun = Callable[[Page], Awaitable[list[str]]]


async def test_an_ideal_answer_from_the_first_word_to_the_demonstration(
    live_server: LiveServer, open_page: OpenPage, axe: AxeRun
) -> None:
    async with live_server.sessions.begin() as session:
        project = await make_project(session, slug="tone", writes_demonstrations=True)
        await make_prompt(session, project)
        author, reviewer = [await make_user(session, role=role) for role in (Role.ANNOTATOR, Role.REVIEWER)]
    page = await open_page(author, viewport=SMALL)
    await page.goto("/projects/tone/writing")
    await page.get_by_role("button", name="Write an answer").click()
    assert await wider_than_the_window(page) == []
    field = page.get_by_role("textbox", name="Ideal answer")
    await field.fill("Gravity pulls")
    await expect(page.locator(".saved")).to_have_text("Draft saved")
    await page.context.set_offline(True)
    await field.fill("Gravity pulls things together.")
    await expect(page.locator(".saved")).to_contain_text("kept on this device")
    await page.context.set_offline(False)
    await page.reload()
    await expect(field).to_have_value("Gravity pulls things together.")
    await page.get_by_role("button", name="Send for review").click()
    await expect(page.get_by_text("in review")).to_be_visible()
    page = await open_page(reviewer)
    await page.goto("/projects/tone/writing/review")
    await page.get_by_role("row").last.get_by_role("link").click()
    assert await axe(page) == []
    await page.get_by_role("button", name="Approve").click()
    await expect(page.get_by_text("Nothing waits for review.")).to_be_visible()
    async with live_server.sessions() as session:
        found = (await session.scalars(select(Completion))).one()
    assert (found.text, found.is_demonstration) == ("Gravity pulls things together.", True)


async def test_a_page_older_than_the_save_it_crossed_shows_the_last_words(
    live_server: LiveServer, open_page: OpenPage
) -> None:
    """The page is asked for, then the draft is saved, then the page arrives with the older text."""
    async with live_server.sessions.begin() as session:
        project = await make_project(session, slug="tone", writes_demonstrations=True)
        await make_prompt(session, project)
        author = await make_user(session)
    page = await open_page(author)
    await page.goto("/projects/tone/writing")
    await page.get_by_role("button", name="Write an answer").click()
    # Loaded, or the page on its way would be held for the older one.
    await page.wait_for_url("**/writings/*")
    field = page.get_by_role("textbox", name="Ideal answer")
    await cross(page, r"/writings/[^/]+$", lambda: field.fill("Gravity pulls."))
    await expect(field).to_have_value("Gravity pulls.")
    await expect(page.locator(".saved")).to_have_text("Draft saved")
    await page.reload()
    await expect(field).to_have_value("Gravity pulls.")
    assert await page.evaluate("Object.keys(localStorage).filter((key) => key.includes('writing'))") == []
