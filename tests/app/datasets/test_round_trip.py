"""What one project exports, another takes: the same conversations, answers, orders, labels and ratings."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from httpx2 import AsyncClient
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Role, Scope
from app.accounts.tokens import create_token
from app.datasets import pieces, service
from app.ndjson import read_lines
from app.projects.models import Project
from app.prompts.models import Completion
from app.rankings.importing import import_rankings
from tests.factories import completion_ids_of, make_project, make_prompt, make_ranking, make_task, make_user

ORDERS: list[list[int | None]] = [[1, 2, 3], [2, 1, 2], [None, 2, 1], [1, 1, 1]]


async def export(session: AsyncSession, project: Project) -> bytes:
    dataset = await service.freeze(session, project=project)
    return b"".join(line + b"\n" for line in await pieces.read_rows(session, dataset.id, range(dataset.num_rows)))


async def make_exported(session: AsyncSession) -> tuple[Project, bytes]:
    """A project with an order of every kind, and its export."""
    project = await make_project(session, validation_share=0, test_share=0, partial_allowed=True)
    for places in ORDERS:
        prompt = await make_prompt(session, project, language="zh")
        task = await make_task(session, prompt, k=3)
        first, second, _ = await completion_ids_of(session, task)
        marks: dict[Any, Any] = {
            first: {"labels": ["opinion", "violent"]},
            second: {"rating": 7, "denied": ["opinion"]},
        }
        said = {"rationale": "因为 B is <short>.", "confidence": 2, "all_bad": places == [1, 1, 1]}
        await make_ranking(session, task, places=places, marks=marks, **said)
    task = await make_task(session, await make_prompt(session, project, language="zh"), k=2)
    await make_ranking(session, task, places=[2, 1], strength=3)
    return project, await export(session, project)


def said(content: bytes) -> list[dict[str, Any]]:
    """What each row says, in words instead of ids."""
    rows = [json.loads(line) for line in content.splitlines()]
    return [in_words(row, {answer["id"]: answer["text"] for answer in row["completions"]}) for row in rows]


def in_words(row: dict[str, Any], texts: dict[str, str]) -> dict[str, Any]:
    return {
        "messages": row["messages"],
        "language": row["language"],
        "texts": list(texts.values()),
        "order": [sorted(texts[key] for key in cell) for cell in row["order"]],
        "labels": {texts[key]: labels for key, labels in row["labels"].items()},
        "ratings": {texts[key]: rating for key, rating in row["ratings"].items()},
        "denied": {texts[key]: labels for key, labels in row["denied"].items()},
        **{name: row[name] for name in ("rationale", "confidence", "all_bad", "strength")},
    }


async def take(session: AsyncSession, project: Project, content: bytes) -> tuple[int, int, int]:
    async def chunks() -> AsyncIterator[bytes]:
        yield content

    report = await import_rankings(session, read_lines(chunks(), max_bytes=10**9), project=project)
    await session.execute(text("set constraints all immediate"))
    await session.execute(text("set constraints all deferred"))
    return report.taken, report.duplicates, report.num_refused


async def test_an_export_says_the_same_after_a_journey_to_another_project(session: AsyncSession) -> None:
    _, content = await make_exported(session)
    other = await make_project(session, validation_share=0, test_share=0)
    assert await take(session, other, content) == (5, 0, 0)
    assert said(await export(session, other)) == said(content)
    assert len(said(content)) == len(ORDERS) + 1


async def test_an_export_that_comes_home_or_comes_twice_adds_nothing(session: AsyncSession) -> None:
    project, content = await make_exported(session)
    num_answers = await session.scalar(select(func.count()).select_from(Completion))
    assert await take(session, project, content) == (0, 5, 0)
    assert await session.scalar(select(func.count()).select_from(Completion)) == num_answers
    other = await make_project(session)
    await take(session, other, content)
    assert await take(session, other, content) == (0, 5, 0)


async def test_an_export_is_taken_over_http(client: AsyncClient, session: AsyncSession) -> None:
    _, content = await make_exported(session)
    other = await make_project(session)
    user = await make_user(session, role=Role.ADMIN)
    _, secret = await create_token(session, user_id=user.id, name="test", scopes=[Scope.WRITE])
    await session.commit()
    headers = {"Authorization": f"Bearer {secret}"}
    answer = await client.post(f"/api/v1/projects/{other.slug}/rankings:import", content=content, headers=headers)
    assert (answer.status_code, answer.json()["taken"]) == (200, 5)
