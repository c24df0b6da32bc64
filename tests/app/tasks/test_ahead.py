"""Tasks ahead of need: one fetched early, a pack taken offline; several devices; what admins change meanwhile."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import User
from app.errors import Invalid
from app.projects.models import Project
from app.projects.service import update_project
from app.tasks import ahead, drafts, making, service
from app.tasks.ahead import Desk, ProjectRests
from app.tasks.models import Lease, LeaseKind, LeaseState, Task
from app.tasks.service import TasksPacked
from tests.factories import make_project, make_prompt, make_run, make_task, make_user

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
LATER = NOW + timedelta(hours=13)
PACK = uuid.UUID(int=1)
OTHER_PACK = uuid.UUID(int=2)


@pytest.fixture
async def project(session: AsyncSession) -> Project:
    """Five tasks wait."""
    project = await make_project(session, lease_minutes=60)
    for _ in range(5):
        await make_task(session, await make_prompt(session, project), k=2)
    return project


@pytest.fixture
async def ada(session: AsyncSession) -> User:
    return await make_user(session, name="Ada")


@pytest.fixture
async def bo(session: AsyncSession) -> User:
    return await make_user(session, name="Bo")


async def take(
    session: AsyncSession, project: Project, annotator: User, now: datetime = NOW, pack_id: uuid.UUID | None = None
) -> Lease:
    lease = await service.next_lease(session, project=project, annotator=annotator, now=now, pack_id=pack_id)
    assert lease is not None
    return lease


async def preload(session: AsyncSession, project: Project, annotator: User, now: datetime = NOW) -> Desk:
    return await ahead.preload(session, project=project, annotator=annotator, now=now)


async def both(session: AsyncSession, project: Project, annotator: User) -> tuple[Lease, Lease]:
    """One task in hand, and the next one fetched."""
    in_hand = await take(session, project, annotator)
    desk = await preload(session, project, annotator)
    assert desk.in_hand is in_hand
    assert desk.ahead is not None
    return in_hand, desk.ahead


async def pack(
    session: AsyncSession, project: Project, annotator: User, num: int = 3, pack_id: uuid.UUID = PACK
) -> list[Lease]:
    return await ahead.take_pack(session, project=project, annotator=annotator, num=num, now=NOW, pack_id=pack_id)


async def num_taken(session: AsyncSession) -> int:
    return await session.scalar(text("select sum(num_taken) from tasks")) or 0


# The next one


async def test_the_next_task_is_fetched_while_one_is_in_hand(
    session: AsyncSession, project: Project, ada: User
) -> None:
    in_hand, following = await both(session, project, ada)
    assert following.task_id != in_hand.task_id
    assert (following.kind, following.was_preloaded, in_hand.was_preloaded) == (LeaseKind.PRELOADED, True, False)
    assert await num_taken(session) == 2


async def test_fetching_again_gives_the_same(session: AsyncSession, project: Project, ada: User) -> None:
    in_hand, following = await both(session, project, ada)
    assert await preload(session, project, ada) == Desk(in_hand, following)
    assert await take(session, project, ada) is in_hand


async def test_nothing_is_fetched_while_nothing_is_in_hand(session: AsyncSession, project: Project, ada: User) -> None:
    assert await preload(session, project, ada) == Desk(None)
    assert await num_taken(session) == 0


async def test_the_one_fetched_is_in_hand_when_the_first_is_done(
    session: AsyncSession, project: Project, ada: User
) -> None:
    in_hand, following = await both(session, project, ada)
    await service.release_lease(session, lease_id=in_hand.id, annotator=ada)
    desk = await preload(session, project, ada)
    assert desk.in_hand is following
    assert following.kind == LeaseKind.ACTIVE
    assert desk.ahead is not None
    assert desk.ahead.kind == LeaseKind.PRELOADED


async def test_a_new_page_shows_the_one_fetched(session: AsyncSession, project: Project, ada: User) -> None:
    in_hand, following = await both(session, project, ada)
    await service.release_lease(session, lease_id=in_hand.id, annotator=ada)
    assert await take(session, project, ada) is following


async def test_a_sign_of_life_keeps_the_one_fetched_too(session: AsyncSession, project: Project, ada: User) -> None:
    in_hand, following = await both(session, project, ada)
    moment = NOW + timedelta(minutes=50)
    await service.extend_lease(session, lease_id=in_hand.id, annotator=ada, now=moment)
    assert {in_hand.expires_at, following.expires_at} == {moment + timedelta(minutes=60)}


async def test_a_page_that_closes_lets_go_of_what_was_not_begun(
    session: AsyncSession, project: Project, ada: User, bo: User
) -> None:
    in_hand, following = await both(session, project, ada)
    for lease in (in_hand, following):
        await ahead.let_go(session, lease_id=lease.id, annotator=ada)
    assert (in_hand.state, following.state) == (LeaseState.OPEN, LeaseState.EXPIRED)
    assert (await take(session, project, bo)).task_id == following.task_id


async def test_a_page_that_closes_keeps_what_was_begun(session: AsyncSession, project: Project, ada: User) -> None:
    _, following = await both(session, project, ada)
    await drafts.save_draft(session, lease_id=following.id, annotator=ada, draft={"rationale": "B"}, now=NOW)
    await ahead.let_go(session, lease_id=following.id, annotator=ada)
    assert following.state == LeaseState.OPEN


async def test_somebody_else_lets_go_of_nothing(session: AsyncSession, project: Project, ada: User, bo: User) -> None:
    _, following = await both(session, project, ada)
    with pytest.raises(service.LeaseNotFound):
        await ahead.let_go(session, lease_id=following.id, annotator=bo)


async def test_both_are_given_back_when_another_project_is_opened(
    session: AsyncSession, project: Project, ada: User
) -> None:
    in_hand, following = await both(session, project, ada)
    other = await make_project(session)
    await make_task(session, await make_prompt(session, other))
    await take(session, other, ada)
    assert (in_hand.state, following.state) == (LeaseState.EXPIRED, LeaseState.EXPIRED)
    assert await preload(session, project, ada) == Desk(None)


# What admins change


@pytest.mark.parametrize("column", ["is_paused", "archived_at"])
async def test_a_pause_keeps_the_running_answer_and_takes_the_next_task_back(
    session: AsyncSession, project: Project, ada: User, column: str
) -> None:
    in_hand, following = await both(session, project, ada)
    await update_project(session, project=project, changes={column: True if column == "is_paused" else NOW})
    assert await preload(session, project, ada) == Desk(in_hand)
    await service.release_lease(session, lease_id=in_hand.id, annotator=ada)
    assert await preload(session, project, ada) == Desk(None)
    assert following.state == LeaseState.EXPIRED


async def test_a_task_that_was_begun_may_be_finished_in_a_pause(
    session: AsyncSession, project: Project, ada: User
) -> None:
    in_hand, following = await both(session, project, ada)
    await drafts.save_draft(session, lease_id=following.id, annotator=ada, draft={"rationale": "B"}, now=NOW)
    await service.release_lease(session, lease_id=in_hand.id, annotator=ada)
    project.is_paused = True
    assert await preload(session, project, ada) == Desk(following)


async def test_a_higher_overlap_holds_at_once_for_tasks_that_were_made_here(
    session: AsyncSession, project: Project
) -> None:
    await session.execute(text("delete from tasks"))
    run = await make_run(session, project)
    made = await make_task(session, await make_prompt(session, project), run_id=run.id)
    special = await make_task(session, await make_prompt(session, project), run_id=run.id, overlap=7)
    single = await make_task(session, await make_prompt(session, project), run_id=run.id, is_single=True)
    imported = await make_task(session, await make_prompt(session, project))
    await update_project(session, project=project, changes={"overlap": 3})
    for task, overlap in ((made, 3), (special, 7), (single, 1), (imported, 1)):
        await session.refresh(task)
        assert task.overlap == overlap


async def test_a_lower_overlap_takes_back_what_was_fetched_and_not_begun(
    session: AsyncSession, project: Project, ada: User, bo: User
) -> None:
    await session.execute(text("update tasks set overlap = 2"))
    await both(session, project, bo)
    in_hand, following = await both(session, project, ada)
    await session.execute(text("update tasks set overlap = 1"))
    await service.release_lease(session, lease_id=in_hand.id, annotator=ada)
    desk = await preload(session, project, ada)
    assert following.state == LeaseState.EXPIRED
    assert desk.in_hand is None
    await session.refresh(await session.get_one(Task, following.task_id))
    assert (await session.get_one(Task, following.task_id)).num_taken == 1


async def test_withdrawing_takes_back_what_was_fetched(session: AsyncSession, project: Project, ada: User) -> None:
    in_hand, following = await both(session, project, ada)
    await making.withdraw_task(session, project_id=project.id, task_id=following.task_id)
    assert (await preload(session, project, ada)).ahead is not following
    assert in_hand.state == LeaseState.OPEN


# Packs


async def test_a_pack_begins_with_what_is_in_hand(session: AsyncSession, project: Project, ada: User) -> None:
    in_hand, following = await both(session, project, ada)
    leases = await pack(session, project, ada)
    assert {in_hand.id, following.id} < {lease.id for lease in leases}
    assert {(lease.kind, lease.pack_id, lease.expires_at) for lease in leases} == {
        (LeaseKind.OFFLINE, PACK, NOW + timedelta(hours=12))
    }
    assert await num_taken(session) == len(leases) == 3


async def test_a_pack_holds_what_there_is(session: AsyncSession, project: Project, ada: User) -> None:
    assert len(await pack(session, project, ada, 25)) == 5


@pytest.mark.parametrize("num", [-1, 0, 26, 2**70])
async def test_a_pack_holds_1_to_25(session: AsyncSession, project: Project, ada: User, num: int) -> None:
    with pytest.raises(Invalid, match="1 to 25"):
        await pack(session, project, ada, num)


async def test_asking_again_gives_the_rest_of_the_pack(session: AsyncSession, project: Project, ada: User) -> None:
    first, *rest = await pack(session, project, ada)
    await service.release_lease(session, lease_id=first.id, annotator=ada)
    assert {lease.id for lease in await pack(session, project, ada, 25)} == {lease.id for lease in rest}


async def test_a_second_device_gets_nothing_until_the_pack_is_given_back(
    session: AsyncSession, project: Project, ada: User
) -> None:
    leases = await pack(session, project, ada)
    with pytest.raises(TasksPacked):
        await take(session, project, ada)
    with pytest.raises(TasksPacked):
        await pack(session, project, ada, pack_id=OTHER_PACK)
    assert (await take(session, project, ada, pack_id=PACK)).id in {lease.id for lease in leases}
    assert (await preload(session, project, ada)).ahead is None
    assert await ahead.return_pack(session, annotator=ada, now=NOW) == 3
    assert (await take(session, project, ada)).kind == LeaseKind.ACTIVE


async def test_a_pack_stays_when_another_project_is_opened(session: AsyncSession, project: Project, ada: User) -> None:
    await pack(session, project, ada)
    other = await make_project(session)
    await make_task(session, await make_prompt(session, other))
    with pytest.raises(TasksPacked):
        await take(session, other, ada, pack_id=PACK)
    with pytest.raises(TasksPacked):
        await pack(session, other, ada)
    where = await ahead.find_pack(session, annotator=ada)
    assert where is not None
    assert (where.project.id, where.num_left) == (project.id, 3)


async def test_after_12_hours_the_tasks_go_to_others(
    session: AsyncSession, project: Project, ada: User, bo: User
) -> None:
    leases = await pack(session, project, ada, 5)
    assert (await take(session, project, bo, LATER)).task_id in {lease.task_id for lease in leases}
    assert (await take(session, project, ada, LATER)).kind == LeaseKind.ACTIVE


async def test_no_pack_from_a_paused_project(session: AsyncSession, project: Project, ada: User) -> None:
    project.is_paused = True
    with pytest.raises(ProjectRests):
        await pack(session, project, ada)


# What the database keeps by itself


async def add_lease(
    session: AsyncSession, project: Project, annotator: User, kind: str, pack_id: object = None
) -> None:
    """A lease on a task of its own, by a program that forgot every rule."""
    task = await make_task(session, await make_prompt(session, project), k=2)
    values = {"task": task.id, "person": annotator.id, "kind": kind, "pack": pack_id}
    await session.execute(
        text(
            "insert into leases (task_id, annotator_id, display_order, seed, expires_at, kind, pack_id)"
            " values (:task, :person, '{}', 0, now(), :kind, :pack)"
        ),
        values,
    )


@pytest.mark.parametrize(
    ("held", "more", "rule"),
    [
        ([("active", None)], ("active", None), "uq_leases_active"),
        ([("preloaded", None)], ("preloaded", None), "uq_leases_preloaded"),
        ([("active", None)], ("offline", PACK), "holds tasks in a pack"),
        ([("offline", PACK)], ("active", None), "holds tasks in a pack"),
        ([("offline", PACK)], ("preloaded", None), "holds tasks in a pack"),
        ([("offline", PACK)], ("offline", OTHER_PACK), "holds tasks in a pack"),
        ([("offline", PACK)] * 25, ("offline", PACK), "is full"),
        ([], ("offline", None), "ck_leases_pack"),
        ([], ("borrowed", None), "ck_leases_kind"),
    ],
)
async def test_the_database_itself_refuses_a_lease_too_many(
    session: AsyncSession,
    project: Project,
    ada: User,
    held: list[tuple[str, object]],
    more: tuple[str, object],
    rule: str,
) -> None:
    for kind, pack_id in held:
        await add_lease(session, project, ada, kind, pack_id)
    with pytest.raises(IntegrityError, match=rule):
        await add_lease(session, project, ada, *more)


async def test_one_in_hand_and_one_ahead_is_not_too_many(session: AsyncSession, project: Project, ada: User) -> None:
    for kind in ("active", "preloaded"):
        await add_lease(session, project, ada, kind)
    assert len((await session.scalars(select(Lease))).all()) == 2
