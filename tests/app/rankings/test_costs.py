"""What a cycle asks of the database: so many questions and no more, however many tasks there are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from httpx2 import AsyncClient
from psycopg import AsyncConnection, AsyncCursor
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Role, Scope
from app.accounts.tokens import create_token
from tests.factories import make_project, make_prompt, make_task, make_user, sign_in

API = "/api/v1"
PAGE, SCRIPT = {"Accept": "text/html"}, {"Accept": "application/json"}


@asynccontextmanager
async def counted(session: AsyncSession) -> AsyncIterator[list[str]]:
    """The statements of the block as the driver sends them, but for the savepoints that stand for a test's
    transactions. All sessions of a test share one connection.
    """
    statements: list[str] = []

    class Counting(AsyncCursor[Any]):
        async def execute(self, query: Any, *rest: Any, **options: Any) -> Any:
            if "SAVEPOINT" not in str(query):
                statements.append(str(query))
            return await super().execute(query, *rest, **options)

    driver = (await (await session.connection()).get_raw_connection()).driver_connection
    assert isinstance(driver, AsyncConnection)
    driver.cursor_factory, before = Counting, driver.cursor_factory
    try:
        yield statements
    finally:
        driver.cursor_factory = before


async def test_a_cycle_asks_the_database_few_questions(client: AsyncClient, session: AsyncSession) -> None:
    project = await make_project(session)
    await make_task(session, await make_prompt(session, project))
    _, secret = await create_token(session, user_id=(await make_user(session)).id, name="t", scopes=[Scope.ANNOTATE])
    await session.commit()
    headers = {"Authorization": f"Bearer {secret}"}

    async with counted(session) as taking:
        task = await client.post(f"{API}/tasks:next", json={"project_id": str(project.id)}, headers=headers)
    order = [[answer["id"]] for answer in task.json()["completions"]]
    async with counted(session) as ranking:
        answer = await client.post(
            f"{API}/leases/{task.json()['lease_id']}/ranking", json={"order": order}, headers=headers
        )

    assert (task.status_code, answer.status_code) == (200, 201)
    # Who, and which project; a task, from the person's lock to the lease and what it shows; and, once in five minutes,
    # that the token was used.
    assert 2 <= len(taking) <= 3, "\n".join(taking)
    # Who, which project, lease and task; the ranking, its places and the lease's end.
    assert len(ranking) == 2, "\n".join(ranking)
    # What is asked all day goes past SQLAlchemy's objects, in few columns (app/facts.py).
    assert not any("guidelines" in statement for statement in taking + ranking)


async def test_a_page_and_the_task_after_it_ask_as_few(client: AsyncClient, session: AsyncSession) -> None:
    project = await make_project(session)
    for _ in range(3):
        await make_task(session, await make_prompt(session, project), k=2)
    await sign_in(client, session, role=Role.ANNOTATOR)
    rank = f"/projects/{project.slug}/rank"

    async with counted(session) as opening:
        page = await client.get(rank, headers=PAGE)
    async with counted(session) as fetching:
        first = await client.post(f"{rank}/ahead", headers=SCRIPT)
    # A skip, so that the task ahead takes the place of the one in hand, as after each ranking.
    await client.post(f"/leases/{first.json()['in_hand']}/skip", data={"kind": "same"}, headers=SCRIPT)
    async with counted(session) as going_on:
        second = await client.post(f"{rank}/ahead", headers=SCRIPT)

    assert (page.status_code, first.status_code, second.status_code) == (200, 200, 200)
    assert second.json()["in_hand"] == first.json()["ahead"]["lease_id"]
    # Who, and which project; the task in hand or the one after it; how many wait, and how many are done.
    for statements in (opening, fetching, going_on):
        assert len(statements) == 3, "\n".join(statements)
