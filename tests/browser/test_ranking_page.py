"""The ranking page in a real Chromium: keys, mouse, touch, drafts, lost connections, and nothing that leaks or runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest
from playwright.async_api import Page, expect
from sqlalchemy import select, text

from app.accounts.models import Role, User
from app.projects.models import Project
from app.rankings import service as rankings
from app.rankings.models import Ranking
from app.tasks.models import Lease
from tests.browser.conftest import (
    PHONE,
    LiveServer,
    OpenPage,
    cross,
    nothing_waits,
    wide_and_phone,
    wider_than_the_window,
)
from tests.factories import make_completion, make_project, make_prompt, make_task, make_user

pytestmark = [pytest.mark.browser, pytest.mark.real_commits]

AxeRun = Callable[[Page], Awaitable[list[str]]]
LABELS = [{"key": "rude", "en": "Rude", "zh": "粗鲁"}, {"key": "made_up", "en": "Made up", "zh": "凭空编造"}]
HOSTILE = """<script>document.title = "ran"</script> <img src="https://evil.example/beacon.png" onerror="alert(1)">
![beacon](https://evil.example/beacon.png) [link](javascript:alert(1)) </textarea></form><svg onload=alert(1)>

```html
<style>body { display: none }</style>
```
"""


@dataclass
class Site:
    """A project with tasks, and an annotator."""

    server: LiveServer
    project: Project
    annotator: User

    @property
    def address(self) -> str:
        return f"/projects/{self.project.slug}/rank"

    async def orders(self) -> list[list[list[str]]]:
        """What was stored, oldest first, in the letters that were seen."""
        async with self.server.sessions() as session:
            views = await rankings.list_rankings(session, project_id=self.project.id)
        return [view.letter_order for view in reversed(views)]

    async def add_task(self, *texts: str) -> None:
        async with self.server.sessions.begin() as session:
            prompt = await make_prompt(session, self.project, messages=[{"role": "user", "content": texts[0]}])
            task = await make_task(session, prompt, k=0)
            for position, answer in enumerate(texts[1:]):
                completion = await make_completion(session, prompt, text=answer)
                insert = "insert into task_completions (task_id, completion_id, position) values (:t, :c, :p)"
                await session.execute(text(insert), {"t": task.id, "c": completion.id, "p": position})


@pytest.fixture
async def site(live_server: LiveServer) -> Site:
    """Three tasks of four answers each."""
    async with live_server.sessions.begin() as session:
        project = await make_project(session, labels=LABELS, guidelines="Read **all** answers first.")
        annotator = await make_user(session, name="Ada", role=Role.ADMIN)
        for _ in range(3):
            await make_task(session, await make_prompt(session, project), k=4)
    return Site(live_server, project, annotator)


async def place_of(page: Page, letter: str) -> str:
    """The value of the radio button that is set on a card."""
    return await page.locator(f'.answer[data-letter="{letter}"] .places input:checked').input_value()


async def places(page: Page, letters: str = "ABCD") -> list[str]:
    return [await place_of(page, letter) for letter in letters]


async def finish(page: Page, num: int = 1) -> None:
    """Wait until the next task is there, and what was ranked has reached the server."""
    await expect(page.locator(".bar")).to_contain_text(f"{num} done today")
    await nothing_waits(page)


async def other_task(page: Page, lease: str | None) -> None:
    """Wait until another task is on the page."""
    await page.wait_for_function("lease => document.querySelector('#rank')?.dataset.lease !== lease", arg=lease)
    await page.wait_for_load_state()


async def test_ranking_by_keyboard_with_a_tie(open_page: OpenPage, site: Site) -> None:
    page = await open_page(site.annotator)
    await page.goto(site.address)
    for key in ("2", "1", "2", "3", "Enter"):
        await page.keyboard.press(key)
    await finish(page)
    assert await site.orders() == [[["B"], ["A", "C"], ["D"]]]


async def test_enter_waits_until_every_answer_has_its_place(open_page: OpenPage, site: Site) -> None:
    page = await open_page(site.annotator)
    await page.goto(site.address)
    await page.keyboard.press("1")
    await page.keyboard.press("Enter")
    await expect(page.locator(".strip .note")).to_contain_text("B, C, D")
    assert await site.orders() == []


async def test_ratings_and_labels_by_keyboard(open_page: OpenPage, site: Site) -> None:
    page = await open_page(site.annotator)
    await page.goto(site.address)
    for key in ("Shift+Digit6", "l", "Space", "Escape", "1", "2", "3", "4", "Enter"):
        await page.keyboard.press(key)
    await finish(page)
    async with site.server.sessions() as session:
        row = (await session.execute(text("select rating, labels from ranking_places where place = 1"))).one()
    assert (row.rating, row.labels) == (6, ["rude"])


async def test_undo_and_redo(open_page: OpenPage, site: Site) -> None:
    page = await open_page(site.annotator)
    await page.goto(site.address)
    await page.keyboard.press("1")
    await page.keyboard.press("2")
    await page.keyboard.press("Control+z")
    assert await places(page) == ["1", "", "", ""]
    await page.keyboard.press("Control+Shift+z")
    assert await places(page) == ["1", "2", "", ""]


async def test_keys_can_be_turned_off(open_page: OpenPage, site: Site) -> None:
    page = await open_page(site.annotator)
    await page.goto(site.address)
    await page.keyboard.press("?")
    await page.get_by_label("Use these keys").uncheck()
    await page.keyboard.press("Escape")
    await page.locator('.answer[data-letter="A"]').focus()
    await page.keyboard.press("1")
    assert await place_of(page, "A") == ""


async def drag(page: Page, letter: str, place: int) -> None:
    """Move a chip by mouse."""
    chip = await page.locator(f'.strip .chip:text-is("{letter}")').bounding_box()
    box = await page.locator(f'.strip .place[data-place="{place}"]').bounding_box()
    assert chip is not None
    assert box is not None
    await page.mouse.move(chip["x"] + chip["width"] / 2, chip["y"] + chip["height"] / 2)
    await page.mouse.down()
    await page.mouse.move(box["x"] + box["width"] - 6, box["y"] + box["height"] / 2, steps=6)
    await page.mouse.up()


async def test_ranking_by_mouse(open_page: OpenPage, site: Site) -> None:
    page = await open_page(site.annotator)
    await page.goto(site.address)
    for letter, place in (("D", 1), ("C", 2), ("B", 2), ("A", 3)):
        await drag(page, letter, place)
    assert await places(page) == ["3", "2", "2", "1"]
    await page.get_by_role("button", name="Submit").click()
    await finish(page)
    assert await site.orders() == [[["D"], ["B", "C"], ["A"]]]


async def test_the_cards_stay_where_they_are(open_page: OpenPage, site: Site) -> None:
    page = await open_page(site.annotator)
    await page.goto(site.address)
    cards = page.locator(".answer")
    before = [await cards.nth(index).bounding_box() for index in range(4)]
    await drag(page, "D", 1)
    await drag(page, "A", 4)
    assert [await cards.nth(index).bounding_box() for index in range(4)] == before


async def test_ranking_by_touch_on_a_phone(open_page: OpenPage, site: Site) -> None:
    page = await open_page(site.annotator, viewport=PHONE, has_touch=True, is_mobile=True)
    await page.goto(site.address)
    for letter, place in zip("ABCD", ("4", "3", "2", "1"), strict=True):
        await page.locator(f'.answer[data-letter="{letter}"] .places .cell:has(input[value="{place}"])').tap()
    await page.get_by_role("button", name="Submit").tap()
    await finish(page)
    assert await site.orders() == [[["D"], ["C"], ["B"], ["A"]]]


@pytest.mark.parametrize("width", [320, 390, 768])
async def test_nothing_is_wider_than_the_window(open_page: OpenPage, site: Site, width: int) -> None:
    await site.add_task("W" * 300, *(f"{'x' * 400} {number}\n\n```\n{'y' * 400}\n```" for number in range(9)))
    page = await open_page(site.annotator, viewport={"width": width, "height": 800})
    async with site.server.sessions.begin() as session:
        await session.execute(text("update tasks set priority = number"))
    await page.goto(site.address)
    assert await page.locator(".answer").count() == 9
    assert await wider_than_the_window(page) == []


async def test_a_draft_survives_a_reload(open_page: OpenPage, site: Site) -> None:
    page = await open_page(site.annotator)
    await page.goto(site.address)
    await page.keyboard.press("3")
    await page.keyboard.press("1")
    await page.get_by_label("Why this order?").fill("B is kinder.")
    await expect(page.locator(".strip .saved")).to_have_text("Draft saved")
    await page.reload()
    assert await places(page) == ["3", "1", "", ""]
    await expect(page.get_by_label("Why this order?")).to_have_value("B is kinder.")


async def test_a_draft_is_there_on_another_device(open_page: OpenPage, site: Site) -> None:
    page = await open_page(site.annotator)
    await page.goto(site.address)
    await page.keyboard.press("3")
    await expect(page.locator(".strip .saved")).to_have_text("Draft saved")
    other = await open_page(site.annotator)
    await other.goto(site.address)
    assert await places(other) == ["3", "", "", ""]


async def test_work_done_off_line_is_not_lost(open_page: OpenPage, site: Site) -> None:
    """Off line in mid-ranking, submit, on line again: one ranking is stored, and it is the one that was made."""
    page = await open_page(site.annotator)
    await page.goto(site.address)
    await page.keyboard.press("1")
    await page.context.set_offline(True)
    for key in ("2", "3", "4", "Enter"):
        await page.keyboard.press(key)
    await expect(page.locator(".strip .note")).to_contain_text("No connection")
    await page.context.set_offline(False)
    await finish(page)
    assert await site.orders() == [[["A"], ["B"], ["C"], ["D"]]]


async def test_a_draft_that_the_server_never_heard_of_survives_a_reload(open_page: OpenPage, site: Site) -> None:
    page = await open_page(site.annotator)
    await page.goto(site.address)
    await page.route("**/draft", lambda route: route.abort())
    await page.keyboard.press("4")
    await expect(page.locator(".strip .saved")).to_have_text("Draft kept on this device")
    await page.unroute("**/draft")
    await page.reload()
    assert await places(page) == ["4", "", "", ""]


async def test_a_page_older_than_the_draft_it_crossed_shows_the_last_places(open_page: OpenPage, site: Site) -> None:
    """The page is asked for, then the draft is saved, then the page arrives without it."""
    page = await open_page(site.annotator)
    async with page.expect_response("**/rank/ahead"):
        await page.goto(site.address)
    await cross(page, rf"{site.address}$|/draft$", lambda: page.keyboard.press("4"))
    assert await places(page) == ["4", "", "", ""]
    await expect(page.locator(".strip .saved")).to_have_text("Draft saved")
    await page.reload()
    assert await places(page) == ["4", "", "", ""]
    kept = "Object.keys(localStorage).filter((key) => key.startsWith('rankloop-draft'))"
    assert await page.evaluate(kept) == []


async def test_two_tabs_take_turns_with_one_draft(open_page: OpenPage, site: Site) -> None:
    """Each says which draft it follows; who is still there says it again on top of the other's."""
    first = await open_page(site.annotator)
    await first.goto(site.address)
    second = await first.context.new_page()
    await second.goto(site.address)
    for page, key in ((first, "1"), (second, "2")):
        async with page.expect_response("**/draft"):
            await page.keyboard.press(key)
        await expect(page.locator(".strip .saved")).to_have_text("Draft saved")
    other = await open_page(site.annotator)
    await other.goto(site.address)
    assert await places(other) == ["2", "", "", ""]


async def test_two_tabs_rank_one_task_once(open_page: OpenPage, site: Site) -> None:
    first = await open_page(site.annotator)
    await first.goto(site.address)
    second = await first.context.new_page()
    await second.goto(site.address)
    for page in (first, second):
        for key in ("1", "2", "3", "4", "Enter"):
            await page.keyboard.press(key)
    await finish(first)
    await finish(second)
    assert await site.orders() == [[["A"], ["B"], ["C"], ["D"]]]


async def test_skipping_leads_to_another_task(open_page: OpenPage, site: Site) -> None:
    page = await open_page(site.annotator)
    await page.goto(site.address)
    lease = await page.locator("#rank").get_attribute("data-lease")
    await page.keyboard.press("s")
    await page.get_by_label("Something else").check()
    await page.get_by_role("button", name="Skip this task").click()
    await expect(page.locator("#skip")).to_be_visible()
    await page.get_by_label("In your words").fill("too long")
    await page.get_by_role("button", name="Skip this task").click()
    await other_task(page, lease)
    await nothing_waits(page)
    async with site.server.sessions() as session:
        skipped = await session.get_one(Lease, lease)
    assert (skipped.state, skipped.skip_kind, skipped.skip_reason) == ("released", "other", "too long")


async def test_the_page_works_without_javascript(open_page: OpenPage, site: Site) -> None:
    page = await open_page(site.annotator, java_script_enabled=False)
    await page.goto(site.address)
    for letter, place in zip("ABC", ("2", "2", "1"), strict=True):
        await page.locator(f'.answer[data-letter="{letter}"] .places .cell:has(input[value="{place}"])').click()
    await page.get_by_role("button", name="Submit").click()
    await expect(page.locator(".notice.bad:visible")).to_contain_text("Answer D has no place yet")
    assert await places(page) == ["2", "2", "1", ""]
    await page.locator('.answer[data-letter="D"] .places .cell:has(input[value="4"])').click()
    await page.get_by_role("button", name="Submit").click()
    await expect(page.locator(".bar")).to_contain_text("1 done today")
    assert await site.orders() == [[["C"], ["A", "B"], ["D"]]]


async def test_hostile_answers_run_nothing_and_fetch_nothing(open_page: OpenPage, site: Site) -> None:
    """`open_page` fails on any script error, violation of the policy, or request to another origin."""
    async with site.server.sessions.begin() as session:
        await session.execute(text("update tasks set withdrawn_at = now()"))
    await site.add_task(HOSTILE, HOSTILE, f"{HOSTILE} again")
    page = await open_page(site.annotator)
    page.on("dialog", lambda dialog: pytest.fail("a script ran"))
    await page.goto(site.address)
    assert await page.locator(".answer").count() == 2
    assert await page.title() != "ran"
    assert (
        await page.locator(".answer img, .answer svg, .answer script, .answer style, a[href^=javascript]").count() == 0
    )
    for key in ("1", "2", "Enter"):
        await page.keyboard.press(key)
    await expect(page.get_by_role("heading", name="Nothing waits for you")).to_be_visible()
    async with site.server.sessions() as session:
        ranking = (await session.scalars(select(Ranking))).one()
    for address in (f"tasks/{ranking.task_id}", f"rankings/{ranking.id}", "tasks", "rankings"):
        await page.goto(f"/projects/{site.project.slug}/{address}")
        assert await page.title() != "ran"


@wide_and_phone
async def test_axe_finds_nothing(
    open_page: OpenPage, site: Site, axe: AxeRun, language: str, size: dict[str, int]
) -> None:
    page = await open_page(site.annotator, locale=language, viewport=size)
    await page.goto(site.address)
    assert await axe(page) == []
    for key in ("1", "2", "2"):
        await page.keyboard.press(key)
    assert await axe(page) == []
    for key, dialog in (("?", "keys"), ("d", "compare"), ("p", "conversation"), ("g", "guidelines"), ("s", "skip")):
        await page.keyboard.press(key)
        await expect(page.locator(f"dialog#{dialog}")).to_be_visible()
        assert await axe(page) == [], dialog
        await page.keyboard.press("Escape")
    await page.keyboard.press("f")
    assert await axe(page) == []
    await page.keyboard.press("Escape")
    lease = await page.locator("#rank").get_attribute("data-lease")
    await page.keyboard.press("4")
    await page.keyboard.press("Enter")
    await other_task(page, lease)
    await nothing_waits(page)
    for address in ("tasks", "rankings"):
        await page.goto(f"/projects/{site.project.slug}/{address}")
        assert await axe(page) == []
        await page.locator("td a").first.click()
        assert await axe(page) == []


async def test_light_and_dark_differ(open_page: OpenPage, site: Site) -> None:
    colours = []
    for scheme in ("light", "dark"):
        page = await open_page(site.annotator, color_scheme=scheme)
        await page.goto(site.address)
        colours.append(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colours[0] != colours[1]
