"""Who wrote an answer is told nowhere: not in the page, its addresses, its headers, its fetches, nor by the API."""

from __future__ import annotations

import pytest
from playwright.async_api import Page, expect
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Role, Scope, User
from app.accounts.tokens import create_token
from app.projects.models import Project
from app.registry.models import Version
from app.tasks.models import TaskCompletion
from tests.browser.conftest import LiveServer, OpenPage
from tests.factories import add, make_completion, make_project, make_prompt, make_run, make_task, make_user

pytestmark = [pytest.mark.browser, pytest.mark.real_commits]

SECRETS = {
    "alias of the version": "hidden-alias-7b",
    "imported model": "hidden-model-70b",
    "author": "Hidden Author",
    "temperature": "0.4242",
    "seed": "778899001",
    "tokens": "434343",
    "finish": '"length"',
}


async def make_answers(session: AsyncSession, project: Project, number: int) -> list[str]:
    """A task of three answers: by a version, by a person, imported. Returns the ids that would betray them."""
    prompt = await make_prompt(session, project)
    task = await make_task(session, prompt, k=0)
    run = await make_run(session, project)
    version = Version(project_id=project.id, number=number, kind="policy", alias=SECRETS["alias of the version"])
    author = await make_user(session, name=SECRETS["author"])
    sampling = {"temperature": float(SECRETS["temperature"])}
    how = {"sampling": sampling, "seed": int(SECRETS["seed"]), "num_tokens": 434343, "finish_reason": "length"}
    await add(session, version)
    origins = [
        {"version_id": version.id, "run_id": run.id, "index": 0, **how},
        {"author_id": author.id, "is_demonstration": True},
        {"model_name": SECRETS["imported model"], **how},
    ]
    for position, origin in enumerate(origins):
        completion = await make_completion(session, prompt, **origin)
        session.add(TaskCompletion(task_id=task.id, completion_id=completion.id, position=position))
    await session.flush()
    return [str(version.id), str(run.id), str(author.id)]


async def told(page: Page, address: str) -> list[str]:
    """What the browser is told while a task is ranked and the next is fetched: addresses, pages, headers."""
    texts: list[str] = []
    page.on("request", lambda request: texts.append(request.url))
    for number in (1, 2):
        answer = await page.request.get(address)
        texts += [await answer.text(), str(answer.headers)]
        await page.goto(address)
        for key in ("1", "2", "3", "Enter"):
            await page.keyboard.press(key)
        await expect(page.locator(".bar")).to_contain_text(f"{number} done today")
        texts += [page.url, await page.content()]
    return texts


async def test_nothing_that_is_told_names_who_wrote(open_page: OpenPage, live_server: LiveServer) -> None:
    async with live_server.sessions.begin() as session:
        project = await make_project(session, k=3)
        ids = [value for number in (41, 42, 43) for value in await make_answers(session, project, number)]
        annotator: User = await make_user(session, role=Role.ANNOTATOR)
        _, token = await create_token(session, user_id=annotator.id, name="t", scopes=[Scope.ANNOTATE])
    page = await open_page(annotator)
    texts = await told(page, f"/projects/{project.slug}/rank")
    answer = await page.request.post(
        f"{live_server.url}/api/v1/tasks:next",
        headers={"authorization": f"Bearer {token}"},
        data={"project_id": str(project.id)},
    )
    assert answer.status == 200
    texts += [await answer.text(), str(answer.headers)]
    found = {name for name, secret in SECRETS.items() for text in texts if secret in text}
    assert found == set()
    assert [value for value in ids for text in texts if value in text] == []
