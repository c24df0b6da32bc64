"""The form of a project: what is folded away is there when it is wanted."""

from __future__ import annotations

import pytest
from playwright.async_api import Page, expect

from app.accounts.models import Role
from tests.browser.conftest import LiveServer, OpenPage
from tests.factories import make_project, make_user

pytestmark = [pytest.mark.browser, pytest.mark.real_commits]


@pytest.fixture
async def form(live_server: LiveServer, open_page: OpenPage) -> Page:
    """The settings of a project, as its owner sees them."""
    async with live_server.sessions.begin() as session:
        owner = await make_user(session, role=Role.ADMIN)
        project = await make_project(session)
    page = await open_page(owner)
    await page.goto(f"/projects/{project.slug}/settings")
    return page


async def test_what_the_browser_refuses_is_unfolded(form: Page) -> None:
    """Else nothing would happen, and nobody would know why."""
    answers = form.locator("#section-answers")
    await answers.locator("summary").click()
    await form.get_by_label("Temperature").fill("9")
    await answers.locator("summary").click()
    await expect(form.get_by_label("Temperature")).to_be_hidden()
    await form.get_by_role("button", name="Save").last.click()
    await expect(form.get_by_label("Temperature")).to_be_focused()


async def test_what_the_server_refuses_is_unfolded(form: Page) -> None:
    await form.locator("#section-learning > summary").click()
    await form.get_by_label("Share at random").fill("0")
    await form.locator("form.form").evaluate("form => { form.noValidate = true; }")
    await form.get_by_role("button", name="Save").last.click()
    await expect(form.get_by_role("alert")).to_be_visible()
    await expect(form.get_by_label("Share at random")).to_be_visible()
    await expect(form.get_by_label("Temperature")).to_be_hidden()


async def test_a_new_label_is_ready_to_be_named(form: Page) -> None:
    await form.locator("#section-labels > summary").click()
    await form.get_by_role("button", name="Add a label").click()
    await expect(form.locator(".label-row").last.get_by_label("English")).to_be_focused()
