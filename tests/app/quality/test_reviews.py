"""Disagreements: what waits for a reviewer, and what approving, rejecting and correcting do to datasets and history."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from httpx2 import AsyncClient
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Role, User
from app.datasets import service as datasets
from app.datasets.models import DatasetRow
from app.db import SessionMaker, make_engine, make_sessionmaker
from app.errors import Invalid
from app.projects.models import Project
from app.quality import reading, reviews, watch
from app.quality.models import Rejection, Review, ReviewState
from app.rankings import service
from app.rankings.answers import RankingAnswer
from app.rankings.models import Ranking
from app.rankings.service import AnswerRefused
from app.tasks.models import Task
from tests.factories import completion_ids_of, make_project, make_prompt, make_ranking, make_task, make_user, sign_in


async def divided(session: AsyncSession, *orders: list[int]) -> tuple[Project, Task, list[Ranking]]:
    """A task that people ranked in these orders, by default in three that differ on two thirds of the pairs."""
    project = await make_project(session)
    task = await make_task(session, await make_prompt(session, project), k=3, overlap=9)
    rankings = [
        await make_ranking(session, task, places=order) for order in orders or ([1, 2, 3], [3, 2, 1], [1, 3, 2])
    ]
    return project, task, rankings


async def open_review(session: AsyncSession, project: Project) -> Review:
    await reviews.fill_queue(session, project)
    ((review, _),) = await reviews.list_reviews(session, project, limit=2)
    return review


async def frozen(session: AsyncSession, project: Project) -> set[uuid.UUID]:
    dataset = await datasets.freeze(session, project=project)
    return set(await session.scalars(select(DatasetRow.ranking_id).where(DatasetRow.dataset_id == dataset.id)))


async def test_a_divided_task_waits_once(session: AsyncSession) -> None:
    project, task, _ = await divided(session)
    assert await reviews.fill_queue(session, project) == 1
    assert await reviews.fill_queue(session, project) == 0
    review = await open_review(session, project)
    assert review.task_id == task.id
    assert review.disagreement == pytest.approx(2 / 3)


async def test_a_project_says_how_much_people_may_differ(session: AsyncSession) -> None:
    project, task, _ = await divided(session)
    project.review_above = 2 / 3 + 0.001
    assert await reviews.fill_queue(session, project) == 0
    project.review_above = 2 / 3 - 0.001
    assert await reviews.fill_queue(session, project) == 1
    assert (await open_review(session, project)).task_id == task.id


async def test_who_agrees_enough_is_left_alone(session: AsyncSession) -> None:
    project, _, _ = await divided(session, [1, 2, 3], [1, 3, 2], [2, 1, 3])
    assert await reviews.fill_queue(session, project) == 0


async def test_what_was_approved_waits_again_only_with_a_new_ranking(session: AsyncSession) -> None:
    project, task, _ = await divided(session)
    review = await open_review(session, project)
    reviewer = await make_user(session)
    await reviews.settle(session, project, review.id, reviewer=reviewer)
    assert review.state == ReviewState.APPROVED
    assert await reviews.fill_queue(session, project) == 0
    await make_ranking(session, task, places=[3, 1, 2])
    assert await reviews.fill_queue(session, project) == 1


async def test_a_rejected_ranking_stays_and_leaves_new_datasets(session: AsyncSession) -> None:
    project, _, rankings = await divided(session)
    ids = {ranking.id for ranking in rankings}
    assert await frozen(session, project) == ids
    review = await open_review(session, project)
    reviewer = await make_user(session)
    await reviews.settle(
        session, project, review.id, reviewer=reviewer, rejected_ids=[rankings[1].id], reason="did not read"
    )
    assert review.state == ReviewState.REJECTED
    assert await frozen(session, project) == ids - {rankings[1].id}
    assert await session.get(Ranking, rankings[1].id) is not None
    rejection = await reviews.rejection_of(session, rankings[1].id)
    assert rejection is not None
    assert (rejection.rejected_by, rejection.reason) == (reviewer.id, "did not read")
    kind = text("select kind from ranking_changes where ranking_id = :id order by number desc limit 1")
    assert await session.scalar(kind, {"id": rankings[1].id}) == "rejected"
    # Of the two that are left, one pair of three differs: nothing to review.
    assert await reviews.fill_queue(session, project) == 0


async def test_the_database_takes_no_rejected_ranking_into_a_dataset(session: AsyncSession) -> None:
    project, _, rankings = await divided(session)
    review = await open_review(session, project)
    dataset = await datasets.freeze(session, project=project)
    session.add(Rejection(ranking_id=rankings[0].id, review_id=review.id, reason="r"))
    await session.flush()
    session.add(DatasetRow(dataset_id=dataset.id, position=99, ranking_id=rankings[0].id))
    with pytest.raises(IntegrityError, match="may not go to a dataset"):
        await session.flush()


async def test_a_rejection_is_never_changed_or_deleted(session: AsyncSession) -> None:
    project, _, rankings = await divided(session)
    review = await open_review(session, project)
    session.add(Rejection(ranking_id=rankings[0].id, review_id=review.id, reason="r"))
    await session.flush()
    for statement in ("update rejections set reason = ''", "delete from rejections"):
        with pytest.raises(IntegrityError, match="never changed or deleted"):
            async with session.begin_nested():
                await session.execute(text(statement))


async def test_a_correction_is_a_ranking_of_the_reviewer(session: AsyncSession) -> None:
    project, task, rankings = await divided(session)
    review = await open_review(session, project)
    reviewer = await make_user(session)
    order = await completion_ids_of(session, task)
    answer = RankingAnswer(places=dict(zip(order, [2, 1, 3], strict=True)))
    before = (await session.get_one(Task, task.id, populate_existing=True)).num_taken
    rejected = [ranking.id for ranking in rankings]
    await reviews.settle(
        session, project, review.id, reviewer=reviewer, rejected_ids=rejected, answer=answer, reason="all wrong"
    )
    assert review.state == ReviewState.CORRECTED
    (left,) = await frozen(session, project)
    mine = await session.get_one(Ranking, left)
    assert (mine.annotator_id, mine.source, mine.lease_id) == (reviewer.id, "review", None)
    assert (await session.get_one(Task, task.id, populate_existing=True)).num_taken == before + 1


async def test_a_reviewer_who_corrects_twice_supersedes_their_own(session: AsyncSession) -> None:
    project, task, _ = await divided(session)
    reviewer = await make_user(session)
    order = await completion_ids_of(session, task)

    async def say(*places: int) -> Ranking:
        answer = RankingAnswer(places=dict(zip(order, places, strict=True)))
        return await reviews.correct(session, project, task.id, reviewer=reviewer, answer=answer)

    first = await say(1, 2, 3)
    assert (await say(1, 2, 3)).id == first.id
    assert (await say(3, 2, 1)).supersedes_id == first.id
    assert len([row for row in await reading.newest(session, project.id) if row.annotator == reviewer.id]) == 1


async def test_what_can_not_be_settled_is_refused(session: AsyncSession) -> None:
    project, task, rankings = await divided(session)
    other = await make_ranking(session)
    review = await open_review(session, project)
    reviewer = await make_user(session)
    with pytest.raises(Invalid, match="reason"):
        await reviews.settle(session, project, review.id, reviewer=reviewer, rejected_ids=[rankings[0].id])
    with pytest.raises(Invalid, match="no longer a current ranking"):
        await reviews.settle(session, project, review.id, reviewer=reviewer, rejected_ids=[other.id], reason="r")
    order = await completion_ids_of(session, task)
    with pytest.raises(AnswerRefused):
        await reviews.settle(session, project, review.id, reviewer=reviewer, answer=RankingAnswer({order[0]: 1}))
    await session.refresh(review)
    assert review.state == ReviewState.OPEN


@pytest.mark.real_commits
async def test_of_two_reviewers_at_once_one_is_told(fresh_database_url: str) -> None:
    engine = make_engine(fresh_database_url)
    sessions = make_sessionmaker(engine)
    async with sessions.begin() as session:
        project, _, _ = await divided(session)
        review = await open_review(session, project)
        people = [await make_user(session) for _ in range(2)]

    async def settle(reviewer: User) -> bool:
        try:
            async with sessions.begin() as session:
                await reviews.settle(session, project, review.id, reviewer=reviewer)
        except reviews.ReviewSettled:
            return False
        return True

    assert sorted(await asyncio.gather(*(settle(person) for person in people))) == [False, True]
    await engine.dispose()


async def test_what_was_settled_is_changed_by_nobody_but_the_next_review(session: AsyncSession) -> None:
    project, task, (old, *_) = await divided(session)
    review = await open_review(session, project)
    ada = await session.get_one(User, old.annotator_id)
    reviewer = await make_user(session)
    order = await completion_ids_of(session, task)
    two, one = (RankingAnswer(places=dict(zip(order, places, strict=True))) for places in ([2, 2, 1], [1, 1, 1]))
    changed = await service.revise(session, ranking_id=old.id, annotator=ada, answer=two)
    await reviews.settle(session, project, review.id, reviewer=reviewer, answer=two)
    with pytest.raises(service.RankingSettled):
        await service.revise(session, ranking_id=changed.id, annotator=ada, answer=one)
    with pytest.raises(IntegrityError, match="was settled by a reviewer"):
        async with session.begin_nested():
            await session.execute(
                text(
                    "insert into rankings (project_id, task_id, annotator_id, lease_id, source,"
                    " body_hash, supersedes_id)"
                    " select project_id, task_id, annotator_id, lease_id, source, ''::bytea, id from rankings"
                    " where id = :id"
                ),
                {"id": changed.id},
            )
    # When the task waits again, whoever reviews it may think again.
    again = Review(project_id=project.id, task_id=task.id, disagreement=0.7, last_number=0)
    session.add(again)
    await session.flush()
    await reviews.settle(session, project, again.id, reviewer=reviewer, answer=one)
    assert (await session.get_one(Task, task.id)).settled_number == again.last_number


# Pages


async def test_a_reviewer_settles_on_the_page(client: AsyncClient, session: AsyncSession) -> None:
    project, task, rankings = await divided(session)
    await sign_in(client, session)
    base = f"/projects/{project.slug}/quality/reviews"
    review = await open_review(session, project)
    await session.commit()
    assert str(review.id) in (await client.get(base)).text
    page = (await client.get(f"{base}/{review.id}")).text
    assert page.count('type="checkbox" name="rejected"') == 3
    assert "Consensus" in page
    order = await completion_ids_of(session, task)
    places = {f"place_{completion_id}": str(place) for place, completion_id in enumerate(order, start=1)}
    answer = await client.post(
        f"{base}/{review.id}",
        data={"action": "correct", "rejected": str(rankings[1].id), "reason": "<i>turned</i> round", **places},
    )
    assert answer.headers["location"] == base
    page = (await client.get(f"{base}/{review.id}")).text
    assert "&lt;i&gt;turned&lt;/i&gt; round" in page
    assert "by a reviewer" in page
    assert "A reviewer rejected it" in (await client.get(f"/projects/{project.slug}/rankings/{rankings[1].id}")).text
    assert (await client.post(f"{base}/{review.id}", data={"action": "approve"})).status_code == 409


@pytest.mark.parametrize(
    "data",
    [{}, {"action": "burn"}, {"action": "reject", "reason": "r"}, {"action": "reject", "rejected": "x", "reason": "r"},
     {"action": "correct"}, {"action": "approve", "reason": "x" * 1001}],
)  # fmt: skip
async def test_a_form_that_says_nothing_is_refused(
    client: AsyncClient, session: AsyncSession, data: dict[str, str]
) -> None:
    project, _, _ = await divided(session)
    await sign_in(client, session)
    review = await open_review(session, project)
    await session.commit()
    answer = await client.post(f"/projects/{project.slug}/quality/reviews/{review.id}", data=data)
    assert answer.status_code == 422


async def test_a_refused_decision_keeps_what_was_typed(client: AsyncClient, session: AsyncSession) -> None:
    """A reason is missing: nothing is stored, the page says so, and marks and places stay as they were."""
    project, task, rankings = await divided(session)
    await sign_in(client, session)
    review = await open_review(session, project)
    order = await completion_ids_of(session, task)
    await session.commit()
    places = {f"place_{completion_id}": str(place) for place, completion_id in enumerate(order, start=1)}
    marked = {"action": "correct", "rejected": str(rankings[1].id)}
    answer = await client.post(f"/projects/{project.slug}/quality/reviews/{review.id}", data=marked | places)
    assert answer.status_code == 422
    assert 'href="#reason"' in answer.text
    assert f'value="{rankings[1].id}" checked' in answer.text
    assert answer.text.count(" checked") == 1
    assert [f"<option selected>{place}</option>" in answer.text for place in range(1, len(order) + 1)] == [True] * 3
    assert await open_review(session, project) == review
    answer = await client.post(
        f"/projects/{project.slug}/quality/reviews/{review.id}", data={"action": "correct", "reason": "I <b>know</b>"}
    )
    assert "I &lt;b&gt;know&lt;/b&gt;" in answer.text
    assert f'href="#places.{order[0]}"' in answer.text


async def test_reviewers_find_the_queue_from_home(client: AsyncClient, session: AsyncSession) -> None:
    project, _, _ = await divided(session)
    user = await sign_in(client, session, role=Role.REVIEWER)
    await open_review(session, project)
    await session.commit()
    assert user.role in {Role.REVIEWER, None}
    assert "1 disagreement to settle" in (await client.get("/")).text
    page = await client.get(f"/projects/{project.slug}/quality/reviews")
    assert page.status_code == 200
    assert f"/projects/{project.slug}/settings" not in page.text


async def test_without_anybody_looking_people_are_measured_and_disagreements_wait(
    session: AsyncSession, sessionmaker: SessionMaker
) -> None:
    project, _, _ = await divided(session)
    await session.commit()
    assert await watch.look(sessionmaker) == 3
    assert await reviews.count_open(session, project) == 1
    assert await watch.look(sessionmaker) == 0
