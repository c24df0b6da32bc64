"""Qualification: nobody gets real work before it is passed, whoever fails learns why, and gold looks on during work."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from httpx2 import AsyncClient
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import AuditEntry, Role, User
from app.errors import Conflict, NotFound
from app.projects.models import Project
from app.quality import qualification
from app.quality.models import QualityFlag
from app.quality.qualification import LeftOut, NothingToPass, TooFewTests
from app.rankings import service as rankings
from app.rankings.answers import RankingAnswer
from app.rankings.service import QualificationOver
from app.tasks import ahead
from app.tasks import service as tasks
from app.tasks.models import GoldOrder, Lease, Task
from app.tasks.standings import Unqualified
from tests.factories import completion_ids_of, make_project, make_prompt, make_task, make_user, sign_in

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.fixture
async def project(session: AsyncSession) -> Project:
    """Two tasks a try, two tries, and three tasks of real work."""
    qualification.subscribe()
    project = await make_project(session, qualify_tasks=2, guidelines="Be **fair**.")
    await make_gold(session, project, 5, is_qualifying=True)
    for _ in range(3):
        await make_task(session, await make_prompt(session, project), k=2, overlap=9)
    return project


async def make_gold(session: AsyncSession, project: Project, num: int, *, is_qualifying: bool = False) -> None:
    for _ in range(num):
        task = await make_task(session, await make_prompt(session, project), k=2)
        session.add(
            GoldOrder(task_id=task.id, places=[1, 2], why="The first **answers** it.", is_qualifying=is_qualifying)
        )
    await session.flush()


async def take(session: AsyncSession, project: Project, person: User) -> Lease:
    lease = await tasks.next_lease(session, project=project, annotator=person, now=NOW)
    assert lease is not None
    return lease


async def rank(session: AsyncSession, project: Project, person: User, *, right: bool) -> Task:
    """Rank the next task in its known order, or in reverse."""
    lease = await take(session, project, person)
    task = await session.get_one(Task, lease.task_id, populate_existing=True)
    shown = await completion_ids_of(session, task)
    answer = RankingAnswer({item: place for place, item in enumerate(shown if right else reversed(shown), start=1)})
    await rankings.submit(session, lease_id=lease.id, annotator=person, answer=answer, source="page")
    return task


async def run_try(session: AsyncSession, project: Project, person: User, *, right: bool) -> list[Task]:
    await qualification.begin(session, project, person)
    return [await rank(session, project, person, right=right) for _ in range(project.qualify_tasks)]


async def state_of(session: AsyncSession, project: Project, person: User) -> str | None:
    return (await qualification.report_of(session, project, person)).state


# The tries


async def test_real_work_begins_with_a_try_that_is_passed(session: AsyncSession, project: Project) -> None:
    ada = await make_user(session)
    with pytest.raises(Unqualified):
        await take(session, project, ada)
    tested = await run_try(session, project, ada, right=True)
    assert all(task.is_qualifying for task in tested)
    report = await qualification.report_of(session, project, ada)
    assert report.standing is not None
    assert (report.state, report.standing.score) == ("qualified", 1)
    assert [item.agreement for item in report.feedback] == [1, 1]
    worked = [await rank(session, project, ada, right=True) for _ in range(3)]
    assert not any(task.is_gold for task in worked)
    with pytest.raises(NothingToPass):
        await qualification.begin(session, project, ada)


async def test_who_fails_sees_why_and_tries_again_on_other_tasks(session: AsyncSession, project: Project) -> None:
    ada = await make_user(session)
    first = await run_try(session, project, ada, right=False)
    report = await qualification.report_of(session, project, ada)
    assert report.state == "failed"
    assert [item.agreement for item in report.feedback] == [0, 0]
    (shown,) = {(tuple(map(tuple, item.order)), tuple(map(tuple, item.known))) for item in report.feedback[:1]}
    assert shown[0] == shown[1][::-1], "letters are those of the person's own page"
    with pytest.raises(Unqualified):
        await take(session, project, ada)
    second = await run_try(session, project, ada, right=True)
    assert not {task.id for task in first} & {task.id for task in second}
    assert await state_of(session, project, ada) == "qualified"
    assert not list(await session.scalars(select(QualityFlag)))


async def test_after_the_last_try_somebody_is_left_out_and_admins_find_a_flag(
    session: AsyncSession, project: Project
) -> None:
    ada, boss = await make_user(session), await make_user(session, role=Role.ADMIN)
    for _ in range(2):
        await run_try(session, project, ada, right=False)
    assert await state_of(session, project, ada) == "excluded"
    with pytest.raises(LeftOut):
        await qualification.begin(session, project, ada)
    flag = (await session.scalars(select(QualityFlag))).one()
    assert (flag.check_name, flag.annotator_id, flag.evidence["score"]) == ("qualification", ada.id, 0)
    await qualification.decide(session, project, ada.id, "let_in", actor_id=boss.id)
    assert not (await rank(session, project, ada, right=True)).is_gold
    assert flag.settlement == "confirmed"
    actions = await session.scalars(select(AuditEntry.action).where(AuditEntry.subject == str(ada.id)))
    tries = ["qualification.testing", "qualification.failed", "qualification.testing", "qualification.excluded"]
    assert [action for action in actions if action.startswith("qual")] == [*tries, "qualification.qualified"]


async def test_without_enough_unseen_tasks_nobody_begins_and_admins_are_told(
    session: AsyncSession, project: Project
) -> None:
    project.qualify_tries, ada = 9, await make_user(session)
    for _ in range(2):
        await run_try(session, project, ada, right=False)
    assert await state_of(session, project, ada) == "failed"
    assert (await session.scalars(select(QualityFlag.check_name))).all() == ["qualification"]
    with pytest.raises(TooFewTests):
        await qualification.begin(session, project, ada)


async def test_a_skipped_test_is_replaced_and_beginning_twice_is_one_try(
    session: AsyncSession, project: Project
) -> None:
    ada = await make_user(session)
    await qualification.begin(session, project, ada)
    skipped = await take(session, project, ada)
    await tasks.release_lease(session, lease_id=skipped.id, annotator=ada)
    standing = await qualification.begin(session, project, ada)
    assert standing.num_tries == 1
    assert (await rank(session, project, ada, right=True)).id != skipped.task_id
    assert (await qualification.report_of(session, project, ada)).feedback == [], "nothing is told before the end"
    await rank(session, project, ada, right=True)
    assert await state_of(session, project, ada) == "qualified"


async def test_who_skips_them_all_is_told_so(session: AsyncSession, project: Project) -> None:
    ada = await make_user(session)
    await qualification.begin(session, project, ada)
    for _ in range(5):
        await tasks.release_lease(session, lease_id=(await take(session, project, ada)).id, annotator=ada)
    with pytest.raises(Unqualified):
        await take(session, project, ada)


async def test_the_answers_of_a_try_are_not_changed_afterwards(session: AsyncSession, project: Project) -> None:
    ada = await make_user(session)
    (task, _) = await run_try(session, project, ada, right=False)
    (ranking,) = await rankings.list_rankings(session, project_id=project.id, task_id=task.id)
    places = {item: place for place, item in enumerate(await completion_ids_of(session, task), start=1)}
    with pytest.raises(QualificationOver):
        await rankings.revise(session, ranking_id=ranking.ranking.id, annotator=ada, answer=RankingAnswer(places))


async def test_reviewers_need_none_and_nothing_is_fetched_ahead_of_a_test(
    session: AsyncSession, project: Project
) -> None:
    judge, ada = await make_user(session, role=Role.REVIEWER), await make_user(session)
    assert not (await rank(session, project, judge, right=True)).is_gold
    await qualification.begin(session, project, ada)
    lease = await take(session, project, ada)
    desk = await ahead.preload(session, project=project, annotator=ada, now=NOW)
    assert (desk.in_hand, desk.ahead) == (lease, None)
    await tasks.release_lease(session, lease_id=lease.id, annotator=ada)
    with pytest.raises(Unqualified):
        await ahead.take_pack(session, project=project, annotator=ada, num=3, now=NOW, pack_id=lease.id)


async def test_tasks_of_the_qualification_never_come_between_others(session: AsyncSession, project: Project) -> None:
    project.gold_share, project.qualify_tasks = 0.5, 0
    ada = await make_user(session)
    assert not any([(await rank(session, project, ada, right=True)).is_gold for _ in range(3)])
    assert await tasks.next_lease(session, project=project, annotator=ada, now=NOW) is None


# During work


async def work_on_gold(session: AsyncSession, project: Project, person: User, *, right: bool) -> None:
    """Work until two gold tasks came between the others."""
    num = 0
    while num < 2:
        num += (await rank(session, project, person, right=right)).is_gold


async def test_gold_below_the_mark_pauses_and_a_new_try_lets_in_again(session: AsyncSession, project: Project) -> None:
    project.gold_share, project.gold_window = 0.5, 2
    await make_gold(session, project, 9)
    for _ in range(20):
        await make_task(session, await make_prompt(session, project), k=2)
    ada = await make_user(session)
    await run_try(session, project, ada, right=True)
    await work_on_gold(session, project, ada, right=True)
    assert await state_of(session, project, ada) == "qualified"
    ahead_of = await take(session, project, ada)
    desk = await ahead.preload(session, project=project, annotator=ada, now=NOW)
    assert desk.ahead is not None
    while await state_of(session, project, ada) == "qualified":
        await rank(session, project, ada, right=False)
    flag = (await session.scalars(select(QualityFlag))).one()
    assert (flag.check_name, flag.evidence["num"]) == ("gold", 2)
    with pytest.raises(Unqualified):
        await take(session, project, ada)
    assert ahead_of.state == "answered"
    await run_try(session, project, ada, right=True)
    await rank(session, project, ada, right=True)
    assert await state_of(session, project, ada) == "qualified", "what came before the new try does not count again"


async def test_gold_pauses_without_a_qualification_too_and_an_admin_decides(
    session: AsyncSession, project: Project
) -> None:
    project.qualify_tasks, project.gold_share, project.gold_window = 0, 0.5, 2
    await make_gold(session, project, 9)
    for _ in range(20):
        await make_task(session, await make_prompt(session, project), k=2)
    ada, boss = await make_user(session), await make_user(session, role=Role.ADMIN)
    await work_on_gold(session, project, ada, right=False)
    with pytest.raises(Unqualified):
        await take(session, project, ada)
    with pytest.raises(NothingToPass):
        await qualification.begin(session, project, ada)
    await qualification.decide(session, project, ada.id, "let_in", actor_id=boss.id)
    await rank(session, project, ada, right=False)
    assert await state_of(session, project, ada) == "qualified", "only later gold counts"


async def test_a_running_answer_is_taken_from_who_was_left_out(session: AsyncSession, project: Project) -> None:
    ada, boss = await make_user(session, role=None), await make_user(session, role=Role.ADMIN)
    with pytest.raises(NotFound):
        await qualification.decide(session, project, ada.id, "exclude", actor_id=boss.id)
    ada.role = Role.ANNOTATOR
    await qualification.decide(session, project, ada.id, "let_in", actor_id=boss.id)
    lease = await take(session, project, ada)
    await qualification.decide(session, project, ada.id, "exclude", actor_id=boss.id)
    assert await take(session, project, ada) is lease
    assert not (await rank(session, project, ada, right=True)).is_gold
    with pytest.raises(Conflict):
        await take(session, project, ada)


# Pages and API


async def test_the_pages_lead_through_a_try(client: AsyncClient, session: AsyncSession, project: Project) -> None:
    base = f"/projects/{project.slug}"
    ada = await sign_in(client, session, role=Role.ANNOTATOR)
    opened = await client.get(f"{base}/rank")
    assert (opened.status_code, opened.headers["location"]) == (303, f"{base}/qualification")
    page = (await client.get(f"{base}/qualification")).text
    assert "2 tasks whose order is known" in page
    assert "<strong>fair</strong>" in page
    assert (await client.post(f"{base}/qualification")).headers["location"] == f"{base}/rank"
    page = (await client.get(f"{base}/rank")).text
    assert "Qualification: task 1 of 2" in page
    assert "data-ahead-url" not in page
    for _ in range(2):
        await rank(session, project, ada, right=False)
    page = (await client.get(f"{base}/qualification")).text
    assert "you agree with the known orders on 0 % of the pairs" in page
    assert page.count("<strong>answers</strong>") == 2
    assert "You have 1 more try." in page
    await run_try(session, project, ada, right=False)
    assert "this was your last try" in (await client.get(f"{base}/qualification")).text
    assert (await client.post(f"{base}/qualification")).status_code == 409


async def test_an_admin_finds_and_decides(client: AsyncClient, session: AsyncSession, project: Project) -> None:
    ada = await make_user(session, name="Ada L.")
    for _ in range(2):
        await run_try(session, project, ada, right=False)
    await sign_in(client, session)
    base = f"/projects/{project.slug}/quality/annotators"
    listed = (await client.get(base)).text
    assert "did not pass the qualification" in listed
    assert "left out" in listed
    page = (await client.get(f"{base}/{ada.id}")).text
    assert "agrees with known orders on 0 % of the pairs of answers, over 2 tasks; 70 % are needed" in page
    assert (await client.post(f"{base}/{ada.id}/standing", data={"decision": "retry"})).status_code == 303
    assert await state_of(session, project, ada) == "failed"
    assert (await client.post(f"{base}/{ada.id}/standing", data={"decision": "?"})).status_code == 422
    assert "5 tasks are for the qualification." in (await client.get(f"/projects/{project.slug}/quality/gold")).text


async def test_the_api_leads_through_a_try(client: AsyncClient, session: AsyncSession, project: Project) -> None:
    ada = await sign_in(client, session, role=Role.ANNOTATOR)
    base = f"/api/v1/projects/{project.id}"
    refused = await client.post("/api/v1/tasks:next", json={"project_id": str(project.id)})
    assert (refused.status_code, refused.json()["title"]) == (409, "Unqualified")
    assert (await client.get(f"{base}/qualification")).json()["standing"] is None
    assert (await client.post(f"{base}/qualification:begin")).json()["state"] == "testing"
    for _ in range(2):
        await rank(session, project, ada, right=True)
    told = (await client.get(f"{base}/qualification")).json()
    assert told["standing"]["state"] == "qualified"
    assert told["feedback"][0]["known"] == told["feedback"][0]["order"]
    assert set(told["feedback"][0]["answers"]) == {"A", "B"}
