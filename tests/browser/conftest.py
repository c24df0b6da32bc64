"""A real Chromium against a real server: `live_server` on a database of its own, `browser_page` signed in nowhere.

Every page is watched: a script error, a CSP violation or a request to another origin fails the test that caused it.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from axe_playwright_python.base import AXE_SCRIPT
from playwright.async_api import Browser, BrowserContext, Page, Request, Route, async_playwright, expect

from app.accounts.guards import SESSION_COOKIE
from app.accounts.models import User
from app.accounts.sessions import create_sign_in_link, sign_in
from app.config import Settings
from app.db import SessionMaker, make_engine, make_sessionmaker
from tests.borrowed import borrowed_app
from tests.chromium import find_chromium

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
START_SECONDS = 30
# A machine with many other things to do is slow, not wrong.
PATIENCE = 20_000
expect.set_options(timeout=PATIENCE)
WIDE = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
wide_and_phone = pytest.mark.parametrize(
    ("size", "language"),
    [
        (WIDE, "en"),
        (PHONE, "zh-CN"),
        pytest.param(WIDE, "zh-CN", marks=pytest.mark.soak),
        pytest.param(PHONE, "en", marks=pytest.mark.soak),
    ],
)
"""Each window and each language once; with the soak's two, every window in every language."""


@dataclass
class LiveServer:
    """A running server, and sessions on its database."""

    url: str
    sessions: SessionMaker

    async def sign_in(self, context: BrowserContext, user: User) -> None:
        """Give a browser the session of this person."""
        async with self.sessions.begin() as session:
            link = await create_sign_in_link(session, user=user, public_url=self.url)
            await session.flush()
            token = await sign_in(session, secret=link.rpartition("#")[2])
        await context.add_cookies([{"name": SESSION_COOKIE, "value": token, "url": self.url, "httpOnly": True}])


@dataclass
class Watch:
    """What went wrong in the pages of one test."""

    origin: str
    found: list[str] = field(default_factory=list)

    def follow(self, page: Page) -> None:
        """Listen to a page from its beginning."""
        page.on("pageerror", lambda error: self.found.append(f"script error: {error}"))
        page.on("request", self.note_request)
        page.on("console", lambda message: self.note_console(message.type, message.text))

    def note_request(self, request: Request) -> None:
        """Anything that is fetched from elsewhere."""
        if not request.url.startswith((self.origin, "data:", "blob:")):
            self.found.append(f"request to another origin: {request.url}")

    def note_console(self, kind: str, text: str) -> None:
        """What the browser refused because of the policy."""
        if "Content Security Policy" in text or "violates the following" in text:
            self.found.append(f"{kind}: {text}")


@pytest.fixture
async def live_server(fresh_database_url: str, tmp_path: Path) -> AsyncIterator[LiveServer]:
    """The app in a thread, on a port of its own. Mark the test `real_commits`."""
    async with serving(Settings(data_dir=tmp_path, database_url=fresh_database_url)) as server:
        yield server


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[LiveServer]:
    """The app with these settings."""
    with borrowed_app(settings) as app:
        config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", ws="none", lifespan="on")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, name="live server", daemon=True)
        thread.start()
        engine = make_engine(settings.require_database_url(), pool_size=2)
        try:
            port = wait_for_port(server, thread)
            yield LiveServer(url=f"http://127.0.0.1:{port}{settings.base_path}", sessions=make_sessionmaker(engine))
        finally:
            server.should_exit = True
            thread.join(timeout=START_SECONDS)
            await engine.dispose()


def wait_for_port(server: uvicorn.Server, thread: threading.Thread) -> int:
    """Where the server listens, once it does."""
    deadline = time.monotonic() + START_SECONDS
    while not server.started:
        assert thread.is_alive(), "the server ended before it listened"
        assert time.monotonic() < deadline, "the server does not listen"
        time.sleep(0.02)
    port: int = server.servers[0].sockets[0].getsockname()[1]
    return port


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """The browser's program; `make test` makes sure that there is one."""
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium here: `python tests/chromium.py` names the command that brings it")
    return path


