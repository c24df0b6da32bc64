"""Rows that tests need, with defaults for all that a test is not about. Each is flushed and returned."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from httpx2 import AsyncClient
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import passwords
from app.accounts.credentials import hash_secret
from app.accounts.guards import SESSION_COOKIE
from app.accounts.models import Role, User, UserSession
from app.accounts.sessions import SESSION_LIFE
from app.projects.models import Project
from app.projects.service import create_project
from app.prompts.models import Completion, Prompt, Split
from app.prompts.service import content_hash, root_hash, text_hash
from app.rankings import own
from app.rankings.models import Ranking, RankingPlace
from app.runs.models import Run, RunKind
from app.tasks.models import Lease, LeaseState, Task, TaskCompletion

Row = TypeVar("Row")
numbers = itertools.count(1)


async def make_user(session: AsyncSession, *, role: str = Role.ANNOTATOR, **values: Any) -> User:
    """A person."""
    number = next(numbers)
    return await add(
        session, User(**{"name": f"Person {number}", "email": f"p{number}@example.org", "role": role, **values})
    )


async def set_password(session: AsyncSession, user: User, password: str) -> None:
    """A password for this person."""
    made = await passwords.make_hash(password, name=user.name, email=user.email)
    await passwords.store(session, user.id, made)


async def make_project(session: AsyncSession, **values: Any) -> Project:
    """A project."""
    return await create_project(session, **{"name": f"Project {next(numbers)}", "model_alias": "pocket", **values})


async def make_prompt(session: AsyncSession, project: Project | None = None, **values: Any) -> Prompt:
    """A train prompt of one user turn."""
    project = project or await make_project(session)
    messages = values.pop("messages", None) or [{"role": "user", "content": f"Question {next(numbers)}?"}]
    hashes = {"root_hash": root_hash(messages), "content_hash": content_hash(messages)}
    row = {"project_id": project.id, "messages": messages, "split": Split.TRAIN, **hashes, **values}
    return await add(session, Prompt(**row))


async def make_run(session: AsyncSession, project: Project | None = None, **values: Any) -> Run:
    """A queued run."""
    project = project or await make_project(session)
    return await add(session, Run(**{"project_id": project.id, "kind": RunKind.SAMPLE, **values}))


async def make_completion(session: AsyncSession, prompt: Prompt | None = None, **values: Any) -> Completion:
    """An imported answer."""
    prompt = prompt or await make_prompt(session)
    text = values.pop("text", f"Answer {next(numbers)}.")
    row = {"prompt_id": prompt.id, "text": text, "content_hash": text_hash(text), **values}
    return await add(session, Completion(**row))


async def make_task(session: AsyncSession, prompt: Prompt | None = None, *, k: int = 4, **values: Any) -> Task:
    """A task with K completions."""
    prompt = prompt or await make_prompt(session)
    task = await add(session, Task(**{"project_id": prompt.project_id, "prompt_id": prompt.id, "overlap": 1, **values}))
    for position in range(k):
        completion = await make_completion(session, prompt)
        session.add(TaskCompletion(task_id=task.id, completion_id=completion.id, position=position))
    await session.flush()
    return task


async def completion_ids_of(session: AsyncSession, task: Task) -> list[uuid.UUID]:
    """The completions of a task, in its order."""
    query = select(TaskCompletion.completion_id).where(TaskCompletion.task_id == task.id)
    return list(await session.scalars(query.order_by(TaskCompletion.position)))


async def make_ranking(
    session: AsyncSession,
    task: Task | None = None,
    *,
    places: Sequence[int | None] | None = None,
    annotator: User | None = None,
    marks: Mapping[uuid.UUID, Mapping[str, Any]] | None = None,
    **values: Any,
) -> Ranking:
    """A ranking by a person with a lease; `places` follow the completions of the task, by default 1, 2, 3 ...

    `marks`: completion -> its `labels`, `denied` and `rating`.
    """
    task = task or await make_task(session)
    annotator = annotator or await make_user(session)
    shown = await completion_ids_of(session, task)
    if "lease_id" not in values:
        lease = Lease(
            task_id=task.id,
            annotator_id=annotator.id,
            state=LeaseState.ANSWERED,
            display_order=list(reversed(shown)),
            seed=17,
            expires_at=datetime.now(UTC) + timedelta(hours=1),
        )
        values["lease_id"] = (await add(session, lease)).id
    row = {
        "project_id": task.project_id,
        "task_id": task.id,
        "annotator_id": annotator.id,
        "source": "page",
        "body_hash": next(numbers).to_bytes(32),
        **values,
    }
    ranking = await add(session, Ranking(**row))
    for completion_id, place in zip(shown, places or range(1, len(shown) + 1), strict=True):
        keys = {"ranking_id": ranking.id, "task_id": task.id, "completion_id": completion_id}
        session.add(RankingPlace(**keys, place=place, **(marks or {}).get(completion_id, {})))
    await session.flush()
    return ranking


async def num_waiting(session: AsyncSession, project: Project, annotator: User, now: datetime) -> int:
    """How many tasks wait for them."""
    return (await own.progress_of(session, project=project, annotator=annotator, now=now)).num_waiting


async def add(session: AsyncSession, row: Row) -> Row:
    """Store a row, so that it has its id and the database's defaults."""
    session.add(row)
    await session.flush()
    await session.refresh(row)
    return row


async def sign_in(client: AsyncClient, session: AsyncSession, *, role: str = Role.ADMIN) -> User:
    """From here on the client is a browser in which a new person with this role is signed in."""
    user = await make_user(session, role=role)
    secret = f"session {next(numbers)}"
    ends = datetime.now(UTC) + SESSION_LIFE
    session.add(UserSession(token_hash=hash_secret(secret), user_id=user.id, expires_at=ends))
    await session.commit()
    client.cookies.set(SESSION_COOKIE, secret)
    client.headers["sec-fetch-site"] = "same-origin"
    return user
