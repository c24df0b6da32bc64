"""Gold: tasks whose order is known. They come between the others unseen, and tell how well somebody ranks.

Nothing that people say of a gold task is learned from, and everybody may get it. Gold stays gold: what was ranked
without a limit of places must never enter a dataset. To hand it out no more, withdraw the task.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from sqlalchemy import Select, func, literal, select
from sqlalchemy.dialects.postgresql import aggregate_order_by, insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.audit import audit
from app.accounts.models import User
from app.errors import Invalid
from app.projects.models import Project
from app.prompts.models import Prompt
from app.quality import reading, service
from app.quality.agreement import Estimate
from app.quality.orders import Judgement
from app.quality.people import Gold, Portrait, with_gold
from app.rankings.answers import RankingAnswer, Rules, order_of
from app.rankings.models import Ranking, RankingPlace
from app.rankings.service import get_ranking, is_current, require_fine
from app.tasks import service as tasks
from app.tasks.models import MAX_WHY_LENGTH, GoldOrder, Purpose, Task, TaskCompletion
from app.tasks.service import LETTERS

LISTED = 200
MOST_TAKEN = 200
"""So many of one's own orders become gold at once."""
TOLD_EVERY = 5
"""One's own page moves with every fifth gold task only: a figure that moved with each would tell which one it was."""


@dataclass(frozen=True)
class GoldRow:
    """A gold task in the list: the known order in the letters of the task, and how well people agree with it."""

    task: Task
    prompt: Prompt
    order: list[list[str]]
    num_rankings: int
    agreement: Estimate | None


async def known_orders(session: AsyncSession, project: Project) -> Gold:
    """Of each gold task the places of its answers, in the order of the task."""
    query = select(GoldOrder.task_id, GoldOrder.places).join(Task).where(Task.project_id == project.id, Task.is_gold)
    return {task_id: places for task_id, places in await session.execute(query)}


async def mark(
    session: AsyncSession,
    project: Project,
    task_id: uuid.UUID,
    *,
    answer: RankingAnswer,
    why: str,
    actor: User,
    is_qualifying: bool = False,
) -> GoldOrder:
    """Make a task gold, or write its known order anew. `is_qualifying`: it is asked in the qualification only.

    Raises:
        NotFound: the project has no such task.
        AnswerRefused: an answer has no place.
        Invalid: the reason is too long; or all answers share a place, so that nobody could be right or wrong.
    """
    task = await tasks.get_task(session, project_id=project.id, task_id=task_id, for_update=True)
    why = tasks.check_text("why", why, MAX_WHY_LENGTH)
    places = await complete_places(session, task, answer)
    order = await session.get(GoldOrder, task.id) or GoldOrder(task_id=task.id)
    order.places, order.why, order.marked_by, order.marked_at = places, why, actor.id, datetime.now(UTC)
    order.is_qualifying = is_qualifying
    session.add(order)
    await session.flush()
    # A trigger has marked it.
    await session.refresh(task, ["is_gold", "is_qualifying"])
    await audit(session, actor_id=actor.id, action="task.gold", subject=str(task.id), places=places)
    return order


async def complete_places(session: AsyncSession, task: Task, answer: RankingAnswer) -> list[int]:
    """A place for every answer of the task, in its order."""
    ids = await tasks.completion_ids(session, task.id)
    letters = dict(zip(ids, LETTERS, strict=False))
    require_fine(answer, Rules(letters, ties_allowed=True, partial_allowed=False, label_keys=frozenset()))
    cells = order_of(answer.places)
    if len(cells) < 2:
        raise Invalid.field("places", "puts all answers in one place: nobody could be right or wrong")
    # 1, 3, 3 says what 1, 2, 2 says.
    return [next(place for place, cell in enumerate(cells, start=1) if item in cell) for item in ids]


async def places_of_ranking(session: AsyncSession, task_id: uuid.UUID, ranking_id: uuid.UUID) -> list[int | None]:
    """What a ranking of this task says, in the order of the task; nothing where it is of another one."""
    view = await get_ranking(session, ranking_id)
    if view.ranking.task_id != task_id:
        return []
    return [view.places[item].place for item in await tasks.completion_ids(session, task_id)]


