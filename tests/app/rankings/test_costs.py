"""What a cycle asks of the database: so many questions and no more, however many tasks there are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from httpx2 import AsyncClient
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from app.accounts.models import Scope
from app.accounts.service import create_token
from tests.factories import make_project, make_prompt, make_task, make_user

API = "/api/v1"


@contextmanager
def counted(engine: AsyncEngine) -> Iterator[list[str]]:
    """The statements of the block, but for the savepoints that stand for a test's transactions."""
    statements: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if "SAVEPOINT" not in statement:
            statements.append(statement)

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", note)


async def test_a_cycle_asks_the_database_few_questions(
    client: AsyncClient, session: AsyncSession, shared_engine: AsyncEngine
) -> None:
    project = await make_project(session)
    await make_task(session, await make_prompt(session, project))
    _, secret = await create_token(session, user_id=(await make_user(session)).id, name="t", scopes=[Scope.ANNOTATE])
    await session.commit()
    headers = {"Authorization": f"Bearer {secret}"}

    with counted(shared_engine) as taking:
        task = await client.post(f"{API}/tasks:next", json={"project_id": str(project.id)}, headers=headers)
    order = [[answer["id"]] for answer in task.json()["completions"]]
    with counted(shared_engine) as ranking:
        answer = await client.post(
            f"{API}/leases/{task.json()['lease_id']}/ranking", json={"order": order}, headers=headers
        )

    assert (task.status_code, answer.status_code) == (200, 201)
    # Who; which project; a task, from the person's lock to the lease (claim_task); what it shows; and, once in five
    # minutes, that the token was used.
    assert len(taking) <= 3, "\n".join(taking)
    # Who, and which project; the person, lease and task; the ranking, its places and the lease's end.
    assert len(ranking) <= 2, "\n".join(ranking)
