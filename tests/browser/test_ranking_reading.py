"""Reading and comparing on the ranking page: formulas, directions, layouts, find, differences, the prompt in view."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from playwright.async_api import Page, expect
from sqlalchemy import text

from app.accounts.models import User
from tests.browser.conftest import PHONE, LiveServer, OpenPage
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


async def make_desk(
    live_server: LiveServer,
    *answers: str,
    prompt: str = "Why?",
    messages: list[dict[str, str]] | None = None,
    **settings: object,
) -> Desk:
    """A project with one task of these answers."""
    async with live_server.sessions.begin() as session:
        project = await make_project(session, **settings)
        row = await make_prompt(session, project, messages=messages or [{"role": "user", "content": prompt}])
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
    await expect(page.locator(".answer .display mfrac").first).to_be_visible()
    await expect(page.locator(".prompt math")).to_have_count(1)
    assert await page.locator("code.math").count() == 0
    # Without a font of its own for formulas, a device gets ours; whoever points at a formula gets its source.
    assert await page.evaluate("document.fonts.ready.then(() => [...document.fonts].map((face) => face.status))") == [
        "loaded"
    ]
    assert await page.locator(".answer math").count() == 2
    assert await page.locator('.formula[title="$x^2$"]').count() == 1


async def test_a_formula_that_could_hide_or_cover_text_is_shown_as_written(
    open_page: OpenPage, live_server: LiveServer
) -> None:
    desk = await make_desk(live_server, " ".join(TRICKS), "Here is $y$.")
    page = await open_desk(open_page, desk)
    await expect(page.locator("math").first).to_be_visible()
    assert sorted(await page.locator("code.math").all_inner_texts()) == sorted(TRICKS)


async def test_the_font_of_formulas_is_fetched_only_when_a_text_needs_it(
    open_page: OpenPage, live_server: LiveServer
) -> None:
    desk = await make_desk(live_server, "It costs $5.", "It costs $10.")
    page = await open_page(desk.annotator)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    await page.goto(desk.address, wait_until="networkidle")
    assert [url for url in asked if "vendor" in url] == []


async def weight_of(page: Page, address: str) -> int:
    """How many bytes come over the line for a first visit, headers and all."""
    network = await page.context.new_cdp_session(page)
    sizes: list[int] = []
    await network.send("Network.enable")
    network.on("Network.loadingFinished", lambda event: sizes.append(int(event["encodedDataLength"])))
    await page.goto(address, wait_until="networkidle")
    return sum(sizes)


async def test_the_page_weighs_little_with_code_and_formulas_too(open_page: OpenPage, live_server: LiveServer) -> None:
    answers = ["$$\\sum_i x_i^2$$", "```python\nprint(1)\n```", "A " * 1000, "B " * 1000]
    desk = await make_desk(live_server, *answers, prompt=r"What is \(x\)?")
    page = await open_page(desk.annotator)
    assert 50_000 < await weight_of(page, desk.address) < 150_000


async def test_formulas_can_be_read_without_javascript(open_page: OpenPage, live_server: LiveServer) -> None:
    desk = await make_desk(live_server, "Let $x^2$ be.", "No.")
    page = await open_desk(open_page, desk, java_script_enabled=False)
    await expect(page.locator(".answer msup")).to_be_visible()


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


ARTICLES = [
    "The sea is blue. It was calm when the boat left the harbour.",
    "The sea is grey. It was calm when the old boat left the harbour!",
]


async def marked(page: Page, side: int) -> list[str]:
    return await page.locator(".sides section").nth(side).locator("mark.only, .formula.only").all_inner_texts()


async def test_two_answers_are_compared_word_by_word(open_page: OpenPage, live_server: LiveServer) -> None:
    page = await open_desk(open_page, await make_desk(live_server, *ARTICLES))
    await page.keyboard.press("d")
    letters = await page.locator(".sides h3").all_inner_texts()
    assert sorted([await marked(page, 0), await marked(page, 1)]) == [["blue", "."], ["grey", "old", "!"]]
    await page.get_by_label("First answer").select_option(letters[1])
    assert await page.locator(".sides h3").all_inner_texts() == [letters[1], letters[1]]
    await expect(page.locator("#compare [role=status]")).to_have_text("Both say the same.")
    await page.keyboard.press("Escape")
    # The answers themselves were not touched, and the card has the focus again.
    assert await page.locator(".answer mark").count() == 0
    assert await page.evaluate("document.activeElement.dataset.letter") == "A"


async def test_answers_with_little_in_common_are_left_whole(open_page: OpenPage, live_server: LiveServer) -> None:
    answers = ("Rayleigh scattering: short waves bounce more.", "I can't say why the sky has this colour: sorry.")
    page = await open_desk(open_page, await make_desk(live_server, *answers))
    await page.keyboard.press("d")
    await expect(page.locator("#compare [role=status]")).to_contain_text("nothing is marked")
    assert await page.locator("#compare mark").count() == 0


async def test_chinese_is_compared_by_the_character_and_formulas_whole(
    open_page: OpenPage, live_server: LiveServer
) -> None:
    desk = await make_desk(live_server, "导数描述**变化**率:$x^2$。", "导数描述增长率:$x^3$。")
    page = await open_desk(open_page, desk)
    await expect(page.locator(".answer math")).to_have_count(2)
    await page.keyboard.press("d")
    found = [await marked(page, side) for side in (0, 1)]
    assert sorted(texts[0] for texts in found) == ["变化", "增长"]
    assert await page.locator(".sides .formula.only").count() == 2


async def test_what_is_common_is_common_in_the_same_order(open_page: OpenPage, live_server: LiveServer) -> None:
    """For a thousand pairs of lists: what is kept of either is the same list, and nearly the longest that there is.

    Nearly: a token that stands alone on both sides is an anchor, even where a longer list would do without it.
    """
    page = await open_desk(open_page, await make_desk(live_server, *ARTICLES))
    differ, kept, possible = await page.evaluate("""async () => {
        const main = document.querySelector("script[type=module]").src;
        const { inBoth } = await import(main.replace("main.js", "diff.js"));
        let seed = 17;
        const below = (n) => (seed = (seed * 48271) % 2147483647) % n;
        const longest = (a, b) => !a.length || !b.length ? 0 : a[0] === b[0] ? 1 + longest(a.slice(1), b.slice(1))
            : Math.max(longest(a.slice(1), b), longest(a, b.slice(1)));
        let [differ, kept, possible] = [[], 0, 0];
        for (let round = 0; round < 1000; round++) {
            const letters = 1 + below(6);
            const list = () => Array.from({ length: below(8) }, () => "abcdefghi"[below(letters)]);
            const [a, b] = [list(), list()];
            const [inA, inB] = inBoth(a, b);
            const [keptA, keptB] = [a.filter((_, i) => inA[i]).join(""), b.filter((_, i) => inB[i]).join("")];
            if (keptA !== keptB) differ.push([a.join(""), b.join(""), keptA, keptB]);
            kept += keptA.length;
            possible += longest(a, b);
        }
        return [differ, kept, possible];
    }""")
    assert differ == []
    assert 0.98 < kept / possible <= 1


async def test_find_marks_counts_and_walks(open_page: OpenPage, live_server: LiveServer) -> None:
    desk = await make_desk(
        live_server, "One **tree**, two TREES and a tree.", "No such thing.", "A tr*ee* and 100% (sure)."
    )
    page = await open_desk(open_page, desk)
    await page.keyboard.press("f")
    await page.keyboard.type("tree")
    count = page.locator(".finder output")
    await expect(count).to_contain_text("4 found")
    marks = "[...CSS.highlights.get('found')].map(String)"
    assert sorted(await page.evaluate(marks)) == ["TREE", "tree", "tree", "tree"]
    for text_ in ("1 of 4", "2 of 4"):
        await page.keyboard.press("Enter")
        await expect(count).to_contain_text(text_)
    await page.keyboard.press("Shift+Enter")
    await expect(count).to_contain_text("1 of 4")
    await page.get_by_label("Find in all answers").fill("100% (s")
    await expect(count).to_contain_text("1 found")
    await page.get_by_label("Find in all answers").fill("nowhere")
    await expect(count).to_have_text("Not found")
    # It is no part of the form: nothing was placed or sent, and Escape leads back to the answer.
    await page.keyboard.press("Escape")
    await page.keyboard.press("1")
    await expect(page.locator(".answer .places input:checked").first).to_have_value("1")
    assert await page.evaluate("CSS.highlights.get('found').size") == 0


async def test_only_a_very_long_answer_is_folded_and_find_opens_it(
    open_page: OpenPage, live_server: LiveServer
) -> None:
    long = "word " * 1500 + "needle"
    page = await open_desk(open_page, await make_desk(live_server, long, "short"))
    button = page.get_by_role("button", name="Show all of")
    await expect(button).to_have_count(1)
    await page.keyboard.press("f")
    await page.keyboard.type("needle")
    await page.keyboard.press("Enter")
    await expect(button).to_have_count(0)
    await expect(page.locator(".answer", has_text="needle")).to_be_visible()
    plain = await open_desk(open_page, await make_desk(live_server, long, "short"), java_script_enabled=False)
    await expect(plain.locator(".folded")).to_have_count(0)


async def test_the_layout_is_the_projects_until_one_is_chosen(open_page: OpenPage, live_server: LiveServer) -> None:
    desk = await make_desk(live_server, *"ABCD", layout="columns")
    page = await open_desk(open_page, desk, viewport={"width": 1440, "height": 900})
    tops = "[...document.querySelectorAll('.answer')].map(card => card.getBoundingClientRect().top)"
    assert len(set(await page.evaluate(tops))) == 2
    for name, num_rows in (("Stacked", 4), ("One row", 1)):
        await page.get_by_role("button", name=name).click()
        assert len(set(await page.evaluate(tops))) == num_rows
    await page.reload()
    assert len(set(await page.evaluate(tops))) == 1


@pytest.mark.parametrize("layout", ["grid", "columns", "stacked"])
async def test_the_prompt_stays_in_view(open_page: OpenPage, live_server: LiveServer, layout: str) -> None:
    desk = await make_desk(live_server, *[f"{letter} " * 3000 for letter in "ABC"], layout=layout)
    page = await open_desk(open_page, desk)
    await page.evaluate("scrollTo(0, 700)")
    await expect(page.locator(".prompt .turn.last")).to_be_in_viewport(ratio=0.9)
    prompt, answers = [await page.locator(name).bounding_box() for name in (".prompt", ".answers")]
    assert prompt is not None
    assert answers is not None
    assert prompt["x"] + prompt["width"] < answers["x"]
    assert prompt["width"] < answers["width"] / 2


async def test_above_a_row_the_prompt_stays_in_view(open_page: OpenPage, live_server: LiveServer) -> None:
    page = await open_desk(open_page, await make_desk(live_server, *[f"{letter} " * 3000 for letter in "ABC"]))
    await page.get_by_role("button", name="One row").click()
    await page.evaluate("scrollTo(0, 700)")
    await expect(page.locator(".prompt .turn.last")).to_be_in_viewport(ratio=0.9)


async def test_on_a_phone_a_line_of_the_prompt_stays_and_opens(open_page: OpenPage, live_server: LiveServer) -> None:
    desk = await make_desk(live_server, *[f"{letter} " * 3000 for letter in "ABC"], prompt="Why is the sea blue?")
    page = await open_desk(open_page, desk, viewport=PHONE, has_touch=True, is_mobile=True)
    await page.evaluate("scrollTo(0, 1500)")
    line = page.locator(".reminder")
    await expect(line).to_be_in_viewport(ratio=1)
    box = await line.bounding_box()
    assert box is not None
    assert box["height"] < 50
    await line.tap()
    await expect(page.locator("#conversation .turn")).to_contain_text("Why is the sea blue?")


async def test_roles_are_named_and_a_system_prompt_is_marked(open_page: OpenPage, live_server: LiveServer) -> None:
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Why?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    page = await open_desk(open_page, await make_desk(live_server, "A", "B", messages=messages))
    heads = await page.locator(".prompt .turn h3").all_inner_texts()
    assert [head.lower() for head in heads] == ["system prompt", "user", "assistant", "user"]
