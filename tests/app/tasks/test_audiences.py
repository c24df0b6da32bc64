"""Languages and skills: whoever can't rank a task does not get it, and is told so."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import pytest
from httpx2 import AsyncClient
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import abilities
from app.accounts.models import Role, User
from app.errors import Invalid
from app.projects.models import Project
from app.tasks import audiences, waiting
from app.tasks import service as tasks
from app.tasks.models import Audience, GoldOrder, Task
from tests.factories import make_project, make_prompt, make_task, make_user, sign_in

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.fixture
async def project(session: AsyncSession) -> Project:
    return await make_project(session)


async def ask(session: AsyncSession, project: Project, language: str = "en", *skills: str, priority: int = 0) -> Task:
    prompt = await make_prompt(session, project, language=language, meta={"skills": list(skills)} if skills else {})
    return await make_task(session, prompt, k=2, priority=priority, overlap=9)


async def given(session: AsyncSession, project: Project, person: User) -> list[Task]:
    """All that somebody gets, one after the other."""
    found = []
    while lease := await tasks.next_lease(session, project=project, annotator=person, now=NOW):
        await tasks.release_lease(session, lease_id=lease.id, annotator=person)
        found.append(await session.get_one(Task, lease.task_id))
    return found


async def test_a_task_takes_its_audience_from_its_prompt(session: AsyncSession, project: Project) -> None:
    task = await ask(session, project, "zh-Hans", "Law", "law", "biology")
    other = await ask(session, project, "zh", "biology", "law")
    found = await audiences.of_task(session, task.id)
    assert found is not None
    assert (found.language, found.skills) == ("zh", ["biology", "law"])
    assert await audiences.of_task(session, other.id) is found
    odd = await make_prompt(session, project, meta={"skills": "law"})
    plain = await audiences.of_task(session, (await make_task(session, odd, k=2)).id)
    assert plain is not None
    assert (plain.language, plain.skills) == ("en", [])


async def test_people_get_what_they_read_and_know(session: AsyncSession, project: Project) -> None:
    english, chinese = await ask(session, project), await ask(session, project, "zh-Hans")
    law = await ask(session, project, "en", "law")
    both = await ask(session, project, "en", "law", "medicine")
    asked = {
        ((), ()): [english, chinese],
        (("en",), ()): [english],
        (("zh",), ("law",)): [chinese],
        (("en",), ("law",)): [english, law],
        ((), ("law", "medicine")): [english, chinese, law, both],
        (("fr",), ("law",)): [],
    }
    for (languages, skills), expected in asked.items():
        person = await make_user(session, languages=list(languages), skills=list(skills))
        counts = await waiting.waiting_counts(session, [project.id], person, NOW)
        assert counts[project.id] == len(expected)
        assert await given(session, project, person) == expected


async def test_the_order_holds_across_audiences(session: AsyncSession, project: Project) -> None:
    expected = [
        await ask(session, project, "zh", priority=3),
        await ask(session, project, "en", priority=2),
        await ask(session, project, "zh", priority=1),
        await ask(session, project, "en", priority=0),
    ]
    await ask(session, project, "fr", priority=9)
    assert await given(session, project, await make_user(session, languages=["en", "zh"])) == expected


async def test_gold_is_for_its_audience_too(session: AsyncSession, project: Project) -> None:
    project.gold_share = 0.5
    for _ in range(12):
        await ask(session, project)
        session.add(GoldOrder(task_id=(await ask(session, project, "zh")).id, places=[1, 2]))
    await session.flush()
    assert not any(task.is_gold for task in await given(session, project, await make_user(session, languages=["en"])))
    both = await make_user(session, id=uuid.UUID(int=1))
    assert any(task.is_gold for task in await given(session, project, both))


async def test_a_million_tasks_in_another_language_are_not_walked_past(session: AsyncSession, project: Project) -> None:
    await ask(session, project)
    last = await ask(session, project, "zh")
    (english, chinese) = (await session.scalars(select(Audience).order_by(Audience.id))).all()
    await session.execute(
        text(
            "insert into tasks (project_id, prompt_id, overlap)"
            " select project_id, prompt_id, 1 from tasks, generate_series(1, 3000) where audience_id = :id"
        ),
        {"id": english.id},
    )
    await session.execute(text("analyze tasks"))
    query = select(Task.id).where(Task.audience_id == chinese.id, Task.num_taken < Task.overlap)
    query = query.order_by(Task.priority.desc(), Task.number).limit(1)
    plan = "\n".join(await session.scalars(text(f"explain {query.compile(compile_kwargs={'literal_binds': True})}")))
    assert "ix_tasks_audience" in plan
    assert "Sort" not in plan
    lease = await tasks.next_lease(
        session, project=project, annotator=await make_user(session, languages=["zh"]), now=NOW
    )
    assert lease is not None
    assert lease.task_id == last.id


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("en, zh-Hans", ["en", "zh"]), (" EN；zh，en ", ["en", "zh"]), ("", []), ("e", None), ("en!", None)],
)
async def test_languages_are_read_as_they_are_typed(
    session: AsyncSession, typed: str, expected: list[str] | None
) -> None:
    person = await make_user(session)
    if expected is None:
        with pytest.raises(Invalid):
            await abilities.set_languages(session, user_id=person.id, languages=typed, actor_id=person.id)
    else:
        await abilities.set_languages(session, user_id=person.id, languages=typed, actor_id=person.id)
        assert person.languages == expected


async def test_pages_say_what_waits_for_others(client: AsyncClient, session: AsyncSession, project: Project) -> None:
    await ask(session, project, "zh", "law")
    ada = await sign_in(client, session, role=Role.ANNOTATOR)
    assert (await client.post("/account/languages", data={"languages": "en, fr"})).status_code == 303
    await session.refresh(ada)
    assert ada.languages == ["en", "fr"]
    assert 'value="en, fr"' in (await client.get("/account")).text
    page = (await client.get(f"/projects/{project.slug}/rank")).text
    assert "You have ranked all that fits you" in page
    assert "1 task: zh · law" in page
    refused = await client.post("/account/languages", data={"languages": "English!"})
    assert (refused.status_code, "Write language tags" in refused.text) == (422, True)
    assert (await client.post(f"/people/{ada.id}/abilities", data={"skills": "law"})).status_code == 403


async def test_an_owner_gives_skills(client: AsyncClient, session: AsyncSession, project: Project) -> None:
    ada = await make_user(session)
    await sign_in(client, session)
    sent = {"languages": "zh", "skills": "Law, medicine"}
    assert (await client.post(f"/people/{ada.id}/abilities", data=sent)).status_code == 303
    await session.refresh(ada)
    assert (ada.languages, ada.skills) == (["zh"], ["law", "medicine"])
    assert 'value="law, medicine"' in (await client.get(f"/people/{ada.id}")).text
    assert (await client.post(f"/people/{ada.id}/abilities", data={"skills": "a b!"})).status_code == 422
