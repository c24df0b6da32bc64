"""Languages and skills: whoever can't rank a task does not get it, and is told so."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import pytest
from httpx2 import AsyncClient
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import abilities
from app.accounts.models import AuditEntry, Membership, Role, User
from app.accounts.roles import set_member
from app.errors import Invalid
from app.projects.models import Project
from app.tasks import audiences
from app.tasks import service as tasks
from app.tasks.models import Audience, GoldOrder, Task
from tests.factories import make_project, make_prompt, make_task, make_user, num_waiting, sign_in

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
        assert await num_waiting(session, project, person, NOW) == len(expected)
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
    assert "Do you read one of these languages?" in page
    assert "Skills are given by the admins" in page
    await client.post("/account/languages", data={"languages": ""})
    assert "Do you read" not in (await client.get(f"/projects/{project.slug}/rank")).text
    await client.post("/account/languages", data={"languages": "en, fr"})
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


# What a project's admins know of its members


async def member(
    session: AsyncSession, project: Project, *, languages: str = "", skills: str = "", **of_theirs: list[str]
) -> User:
    """Somebody with a role in this project alone, who can be asked this there; `of_theirs` holds everywhere."""
    person = await make_user(session, role=None, **{name.removesuffix("_"): value for name, value in of_theirs.items()})
    await set_member(session, user_id=person.id, project_id=project.id, role=Role.ANNOTATOR)
    told = {"languages": languages, "skills": skills}
    await abilities.set_in_project(session, project_id=project.id, user_id=person.id, actor_id=person.id, **told)
    return person


async def test_a_projects_skills_come_on_top_and_its_languages_narrow(session: AsyncSession, project: Project) -> None:
    english, chinese = await ask(session, project), await ask(session, project, "zh")
    law, both = await ask(session, project, "en", "law"), await ask(session, project, "en", "law", "medicine")
    found = {
        "skills": await member(session, project, skills="law"),
        "more skills": await member(session, project, skills="law", skills_=["medicine"]),
        "languages": await member(session, project, languages="zh"),
        "neither": await member(session, project, languages="zh", languages_=["en"]),
    }
    expected = {
        "skills": [english, chinese, law],
        "more skills": [english, chinese, law, both],
        "languages": [chinese],
        "neither": [],
    }
    for name, person in found.items():
        assert (name, await num_waiting(session, project, person, NOW)) == (name, len(expected[name]))
        assert (name, await given(session, project, person)) == (name, expected[name])


async def test_what_one_project_says_holds_in_no_other(session: AsyncSession, project: Project) -> None:
    other = await make_project(session)
    person = await member(session, project, languages="zh", skills="law")
    await set_member(session, user_id=person.id, project_id=other.id, role=Role.ANNOTATOR)
    english, law = await ask(session, other), await ask(session, other, "en", "law")
    assert await given(session, other, person) == [english]
    elsewhere = await audiences.waiting_elsewhere(session, other, person)
    assert [(row.language, row.skills, row.num) for row in elsewhere] == [("en", ["law"], 1)]
    assert law.num_taken == 0


async def test_gold_asks_for_the_skills_of_the_project(session: AsyncSession, project: Project) -> None:
    project.gold_share = 0.5
    for _ in range(12):
        await ask(session, project)
        session.add(GoldOrder(task_id=(await ask(session, project, "en", "law")).id, places=[1, 2]))
    await session.flush()
    assert any(task.is_gold for task in await given(session, project, await member(session, project, skills="law")))
    assert not any(task.is_gold for task in await given(session, project, await member(session, project)))


async def test_an_admin_of_the_project_says_what_a_member_can_rank(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    ada, stranger = await member(session, project), await make_user(session)
    bo = await sign_in(client, session, role=Role.ANNOTATOR)
    await set_member(session, user_id=bo.id, project_id=project.id, role=Role.ADMIN)
    await session.commit()
    base = f"/projects/{project.slug}/people"
    sent = {"languages": "zh-Hans", "skills": "Law, medicine"}
    assert (await client.post(f"{base}/{ada.id}/abilities", data=sent)).headers["location"] == base
    membership = await session.get_one(Membership, (ada.id, project.id), populate_existing=True)
    assert (membership.languages, membership.skills) == (["zh"], ["law", "medicine"])
    assert 'value="law, medicine"' in (await client.get(f"{base}/{ada.id}")).text
    assert "medicine</span>" in (await client.get(base)).text
    refused = await client.post(f"{base}/{ada.id}/abilities", data={"skills": "a/b", "languages": "zh"})
    assert (refused.status_code, 'value="a/b"' in refused.text) == (422, True)
    assert (await client.post(f"{base}/{stranger.id}/abilities", data=sent)).status_code == 404
    assert (await client.get(f"{base}/{stranger.id}")).status_code == 404
    entry = (await session.scalars(select(AuditEntry).where(AuditEntry.actor_id == bo.id))).one()
    assert (entry.action, entry.subject) == ("member.abilities", str(ada.id))
    assert entry.detail == {"project": str(project.id), "languages": ["zh"], "skills": ["law", "medicine"]}


async def test_a_program_says_it_too(client: AsyncClient, session: AsyncSession, project: Project) -> None:
    ada = await member(session, project)
    await sign_in(client, session)
    base = f"/api/v1/projects/{project.slug}/members"
    answer = await client.put(f"{base}/{ada.id}/abilities", json={"languages": [], "skills": ["Law"]})
    assert answer.status_code == 204
    (row,) = (await client.get(base)).json()
    assert (row["languages"], row["skills"]) == ([], ["law"])
    wrong = await client.put(f"{base}/{ada.id}/abilities", json={"languages": ["x"], "skills": ["two words"]})
    assert wrong.status_code == 422


async def test_ones_account_names_the_skills_of_each_project(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    ada = await sign_in(client, session, role=Role.ANNOTATOR)
    assert "You have no skills" in (await client.get("/account")).text
    await set_member(session, user_id=ada.id, project_id=project.id, role=Role.ANNOTATOR)
    told = {"languages": "", "skills": "law"}
    await abilities.set_in_project(session, project_id=project.id, user_id=ada.id, actor_id=ada.id, **told)
    await session.commit()
    assert f"In {project.name}: law." in (await client.get("/account")).text


async def test_the_list_of_tasks_says_what_nobody_can_rank(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    await ask(session, project)
    await ask(session, project, "en", "law")
    await sign_in(client, session)
    words = "Tasks wait that nobody here can rank"
    page = (await client.get(f"/projects/{project.slug}/tasks")).text
    assert (words in page, "en · law" in page) == (True, True)
    person = await member(session, project, skills="law")
    await session.commit()
    assert words not in (await client.get(f"/projects/{project.slug}/tasks")).text
    person.disabled_at = NOW
    await session.commit()
    assert words in (await client.get(f"/projects/{project.slug}/tasks")).text
