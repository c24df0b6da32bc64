"""The road of one ranking, walked as people walk it: from a sign-in link to a better policy, and back to the ranking.

On a tiny random model, in a real browser, with a real worker process.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.async_api import Page, expect
from sqlalchemy import select

from app.prompts.models import Completion
from app.registry.models import Version
from app.tasks.models import Task, TaskCompletion
from tests.browser.conftest import LiveServer
from tests.story.conftest import StartWorker, make_admin

pytestmark = [pytest.mark.browser, pytest.mark.real_commits, pytest.mark.slow]

NUM_RANKED = 12
TRAINING_SECONDS = 240_000
PPO = {"num_episodes": 8, "episodes_per_batch": 4, "minibatch_size": 4}


async def test_one_ranking(
    browser_page: Page, live_server: LiveServer, start_worker: StartWorker, tiny_model: Path
) -> None:
    page = browser_page
    link, token = await make_admin(live_server)
    await sign_in(page, link)
    await make_project(page)
    await import_prompts(page)
    await page.goto("/projects/story")
    await page.get_by_role("button", name="Sample").click()
    start_worker(live_server, token, {"tiny": tiny_model})
    await expect(page.locator(".tag.finished")).to_be_visible(timeout=TRAINING_SECONDS)
    await rank_by_keyboard(page, NUM_RANKED)
    await train(page)
    await expect_new_tasks_by_new_policy(page, live_server)
    await follow_version_back_to_a_ranking(page)


async def sign_in(page: Page, link: str) -> None:
    """The link alone signs nobody in; the button does, once."""
    await page.goto(link)
    await page.locator("main").get_by_role("button").click()
    await expect(page.get_by_role("heading", name="My projects")).to_be_visible()


async def make_project(page: Page) -> None:
    """A project on the tiny model, with short answers and a short training."""
    await page.get_by_role("link", name="New project").click()
    for name, value in {"name": "Story", "slug": "story", "model_alias": "tiny"}.items():
        await page.locator(f"[name={name}]").fill(value)
    for folded in await page.locator("main form details > summary").all():
        await folded.click()
    for name, value in {"max_new_tokens": "6", "validation_share": "0.2", "training_ppo": json.dumps(PPO)}.items():
        await page.locator(f"[name={name}]").fill(value)
    await page.locator("main form button.primary").click()
    await expect(page).to_have_url(re.compile("/projects/story/prompts/import$"))


async def import_prompts(page: Page) -> None:
    """Thirty prompts in a file."""
    words = "abcd"
    texts = [" ".join(words[(number >> (2 * place)) % 4] for place in range(4)) for number in range(30)]
    lines = "\n".join(json.dumps({"prompt": text}) for text in texts)
    file = {"name": "prompts.jsonl", "mimeType": "application/x-ndjson", "buffer": lines.encode()}
    await page.locator("[name=file]").set_input_files([file])
    await page.locator("main form button.primary").click()
    await expect(page.get_by_text("30 lines taken")).to_be_visible()


async def rank_by_keyboard(page: Page, count: int) -> None:
    """First and second tied, then one behind the other; Enter submits, and the next task is there."""
    await page.goto("/projects/story/rank")
    for _ in range(count):
        cards = page.locator("article.answer")
        lease = await page.locator("#rank").get_attribute("data-lease")
        await cards.first.focus()
        for place in [1, 1, *range(2, await cards.count())]:
            await page.keyboard.press(str(place))
        await page.keyboard.press("Enter")
        await expect(page.locator(f'#rank[data-lease="{lease}"]')).to_have_count(0)


async def train(page: Page) -> None:
    """*Train* leads to a reward run; PPO follows by itself, then the next round's sampling."""
    await page.goto("/projects/story")
    await page.get_by_role("button", name="Train").click()
    await expect(page.get_by_role("heading", name="Reward model")).to_be_visible()
    await expect(page.locator(".tag.finished")).to_be_visible(timeout=TRAINING_SECONDS)
    await page.goto("/projects/story/runs")
    await expect(page.locator("tbody tr", has_text="Sampling").locator(".tag.finished")).to_have_count(
        2, timeout=TRAINING_SECONDS
    )
    await expect(page.locator("tbody tr", has_text="PPO").locator(".tag.finished")).to_have_count(1)


async def expect_new_tasks_by_new_policy(page: Page, server: LiveServer) -> None:
    """The tasks of round 2 compare answers of the new policy, and the ranking page shows them without naming it."""
    async with server.sessions() as session:
        query = (
            select(Completion.text)
            .join(TaskCompletion, TaskCompletion.completion_id == Completion.id)
            .join(Task, Task.id == TaskCompletion.task_id)
            .join(Version, Version.id == Completion.version_id)
            .where(Task.round == 2, Version.kind == "policy", Version.number == 3)
        )
        texts = (await session.scalars(query)).all()
    assert texts
    await page.goto("/projects/story")
    await expect(page.get_by_role("heading", name="Round 2")).to_be_visible()
    await page.goto("/projects/story/rank")
    await expect(page.locator("article.answer").first).to_be_visible()


async def follow_version_back_to_a_ranking(page: Page) -> None:
    """Policy v3 -> its dataset -> a ranking in it -> the versions that learned from that ranking."""
    await page.goto("/projects/story/versions")
    await page.get_by_role("link", name="policy v3").first.click()
    await page.locator("main a[href*='/datasets/']").first.click()
    await expect(page.get_by_text(f"{NUM_RANKED}").first).to_be_visible()
    await page.locator("main a[href*='/rankings/']").first.click()
    await expect(page.get_by_role("link", name="policy v3", exact=True)).to_be_visible()
    await expect(page.get_by_role("link", name="reward model v2", exact=True)).to_be_visible()
