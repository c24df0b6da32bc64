"""Every page but the ranking page, after a whole round: nothing for axe, nothing too wide, and the ways between."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from playwright.async_api import Page, expect
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Role, User
from app.accounts.roles import set_member
from app.accounts.sessions import create_sign_in_link
from app.accounts.tokens import create_token
from app.loop import training
from app.prompts.models import Split
from app.quality.models import Review
from app.rankings.models import Ranking
from app.runs import service as runs
from app.tasks.models import Lease, LeaseState, SkipKind, TaskCompletion
from app.writing.models import Writing, WritingKind
from tests.app.loop.conftest import Loop
from tests.app.matrix import PAGE_MATRIX
from tests.browser.conftest import PHONE, WIDE, LiveServer, OpenPage, wide_and_phone, wider_than_the_window
from tests.factories import make_project, make_prompt, make_user

pytestmark = [pytest.mark.browser, pytest.mark.real_commits]

AxeRun = Callable[[Page], Awaitable[list[str]]]
SLUG = "tone"
ACCURACY = {"value": 0.698, "low": 0.66, "high": 0.73, "num_pairs": 612, "num_prompts": 98}
REWARD_RESULT = {"num_rankings": 6, "num_pairs": 18, "accuracy": ACCURACY, "loss": 0.6, "seconds": 12.0, "refused": []}
PPO_RESULT = {
    "num_episodes": 8,
    "kl": 0.5,
    "kl_interval": {"low": 0.4375, "high": 0.5625},
    "reward": {"first": 0.0, "last": 1.0, "interval": {"low": -0.1, "high": 2.1}},
    "seconds": 30.0,
    "refused": [],
}
CURVES = [
    *((step, "tax/reference_loss", 2.5) for step in range(5)),
    *(
        (step, name, value * step)
        for step in range(5)
        for name, value in (
            ("objective/kl", 0.1),
            ("accuracy/train", 0.2),
            ("accuracy/validation", 0.1),
            ("tax/loss", 0.7),
        )
    ),
]
# Files, and a part of a page that is loaded by itself.
NO_PAGES = ("/health", "/ready", "/metrics", ".csv", ".json", "/download", "/export", "/live")


@dataclass
class Site:
    """A server with one project, an admin and an open run."""

    server: LiveServer
    admin: User
    open_run: uuid.UUID


@pytest.fixture
async def site(live_server: LiveServer) -> Site:
    """A project after one round, whose next sampling run is queued."""
    async with live_server.sessions.begin() as session:
        project = await make_project(session, name="Tone", slug=SLUG, k=3, guidelines="Be kind.")
        for split in (Split.TRAIN, Split.TRAIN, Split.VALIDATION, Split.TEST):
            await make_prompt(session, project, split=split)
        admin = await make_user(session, name="Ada", role=Role.ADMIN)
        await set_member(session, user_id=admin.id, project_id=project.id, role=Role.ADMIN)
        token, _ = await create_token(session, user_id=admin.id, name="GPU machine 1", scopes=["worker"])
        turned = Loop(session, project, admin, token)
        await turned.sample()
        await turned.rank_all()
        await training.start_training(session, project=project)
        for result in (REWARD_RESULT, PPO_RESULT):
            run = await turned.claim()
            await runs.add_metrics(session, run, points=CURVES)
            await runs.add_log(session, run_id=run.id, lines=[("info", "step 1"), ("warning", "slow " * 60)])
            await turned.finish(run, result)
        task_id = (await session.scalars(select(Ranking.task_id).limit(1))).one()
        session.add(Review(project_id=project.id, task_id=task_id, disagreement=0.7, last_number=10**9))
        await report(session, task_id)
        session.add(Writing(project_id=project.id, kind=WritingKind.PROMPT, author_id=admin.id))
        [open_run] = [run for run in await runs.list_runs(session, project_id=project.id) if run.state == "queued"]
    return Site(live_server, admin, open_run.id)


async def report(session: AsyncSession, task_id: uuid.UUID) -> None:
    """Somebody calls the prompt of a task broken."""
    order = list(await session.scalars(select(TaskCompletion.completion_id).where(TaskCompletion.task_id == task_id)))
    skipped = {"state": LeaseState.RELEASED, "skip_kind": SkipKind.BROKEN, "skip_reason": "Its question is missing."}
    person, until = await make_user(session, name="Bo"), datetime.now(UTC)
    session.add(
        Lease(task_id=task_id, annotator_id=person.id, display_order=order, seed=1, expires_at=until, **skipped)
    )


async def check(page: Page, axe: AxeRun) -> None:
    """Nothing for axe in this window, and nothing too wide in the other one either."""
    assert await axe(page) == [], page.url
    size = page.viewport_size
    for other in (PHONE, WIDE):
        await page.set_viewport_size(other)
        assert await wider_than_the_window(page) == [], (page.url, other)
    await page.set_viewport_size(size)


async def addresses(server: LiveServer) -> list[str]:
    """The address of every page."""
    return list((await addresses_by_route(server)).values())


async def addresses_by_route(server: LiveServer) -> dict[str, str]:
    """Every page of the matrix, with its gaps filled from what the site has: a new page is walked without being named.

    Raises:
        KeyError: a page has a gap that nothing here fills.
    """
    queries = {
        "prompt_id": "select id from prompts where split = 'train' limit 1",
        "task_id": "select task_id from rankings limit 1",
        "ranking_id": "select id from rankings limit 1",
        "run_id": "select id from runs where kind = 'ppo' and state = 'finished' limit 1",
        "user_id": "select annotator_id from rankings limit 1",
        "review_id": "select id from reviews limit 1",
        "writing_id": "select id from writings limit 1",
    }
    async with server.sessions() as session:
        gaps = {gap: str((await session.execute(text(query))).scalar_one()) for gap, query in queries.items()}
    gaps |= {"slug": SLUG, "number": "1"}
    pages = [route for route in PAGE_MATRIX if route.startswith("GET ") and not route.endswith(NO_PAGES)]
    return {page: re.sub(r"\{(\w+)[^}]*\}", lambda gap: gaps[gap[1]], page.removeprefix("GET ")) for page in pages}


# In light and dark each: the fixture asks in both.
@wide_and_phone
async def test_every_page_is_accessible_and_fits(
    open_page: OpenPage, site: Site, axe: AxeRun, size: dict[str, int], language: str
) -> None:
    page = await open_page(site.admin, viewport=size, locale=language)
    # A page that waits for answers loads itself anew after 15 s, which would abort the way to the next one.
    await page.add_init_script("window.setInterval = () => 0")
    walked = [path for path in await addresses(site.server) if not path.startswith("/sign-in")]
    assert len(walked) > 20
    for address in walked:
        answer = await page.goto(address)
        assert answer is not None
        assert answer.status == 200, address
        await check(page, axe)
    await page.goto("/no/such/page")
    await check(page, axe)
    await page.context.clear_cookies()
    for address in ("/sign-in", "/sign-in/link"):
        await page.goto(address)
        await check(page, axe)


async def test_both_forms_of_a_project_are_right_unfolded(open_page: OpenPage, site: Site, axe: AxeRun) -> None:
    """What the walk above sees folded."""
    page = await open_page(site.admin, viewport=PHONE)
    for address in ("/projects/new", f"/projects/{SLUG}/settings"):
        await page.goto(address)
        for fold in await page.locator(".fold > summary").all():
            await fold.click()
        await check(page, axe)


async def test_every_page_fits_at_twice_its_size(open_page: OpenPage, site: Site) -> None:
    """A window of 1280 x 800 at 200 %: half the width in pixels of the style sheet, and nothing scrolls sideways."""
    page = await open_page(site.admin, viewport={"width": 640, "height": 400}, device_scale_factor=2)
    for address in await addresses(site.server):
        await page.goto(address)
        assert await wider_than_the_window(page) == [], address


async def test_who_wants_no_motion_gets_none(open_page: OpenPage, site: Site) -> None:
    page = await open_page(site.admin, reduced_motion="reduce")
    moving = """() => [...document.querySelectorAll("*")].filter((element) => {
        const style = getComputedStyle(element);
        const parts = `${style.transitionDuration}, ${style.animationDuration}`.split(", ");
        return parts.some((part) => parseFloat(part) > 0);
    }).map((element) => `${element.tagName}.${element.className}`)"""
    for address in ("/", f"/projects/{SLUG}", f"/projects/{SLUG}/settings", f"/projects/{SLUG}/rank"):
        await page.goto(address)
        assert await page.evaluate(moving) == [], address


async def test_a_link_signs_in_behind_a_button_and_leaves_the_address(open_page: OpenPage, site: Site) -> None:
    async with site.server.sessions.begin() as session:
        link = await create_sign_in_link(session, user=site.admin, public_url=site.server.url)
    page = await open_page()
    await page.goto(link)
    assert "#" not in page.url
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="My projects")).to_be_visible()


async def test_a_link_can_be_pasted_without_javascript(open_page: OpenPage, site: Site) -> None:
    async with site.server.sessions.begin() as session:
        link = await create_sign_in_link(session, user=site.admin, public_url=site.server.url)
    page = await open_page(java_script_enabled=False)
    await page.goto("/sign-in")
    await page.get_by_text("I have a one-time link").click()
    await page.get_by_label("Your link").fill(link)
    await page.locator("details.more").get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("heading", name="My projects")).to_be_visible()


async def test_the_language_and_the_colours_are_remembered(open_page: OpenPage, site: Site) -> None:
    page = await open_page(site.admin, color_scheme="light")
    await page.goto("/")
    await page.get_by_role("button", name="中文").click()
    await expect(page.get_by_role("heading", name="我的项目")).to_be_visible()
    await page.locator("summary", has_text="账户").click()
    await page.get_by_role("button", name="深色").click()
    assert await page.locator("html").get_attribute("data-theme") == "dark"
    await page.reload()
    assert await page.locator("html").get_attribute("data-theme") == "dark"
    assert await page.locator("html").get_attribute("lang") == "zh-Hans"


async def test_the_page_of_a_run_lives(open_page: OpenPage, site: Site) -> None:
    """What a worker reports appears by itself, and at the end of the run the page stops asking."""
    page = await open_page(site.admin)
    await page.goto(f"/projects/{SLUG}/runs/{site.open_run}")
    await expect(page.locator("#live")).to_contain_text("It waits for a worker")
    async with site.server.sessions.begin() as session:
        await runs.cancel(session, run_id=site.open_run)
    await expect(page.locator("#live .tag").first).to_have_text("cancelled")
    assert await page.locator("[data-refresh-url]").count() == 0


async def people_say(server: LiveServer, share: float) -> None:
    """Version 3 wins so often over version 1."""
    rate = {"value": share, "low": share - 0.05, "high": share + 0.05, "num_prompts": 90}
    change = text("update versions set metrics = metrics || jsonb_build_object('win_rate', cast(:rate as jsonb))")
    async with server.sessions.begin() as session:
        await session.execute(change.bindparams(rate=json.dumps(rate)))


@pytest.mark.parametrize("name", ["rounds", "watch", "costs"])
async def test_a_dashboard_lives_and_nothing_in_it_jumps(open_page: OpenPage, site: Site, name: str) -> None:
    """New figures come without a reload; what was scrolled and focused stays where it was."""
    await people_say(site.server, 0.61)
    page = await open_page(site.admin, viewport={"width": 360, "height": 500})
    await page.goto(f"/projects/{SLUG}/{name}")
    shown = page.locator("#live")
    await expect(shown).to_contain_text("11" if name == "costs" else "61")
    await page.evaluate("window.isTheSame = true")
    await shown.locator(".scroll").last.evaluate("box => { box.scrollLeft = 40; box.focus({preventScroll: true}); }")
    await page.evaluate("window.scrollTo(0, 120)")
    places = "() => [scrollY, [...document.querySelectorAll('#live .scroll')].at(-1).scrollLeft]"
    before = await page.evaluate(places)
    assert before == [120, 40]
    await people_say(site.server, 0.64)
    await expect(shown).to_contain_text("14" if name == "costs" else "64", timeout=30_000)
    assert await page.evaluate(places) == before
    assert await page.evaluate("document.activeElement.matches('#live .scroll')")
    assert await page.evaluate("window.isTheSame")


async def test_a_text_that_somebody_marks_is_not_taken_away(open_page: OpenPage, site: Site) -> None:
    await people_say(site.server, 0.61)
    page = await open_page(site.admin)
    await page.goto(f"/projects/{SLUG}/rounds")
    await page.evaluate("getSelection().selectAllChildren(document.querySelector('#live table'))")
    async with page.expect_response("**/rounds", timeout=30_000):
        await people_say(site.server, 0.64)
    async with page.expect_response("**/rounds", timeout=30_000):
        pass
    await expect(page.locator("#live")).to_contain_text("61")
    await page.evaluate("getSelection().empty()")
    await expect(page.locator("#live")).to_contain_text("64", timeout=30_000)


@pytest.mark.parametrize("name", ["rounds", "watch", "costs"])
async def test_without_a_script_a_dashboard_is_a_plain_page(open_page: OpenPage, site: Site, name: str) -> None:
    await people_say(site.server, 0.61)
    page = await open_page(site.admin, java_script_enabled=False)
    await page.goto(f"/projects/{SLUG}/{name}")
    await expect(page.locator("#live")).to_contain_text("11" if name == "costs" else "61")


async def test_cancelling_a_run_is_asked_twice(open_page: OpenPage, site: Site) -> None:
    page = await open_page(site.admin)
    await page.goto(f"/projects/{SLUG}/runs/{site.open_run}")
    answers = iter([False, True])
    page.on("dialog", lambda dialog: dialog.accept() if next(answers) else dialog.dismiss())
    await page.get_by_role("button", name="Cancel").click()
    await expect(page.locator("#live .tag").first).to_have_text("queued")
    await page.get_by_role("button", name="Cancel").click()
    await expect(page.locator("#live .tag").first).to_have_text("cancelled")


async def test_a_version_leads_back_to_the_rankings_that_made_it(open_page: OpenPage, site: Site) -> None:
    page = await open_page(site.admin)
    await page.goto(f"/projects/{SLUG}/versions")
    await page.get_by_role("link", name="policy v3").first.click()
    await page.get_by_role("link", name="d1", exact=True).click()
    await page.locator("td a").first.click()
    await expect(page.get_by_text("Versions that learned from it")).to_be_visible()
    await expect(page.get_by_role("link", name="policy v3", exact=True)).to_be_visible()


async def test_a_fresh_link_in_the_tab_of_an_old_one_signs_in(open_page: OpenPage, live_server: LiveServer) -> None:
    async with live_server.sessions.begin() as session:
        user = await make_user(session, role=Role.ADMIN)
        link = await create_sign_in_link(session, user=user, public_url=live_server.url)
    page = await open_page()
    await page.goto("/sign-in/link#used-up")
    await page.locator("main").get_by_role("button").click()
    await page.goto("/sign-in/link#another")
    await page.goto(link)
    await page.locator("main").get_by_role("button").click()
    await expect(page.get_by_role("heading", name="My projects")).to_be_visible()


@pytest.mark.parametrize("script", [True, False])
async def test_the_lineage_is_followed_from_the_live_policy_to_one_ranking_and_back(
    open_page: OpenPage, site: Site, script: bool
) -> None:
    page = await open_page(site.admin, java_script_enabled=script)
    await page.goto(f"/projects/{SLUG}/rounds")
    drawing = page.get_by_role("group", name="Lineage: which version came from which")
    await drawing.get_by_role("link", name="policy v3").click()
    await expect(page.get_by_role("heading", level=1, name="Policy v3")).to_be_visible()
    await drawing.get_by_role("link", name="3 rankings").click()
    await expect(page.get_by_role("heading", name="Rankings that made it")).to_be_visible()
    await page.locator("td.text a").first.click()
    await expect(page.get_by_role("heading", level=1, name=re.compile(r"^Ranking \d+$"))).to_be_visible()
    await drawing.get_by_role("link", name="policy v3").click()
    await expect(page.get_by_role("heading", level=1, name="Policy v3")).to_be_visible()
