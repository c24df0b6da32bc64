"""Quality out of the database: what is read, who is measured when, and flags that stay until they are settled."""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import User
from app.projects.models import Project
from app.quality import reading, service
from app.quality.detectors import Check
from app.quality.models import AnnotatorRecord, QualityFlag
from app.quality.orders import Judgement
from app.rankings.models import Ranking
from app.tasks.models import GoldOrder, Task
from tests.app.rankings.test_costs import counted
from tests.factories import completion_ids_of, make_project, make_prompt, make_ranking, make_task, make_user


async def crowd_project(
    session: AsyncSession, *, num_people: int = 5, num_tasks: int = 20, reversed_person: bool = False
) -> tuple[Project, list[User]]:
    """Everybody ranks everything, nearly in the same order; the last person may turn every order round."""
    rng = random.Random(1)
    project = await make_project(session)
    people = [await make_user(session) for _ in range(num_people)]
    for _ in range(num_tasks):
        task = await make_task(session, await make_prompt(session, project), k=3, overlap=num_people)
        for person in people:
            places = rng.choice([[1, 2, 3], [1, 2, 3], [1, 3, 2]])
            if reversed_person and person is people[-1]:
                places = [4 - place for place in places]
            await make_ranking(session, task, annotator=person, places=places)
    return project, people


async def test_a_ranking_is_read_as_it_was_made(session: AsyncSession) -> None:
    project = await make_project(session)
    task = await make_task(session, await make_prompt(session, project, language="zh"), k=3, round=2)
    shown = await completion_ids_of(session, task)
    ranking = await make_ranking(
        session, task, places=[2, None, 1], marks={shown[0]: {"labels": ["opinion"]}}, active_seconds=12.5,
        is_preloaded=True,
    )  # fmt: skip
    (found,) = await reading.newest(session, project.id)
    assert (found.task, found.prompt, found.annotator) == (task.id, task.prompt_id, ranking.annotator_id)
    assert (list(found.places), list(found.seats)) == ([2, None, 1], [2, 1, 0])
    assert found.labels == [{"opinion"}, frozenset(), frozenset()]
    assert (found.seconds, found.round, found.language, found.key) == (12.5, 2, "zh", ranking.id)
    assert all(length > 5 for length in found.lengths)


async def test_what_was_superseded_or_came_too_late_does_not_count(session: AsyncSession) -> None:
    project = await make_project(session)
    task = await make_task(session, await make_prompt(session, project), overlap=3)
    first = await make_ranking(session, task)
    newer = await make_ranking(
        session, task, annotator=await session.get_one(User, first.annotator_id), lease_id=first.lease_id,
        supersedes_id=first.id, active_seconds=None,
    )  # fmt: skip
    await make_ranking(session, task, is_surplus=True)
    found = await reading.newest(session, project.id)
    assert [judgement.key for judgement in found] == [newer.id]
    assert found[0].seconds is None, "how long a change of mind took, nobody knows"
    assert await reading.overlapping(session, project.id) == []


