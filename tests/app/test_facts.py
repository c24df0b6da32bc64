"""Facts: few columns of the same rows, and the same refusals."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import pytest
from sqlalchemy import bindparam, select
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app import facts
from app.accounts.models import ApiToken, Scope, User
from app.accounts.tokens import create_token
from app.db import make_engine, make_sessionmaker
from app.facts import Question
from app.projects.models import Project
from app.tasks.models import Lease, Task
from app.tasks.service import next_lease
from tests.factories import make_project, make_task, make_user

THIS_PROJECT = select(Project).where(Project.id == bindparam("id"))
THIS_TASK = select(Task).where(Task.id == bindparam("id"))
ROWS = (
    select(Lease, Task, Project, User, ApiToken)
    .select_from(Lease)
    .join(Task, Task.id == Lease.task_id)
    .join(Project, Project.id == Task.project_id)
    .join(User, User.id == Lease.annotator_id)
    .outerjoin(ApiToken, ApiToken.user_id == User.id)
    .where(Lease.id == bindparam("lease_id"))
)


async def take(session: AsyncSession, annotator: User) -> Lease:
    task = await make_task(session)
    project = await session.get_one(Project, task.project_id)
    lease = await next_lease(session, project=project, annotator=annotator, now=datetime.now(UTC))
    assert lease is not None
    return lease


async def test_facts_are_what_the_rows_say(session: AsyncSession) -> None:
    person = await make_user(session)
    await create_token(session, user_id=person.id, name="t", scopes=[Scope.ANNOTATE])
    lease = await take(session, person)
    rows = (await session.execute(ROWS, {"lease_id": lease.id})).one()

    found = await facts.ask(session, facts.few_columns(ROWS), {"lease_id": lease.id})

    assert found is not None
    for fact, row in zip(found, rows, strict=True):
        assert fact._asdict() == {name: getattr(row, name) for name in fact._fields}


async def test_where_an_outer_join_finds_nothing_there_are_no_facts(session: AsyncSession) -> None:
    lease = await take(session, await make_user(session))

    found = await facts.ask(session, facts.few_columns(ROWS), {"lease_id": lease.id})

    assert found is not None
    assert [fact is None for fact in found] == [False, False, False, False, True]
    assert await facts.ask(session, facts.few_columns(ROWS), {"lease_id": uuid.uuid4()}) is None


async def test_what_waits_in_the_session_is_seen(session: AsyncSession) -> None:
    project = await make_project(session)
    project.name = "changed"

    found = await facts.ask(session, facts.few_columns(THIS_PROJECT), {"id": project.id})

    assert found is not None
    assert found[0].name == "changed"


@pytest.mark.parametrize(
    ("sql", "error"),
    [
        ("insert into users (name, role) values (%(told)s, 'king') returning id", IntegrityError),
        ("select cast(%(told)s as integer)", DataError),
    ],
)
async def test_refusals_are_sqlalchemys(session: AsyncSession, sql: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        await facts.ask(session, Question.of(sql, None), {"told": "no number"})


async def test_what_the_guards_found_is_not_asked_again(session: AsyncSession) -> None:
    task = await make_task(session)
    found = await facts.ask(session, facts.few_columns(THIS_TASK), {"id": task.id})
    assert found is not None

    assert await facts.get(session, Task, task.id) is task
    facts.remember(session, found)
    assert await facts.get(session, Task, task.id) is found[0]


async def test_a_new_transaction_asks_on_its_own_connection(empty_database_url: str) -> None:
    engine = make_engine(empty_database_url, pool_size=2)
    sessions = make_sessionmaker(engine)
    process = Question.of("select pg_backend_pid()", None)
    try:
        async with sessions() as asking, sessions() as other:
            first = await facts.ask(asking, process, {})
            assert await facts.ask(asking, process, {}) == first
            await asking.commit()
            assert await facts.ask(other, process, {}) == first
            assert await facts.ask(asking, process, {}) != first
    finally:
        await engine.dispose()
