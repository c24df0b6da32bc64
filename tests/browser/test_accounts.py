"""An invitation from an admin's page to the first ranking, in a real browser, with the secret out of the address."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from app.accounts.models import Role
from tests.browser.conftest import LiveServer, OpenPage
from tests.factories import make_project, make_prompt, make_task, make_user

pytestmark = [pytest.mark.browser, pytest.mark.real_commits]
PASSWORD = "four words are enough"


async def test_from_the_invitation_to_the_first_task_and_back_in(open_page: OpenPage, live_server: LiveServer) -> None:
    async with live_server.sessions.begin() as session:
        admin = await make_user(session, name="Grace", role=Role.ADMIN)
        project = await make_project(session, slug="tone", name="Support tone")
        await make_task(session, await make_prompt(session, project))
    desk = await open_page(admin)
    await desk.goto("/projects/tone/people")
    await desk.get_by_role("button", name="Make a link").click()
    link = await desk.locator("code.secret").inner_text()

    page = await open_page()
    await page.goto("/join#" + link.partition("#")[2])
    await expect(page.get_by_label("Name")).to_be_focused()
    assert "#" not in page.url
    await page.get_by_label("Name").fill("Ada")
    await page.get_by_label("Mail address").fill("ada@example.org")
    await page.get_by_label("Password").fill(PASSWORD)
    await page.get_by_role("button", name="Join").click()
    await expect(page.get_by_role("heading", name="Support tone")).to_be_visible()
    await page.get_by_role("link", name="Rank", exact=True).click()
    await expect(page.locator("article.answer")).to_have_count(4)

    await page.context.clear_cookies()
    await page.goto("/projects/tone/rank")
    await page.get_by_label("Mail address").fill("ada@example.org")
    await page.get_by_label("Password").fill(PASSWORD)
    await page.get_by_role("button", name="Sign in", exact=True).first.click()
    await expect(page.locator("article.answer")).to_have_count(4)
    assert page.url.endswith("/projects/tone/rank"), "they come back to where they wanted to go"
