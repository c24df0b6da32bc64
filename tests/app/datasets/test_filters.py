"""Choosing what a dataset takes: by hand, on the page, and what two datasets share."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from httpx2 import AsyncClient
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Role
from app.datasets import service
from app.datasets.filters import DatasetFilter
from app.projects.models import Project
from app.quality.models import Rejection, Review
from app.rankings.models import Ranking
from app.web import LANGUAGE_COOKIE
from tests.factories import add, make_project, make_prompt, make_ranking, make_task, make_user, sign_in


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
    return {row["ranking_id"] for row in await service.first_rows(session, dataset, limit=100)}


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


async def test_only_what_a_reviewer_has_settled(session: AsyncSession) -> None:
    """Of a settled task: what was ranked up to the decision, without what was rejected."""
    project = await make_project(session)
    await make(session, project)
    task = await make_task(session, await make_prompt(session, project), k=2, overlap=9)
    kept, rejected = [await make_ranking(session, task) for _ in range(2)]
    values = {"disagreement": 1, "last_number": rejected.number, "state": "rejected", "settled_at": kept.created_at}
    review = await add(session, Review(project_id=project.id, task_id=task.id, **values))
    await add(session, Rejection(ranking_id=rejected.id, review_id=review.id, reason="careless"))
    task.settled_number = rejected.number
    await make_ranking(session, task)
    assert await chosen_ids(session, project, reviewed=True) == {str(kept.id)}


ORDERS: dict[str, list[list[int | None]]] = {
    "alone": [[1, 2, 3]],
    "the same": [[1, 2, 3], [1, 2, 3]],
    "two of three": [[1, 2, 3], [1, 3, 2]],
    "a tie is another answer": [[1, 2, 3], [1, 1, 2]],
    "one of one, as the others have no place": [[1, 2, None], [1, 2, 3]],
    "a third of nine": [[1, 2, 3], [1, 2, 3], [3, 2, 1]],
    "opposite": [[1, 2, 3], [3, 2, 1]],
}


@pytest.mark.parametrize(
    ("least", "num"),
    [(1, 2), (0.7, 2), (2 / 3, 4), (0.4, 4), (1 / 3, 5), (0.01, 5)],
)
async def test_tasks_on_which_people_agree(session: AsyncSession, least: float, num: int) -> None:
    """As `quality.agreement.pairwise` counts: pairs of people and of answers that both placed."""
    project = await make_project(session, partial_allowed=True)
    found: dict[str, set[str]] = {}
    for name, orders in ORDERS.items():
        task = await make_task(session, await make_prompt(session, project), k=3, overlap=3)
        rankings = [await make_ranking(session, task, places=places) for places in orders]
        found[name] = {str(ranking.id) for ranking in rankings}
    names = ["the same", "one of one, as the others have no place", "two of three", "a tie is another answer"]
    expected = set[str]().union(*(found[name] for name in [*names, "a third of nine"][:num]))
    chosen = DatasetFilter(min_agreement=least - 1e-9)
    assert await chosen_ids(session, project, min_agreement=least - 1e-9) == expected
    counted = await service.count_chosen(session, project.id, chosen)
    assert counted["agreement"].with_ties.value >= least - 1e-9


async def test_people_are_named_to_admins_alone_and_in_no_card(client: AsyncClient, session: AsyncSession) -> None:
    project = await make_project(session, slug="names")
    ann = await make_user(session, name="Ann Onym")
    await make(session, project, annotator=ann)
    chosen: dict[str, Any] = {"annotators": [ann.id], "annotator_names": ["Eve"], "reviewed": False}
    dataset = await service.freeze(session, project=project, chosen=DatasetFilter(**chosen))
    card = service.card_of(dataset, project)
    assert card["filter"] == {"splits": ["train", "validation"], "annotators": 1, "annotator_names": 1}
    for role, is_named in ((Role.ADMIN, True), (Role.TRAINER, False)):
        await sign_in(client, session, role=role)
        page = (await client.get("/projects/names/datasets/new")).text
        assert ("Ann Onym" in page, str(ann.id) in page) == (is_named, True)


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
    assert "This must be a whole number." in bad.text
    client.cookies.set(LANGUAGE_COOKIE, "zh")
    turned = await client.get(f"{base}/new", params={"since": "2026-02-02", "until": "2026-01-01"})
    assert "第一天在最后一天之后。" in turned.text
    client.cookies.delete(LANGUAGE_COOKIE)
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
