"""Reading and comparing on the ranking page: formulas, directions, layouts, find, differences, the prompt in view."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from playwright.async_api import Page, expect
from sqlalchemy import text

from app.accounts.models import User
from tests.browser.conftest import LiveServer, OpenPage
from tests.factories import make_completion, make_project, make_prompt, make_task, make_user

pytestmark = [pytest.mark.browser, pytest.mark.real_commits]

TRICKS = [
    r"$\phantom{hidden}$",
    r"$\color{white}{hidden}$",
    r"$\def\x{\x\x}\x$",
    r"$\rlap{over}$",
    r"\(\unknowncommand{1}\)",
]


@dataclass
class Desk:
    """One task on a page of its own."""

    address: str
    annotator: User


async def make_desk(live_server: LiveServer, *answers: str, prompt: str = "Why?", **settings: object) -> Desk:
    """A project with one task of these answers."""
    async with live_server.sessions.begin() as session:
        project = await make_project(session, **settings)
        messages = [{"role": "user", "content": prompt}]
        row = await make_prompt(session, project, messages=messages)
        task = await make_task(session, row, k=0)
        for position, answer in enumerate(answers):
            completion = await make_completion(session, row, text=answer)
            insert = "insert into task_completions (task_id, completion_id, position) values (:t, :c, :p)"
            await session.execute(text(insert), {"t": task.id, "c": completion.id, "p": position})
        return Desk(f"/projects/{project.slug}/rank", await make_user(session))


async def open_desk(open_page: OpenPage, desk: Desk, **settings: object) -> Page:
    page = await open_page(desk.annotator, **settings)
    await page.goto(desk.address)
    return page


async def test_formulas_are_typeset(open_page: OpenPage, live_server: LiveServer) -> None:
    desk = await make_desk(live_server, "Let $x^2$ be.", "$$\n\\frac{1}{2}\n$$", prompt=r"What is \(x\)?")
    page = await open_desk(open_page, desk)
    await expect(page.locator(".answer .katex-display .mfrac").first).to_be_visible()
    await expect(page.locator(".prompt .katex")).to_have_count(1)
    assert await page.locator("code.math").count() == 0
    # A screen reader gets MathML, and whoever points at a formula its source.
    assert await page.locator(".answer math").count() == 2
    assert await page.locator('.formula[title="$x^2$"]').count() == 1


async def test_a_formula_that_could_hide_or_cover_text_is_shown_as_written(
    open_page: OpenPage, live_server: LiveServer
) -> None:
    desk = await make_desk(live_server, " ".join(TRICKS), "Here is $y$.")
    page = await open_desk(open_page, desk)
    await expect(page.locator(".katex").first).to_be_visible()
    assert sorted(await page.locator("code.math").all_inner_texts()) == sorted(TRICKS)


async def test_katex_is_fetched_only_when_a_text_needs_it(open_page: OpenPage, live_server: LiveServer) -> None:
    desk = await make_desk(live_server, "It costs $5.", "It costs $10.")
    page = await open_page(desk.annotator)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    await page.goto(desk.address, wait_until="networkidle")
    assert [url for url in asked if "katex" in url or "prose" in url] == []


async def test_formulas_can_be_read_without_javascript(open_page: OpenPage, live_server: LiveServer) -> None:
    desk = await make_desk(live_server, "Let $x^2$ be.", "No.")
    page = await open_desk(open_page, desk, java_script_enabled=False)
    await expect(page.locator(".answers")).to_contain_text("Let $x^2$ be.")


async def test_right_to_left_answers_begin_on_the_right(open_page: OpenPage, live_server: LiveServer) -> None:
    desk = await make_desk(live_server, "مرحبا بالعالم\n\n- واحد", "Hello")
    page = await open_desk(open_page, desk)
    find = """([block, text]) => {
        const blocks = [...document.querySelectorAll(`.answer .body ${block}`)];
        return getComputedStyle(blocks.find((element) => element.textContent.includes(text))).direction;
    }"""
    assert await page.evaluate(find, ["p", "مرحبا"]) == "rtl"
    assert await page.evaluate(find, ["ul", "واحد"]) == "rtl"
    assert await page.evaluate(find, ["p", "Hello"]) == "ltr"
