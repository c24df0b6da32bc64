"""The keys of the ranking page: what they cost, how they are changed, the review, undo of everything, what is said."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.async_api import Page, expect
from sqlalchemy import text

from app.accounts.models import User
from tests.browser.conftest import PHONE, LiveServer, OpenPage
from tests.browser.test_ranking_gestures import middle, strip
from tests.factories import make_project, make_prompt, make_task, make_user

pytestmark = [pytest.mark.browser, pytest.mark.real_commits]

LABELS = [{"key": key, "en": key.title(), "zh": key} for key in ("rude", "odd", "wrong", "long", "short")]
# Counts what a hand does, not what a script makes of it.
COUNT = """() => {
    window.pressed = [];
    const note = (event) => event.isTrusted && !event.repeat && window.pressed.push(event.key ?? "pointer");
    for (const type of ["keydown", "pointerdown"]) addEventListener(type, note, true);
}"""


async def make_site(live_server: LiveServer, *, k: int = 3, num_tasks: int = 2, **settings: Any) -> tuple[str, User]:
    """The address of a project with tasks of K answers, and an annotator."""
    async with live_server.sessions.begin() as session:
        project = await make_project(session, k=k, **settings)
        for _ in range(num_tasks):
            await make_task(session, await make_prompt(session, project), k=k)
        return f"/projects/{project.slug}/rank", await make_user(session)


async def press(page: Page, *keys: str) -> None:
    for key in keys:
        await page.keyboard.press(key)


async def num_stored(live_server: LiveServer) -> int:
    async with live_server.sessions() as session:
        num: int = (await session.execute(text("select count(*) from rankings"))).scalar_one()
    return num


@pytest.mark.parametrize(("k", "keys"), [(4, "2123"), (9, "123456789")])
async def test_an_order_costs_a_key_for_each_answer_and_enter(
    open_page: OpenPage, live_server: LiveServer, k: int, keys: str
) -> None:
    """Four answers with a tie: 5 key presses. Nine: 10. And the next task is there without the mouse."""
    address, annotator = await make_site(live_server, k=k)
    page = await open_page(annotator)
    await page.goto(address)
    await page.evaluate(COUNT)
    lease = await page.locator("#rank").get_attribute("data-lease")
    await press(page, *keys)
    pressed = await page.evaluate("window.pressed")
    assert pressed == list(keys)
    await press(page, "Enter")
    await page.wait_for_function("lease => document.querySelector('#rank')?.dataset.lease !== lease", arg=lease)
    assert len(pressed) + 1 == {4: 5, 9: 10}[k]
    await expect(page.locator('.answer[data-letter="A"]')).to_be_focused()
    await press(page, *keys, "Enter")
    await expect(page.get_by_role("heading", name="Nothing waits for you")).to_be_visible()
    assert await num_stored(live_server) == 2


async def change_key(page: Page, action: str, to: str) -> None:
    """In the list of keys: press the button of an action, then the new key."""
    await page.locator(f'#keys button.key[data-action="{action}"]').click()
    await page.keyboard.press(to)


async def test_a_key_can_be_changed_and_is_kept_for_this_person(open_page: OpenPage, live_server: LiveServer) -> None:
    address, annotator = await make_site(live_server, num_tasks=6)
    page = await open_page(annotator)
    await page.goto(address)
    await press(page, "?")
    await change_key(page, "place1", "a")
    await change_key(page, "guidelines", "Shift+g")
    await expect(page.locator("#keys [role=status]")).to_contain_text("Shift G")
    await press(page, "Escape", "a", "1")
    assert await strip(page) == ["A", "", "", "BC"]
    await page.reload()
    await press(page, "a")
    assert await strip(page) == ["AB", "", "", "C"]
    assert await page.locator(".keys-line kbd").first.inner_text() == "A"
    await press(page, "Shift+g")
    await expect(page.locator("#guidelines")).to_be_visible()
    async with live_server.sessions.begin() as session:
        other = await make_user(session)
    await page.context.clear_cookies()
    await live_server.sign_in(page.context, other)
    await page.goto(address)
    await press(page, "1")
    assert await strip(page) == ["A", "", "", "BC"]


async def test_two_actions_never_share_a_key(open_page: OpenPage, live_server: LiveServer) -> None:
    address, annotator = await make_site(live_server)
    page = await open_page(annotator)
    await page.goto(address)
    await press(page, "?")
    told = page.locator("#keys [role=status]")
    await change_key(page, "place1", "s")
    await expect(told).to_have_text("S is taken: Skip this task. Give that another key first.")
    for reserved in ("Enter", "Control+k", "F5"):
        await change_key(page, "place1", reserved)
        await expect(told).to_contain_text("can’t be changed")
    await page.locator('#keys button.key[data-action="place1"]').click()
    await press(page, "Escape")
    await expect(page.locator("#keys")).to_be_visible()
    await expect(page.locator('#keys button.key[data-action="place1"] kbd')).to_have_text("1")
    await change_key(page, "skip", "x")
    await change_key(page, "place1", "s")
    await expect(told).to_contain_text("S now does this")
    await page.get_by_role("button", name="All keys as at first").click()
    await expect(page.locator('#keys button.key[data-action="skip"] kbd')).to_have_text("S")


async def test_a_damaged_key_map_is_the_usual_one(open_page: OpenPage, live_server: LiveServer) -> None:
    address, annotator = await make_site(live_server)
    page = await open_page(annotator)
    await page.goto(address)
    for kept in ("{", '{"place1": "2"}', '{"place1": 7, "toString": "1"}', "[1]", '{"place1": "Enter"}'):
        await page.evaluate(
            "([person, kept]) => localStorage.setItem('rankloop-key-map-' + person, kept)", [str(annotator.id), kept]
        )
        await page.reload()
        await press(page, "0", "k", "1")
        assert (await strip(page))[0] == "A", kept
        await press(page, "Control+z")
        await expect(page.locator(".strip .saved")).to_have_text("Draft saved")


async def test_the_digits_of_a_french_and_the_letters_of_a_russian_keyboard_work(
    open_page: OpenPage, live_server: LiveServer
) -> None:
    address, annotator = await make_site(live_server)
    page = await open_page(annotator)
    await page.goto(address)
    for key, code in (("&", "Digit1"), ("п", "KeyG")):
        event = {"key": key, "code": code, "bubbles": True}
        await page.evaluate("event => document.activeElement.dispatchEvent(new KeyboardEvent('keydown', event))", event)
    assert await strip(page) == ["A", "", "", "BC"]
    await expect(page.locator("#guidelines")).to_be_visible()


async def test_the_review_shows_the_order_and_costs_one_enter(open_page: OpenPage, live_server: LiveServer) -> None:
    address, annotator = await make_site(live_server, has_review_step=True)
    page = await open_page(annotator)
    await page.goto(address)
    await press(page, "2", "1", "2", "Enter")
    rows = page.locator("#review li")
    assert [await rows.nth(row).locator(".letter").inner_text() for row in range(3)] == ["B", "A", "C"]
    await press(page, "Escape")
    assert await num_stored(live_server) == 0
    await expect(page.locator(".answer.here")).to_be_focused()
    await press(page, "Enter")
    await page.get_by_label("Show this each time").uncheck()
    await page.locator("#review [data-send]").focus()
    lease = await page.locator("#rank").get_attribute("data-lease")
    await press(page, "Enter")
    await page.wait_for_function("lease => document.querySelector('#rank')?.dataset.lease !== lease", arg=lease)
    await press(page, "1", "2", "3", "Enter")
    await expect(page.get_by_role("heading", name="Nothing waits for you")).to_be_visible()


async def test_an_enter_that_is_held_down_confirms_nothing(open_page: OpenPage, live_server: LiveServer) -> None:
    address, annotator = await make_site(live_server, has_review_step=True)
    page = await open_page(annotator)
    await page.goto(address)
    await press(page, "1", "2", "3")
    for _ in range(4):
        await page.keyboard.down("Enter")
    await expect(page.locator("#review")).to_be_visible()
    await page.keyboard.up("Enter")
    assert await num_stored(live_server) == 0


async def test_rating_and_rank_that_disagree_are_said_and_hold_up_nothing(
    open_page: OpenPage, live_server: LiveServer
) -> None:
    address, annotator = await make_site(live_server)
    page = await open_page(annotator)
    await page.goto(address)
    await press(page, "Shift+Digit2", "1", "Shift+Digit6", "2")
    doubt = page.locator(".strip .doubt")
    await expect(doubt).to_contain_text("A stands above B")
    await press(page, "3", "Enter")
    await expect(page.locator(".bar")).to_contain_text("1 done today")
    await press(page, "Shift+Digit2", "1", "Shift+Digit2", "2")
    await expect(doubt).to_have_text("")


async def test_undo_spans_places_ratings_and_labels(open_page: OpenPage, live_server: LiveServer) -> None:
    address, annotator = await make_site(live_server, labels=LABELS)
    page = await open_page(annotator)
    await page.goto(address)
    await press(page, "l", "ArrowRight", "Space", "ArrowRight", "ArrowRight", "Space", "Escape", "Shift+Digit5", "2")
    done = "[...document.querySelectorAll('.answer input:checked')].filter(box => box.value).map(box => box.value)"
    assert await page.evaluate(done) == ["2", "5", "odd", "long"]
    seen = []
    for key in ("Control+z", "Control+z", "Control+z", "Control+z", "Control+y", "Control+Shift+z"):
        await press(page, key)
        seen.append(await page.evaluate(done))
    assert seen == [["5", "odd", "long"], ["odd", "long"], ["odd"], [], ["odd"], ["odd", "long"]]


async def test_every_move_is_announced(open_page: OpenPage, live_server: LiveServer) -> None:
    address, annotator = await make_site(live_server)
    page = await open_page(annotator)
    await page.goto(address)
    spoken = page.locator(".strip .spoken")
    for keys, sentence in [
        ("2", "A: 2nd. Next: B."),
        ("2", "B: 2nd, tied with A. Next: C."),
        ("ArrowRight", "C: 1st. Every answer has its place. Enter submits."),
        ("ArrowRight", "C: 2nd, tied with A, B. Every answer has its place. Enter submits."),
        ("Shift+Digit6", "C: rated 6 of 7."),
        ("Shift+Digit6", "C is not rated."),
        ("0", "C is not placed."),
        ("Control+z", "Undone."),
        ("Control+y", "Redone."),
    ]:
        await press(page, keys)
        await expect(spoken).to_have_text(sentence)


async def test_where_the_page_runs_from_the_right_so_do_the_arrows(
    open_page: OpenPage, live_server: LiveServer
) -> None:
    address, annotator = await make_site(live_server)
    page = await open_page(annotator)
    await page.goto(address)
    await page.evaluate("document.documentElement.dir = 'rtl'")
    await press(page, "2", "k", "ArrowRight")
    assert await strip(page) == ["A", "", "", "BC"]
    first, last = [await page.locator(f'.place[data-place="{place}"]').bounding_box() for place in (1, 3)]
    assert first is not None
    assert last is not None
    assert first["x"] > last["x"]


async def test_at_twice_its_size_half_of_the_window_is_text(open_page: OpenPage, live_server: LiveServer) -> None:
    address, annotator = await make_site(live_server, k=4)
    page = await open_page(annotator, viewport={"width": 640, "height": 400}, device_scale_factor=2)
    await page.goto(address)
    await page.evaluate("scrollTo(0, 400)")
    foot, head = [await page.locator(name).bounding_box() for name in (".strip", ".reminder")]
    assert foot is not None
    assert head is not None
    assert foot["height"] + head["height"] < 200


async def test_a_touch_of_less_than_eight_pixels_is_no_drag(open_page: OpenPage, live_server: LiveServer) -> None:
    address, annotator = await make_site(live_server)
    page = await open_page(annotator, viewport=PHONE, has_touch=True, is_mobile=True)
    await page.goto(address)
    x, y = await middle(page, '.chip:text-is("B")')
    client = await page.context.new_cdp_session(page)
    seen = []
    for kind, far in (("touchStart", 0), ("touchMove", 5), ("touchMove", 6), ("touchEnd", None)):
        points = [] if far is None else [{"x": x + far, "y": y - far}]
        await client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        seen.append(await page.locator(".chip.held").count())
    assert seen == [0, 0, 1, 0]
    assert await strip(page) == ["", "", "", "ABC"]


async def test_the_page_is_light_and_asks_no_one_else(open_page: OpenPage, live_server: LiveServer) -> None:
    """Under 150 kB as sent, the next task too, and `open_page` fails on any request to another origin."""
    address, annotator = await make_site(live_server, k=9)

    page = await open_page(annotator)
    client = await page.context.new_cdp_session(page)
    await client.send("Network.enable")
    sent: list[float] = []
    client.on("Network.loadingFinished", lambda event: sent.append(event["encodedDataLength"]))
    async with page.expect_response("**/rank/ahead") as ahead:
        await page.goto(address)
    next_task = await ahead.value
    await next_task.finished()
    assert next_task.headers["content-encoding"] == "gzip"
    await page.wait_for_load_state("networkidle")
    assert len(sent) > 20, "the page, its style, its modules, and the next task"
    assert sum(sent) < 150_000
