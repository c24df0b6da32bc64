"""How many tasks wait for somebody: what is theirs, what is free, and what others keep too long."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ScalarSelect, Select, and_, bindparam, exists, func, or_, select

from app.projects.models import Project
from app.tasks import audiences
from app.tasks.models import Lease, LeaseState, Task
from app.tasks.service import IS_OPEN, has_place

# Beyond so many, waiting tasks are just many.
MOST_COUNTED = 100


def _some(query: Select[Any]) -> ScalarSelect[int]:
    """How many rows there are, one more than `MOST_COUNTED` at most: nobody waits until a million are counted."""
    return select(func.count()).select_from(query.limit(MOST_COUNTED + 1).subquery()).scalar_subquery()


_THIS_PROJECT = and_(Task.project_id == bindparam("project_id"), Task.withdrawn_at.is_(None))
_MY_LEASE = and_(Lease.task_id == Task.id, Lease.annotator_id == bindparam("annotator_id"))
# In hand or fetched ahead, left by this person or never had, and what somebody else's overdue lease still keeps: three
# questions, each of which its own index answers. Together they would read every task.
_IN_HAND = select(Task.id).join(Lease, and_(_MY_LEASE, Lease.state == LeaseState.OPEN)).where(_THIS_PROJECT)
# As a value, looked up task by task: an `exists` beside an `or` would read all that this person ever had.
_MY_STATE = select(Lease.state).where(_MY_LEASE).scalar_subquery()
_FOR_ME = or_(and_(_MY_STATE.is_(None), audiences.IS_FOR_THEM), _MY_STATE == LeaseState.EXPIRED)
_FREE = select(Task.id).where(_THIS_PROJECT, has_place(), _FOR_ME)
_OVERDUE = exists().where(Lease.task_id == Task.id, IS_OPEN, Lease.expires_at <= bindparam("now"))
_KEPT = select(Task.id).where(_THIS_PROJECT, Task.num_taken >= Task.overlap, ~Task.is_gold, _OVERDUE, _FOR_ME)
# For the values project_id, annotator_id and now.
WAITING = select(_some(_IN_HAND), _some(_IN_HAND.where(~Task.is_gold)), _some(_FREE), _some(_KEPT), Project.is_paused)
WAITING = WAITING.where(Project.id == bindparam("project_id"))


def count_waiting(num_held: int, num_counted: int, num_free: int, num_kept: int, is_paused: bool) -> int:
    """How many tasks of a project its annotator could rank, from the columns of `WAITING`.

    The one in hand and those left are among them.

    More than `MOST_COUNTED` are not told apart. Gold is not counted, or the number would tell it; but who has it in
    hand sees at least the one.
    """
    return max(min(1, num_held), num_counted + (0 if is_paused else num_free + num_kept))