async def take_over(session: AsyncSession, project: Project, *, actor: User) -> int:
    """Make gold of the tasks that somebody ranked themselves: their orders become the known ones. Returns how many.

    At most `MOST_TAKEN` at once, the oldest first. Left out is what nobody could be wrong about (all answers share a
    place), an order with gaps, and what is withdrawn or compares versions.
    """
    orders = own_orders(project, actor).order_by(func.min(Ranking.number)).limit(MOST_TAKEN).subquery()
    # In one order everywhere, so that two who mark at once do not wait for each other in a circle.
    chosen = select(orders, literal(actor.id)).order_by(orders.c.task_id)
    statement = insert(GoldOrder).from_select(["task_id", "places", "marked_by"], chosen).on_conflict_do_nothing()
    taken = (await session.scalars(statement.returning(GoldOrder.task_id))).all()
    if taken:
        await audit(session, actor_id=actor.id, action="gold.take_over", subject=str(project.id), num=len(taken))
    return len(taken)


async def count_own(session: AsyncSession, project: Project, user: User) -> int:
    """How many tasks `take_over` would make gold now."""
    orders = own_orders(project, user).limit(MOST_TAKEN).subquery()
    return await session.scalar(select(func.count()).select_from(orders)) or 0


def own_orders(project: Project, user: User) -> Select[uuid.UUID, Sequence[int | None]]:
    """Somebody's whole orders of tasks that may become gold: rows (task, places in the order of the task)."""
    place = aggregate_order_by(RankingPlace.place, TaskCompletion.position)
    return (
        select(Ranking.task_id, func.array_agg(place).label("places"))
        .join(Task, Task.id == Ranking.task_id)
        .join(RankingPlace, RankingPlace.ranking_id == Ranking.id)
        .join(
            TaskCompletion,
            (TaskCompletion.task_id == Ranking.task_id) & (TaskCompletion.completion_id == RankingPlace.completion_id),
        )
        .where(Ranking.project_id == project.id, Ranking.annotator_id == user.id, is_current())
        .where(~Task.is_gold, Task.purpose == Purpose.LEARN, Task.withdrawn_at.is_(None))
        .group_by(Ranking.task_id)
        .having(func.count(RankingPlace.place) == func.count(), func.max(RankingPlace.place) > 1)
    )


# How well people do


async def list_gold(session: AsyncSession, project: Project) -> list[GoldRow]:
    """The newest gold tasks. Where many agree little with a known order, it may be the order that is wrong."""
    query = select(Task, Prompt, GoldOrder).join(Prompt, Prompt.id == Task.prompt_id).join(GoldOrder)
    query = query.where(Task.project_id == project.id, Task.is_gold).order_by(Task.number.desc()).limit(LISTED)
    found = (await session.execute(query)).all()
    said = await reading.of_tasks(session, [task.id for task, _, _ in found])
    return [gold_row(task, prompt, known, said.get(task.id, [])) for task, prompt, known in found]


def is_source(row: Judgement, known: GoldOrder) -> bool:
    """Whether a ranking is where the known order comes from, so that it would agree with itself: it was imported, and
    has a name where others have an id, or it is by who wrote the order.
    """
    return not isinstance(row.annotator, uuid.UUID) or row.annotator == known.marked_by


def gold_row(task: Task, prompt: Prompt, known: GoldOrder, said: Sequence[Judgement]) -> GoldRow:
    """One row of the list. People are resampled for the interval: a single task has a single prompt."""
    places, others = known.places, [row for row in said if not is_source(row, known)]
    letters: dict[int, list[str]] = {}
    for letter, place in zip(LETTERS, places, strict=False):
        letters.setdefault(place, []).append(letter)
    people = [replace(row, prompt=row.annotator) for row in others]
    return GoldRow(
        task=task,
        prompt=prompt,
        order=[letters[place] for place in sorted(letters)],
        num_rankings=len(others),
        agreement=with_gold(people, {task.id: places}),
    )


async def own_view(session: AsyncSession, project: Project, user: User) -> Portrait | None:
    """One's own portrait: what gold says of it is as of the last fifth gold task."""
    known = await known_orders(session, project)
    portrait = await service.person_view(session, project, user, known)
    if portrait is None or portrait.gold is None:
        return portrait
    rows = [row for row in await reading.of_people(session, project.id, [user.id]) if row.task in known]
    return replace(portrait, gold=with_gold(rows[: len(rows) // TOLD_EVERY * TOLD_EVERY], known))
