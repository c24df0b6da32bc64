"""Known orders in a file of rankings: lines that say `gold`. The ranking is kept, and its task becomes gold."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.prompts.lines import ImportReport
from app.rankings.import_lines import AnyLine, identities
from app.tasks.models import MAX_WHY_LENGTH, GoldOrder, Task, TaskCompletion

Key = frozenset[uuid.UUID]
Answer = tuple[str, str | None]
"""Its text and its model: what is stored once."""


@dataclass(frozen=True)
class Known:
    """A known order: of each answer its place, why it is right, and whether it is asked in the qualification only."""

    places: Mapping[uuid.UUID, int]
    is_qualifying: bool
    why: str = ""

    @property
    def key(self) -> Key:
        """What its task compares."""
        return frozenset(self.places)

    def is_same(self, other: Known) -> bool:
        """Whether both say the same of the same task; reasons may differ."""
        return (self.places, self.is_qualifying) == (other.places, other.is_qualifying)


def rule_against(line: AnyLine, *, by_admin: bool) -> tuple[str, str] | None:
    """The field and the rule for which a line can't become gold; None: it can, or does not ask for it."""
    if not line.gold:
        return ("why", "belongs to a known order: set `gold` as well") if line.why else None
    if not by_admin:
        return "gold", "is for admins of the project: known orders measure everybody"
    if len(line.why) > MAX_WHY_LENGTH:
        return "why", f"at most {MAX_WHY_LENGTH:,} characters"
    rule = rule_against_orders(line)
    return ("gold", rule) if rule else None


def rule_against_orders(line: AnyLine) -> str | None:
    """What is wrong with the orders of a line as known ones."""
    texts = identities(line.answers())
    found: dict[frozenset[Answer], dict[Answer, int]] = {}
    for judgement in line.judgements():
        places = {texts[key]: place for place, cell in enumerate(judgement.cells, start=1) for key in cell}
        compared = frozenset(texts[key] for key in judgement.answers)
        if len(places) < len(compared):
            return "needs a place for every answer: what nobody placed can't be right or wrong"
        if len(judgement.cells) < 2:
            return "needs two places or more: with all answers in one, nobody could be right or wrong"
        if found.setdefault(compared, places) != places:
            return "needs one order, and two on this line differ: leave the right one"
    return None


async def refuse_others(
    session: AsyncSession, tasks: Mapping[Key, uuid.UUID], known: Sequence[tuple[int, Known]], report: ImportReport
) -> set[int]:
    """Refuse, and return, the lines that say of a task what is known otherwise: by the page, or by a line before.

    The tasks stay locked, so that nobody writes another order meanwhile.
    """
    ids = {tasks[item.key] for _, item in known if item.key in tasks}
    seen = await known_orders(session, ids)
    refused = set()
    for number, said in groupby(known, key=itemgetter(0)):
        # What a refused line says is not known to those after it.
        own: dict[Key, Known] = {}
        if all((seen.get(item.key) or own.setdefault(item.key, item)).is_same(item) for _, item in said):
            seen |= own
        else:
            refused.add(number)
            report.refuse(number, [("gold", "is known with another order or use: change that on the page of its task")])
    return refused


async def known_orders(session: AsyncSession, task_ids: Iterable[uuid.UUID]) -> dict[Key, Known]:
    """What is known of some tasks, by what they compare. Locks them."""
    ids = sorted(task_ids)
    await session.execute(select(Task.id).where(Task.id.in_(ids)).order_by(Task.id).with_for_update())
    orders = (await session.scalars(select(GoldOrder).where(GoldOrder.task_id.in_(ids)))).all()
    answers = await answers_of(session, [order.task_id for order in orders])
    found = [
        Known(dict(zip(answers[order.task_id], order.places, strict=True)), order.is_qualifying) for order in orders
    ]
    return {item.key: item for item in found}


async def answers_of(session: AsyncSession, task_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, list[uuid.UUID]]:
    """The answers of tasks, each in the order of its task."""
    query = select(TaskCompletion.task_id, TaskCompletion.completion_id).where(TaskCompletion.task_id.in_(task_ids))
    answers: dict[uuid.UUID, list[uuid.UUID]] = {}
    for task_id, completion_id in await session.execute(query.order_by(TaskCompletion.position)):
        answers.setdefault(task_id, []).append(completion_id)
    return answers


async def make_gold(
    session: AsyncSession, tasks: Mapping[Key, uuid.UUID], known: Iterable[Known], actor_id: uuid.UUID | None
) -> int:
    """Make gold of the tasks that are not yet; returns how many."""
    wanted = {tasks[item.key]: item for item in known}
    there = set(await session.scalars(select(GoldOrder.task_id).where(GoldOrder.task_id.in_(wanted))))
    fresh = sorted(wanted.keys() - there)
    answers = await answers_of(session, fresh)
    rows = [
        {
            "task_id": task_id,
            "places": [wanted[task_id].places[answer] for answer in answers[task_id]],
            "why": wanted[task_id].why,
            "is_qualifying": wanted[task_id].is_qualifying,
            "marked_by": actor_id,
        }
        for task_id in fresh
    ]
    if rows:
        await session.execute(insert(GoldOrder), rows)
    return len(rows)
