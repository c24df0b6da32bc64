"""Storing answers: once a lease, immutable, superseded, in time or surplus (docs/design.md, section 3, rules 1-3)."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import User
from app.events import events
from app.projects.models import Project
from app.projects.service import update_project
from app.rankings import service
from app.rankings.answers import RankingAnswer
from app.rankings.models import Ranking
from app.tasks import drafts
from app.tasks import service as tasks
from app.tasks.models import Lease, LeaseState, Task
from tests.factories import make_project, make_prompt, make_ranking, make_task, make_user

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
LATER = NOW + timedelta(hours=2)


@pytest.fixture
async def project(session: AsyncSession) -> Project:
    return await make_project(session, labels=[{"key": "rude", "en": "Rude", "zh": "粗鲁"}])


@pytest.fixture
async def task(session: AsyncSession, project: Project) -> Task:
    return await make_task(session, await make_prompt(session, project), k=4)


@pytest.fixture
async def ada(session: AsyncSession) -> User:
    return await make_user(session, name="Ada")


@pytest.fixture
async def bo(session: AsyncSession) -> User:
    return await make_user(session, name="Bo")


@pytest.fixture
async def lease(session: AsyncSession, project: Project, task: Task, ada: User) -> Lease:
    return await take(session, project, ada)


async def take(session: AsyncSession, project: Project, annotator: User, now: datetime = NOW) -> Lease:
    lease = await tasks.next_lease(session, project=project, annotator=annotator, now=now)
    assert lease is not None
    return lease


def answer(lease: Lease, *places: int | None, rationale: str = "") -> RankingAnswer:
    """Places in the order of display; without any, the order that was shown."""
    given = places or range(1, len(lease.display_order) + 1)
    return RankingAnswer(dict(zip(lease.display_order, given, strict=True)), rationale=rationale)


async def submit(session: AsyncSession, lease: Lease, annotator: User, given: RankingAnswer) -> Ranking:
    return await service.submit(session, lease_id=lease.id, annotator=annotator, answer=given, source="api")


async def num_rankings(session: AsyncSession) -> int:
    return await session.scalar(select(func.count()).select_from(Ranking)) or 0


async def test_an_order_with_ties_is_stored_as_given(session: AsyncSession, lease: Lease, ada: User) -> None:
    a, b, c, d = lease.display_order
    ranking = await submit(session, lease, ada, answer(lease, 2, 1, 4, 2))
    view = await service.get_ranking(session, ranking.id)
    assert view.order == [[b], [a, d], [c]]
    assert view.letter_order == [["B"], ["A", "D"], ["C"]]
    assert [view.places[key].place for key in (a, b, c, d)] == [2, 1, 3, 2]


async def test_the_order_that_was_shown_is_an_answer_too(session: AsyncSession, lease: Lease, ada: User) -> None:
    ranking = await submit(session, lease, ada, answer(lease))
    assert (await service.get_ranking(session, ranking.id)).order == [[key] for key in lease.display_order]


async def test_everything_tied_is_an_answer_too(session: AsyncSession, lease: Lease, ada: User) -> None:
    ranking = await submit(session, lease, ada, answer(lease, 1, 1, 1, 1))
    assert (await service.get_ranking(session, ranking.id)).letter_order == [["A", "B", "C", "D"]]


async def test_ratings_labels_and_reasons_are_kept(session: AsyncSession, lease: Lease, ada: User) -> None:
    a, b = lease.display_order[:2]
    given = RankingAnswer(answer(lease).places, {a: 7}, {b: ["rude"]}, " B shouts. ")
    view = await service.get_ranking(session, (await submit(session, lease, ada, given)).id)
    assert (view.places[a].rating, view.places[b].rating) == (7, None)
    assert (view.places[a].labels, view.places[b].labels) == ([], ["rude"])
    assert view.ranking.rationale == "B shouts."


async def test_what_was_left_out_is_missing_and_not_last(
    session: AsyncSession, project: Project, lease: Lease, ada: User
) -> None:
    project.partial_allowed = True
    ranking = await submit(session, lease, ada, answer(lease, 2, None, 1, None))
    view = await service.get_ranking(session, ranking.id)
    assert view.letter_order == [["C"], ["A"]]
    assert view.places[lease.display_order[1]].place is None


async def test_a_card_that_nobody_placed_is_never_stored(session: AsyncSession, lease: Lease, ada: User) -> None:
    with pytest.raises(service.AnswerRefused, match="Answer B has no place yet"):
        await submit(session, lease, ada, answer(lease, 1, None, 2, 3))
    assert await num_rankings(session) == 0


async def test_the_same_answer_again_gives_the_stored_ranking(session: AsyncSession, lease: Lease, ada: User) -> None:
    first = await submit(session, lease, ada, answer(lease, 1, 2, 2, 3))
    again = await submit(session, lease, ada, answer(lease, 1, 5, 5, 9))
    assert again.id == first.id
    assert await num_rankings(session) == 1


async def test_another_answer_to_the_same_lease_is_a_conflict(session: AsyncSession, lease: Lease, ada: User) -> None:
    await submit(session, lease, ada, answer(lease, 1, 2, 3, 4))
    with pytest.raises(service.AlreadyAnswered):
        await submit(session, lease, ada, answer(lease, 2, 1, 3, 4))


async def test_somebody_elses_lease_does_not_exist(session: AsyncSession, lease: Lease, bo: User) -> None:
    with pytest.raises(tasks.LeaseNotFound):
        await submit(session, lease, bo, answer(lease))


async def test_a_skipped_task_takes_no_ranking(session: AsyncSession, lease: Lease, ada: User) -> None:
    await tasks.release_lease(session, lease_id=lease.id, annotator=ada)
    with pytest.raises(tasks.LeaseReleased):
        await submit(session, lease, ada, answer(lease))


async def test_a_ranked_task_can_not_be_skipped(session: AsyncSession, lease: Lease, ada: User) -> None:
    await submit(session, lease, ada, answer(lease))
    with pytest.raises(tasks.LeaseAnswered):
        await tasks.release_lease(session, lease_id=lease.id, annotator=ada)


async def test_a_ranking_keeps_its_place(session: AsyncSession, lease: Lease, ada: User, task: Task) -> None:
    await submit(session, lease, ada, answer(lease))
    await session.refresh(task)
    assert (task.num_taken, lease.state) == (1, LeaseState.ANSWERED)


async def test_an_expired_lease_is_answered_while_a_place_is_free(
    session: AsyncSession, lease: Lease, ada: User, task: Task
) -> None:
    await tasks.expire_leases(session, now=LATER)
    ranking = await submit(session, lease, ada, answer(lease))
    await session.refresh(task)
    assert (ranking.is_surplus, lease.state, task.num_taken) == (False, LeaseState.ANSWERED, 1)


async def test_an_expired_lease_is_surplus_once_its_place_is_taken(
    session: AsyncSession, project: Project, lease: Lease, ada: User, bo: User, task: Task
) -> None:
    await take(session, project, bo, LATER)
    ranking = await submit(session, lease, ada, answer(lease))
    await session.refresh(task)
    assert (ranking.is_surplus, task.num_taken) == (True, 1)
    assert await service.count_rankings(session, project.id) == 0


async def test_who_answered_too_late_does_not_get_the_task_again(
    session: AsyncSession, project: Project, lease: Lease, ada: User, bo: User
) -> None:
    second = await take(session, project, bo, LATER)
    await submit(session, lease, ada, answer(lease))
    await tasks.release_lease(session, lease_id=second.id, annotator=bo)
    assert await tasks.next_lease(session, project=project, annotator=ada, now=LATER) is None


async def test_a_change_of_mind_is_a_new_row_and_takes_no_place(
    session: AsyncSession, project: Project, lease: Lease, ada: User, task: Task
) -> None:
    old = await submit(session, lease, ada, answer(lease, 1, 2, 3, 4))
    new = await service.revise(session, ranking_id=old.id, annotator=ada, answer=answer(lease, 4, 3, 2, 1))
    await session.refresh(task)
    views = [await service.get_ranking(session, key) for key in (old.id, new.id)]
    assert [view.is_current for view in views] == [False, True]
    assert [view.letter_order[0] for view in views] == [["A"], ["D"]]
    assert views[0].superseded_by == new.id
    assert task.num_taken == await service.count_rankings(session, project.id) == 1


async def test_the_same_change_of_mind_again_is_stored_once(session: AsyncSession, lease: Lease, ada: User) -> None:
    old = await submit(session, lease, ada, answer(lease, 1, 2, 3, 4))
    changed = answer(lease, 4, 3, 2, 1)
    first = await service.revise(session, ranking_id=old.id, annotator=ada, answer=changed)
    again = await service.revise(session, ranking_id=old.id, annotator=ada, answer=changed)
    assert again.id == first.id
    assert await num_rankings(session) == 2


async def test_a_ranking_is_superseded_once(session: AsyncSession, lease: Lease, ada: User) -> None:
    old = await submit(session, lease, ada, answer(lease, 1, 2, 3, 4))
    await service.revise(session, ranking_id=old.id, annotator=ada, answer=answer(lease, 4, 3, 2, 1))
    with pytest.raises(service.AlreadySuperseded):
        await service.revise(session, ranking_id=old.id, annotator=ada, answer=answer(lease, 1, 1, 2, 2))


async def test_nobody_revises_another_persons_ranking(session: AsyncSession, lease: Lease, ada: User, bo: User) -> None:
    old = await submit(session, lease, ada, answer(lease))
    with pytest.raises(service.RankingNotFound):
        await service.revise(session, ranking_id=old.id, annotator=bo, answer=answer(lease, 4, 3, 2, 1))


async def test_a_revised_surplus_stays_surplus(
    session: AsyncSession, project: Project, lease: Lease, ada: User, bo: User
) -> None:
    await take(session, project, bo, LATER)
    old = await submit(session, lease, ada, answer(lease))
    new = await service.revise(session, ranking_id=old.id, annotator=ada, answer=answer(lease, 4, 3, 2, 1))
    assert new.is_surplus


async def test_the_history_of_a_ranking_is_told_oldest_first(session: AsyncSession, lease: Lease, ada: User) -> None:
    old = await submit(session, lease, ada, answer(lease, 1, 2, 3, 4))
    new = await service.revise(session, ranking_id=old.id, annotator=ada, answer=answer(lease, 4, 3, 2, 1))
    assert [view.ranking.id for view in await service.history_of(session, new)] == [old.id, new.id]


@pytest.mark.parametrize(
    "statement",
    [
        "update rankings set rationale = 'x'",
        "update rankings set is_surplus = true",
        "update rankings set annotator_id = gen_random_uuid()",
        "delete from rankings",
        "update ranking_places set place = 4",
        "update ranking_places set rating = 1",
        "delete from ranking_places",
    ],
)
async def test_the_database_itself_refuses_to_change_a_ranking(
    session: AsyncSession, lease: Lease, ada: User, statement: str
) -> None:
    await submit(session, lease, ada, answer(lease))
    with pytest.raises(IntegrityError, match="never changed or deleted"):
        async with session.begin_nested():
            await session.execute(text(statement))


async def test_erasing_a_person_keeps_their_rankings(session: AsyncSession, lease: Lease, ada: User) -> None:
    ranking = await submit(session, lease, ada, answer(lease))
    await session.execute(text("delete from users where id = :id"), {"id": ada.id})
    await session.refresh(ranking)
    assert ranking.annotator_id is None


async def insert_bare_ranking(session: AsyncSession, lease: Lease, places: Mapping[uuid.UUID, int | None]) -> None:
    """What a program that forgot to check would write; the database checks it as it would at the commit."""
    values = {"lease": lease.id, "task": lease.task_id, "annotator": lease.annotator_id}
    ranking_id = await session.scalar(
        text(
            "insert into rankings (project_id, task_id, lease_id, annotator_id, source, body_hash)"
            " select project_id, :task, :lease, :annotator, 'api', '' from tasks where id = :task returning id"
        ),
        values,
    )
    for completion_id, place in places.items():
        await session.execute(
            text("insert into ranking_places (ranking_id, task_id, completion_id, place) values (:r, :t, :c, :p)"),
            {"r": ranking_id, "t": lease.task_id, "c": completion_id, "p": place},
        )
    await session.execute(text("set constraints all immediate"))


@pytest.mark.parametrize(
    ("places", "rule"),
    [
        ((1, 2, 3), "does not order the completions"),  # one is not named
        ((1, 2, 4, 5), "does not order the completions"),  # a gap
        ((1, 2, 3, None), "ties or gaps that its project does not allow"),
        ((1, 2, 2, 3), "ties or gaps that its project does not allow"),
    ],
)
async def test_the_database_itself_refuses_an_order_that_is_not_whole(
    session: AsyncSession, project: Project, lease: Lease, places: tuple[int | None, ...], rule: str
) -> None:
    project.ties_allowed = False
    await session.flush()
    named = dict(zip(lease.display_order, places, strict=False))
    with pytest.raises(IntegrityError, match=rule):
        async with session.begin_nested():
            await insert_bare_ranking(session, lease, named)


@pytest.mark.parametrize(
    ("asked", "places", "said", "rule"),
    [
        ({}, [1, 2, 3], {"strength": 1}, "strength that its order contradicts"),
        ({"k": 2}, [1, 2], {"strength": 0}, "strength that its order contradicts"),
        ({"k": 2}, [1, 1], {"strength": 2}, "strength that its order contradicts"),
        ({"confidence": "required"}, [1, 2], {}, "lacks an answer that its project requires"),
        ({"rationale": "required"}, [1, 2], {}, "lacks an answer that its project requires"),
        ({"rationale": "required", "min_rationale": 9}, [1, 2], {"rationale": "short"}, "lacks an answer"),
        ({"labels": [{"key": "rude", "en": "Rude", "zh": "", "required": True}]}, [1, 2], {}, "lacks an answer"),
        ({"confidence": "required"}, [1, 2], {"confidence": 4}, "ck_rankings_confidence"),
    ],
)
async def test_the_database_itself_keeps_the_questions(
    session: AsyncSession, asked: dict[str, Any], places: list[int], said: dict[str, Any], rule: str
) -> None:
    prompt = await make_prompt(session, await make_project(session, **asked))
    task = await make_task(session, prompt, k=len(places))

    async def store() -> None:
        await make_ranking(session, task, places=places, **said)
        await session.execute(text("set constraints all immediate"))

    with pytest.raises(IntegrityError, match=rule):
        await store()


async def test_a_label_that_was_removed_is_required_no_more(session: AsyncSession) -> None:
    labels = [{"key": "rude", "en": "Rude", "zh": "", "required": True}]
    project = await make_project(session, labels=labels)
    await update_project(session, project=project, changes={"labels": []})
    await make_ranking(session, await make_task(session, await make_prompt(session, project)))
    await session.execute(text("set constraints all immediate"))
    assert [(label["key"], label["removed"]) for label in project.labels] == [("rude", True)]


async def test_the_database_itself_refuses_an_answer_of_another_task(
    session: AsyncSession, project: Project, lease: Lease
) -> None:
    other = await make_task(session, await make_prompt(session, project))
    stranger = (await tasks.completion_ids(session, other.id))[0]
    named = dict(zip([*lease.display_order[:3], stranger], (1, 2, 3, 4), strict=True))
    with pytest.raises(IntegrityError, match="fk_ranking_places_task_id_completion_id"):
        async with session.begin_nested():
            await insert_bare_ranking(session, lease, named)


async def test_a_stored_ranking_is_published_in_its_transaction(
    session: AsyncSession, project: Project, lease: Lease, ada: User
) -> None:
    heard: list[service.RankingStored] = []

    async def hear(session: AsyncSession, event: service.RankingStored) -> None:
        heard.append(event)

    events.subscribe(service.RankingStored, hear)
    try:
        ranking = await submit(session, lease, ada, answer(lease))
        await submit(session, lease, ada, answer(lease))
    finally:
        events.unsubscribe(service.RankingStored, hear)
    assert [(event.project, event.ranking) for event in heard] == [(project, ranking)]


async def test_a_list_goes_on_where_it_stopped(session: AsyncSession, project: Project, ada: User) -> None:
    stored = []
    for _ in range(3):
        await make_task(session, await make_prompt(session, project))
        lease = await take(session, project, ada)
        stored.append((await submit(session, lease, ada, answer(lease))).id)
    newest = await service.list_rankings(session, project_id=project.id, limit=2)
    oldest = await service.list_rankings(session, project_id=project.id, before=newest[-1].ranking.number, limit=2)
    assert [view.ranking.id for view in [*newest, *oldest]] == stored[::-1]


async def test_a_draft_is_gone_once_its_ranking_is_stored(session: AsyncSession, lease: Lease, ada: User) -> None:
    await drafts.save_draft(session, lease_id=lease.id, annotator=ada, draft={"rationale": "so far"}, now=NOW)
    await submit(session, lease, ada, answer(lease))
    assert lease.draft is None