@pytest.fixture(scope="session")
async def browser(chromium_path: str) -> AsyncIterator[Browser]:
    """One browser a session."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium_path, args=FLAGS)
        yield browser
        await browser.close()


OpenPage = Callable[..., Awaitable[Page]]


@pytest.fixture
async def open_page(browser: Browser, live_server: LiveServer) -> AsyncIterator[OpenPage]:
    """`await open_page(user, **context)`: a page of a browser of its own, signed in as `user` if one is given."""
    watch = Watch(live_server.url)
    contexts = []

    async def open_one(user: User | None = None, **settings: Any) -> Page:
        context = await browser.new_context(**{"viewport": WIDE, "base_url": live_server.url} | settings)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        if user is not None:
            await live_server.sign_in(context, user)
        context.on("page", watch.follow)
        return await context.new_page()

    yield open_one
    for context in contexts:
        await context.close()
    assert watch.found == []


@pytest.fixture
async def browser_page(open_page: OpenPage) -> Page:
    """A page with nobody signed in."""
    return await open_page()


AxeRun = Callable[[Page], Awaitable[list[str]]]
# The size of targets (WCAG 2.2, 2.5.8) is asked only by who wants it. What is in order is not listed one by one.
EVERY_RULE = {"rules": {"target-size": {"enabled": True}}, "resultTypes": ["violations"]}
RULES_OF_COLOURS = {"runOnly": ["color-contrast", "link-in-text-block"], "resultTypes": ["violations"]}


async def ask_axe(page: Page, options: dict[str, Any]) -> list[str]:
    """What axe-core holds against a page, one line a finding. The page gets it once, and only violations come back."""
    if not await page.evaluate("'axe' in window"):
        await page.evaluate(AXE_SCRIPT)
    violations = await page.evaluate("options => axe.run(options).then(results => results.violations)", options)
    return [
        f"{violation['id']}: {node['target']} {node['failureSummary']}"
        for violation in violations
        for node in violation["nodes"]
    ]


@pytest.fixture
def axe() -> AxeRun:
    """`await axe(page)`: what axe-core holds against a page in dark and in light, where it is left. The scheme changes
    colours alone, so that in dark only the rules about them are asked.
    """

    async def run(page: Page) -> list[str]:
        # Without motion, or a colour would be measured on its way to the other scheme.
        await page.emulate_media(color_scheme="dark", reduced_motion="reduce")
        dark = [f"in dark: {finding}" for finding in await ask_axe(page, RULES_OF_COLOURS)]
        await page.emulate_media(color_scheme="light", reduced_motion="reduce")
        light = await ask_axe(page, EVERY_RULE)
        await page.emulate_media(reduced_motion="no-preference")
        return dark + light

    return run


async def cross(page: Page, addresses: str, change: Callable[[], Awaitable[object]]) -> None:
    """Reload a page so that it is asked for before a save, and arrives after that save was answered.

    `addresses`: a pattern of both. `change`: what makes the page save.
    """
    asked, saved, met = asyncio.Event(), asyncio.Event(), set[str]()

    async def hold(route: Route) -> None:
        method = route.request.method
        if method in met:
            await route.continue_()
            return
        met.add(method)
        if method == "POST":
            await asked.wait()
            await route.fulfill(response=await route.fetch())
            saved.set()
        else:
            older = await route.fetch()
            asked.set()
            await saved.wait()
            await route.fulfill(response=older)

    await page.route(re.compile(addresses), hold)
    async with page.expect_request(lambda request: request.method == "POST"):
        await change()
    await page.reload()
    # The page that was left may save once more, and is answered only now.
    await page.unroute_all(behavior="wait")


async def wider_than_the_window(page: Page) -> list[str]:
    """Empty, or the elements that make the page scroll sideways."""
    found: list[str] = await page.evaluate(
        """() => {
            const width = document.documentElement.clientWidth;
            if (document.documentElement.scrollWidth <= width) return [];
            const end = (element) => element.getBoundingClientRect().right;
            const wide = [...document.querySelectorAll("body *")].filter((element) => end(element) > width);
            return wide.map((element) => `${element.tagName}.${element.className} ends at ${end(element)}`);
        }"""
    )
    return found


async def nothing_waits(page: Page) -> None:
    """Wait until no ranking is on the device any more, nor on its way."""
    deadline = time.monotonic() + START_SECONDS
    while await num_waiting(page):
        assert time.monotonic() < deadline, "a ranking stays on the device"
        await asyncio.sleep(0.02)


async def num_waiting(page: Page) -> int:
    """How many rankings the ranking page keeps on the device, until the server has them."""
    num: int = await page.evaluate(
        """async () => {
            const main = document.querySelector("script[type=module][src*='/rank/']").src;
            return (await (await import(main.replace("main.js", "device.js"))).all("outbox")).length;
        }"""
    )
    return num
