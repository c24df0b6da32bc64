"""Below a path of another site, in a real browser: sign-in, ranking by script, a pack without a connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.async_api import expect

from app.config import Settings
from tests.browser.conftest import LiveServer, OpenPage, serving
from tests.browser.test_ranking_flow import Site, lease_of, press, shown_after, site, take_pack

__all__ = ["site"]

BASE = "/tools/rankloop"
NUM_PACKED = 3
pytestmark = [pytest.mark.browser, pytest.mark.real_commits, pytest.mark.slow]


@pytest.fixture
async def live_server(fresh_database_url: str, tmp_path: Path) -> AsyncIterator[LiveServer]:
    """The app below a path."""
    settings = Settings(data_dir=tmp_path, database_url=fresh_database_url, public_url=f"http://127.0.0.1{BASE}")
    async with serving(settings) as server:
        yield server


async def test_people_rank_below_a_path_with_a_connection_and_without(open_page: OpenPage, site: Site) -> None:
    page = await open_page(site.annotator)
    asked: list[str] = []
    page.context.on("request", lambda request: asked.append(urlsplit(request.url).path))
    async with page.expect_response("**/rank/ahead"):
        await page.goto(f"{site.server.url}{site.address}")
    lease = await lease_of(page)
    await press(page)
    await shown_after(page, lease)
    await take_pack(page, NUM_PACKED - 1)
    scope = await page.evaluate("navigator.serviceWorker.ready.then((found) => new URL(found.scope).pathname)")
    assert scope == f"{BASE}/"
    await page.context.set_offline(True)
    await page.reload()
    lease = await lease_of(page)
    await press(page)
    await shown_after(page, lease)
    await press(page)
    await expect(page.locator(".strip .note")).to_contain_text("No connection")
    await page.context.set_offline(False)
    async with asyncio.timeout(30):
        while len(await site.rankings()) < NUM_PACKED:  # noqa: ASYNC110 - it is the database that is looked at
            await asyncio.sleep(0.1)
    assert len({ranking.task_id for ranking in await site.rankings()}) == NUM_PACKED
    assert [path for path in asked if not path.startswith(f"{BASE}/")] == []