async def test_overlapping_rankings_are_found_among_the_newest(
    session: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, _ = await crowd_project(session, num_people=2, num_tasks=3)
    await make_ranking(session, await make_task(session, await make_prompt(session, project)))
    assert len(await reading.overlapping(session, project.id)) == 6
    assert len(await reading.overlapping(session, project.id, limit=4)) == 4
    monkeypatch.setattr(reading, "SCANNED", 3)
    # The newest is of a task that one person ranked; the two before it name one task, of which every ranking counts.
    assert len(await reading.overlapping(session, project.id)) == 2
    monkeypatch.setattr(reading, "SCANNED", 2)
    assert len(await reading.overlapping(session, project.id)) == 2


async def test_each_task_is_looked_up_whatever_the_statistics_say(session: AsyncSession) -> None:
    """Of a table in which nobody was second yet, PostgreSQL would begin with the tasks that have two rankings, and
    compare each with the newest 20,000; a limit it can't pull apart."""
    project = await make_project(session)
    await session.execute(text("set local enable_seqscan = off"))
    query = reading.of_several(project.id, 100).compile(compile_kwargs={"literal_binds": True})
    plan = "\n".join(await session.scalars(text(f"explain {query}")))
    looked_up = r"Limit .*\n +->  Index Scan using pk_tasks on tasks .*\n +Index Cond: \(id = "
    assert re.search(looked_up, plan), plan


async def test_another_projects_rankings_are_not_read(session: AsyncSession) -> None:
    project, people = await crowd_project(session, num_people=2, num_tasks=1)
    other, _ = await crowd_project(session, num_people=2, num_tasks=1)
    await make_ranking(session, await make_task(session, await make_prompt(session, other)), annotator=people[0])
    assert len(await reading.newest(session, project.id)) == 2
    assert len(await reading.of_people(session, project.id, [people[0].id])) == 1


def measured_anew(judgements: Mapping[reading.Key, Judgement]) -> service.Overview:
    """Agreement from what the database says, whatever is kept in memory."""
    return service.overview_of(sorted(judgements.values(), key=lambda judgement: judgement.number))


async def test_agreement_is_kept_until_something_about_it_changes(session: AsyncSession) -> None:
    project, people = await crowd_project(session, num_people=3, num_tasks=4, reversed_person=True)
    task = (await session.scalars(select(Task).where(Task.project_id == project.id))).first()
    assert task is not None
    other = await make_task(session, await make_prompt(session, project), k=3, overlap=3)
    mine = await make_ranking(session, other, annotator=people[0], places=[1, 2, 3])

    async def rank() -> None:
        await make_ranking(session, other, annotator=people[1], places=[3, 2, 1])

    async def change_mind() -> None:
        same = {"annotator": people[0], "lease_id": mine.lease_id, "supersedes_id": mine.id}
        await make_ranking(session, other, places=[3, 1, 2], **same)

    async def mark_gold() -> None:
        session.add(GoldOrder(task_id=task.id, places=[1, 2, 3]))
        await session.flush()

    async def erase() -> None:
        await session.execute(update(Ranking).where(Ranking.annotator_id == people[2].id).values(annotator_id=None))

    async def add_person() -> None:
        await make_ranking(session, other, annotator=people[2], places=[2, 2, 1])

    found = [await service.overview(session, project)]
    for happens in (rank, change_mind, mark_gold, erase, add_person):
        await happens()
        found.append(await service.overview(session, project))
        keys = await reading.overlapping_keys(session, project.id)
        assert found[-1] == measured_anew(await reading.read(session, [key[0] for key in keys])), happens.__name__
        assert found[-1] != found[-2], happens.__name__
        assert await service.overview(session, project) is found[-1]


async def test_what_was_read_once_is_not_read_again(session: AsyncSession) -> None:
    project, people = await crowd_project(session, num_people=2, num_tasks=3)
    first = await reading.overlapping(session, project.id)
    async with counted(session) as statements:
        assert await reading.overlapping(session, project.id) == first
    assert len(statements) == 1
    await service.usual_in(session, project)
    async with counted(session) as statements:
        await service.usual_in(session, project)
        await service.usual_overview(session, project)
        await service.usual_overview(session, project)
    assert len(statements) == 4, "the newest ranking's number, and the keys of one overview"
    task = await make_task(session, await make_prompt(session, project), k=3)
    await make_ranking(session, task, annotator=people[0])
    before = await service.usual_in(session, project)
    assert before != await service.usual_in(session, project, {task.id: [1, 2, 3]})


async def test_what_is_usual_is_worked_out_anew_when_a_hundredth_is_new(
    session: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "STALE", 0.5)
    project, people = await crowd_project(session, num_people=2, num_tasks=2)
    first = (await service.usual_overview(session, project), await service.usual_in(session, project))
    task = await make_task(session, await make_prompt(session, project), k=3, overlap=4)
    for index in range(2):
        await make_ranking(session, task, annotator=people[index], places=[3, 2, 1])
        now = (await service.usual_overview(session, project), await service.usual_in(session, project))
        assert (now[0] is first[0], now[1] is first[1]) == (True, True)
    await make_ranking(session, task, places=[3, 2, 1])
    assert await service.usual_overview(session, project) == await service.overview(session, project) != first[0]
    assert (await service.usual_in(session, project)).num_people == 3


async def test_agreement_in_parts(session: AsyncSession) -> None:
    project = await make_project(session)
    people = [await make_user(session) for _ in range(2)]
    for language, places in (("en", [1, 2]), ("zh", [2, 1])):
        task = await make_task(session, await make_prompt(session, project, language=language), k=2, overlap=2)
        await make_ranking(session, task, annotator=people[0], places=[1, 2])
        await make_ranking(session, task, annotator=people[1], places=places)
    found = await service.overview(session, project)
    assert found.everything.with_ties is not None
    assert found.everything.with_ties.value == 0.5
    shares = {key: part.with_ties.value for key, part in found.by_language if part.with_ties}
    assert shares == {"en": 1.0, "zh": 0.0}


async def test_people_are_measured_once_until_they_rank_again(session: AsyncSession) -> None:
    project, people = await crowd_project(session)
    assert await service.measure_people(session, project, limit=4) == 4
    assert await service.measure_people(session, project) == 1
    assert await service.measure_people(session, project) == 0
    task = await make_task(session, await make_prompt(session, project), k=3)
    await make_ranking(session, task, annotator=people[2])
    assert await service.measure_people(session, project) == 1
    record = await session.get_one(AnnotatorRecord, (project.id, people[2].id), populate_existing=True)
    assert record.num_rankings == 21


async def test_who_turns_orders_round_is_flagged_once(session: AsyncSession) -> None:
    project, people = await crowd_project(session, reversed_person=True)
    await service.measure_people(session, project)
    await make_ranking(session, await make_task(session, await make_prompt(session, project)), annotator=people[-1])
    await service.measure_people(session, project)
    flags = (await session.scalars(select(QualityFlag))).all()
    assert {flag.annotator_id for flag in flags} == {people[-1].id}
    names = [flag.check_name for flag in flags]
    # The factory shows answers in reverse: to turn the order round is to prefer the first card.
    assert sorted(names) == [Check.FIRST_CARD, Check.RANDOM, Check.REVERSED]
    rows = await service.list_people(session, project, limit=10)
    assert rows[0].id == people[-1].id
    assert [len(row.flags) for row in rows] == [3, 0, 0, 0, 0]


async def test_a_flag_is_settled_once_and_comes_back_only_with_new_rankings(
    session: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, people = await crowd_project(session, reversed_person=True)
    admin = await make_user(session)
    await service.measure_people(session, project)
    flags = list((await session.scalars(select(QualityFlag))).all())
    for flag in flags:
        await service.settle_flag(session, project, flag.id, settlement="dismissed", note="", actor_id=admin.id)
    with pytest.raises(service.FlagSettled):
        await service.settle_flag(session, project, flags[0].id, settlement="confirmed", note="", actor_id=admin.id)
    await make_ranking(session, await make_task(session, await make_prompt(session, project)), annotator=people[-1])
    await service.measure_people(session, project)
    assert len((await session.scalars(select(QualityFlag))).all()) == 3
    monkeypatch.setattr(reading, "PER_PERSON", 1)
    portrait = (await service.list_people(session, project, limit=1))[0].portrait
    check = portrait.checks[Check.REVERSED]
    await service.raise_flag(session, project, people[-1].id, Check.REVERSED, check, 10**9)
    assert len((await session.scalars(select(QualityFlag))).all()) == 4


async def test_a_portrait_tells_time_ties_cards_and_length(session: AsyncSession) -> None:
    project = await make_project(session)
    person = await make_user(session)
    monday = datetime(2026, 11, 16, 12, 0, tzinfo=UTC)
    for index in range(4):
        task = await make_task(session, await make_prompt(session, project), k=2)
        await make_ranking(
            session, task, annotator=person, places=[1, 1] if index == 0 else [2, 1], is_offline=True,
            active_seconds=10.0 + index, created_at=monday + timedelta(days=index % 2),
        )  # fmt: skip
    portrait = (await service.portraits(session, project, [person.id]))[person.id]
    assert (portrait.num, portrait.seconds, portrait.ties) == (4, 11.5, 0.25)
    # The factory shows answers in reverse: the first card is the second answer, which wins three times and a half.
    assert portrait.first is not None
    assert portrait.first.value == pytest.approx(3.5 / 4)
    assert [(day.weekday, day.num, day.seconds) for day in portrait.days] == [(0, 2, 11.0), (1, 2, 12.0)]
    assert (portrait.agreement, portrait.gold) == (None, None)


async def test_gold_is_compared_with_what_is_known(session: AsyncSession) -> None:
    project, people = await crowd_project(session, num_people=1, num_tasks=2)
    tasks = [judgement.task for judgement in await reading.newest(session, project.id)]
    gold = {tasks[0]: [1, 2, 3], tasks[1]: [3, 2, 1]}
    places = [[place or 0 for place in judgement.places] for judgement in await reading.newest(session, project.id)]
    found = (await service.portraits(session, project, [people[0].id], gold))[people[0].id].gold
    expected = sum(
        (one[i] < one[j]) == (known[i] < known[j])
        for one, known in zip(places, gold.values(), strict=True)
        for i, j in ((0, 1), (0, 2), (1, 2))
    )
    assert found is not None
    assert found.value == pytest.approx(expected / 6)


async def test_nobody_and_nothing(session: AsyncSession) -> None:
    project = await make_project(session)
    assert (await service.overview(session, project)).everything.with_ties is None
    assert await service.measure_people(session, project) == 0
    assert await service.portraits(session, project, [uuid.uuid4()]) == {}
