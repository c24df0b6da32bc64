"""Tasks ahead of need: the next one, fetched while one is ranked, and packs that a device takes along offline."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import User
from app.db import begin
from app.errors import Conflict, Invalid
from app.projects.models import Project
from app.tasks import service, standings
from app.tasks.models import Lease, LeaseKind, LeaseState
from app.tasks.service import MAX_PACK, TasksPacked


class ProjectRests(Conflict):
    """This project is paused: it hands out no tasks now."""


@dataclass(frozen=True)
class Desk:
    """What lies before an annotator: the task in hand, and the one after it."""

    in_hand: Lease | None
    ahead: Lease | None = None


async def preload(session: AsyncSession, *, project: Project, annotator: User, now: datetime) -> Desk:
    """Fetch the task after the one in hand. Asking again gives the same.

    When the one in hand is done, the one that was fetched ahead takes its place, unless an admin paused the project,
    withdrew the task or lowered the overlap before it was begun. Nothing is fetched while nothing is in hand: the page
    asks for that by itself. A pack needs nothing ahead, nor does a qualification.
    """
    if service.is_usual(project):
        leases = await service.claim_ahead(session, project=project, annotator=annotator, now=now)
        if leases:
            return Desk(*leases)
    await begin(session)
    held = await service.hold_leases(session, annotator=annotator, now=now)
    packed = next((lease for lease in held if lease.kind == LeaseKind.OFFLINE), None)
    in_hand = packed or await service.lease_in_hand(session, held, project)
    if packed or in_hand is None or project.is_paused or project.archived_at is not None:
        return Desk(in_hand)
    if not await standings.may_work(session, project, annotator):
        return Desk(in_hand)
    ahead = next((lease for lease in held if lease.kind == LeaseKind.PRELOADED), None)
    kind = LeaseKind.PRELOADED
    ahead = ahead or await service.claim(session, project=project, annotator=annotator, now=now, kind=kind)
    return Desk(in_hand, ahead)


async def let_go(session: AsyncSession, *, lease_id: uuid.UUID, annotator: User) -> None:
    """The page is closed: give the task back that was fetched ahead and not begun. Anything else stays as it is.

    Raises:
        LeaseNotFound: it is not this annotator's.
    """
    lease = await service.lock_lease(session, lease_id=lease_id, annotator=annotator)
    if lease.state == LeaseState.OPEN and lease.kind == LeaseKind.PRELOADED and lease.draft is None:
        await service.give_back(session, [lease])


async def give_ahead_back(session: AsyncSession, *, annotator: User, now: datetime) -> None:
    """A break: the task that was fetched ahead and not begun goes to others; the one in hand stays."""
    held = await service.hold_leases(session, annotator=annotator, now=now)
    ahead = [lease for lease in held if lease.kind == LeaseKind.PRELOADED and lease.draft is None]
    await service.give_back(session, ahead)


async def take_pack(
    session: AsyncSession, *, project: Project, annotator: User, num: int, now: datetime, pack_id: uuid.UUID
) -> list[Lease]:
    """Up to `num` tasks to rank without a connection within 12 hours. The one in hand is the first of them.

    `pack_id` is chosen by the device: asking again gives the same pack, without what was answered.

    Raises:
        Invalid: not 1 to 25 tasks.
        TasksPacked: another pack is out.
        ProjectRests: the project is paused.
        Unqualified: they have to pass the project's qualification first, or again.
    """
    if not 1 <= num <= MAX_PACK:
        raise Invalid.field("num", f"a pack holds 1 to {MAX_PACK} tasks")
    held = await service.hold_leases(session, annotator=annotator, now=now)
    packed = [lease for lease in held if lease.kind == LeaseKind.OFFLINE]
    if packed:
        if packed[0].pack_id != pack_id or (await service.project_of(session, packed[0])).id != project.id:
            raise TasksPacked
        return packed
    if project.is_paused or project.archived_at is not None:
        raise ProjectRests
    if not await standings.may_work(session, project, annotator):
        raise standings.Unqualified(project)
    # What is in hand goes back for a moment: what was left last is the first of the pack.
    await service.give_back(session, held)
    return await _fill_pack(session, project=project, annotator=annotator, num=num, now=now, pack_id=pack_id)


async def _fill_pack(
    session: AsyncSession, *, project: Project, annotator: User, num: int, now: datetime, pack_id: uuid.UUID
) -> list[Lease]:
    pack: list[Lease] = []
    while len(pack) < num:
        lease = await service.claim(
            session, project=project, annotator=annotator, now=now, kind=LeaseKind.OFFLINE, pack_id=pack_id
        )
        if lease is None:
            break
        pack.append(lease)
    # As `hold_leases` lists them: a page without script gets the same one first.
    return sorted(pack, key=lambda lease: (lease.created_at, lease.id))


async def return_pack(session: AsyncSession, *, annotator: User, now: datetime) -> int:
    """Give back what is not answered of the annotator's pack; returns how many. An answer that comes later is kept."""
    held = await service.hold_leases(session, annotator=annotator, now=now)
    packed = [lease for lease in held if lease.kind == LeaseKind.OFFLINE]
    await service.give_back(session, packed)
    return len(packed)


@dataclass(frozen=True)
class Pack:
    """Where an annotator's tasks are that were taken offline."""

    project: Project
    num_left: int
    expires_at: datetime


async def find_pack(session: AsyncSession, *, annotator: User) -> Pack | None:
    """The annotator's open pack, if there is one."""
    query = select(Lease).where(
        Lease.annotator_id == annotator.id, Lease.state == LeaseState.OPEN, Lease.kind == LeaseKind.OFFLINE
    )
    leases = (await session.scalars(query)).all()
    if not leases:
        return None
    expires_at = min(lease.expires_at for lease in leases)
    return Pack(await service.project_of(session, leases[0]), len(leases), expires_at)
