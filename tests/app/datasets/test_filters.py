"""Choosing what a dataset takes: by hand, on the page, and what two datasets share."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from httpx2 import AsyncClient
from sqlalchemy.ext.asyncio import AsyncSession

from app.datasets import service
from app.datasets.filters import DatasetFilter
from app.projects.models import Project
from app.rankings.models import Ranking
from tests.factories import make_project, make_prompt, make_ranking, make_task, make_user, sign_in


async def make(
    session: AsyncSession,
    project: Project,
    *,
    round: int | None = 1,
    split: str = "train",
    language: str = "en",
    **values: Any,
) -> Ranking:
    prompt = await make_prompt(session, project, split=split, language=language)
    return await make_ranking(session, await make_task(session, prompt, k=2, round=round), **values)


async def chosen_ids(session: AsyncSession, project: Project, **chosen: Any) -> set[str]:
    dataset = await service.freeze(session, project=project, chosen=DatasetFilter(**chosen))
    return {row["ranking_id"] for row in await service.first_rows(session, dataset)}


async def test_every_condition_chooses(session: AsyncSession) -> None:
    project = await make_project(session)
    ann = await make_user(session)
    yesterday = datetime.now(UTC) - timedelta(days=1)
    first = await make(session, project, annotator=ann)
    second = await make(session, project, round=2, language="zh", created_at=yesterday)
    third = await make(
        session,
        project,
        round=None,
        split="validation",
        lease_id=None,
        annotator_id=None,
        annotator_name="Eve",
        source="import",
    )
    one, two, three = (str(ranking.id) for ranking in (first, second, third))
    today = datetime.now(UTC).date()
    expected: list[tuple[dict[str, Any], set[str]]] = [
        ({}, {one, two, three}),
        ({"splits": ["validation"]}, {three}),
        ({"rounds": [2]}, {two}),
        ({"rounds": [1, "imported"]}, {one, three}),
        ({"languages": ["zh"]}, {two}),
        ({"sources": ["import"]}, {three}),
        ({"annotators": [ann.id]}, {one}),
        ({"annotators": [ann.id], "annotator_names": ["Eve"]}, {one, three}),
        ({"without_annotators": [ann.id]}, {two, three}),
        ({"since": today}, {one, three}),
        ({"until": yesterday.date()}, {two}),
    ]
    for chosen, ids in expected:
        assert await chosen_ids(session, project, **chosen) == ids, chosen
        found = await service.count_chosen(session, project.id, DatasetFilter(**chosen))
        assert found["num_rankings"] == len(ids)
    with pytest.raises(service.NothingChosen):
        await chosen_ids(session, project, versions=[7])


async def test_the_page_counts_before_it_freezes(client: AsyncClient, session: AsyncSession) -> None:
    project = await make_project(session, slug="choose")
    await make(session, project)
    await make(session, project, round=2, language="zh")
    await sign_in(client, session)
    base = "/projects/choose/datasets"
    page = await client.get(f"{base}/new", params={"rounds": "2", "name": "Only two"})
    assert "<h2>1 ranking</h2>" in page.text
    assert 'value="Only two"' in page.text
    bad = await client.get(f"{base}/new", params={"rounds": "second", "since": "2026-02-02", "until": "2026-01-01"})
    assert bad.status_code == 422
    frozen = await client.post(base, data={"name": "Only two", "licence": "CC0-1.0", "rounds": "2"})
    assert frozen.status_code == 303
    shown = (await client.get(frozen.headers["location"])).text
    assert "Only two" in shown
    assert "CC0-1.0" in shown
    await client.post(base)
    assert "Only in d2" in (await client.get(f"{base}/1/diff", params={"other": 2})).text
    one, two = [await service.get_dataset_by_number(session, project.id, number) for number in (1, 2)]
    found = await service.compare(session, one, two)
    assert (found["both"], found["only_one"], found["only_other"]) == (1, 0, 1)
    assert one.filter == {"splits": ["train", "validation"], "rounds": [2]}
