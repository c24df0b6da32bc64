"""The README's pictures, made from a running app: `python -m tests.screenshots LINK OUT` with a sign-in link.

`make run` prints such a link. The project `demo` must have a task that waits.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from urllib.parse import urljoin

from playwright.async_api import Page, ViewportSize, async_playwright

from tests.browser.conftest import FLAGS
from tests.chromium import find_chromium

DESKTOP: ViewportSize = {"width": 1440, "height": 900}
PHONE: ViewportSize = {"width": 390, "height": 844}
PAGES = {
    "home": "/",
    "rank": "/projects/demo/rank",
    "round": "/projects/demo",
    "prompts": "/projects/demo/prompts",
    "tasks": "/projects/demo/tasks",
    "rankings": "/projects/demo/rankings",
    "datasets": "/projects/demo/datasets",
    "runs": "/projects/demo/runs",
    "versions": "/projects/demo/versions",
    "settings": "/projects/demo/settings",
    "people": "/people",
}


async def take(link: str, out: Path, names: list[str], *, is_whole: bool) -> None:
    """Sign in once, then take each page: the desktop in light colours, or all of desktop, phone, dark and Chinese."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        context = await browser.new_context(viewport=DESKTOP)
        page = await context.new_page()
        await page.goto(link)
        await page.locator("main").get_by_role("button").click()
        origin = link.partition("/sign-in")[0]
        for name in names:
            await take_page(page, origin + PAGES[name], out, name, is_whole=is_whole)
        await browser.close()


async def take_page(page: Page, address: str, out: Path, name: str, *, is_whole: bool) -> None:
    """One page in the wanted looks; on the ranking page the first answers are placed."""
    looks = [("", DESKTOP, "light", "en")]
    if is_whole:
        looks += [
            ("-dark", DESKTOP, "dark", "zh"),
            ("-phone", PHONE, "light", "zh"),
            ("-phone-dark", PHONE, "dark", "en"),
        ]
    for suffix, viewport, colours, language in looks:
        await page.context.add_cookies([{"name": "rl_language", "value": language, "url": urljoin(address, "/")}])
        await page.set_viewport_size(viewport)
        await page.emulate_media(color_scheme="dark" if colours == "dark" else "light")
        await page.goto(address)
        if name == "rank":
            await page.locator("article.answer").first.focus()
            for key in "213":
                await page.keyboard.press(key)
            await page.evaluate("scrollTo(0, 0)")
        await page.screenshot(path=out / f"{name}{suffix}.png", animations="disabled")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("link", help="a one-time sign-in link, as `make run` prints it")
    parser.add_argument("out", type=Path, help="folder for the pictures")
    parser.add_argument("--pages", nargs="+", choices=PAGES, default=["rank", "round"])
    parser.add_argument("--whole", action="store_true", help="desktop and phone, light and dark, English and Chinese")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    asyncio.run(take(asked.link, asked.out, asked.pages, is_whole=asked.whole))


if __name__ == "__main__":
    main()
