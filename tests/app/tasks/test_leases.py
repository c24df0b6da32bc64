"""Which task next: one lease a person, exact overlap, expiry, skips, drafts (docs/design.md, section 3, rule 1)."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import User
from app.db import stamp
from app.errors import Invalid, TooLarge
from app.i18n import format_bounded
from app.projects.models import Project
from app.tasks import drafts, making, service, waiting
from app.tasks.models import Lease, LeaseState, Task
from tests import factories
from tests.factories import make_completion, make_project, make_prompt, make_user, num_waiting

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
LATER = NOW + timedelta(hours=2)


@pytest.fixture
async def project(session: AsyncSession) -> Project:
    return await make_project(session, lease_minutes=60)


@pytest.fixture
async def ada(session: AsyncSession) -> User:
    return await make_user(session, name="Ada")


@pytest.fixture
async def bo(session: AsyncSession) -> User:
    return await make_user(session, name="Bo")


async def make_task(session: AsyncSession, *, project: Project, k: int = 4, **settings: Any) -> Task:
    return await factories.make_task(session, await make_prompt(session, project), k=k, **settings)


async def next_lease(session: AsyncSession, project: Project, annotator: User, now: datetime = NOW) -> Lease | None:
    return await service.next_lease(session, project=project, annotator=annotator, now=now)


async def take(session: AsyncSession, project: Project, annotator: User, now: datetime = NOW) -> Lease:
    lease = await next_lease(session, project, annotator, now)
    assert lease is not None
    return lease


async def num_taken(session: AsyncSession, task: Task) -> int:
    await session.refresh(task)
    return task.num_taken


async def test_a_waiting_task_is_leased_for_the_projects_time(
    session: AsyncSession, project: Project, ada: User
) -> None:
    task = await make_task(session, project=project)
    lease = await take(session, project, ada)
    assert (lease.task_id, lease.expires_at) == (task.id, NOW + timedelta(minutes=60))


async def test_asking_again_gives_the_same_lease(session: AsyncSession, project: Project, ada: User) -> None:
    await make_task(session, project=project)
    await make_task(session, project=project)
    assert await take(session, project, ada) is await take(session, project, ada)


async def test_nothing_waits_once_all_places_are_taken(
    session: AsyncSession, project: Project, ada: User, bo: User
) -> None:
    task = await make_task(session, project=project)
    await take(session, project, ada)
    assert await next_lease(session, project, bo) is None
    assert await num_taken(session, task) == 1


async def test_overlap_lets_as_many_people_in(session: AsyncSession, project: Project, ada: User, bo: User) -> None:
    task = await make_task(session, project=project, overlap=2)
    assert (await take(session, project, ada)).task_id == (await take(session, project, bo)).task_id
    assert await num_taken(session, task) == 2


async def test_higher_priority_comes_first_then_the_older_task(
    session: AsyncSession, project: Project, ada: User
) -> None:
    first = await make_task(session, project=project)
    second = await make_task(session, project=project)
    urgent = await make_task(session, project=project, priority=5)
    order = []
    for _ in range(3):
        lease = await take(session, project, ada)
        order.append(lease.task_id)
        await service.release_lease(session, lease_id=lease.id, annotator=ada)
    assert order == [urgent.id, first.id, second.id]


async def test_tasks_of_the_current_round_come_first(session: AsyncSession, project: Project, ada: User) -> None:
    made = []
    for number in (1, 2, 1):
        prompt = await make_prompt(session, project)
        ids = [(await make_completion(session, prompt)).id for _ in range(2)]
        made.append(
            await making.create_task(session, project=project, prompt_id=prompt.id, completion_ids=ids, round=number)
        )
    assert (await take(session, project, ada)).task_id == made[1].id


async def test_a_skipped_task_goes_to_someone_else_and_never_back(
    session: AsyncSession, project: Project, ada: User, bo: User
) -> None:
    task = await make_task(session, project=project)
    lease = await take(session, project, ada)
    await service.release_lease(session, lease_id=lease.id, annotator=ada, reason="no Chinese")
    assert await next_lease(session, project, ada) is None
    assert (await take(session, project, bo)).task_id == task.id


async def test_an_overdue_lease_makes_room_for_someone_else(
    session: AsyncSession, project: Project, ada: User, bo: User
) -> None:
    await make_task(session, project=project)
    lease = await take(session, project, ada)
    assert (await take(session, project, bo, LATER)).task_id == lease.task_id
    await session.refresh(lease)
    assert lease.state == LeaseState.EXPIRED


async def test_an_expired_lease_is_reopened_with_its_order_and_draft(
    session: AsyncSession, project: Project, ada: User
) -> None:
    await make_task(session, project=project)
    lease = await take(session, project, ada)
    seen, draft = list(lease.display_order), {"places": {str(lease.display_order[0]): 1}}
    await drafts.save_draft(session, lease_id=lease.id, annotator=ada, draft=draft, now=NOW)
    assert await service.expire_leases(session, now=LATER) == 1
    again = await take(session, project, ada, LATER)
    assert (again.id, again.display_order, again.draft) == (lease.id, seen, draft)
    assert (again.state, again.expires_at) == (LeaseState.OPEN, LATER + timedelta(minutes=60))


async def test_an_expired_lease_is_not_reopened_beyond_the_overlap(
    session: AsyncSession, project: Project, ada: User, bo: User
) -> None:
    task = await make_task(session, project=project)
    await take(session, project, ada)
    await take(session, project, bo, LATER)
    assert await next_lease(session, project, ada, LATER) is None
    assert await num_taken(session, task) == 1


async def test_an_open_lease_in_another_project_waits_there(session: AsyncSession, project: Project, ada: User) -> None:
    other = await make_project(session)
    await make_task(session, project=project)
    await make_task(session, project=other)
    first = await take(session, project, ada)
    second = await take(session, other, ada)
    await session.refresh(first)
    assert (first.state, second.state) == (LeaseState.EXPIRED, LeaseState.OPEN)
    assert (await take(session, project, ada)).id == first.id


async def test_a_paused_project_gives_nothing_new_and_takes_nothing_away(
    session: AsyncSession, project: Project, ada: User, bo: User
) -> None:
    await make_task(session, project=project, overlap=2)
    lease = await take(session, project, ada)
    project.is_paused = True
    assert await next_lease(session, project, bo) is None
    assert await take(session, project, ada) is lease


async def test_a_withdrawn_task_is_taken_back(session: AsyncSession, project: Project, ada: User) -> None:
    task = await make_task(session, project=project)
    lease = await take(session, project, ada)
    await making.withdraw_task(session, project_id=project.id, task_id=task.id)
    assert await next_lease(session, project, ada) is None
    assert lease.state == LeaseState.EXPIRED
    assert await num_taken(session, task) == 0


async def test_the_order_of_display_is_stored_with_its_seed(
    session: AsyncSession, project: Project, ada: User, bo: User
) -> None:
    task = await make_task(session, project=project, k=9, overlap=2)
    made = await service.completion_ids(session, task.id)
    leases = [await take(session, project, annotator) for annotator in (ada, bo)]
    for lease in leases:
        assert lease.display_order == service.shuffle(made, lease.seed)
        assert sorted(lease.display_order) == sorted(made)
    assert leases[0].display_order != leases[1].display_order, "one in 9! draws is the same"


async def test_every_order_of_display_is_as_likely_as_any_other() -> None:
    ids = [uuid.UUID(int=index) for index in range(3)]
    counts: dict[tuple[uuid.UUID, ...], int] = {}
    for seed in range(6000):
        order = tuple(service.shuffle(ids, seed))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    # 1000 expected each; the chance of a deviation of 150 is below one in a million.
    assert all(850 < count < 1150 for count in counts.values())


async def test_another_persons_lease_does_not_exist(
    session: AsyncSession, project: Project, ada: User, bo: User
) -> None:
    await make_task(session, project=project)
    lease = await take(session, project, ada)
    with pytest.raises(service.LeaseNotFound):
        await service.release_lease(session, lease_id=lease.id, annotator=bo)


async def test_a_draft_keeps_the_lease(session: AsyncSession, project: Project, ada: User) -> None:
    await make_task(session, project=project)
    lease = await take(session, project, ada)
    soon = NOW + timedelta(minutes=59)
    await drafts.save_draft(session, lease_id=lease.id, annotator=ada, draft={"places": {}}, now=soon)
    assert lease.expires_at == soon + timedelta(minutes=60)


async def test_a_draft_that_was_overtaken_is_not_stored(session: AsyncSession, project: Project, ada: User) -> None:
    """Its page was left; the next page saved before it arrived."""
    await make_task(session, project=project)
    lease = await take(session, project, ada)

    async def save(rationale: str, follows: str | None) -> None:
        draft = {"rationale": rationale}
        await drafts.save_draft(session, lease_id=lease.id, annotator=ada, draft=draft, now=NOW, follows=follows)

    await save("of the next page", "")
    saved_at = stamp(lease.draft_saved_at)
    await save("of the page that was left", "")
    assert (lease.draft, stamp(lease.draft_saved_at)) == ({"rationale": "of the next page"}, saved_at)
    await save("on top of it", saved_at)
    assert (lease.draft, stamp(lease.draft_saved_at) > saved_at) == ({"rationale": "on top of it"}, True)
    await save("of a program that asks nothing", None)
    assert lease.draft == {"rationale": "of a program that asks nothing"}


async def test_a_draft_names_answers_of_its_task_only(session: AsyncSession, project: Project, ada: User) -> None:
    await make_task(session, project=project)
    lease = await take(session, project, ada)
    stranger = "00000000-0000-0000-0000-000000000001"
    for field in ("places", "ratings", "labels"):
        with pytest.raises(Invalid, match=f"{field}.{stranger}"):
            await drafts.save_draft(session, lease_id=lease.id, annotator=ada, draft={field: {stranger: None}}, now=NOW)


async def test_a_draft_over_64_kb_is_refused(session: AsyncSession, project: Project, ada: User) -> None:
    await make_task(session, project=project)
    lease = await take(session, project, ada)
    draft = {"places": {}, "rationale": "x" * 64 * 1024}
    with pytest.raises(TooLarge, match="64 kB"):
        await drafts.save_draft(session, lease_id=lease.id, annotator=ada, draft=draft, now=NOW)


async def test_waiting_counts_what_this_person_could_rank(
    session: AsyncSession, project: Project, ada: User, bo: User
) -> None:
    empty = await make_project(session)
    for _ in range(3):
        await make_task(session, project=project)
    lease = await take(session, project, ada)
    assert await num_waiting(session, project, ada, NOW) == 3
    assert await num_waiting(session, project, bo, NOW) == 2
    assert await num_waiting(session, project, bo, LATER) == 3
    assert await num_waiting(session, empty, ada, NOW) == 0
    await service.release_lease(session, lease_id=lease.id, annotator=ada)
    assert await num_waiting(session, project, ada, NOW) == 2


async def test_what_waits_is_counted_to_a_hundred_and_one(session: AsyncSession, project: Project, ada: User) -> None:
    made = await make_task(session, project=project)
    number = waiting.MOST_COUNTED + 20
    await session.execute(
        text(
            "insert into tasks (project_id, prompt_id, overlap) select :project, :prompt, 1 from generate_series(1, :n)"
        ),
        {"project": project.id, "prompt": made.prompt_id, "n": number},
    )
    counted = await num_waiting(session, project, ada, NOW)
    assert counted == waiting.MOST_COUNTED + 1
    assert format_bounded("en", counted) == "100+"
    assert format_bounded("en", waiting.MOST_COUNTED) == "100"


async def test_the_database_itself_refuses_one_lease_too_many(
    session: AsyncSession, project: Project, ada: User, bo: User
) -> None:
    task = await make_task(session, project=project)
    await take(session, project, ada)
    insert = text(
        "insert into leases (task_id, annotator_id, display_order, seed, expires_at)"
        " values (:task, :annotator, '{}', 0, now() + interval '1 hour')"
    )
    with pytest.raises(IntegrityError, match="has no free place"):
        async with session.begin_nested():
            await session.execute(insert, {"task": task.id, "annotator": bo.id})
    assert await num_taken(session, task) == 1


async def test_the_database_itself_refuses_a_second_lease_on_a_task(
    session: AsyncSession, project: Project, ada: User
) -> None:
    task = await make_task(session, project=project, overlap=3)
    await take(session, project, ada)
    insert = text(
        "insert into leases (task_id, annotator_id, state, display_order, seed, expires_at)"
        " values (:task, :annotator, 'expired', '{}', 0, now())"
    )
    with pytest.raises(IntegrityError, match="uq_leases_task_id_annotator_id"):
        async with session.begin_nested():
            await session.execute(insert, {"task": task.id, "annotator": ada.id})


async def test_an_overlap_lowered_later_keeps_what_was_taken(
    session: AsyncSession, project: Project, ada: User, bo: User
) -> None:
    task = await make_task(session, project=project, overlap=3)
    lease = await take(session, project, ada)
    await take(session, project, bo)
    await session.execute(text("update tasks set overlap = 1 where id = :id"), {"id": task.id})
    assert await num_taken(session, task) == 2
    await service.release_lease(session, lease_id=lease.id, annotator=ada)
    assert await next_lease(session, project, await make_user(session)) is None


@pytest.mark.parametrize("num", [1, 10])
async def test_a_task_compares_two_to_nine_answers(session: AsyncSession, project: Project, num: int) -> None:
    prompt = await make_prompt(session, project)
    ids = [(await make_completion(session, prompt)).id for _ in range(num)]
    with pytest.raises(Invalid, match=f"2 to 9 answers, not {num}"):
        await making.create_task(session, project=project, prompt_id=prompt.id, completion_ids=ids)


async def test_a_task_holds_its_completions_in_order(session: AsyncSession, project: Project) -> None:
    prompt = await make_prompt(session, project)
    ids = [(await make_completion(session, prompt)).id for _ in range(9)]
    task = await making.create_task(session, project=project, prompt_id=prompt.id, completion_ids=ids)
    assert await service.completion_ids(session, task.id) == ids
    assert (task.overlap, task.num_taken) == (project.overlap, 0)


def test_a_share_of_the_tasks_is_ranked_by_several() -> None:
    groups = [[uuid.UUID(int=2 * number), uuid.UUID(int=2 * number + 1)] for number in range(4000)]
    for share in (0, 0.3, 1):
        project = Project(seed=17, overlap_share=share)
        chosen = [making.is_for_several(project, ids) for ids in groups]
        # Four standard deviations of 4,000 draws at 0.3; none or all at the ends.
        assert sum(chosen) == pytest.approx(share * 4000, abs=116 if 0 < share < 1 else 0)
        assert chosen == [making.is_for_several(project, ids[::-1]) for ids in groups]
    other = Project(seed=18, overlap_share=0.3)
    assert [making.is_for_several(other, ids) for ids in groups[:100]] != [
        making.is_for_several(Project(seed=17, overlap_share=0.3), ids) for ids in groups[:100]
    ]


@pytest.mark.parametrize(
    ("share", "asked", "overlap", "is_single"), [(0, None, 1, True), (1, None, 3, False), (0, 2, 2, False)]
)
async def test_who_is_not_in_the_share_is_ranked_once(
    session: AsyncSession, share: float, asked: int | None, overlap: int, is_single: bool
) -> None:
    project = await make_project(session, overlap=3, overlap_share=share)
    prompt = await make_prompt(session, project)
    ids = [(await make_completion(session, prompt)).id for _ in range(2)]
    task = await making.create_task(session, project=project, prompt_id=prompt.id, completion_ids=ids, overlap=asked)
    assert (task.overlap, task.is_single) == (overlap, is_single)


async def test_an_answer_is_compared_with_itself_by_nobody(session: AsyncSession, project: Project) -> None:
    prompt = await make_prompt(session, project)
    completion = await make_completion(session, prompt)
    with pytest.raises(Invalid, match="twice"):
        await making.create_task(
            session, project=project, prompt_id=prompt.id, completion_ids=[completion.id, completion.id]
        )


async def test_two_answers_with_the_same_text_are_refused(session: AsyncSession, project: Project) -> None:
    prompt = await make_prompt(session, project)
    twins = [(await make_completion(session, prompt, text="The same.")).id for _ in range(2)]
    with pytest.raises(Invalid, match="same text"):
        await making.create_task(session, project=project, prompt_id=prompt.id, completion_ids=twins)


async def test_an_answer_to_another_prompt_is_refused(session: AsyncSession, project: Project) -> None:
    prompts = [await make_prompt(session, project) for _ in range(2)]
    ids = [(await make_completion(session, prompt, text=str(prompt.id))).id for prompt in prompts]
    with pytest.raises(Invalid, match="does not belong to prompt"):
        await making.create_task(session, project=project, prompt_id=prompts[0].id, completion_ids=ids)
