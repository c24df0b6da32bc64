"""Qualification: tasks with known orders before real work, a look at gold during it, and what follows from both.

A try is `qualify_tasks` tasks; at its end the person sees their orders beside the known ones, with the reasons. Whoever
agrees with at least `qualify_mark` of the pairs of answers is let in. Whoever does not may try again on other tasks,
`qualify_tries` times in all, and is then left out until an admin decides, who finds a flag. During work, agreement with
the newest `gold_window` gold tasks below the same mark pauses a person, who may then train and try again.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.audit import audit
from app.accounts.models import AnyUser, User
from app.errors import Conflict, Invalid, NotFound
from app.events import events
from app.projects.models import Project
from app.prompts.models import Prompt
from app.quality import reading
from app.quality.models import QualityFlag
from app.quality.people import Gold, with_gold
from app.rankings.models import Ranking
from app.rankings.service import RankingStored, RankingView, is_current, views_of
from app.tasks import service as tasks
from app.tasks import standings
from app.tasks.models import GoldOrder, Standing, StandingState, Task
from app.tasks.service import Card


class NothingToPass(Conflict):
    """There is no qualification to begin here."""


class TooFewTests(Conflict):
    """There are too few tasks of the qualification that you have not seen. An admin has to add some."""


class LeftOut(Conflict):
    """You have used up your tries. An admin of this project can give you another one."""


@dataclass(frozen=True)
class Feedback:
    """One task of a try, beside what is known of it. Cards and letters are as the person saw them."""

    prompt: Prompt
    cards: Sequence[Card]
    order: Sequence[Sequence[str]]
    known: Sequence[Sequence[str]]
    agreement: float
    why: str


@dataclass(frozen=True)
class Report:
    """All that the page of a qualification shows of one person. `standing` None: they have not begun."""

    standing: Standing | None
    is_exempt: bool
    feedback: Sequence[Feedback]
    num_unseen: int
    """Tasks of the qualification that this person has not had."""

    @property
    def state(self) -> str | None:
        """Where they stand."""
        return self.standing.state if self.standing else None


# The person's own steps


async def report_of(session: AsyncSession, project: Project, person: AnyUser) -> Report:
    """Where somebody stands, with what there is to learn from their last try once it is over."""
    standing = await find_standing(session, project, person.id)
    is_over = standing is not None and standing.state != StandingState.TESTING
    return Report(
        standing=standing,
        is_exempt=await standings.is_exempt(session, project, person),
        feedback=await feedback_on(session, standing) if standing and is_over else [],
        num_unseen=await tasks.count_tests_left(session, project, person),
    )


async def find_standing(session: AsyncSession, project: Project, person: uuid.UUID) -> Standing | None:
    """Where somebody stands; None: nothing was asked or decided yet."""
    return await session.get(Standing, (project.id, person), populate_existing=True)


async def begin(session: AsyncSession, project: Project, person: AnyUser) -> Standing:
    """Begin a try. Twice is harmless.

    Raises:
        NothingToPass: the project asks for none, or they may work already.
        LeftOut: no try is left.
        TooFewTests: there are not enough tasks that they have not seen.
    """
    await tasks.lock_annotator(session, person.id)
    standing = await find_standing(session, project, person.id)
    if standing is not None and standing.state == StandingState.TESTING:
        return standing
    if not project.qualify_tasks or await standings.may_work(session, project, person):
        raise NothingToPass
    if standing is not None and standing.state == StandingState.EXCLUDED:
        raise LeftOut
    if await tasks.count_tests_left(session, project, person) < project.qualify_tasks:
        raise TooFewTests
    standing = standing or Standing(project_id=project.id, annotator_id=person.id, num_tries=0)
    standing.num_tries += 1
    standing.num_asked, standing.num_done = project.qualify_tasks, 0
    standing.since_number = await newest_number(session, project, person.id)
    return await move(session, standing, StandingState.TESTING, score=None, actor_id=person.id)


async def move(
    session: AsyncSession, standing: Standing, state: StandingState, *, score: float | None, actor_id: uuid.UUID | None
) -> Standing:
    """Every change of state goes through here, and into the log."""
    standing.state, standing.score, standing.changed_at = state, score, datetime.now(UTC)
    session.add(standing)
    await session.flush()
    action, told = f"qualification.{state}", {"project": str(standing.project_id), "score": score}
    await audit(session, actor_id=actor_id, action=action, subject=str(standing.annotator_id), **told)
    return standing


# What a ranking changes


def subscribe() -> None:
    """Hear of rankings."""
    events.subscribe(RankingStored, heard, only=is_measured)


def is_measured(event: RankingStored) -> bool:
    """Whether somebody is measured by this ranking."""
    return event.task.is_gold and standings.has_gate(event.project)


async def heard(session: AsyncSession, event: RankingStored) -> None:
    """A ranking of a gold task may end a try, or pause somebody."""
    annotator_id = event.ranking.annotator_id
    if annotator_id is None:
        return
    project = await session.get_one(Project, event.project.id)
    if event.task.is_qualifying:
        await count_test(session, project, annotator_id)
    elif project.gold_window:
        await watch_gold(session, project, annotator_id)


async def count_test(session: AsyncSession, project: Project, person: uuid.UUID) -> None:
    """One more task of a try is answered; with the last one it is decided."""
    standing = await find_standing(session, project, person)
    if standing is None or standing.state != StandingState.TESTING:
        return
    answered = await answered_in(session, standing)
    standing.num_done = min(len(answered), standing.num_asked)
    if standing.num_done == standing.num_asked:
        await grade(session, project, standing, await agreement_of(session, answered))
    await session.flush()


async def grade(session: AsyncSession, project: Project, standing: Standing, score: float) -> None:
    """Let somebody in, let them try again, or leave them out and tell the admins."""
    person = await session.get_one(User, standing.annotator_id)
    if score >= project.qualify_mark:
        await move(session, standing, StandingState.QUALIFIED, score=score, actor_id=None)
        return
    is_last = standing.num_tries >= project.qualify_tries
    state = StandingState.EXCLUDED if is_last else StandingState.FAILED
    await move(session, standing, state, score=score, actor_id=None)
    if is_last or await tasks.count_tests_left(session, project, person) < project.qualify_tasks:
        await flag(session, project, standing, "qualification", num=standing.num_asked)


async def watch_gold(session: AsyncSession, project: Project, person: uuid.UUID) -> None:
    """Pause somebody whose newest gold tasks, since they were let in, agree too little with the known orders."""
    standing = await find_standing(session, project, person)
    if standing is not None and standing.state != StandingState.QUALIFIED:
        return
    user = await session.get_one(User, person)
    newest = await newest_gold(session, project, person, after=standing.since_number if standing else 0)
    if len(newest) < project.gold_window or await standings.is_exempt(session, project, user):
        return
    score = await agreement_of(session, newest)
    if score >= project.qualify_mark:
        return
    standing = standing or Standing(project_id=project.id, annotator_id=person)
    standing.num_tries = 0
    await move(session, standing, StandingState.PAUSED, score=score, actor_id=None)
    await flag(session, project, standing, "gold", num=len(newest))


async def flag(session: AsyncSession, project: Project, standing: Standing, check_name: str, *, num: int) -> None:
    """Let admins find somebody at the head of their list, until one of them has settled it."""
    statement = insert(QualityFlag).values(
        project_id=project.id,
        annotator_id=standing.annotator_id,
        check_name=check_name,
        evidence={"score": standing.score, "mark": project.qualify_mark, "num": num},
        last_number=await newest_number(session, project, standing.annotator_id),
    )
    await session.execute(statement.on_conflict_do_nothing())


# What was answered


def of_person(project_id: uuid.UUID, person: uuid.UUID) -> tuple[ColumnElement[bool], ...]:
    """Somebody's rankings that count, of tasks whose order is known."""
    return Ranking.project_id == project_id, Ranking.annotator_id == person, Task.is_gold.is_(True), is_current()


async def answered_in(session: AsyncSession, standing: Standing) -> list[reading.Key]:
    """The rankings of a person's last try, oldest first."""
    query = reading.keys().join(Task, Task.id == Ranking.task_id)
    query = query.where(*of_person(standing.project_id, standing.annotator_id), Task.is_qualifying)
    query = query.where(Ranking.number > standing.since_number).order_by(Ranking.number)
    return reading.keys_in(await session.execute(query.limit(standing.num_asked)))


async def newest_number(session: AsyncSession, project: Project, person: uuid.UUID) -> int:
    """The number of somebody's newest ranking in a project; 0: they have none."""
    query = select(func.max(Ranking.number))
    return await session.scalar(query.where(Ranking.project_id == project.id, Ranking.annotator_id == person)) or 0


async def newest_gold(session: AsyncSession, project: Project, person: uuid.UUID, *, after: int) -> list[reading.Key]:
    """The newest rankings of gold tasks that came between others, later than this number."""
    query = reading.keys().join(Task, Task.id == Ranking.task_id)
    query = query.where(*of_person(project.id, person), ~Task.is_qualifying, Ranking.number > after)
    newest = query.order_by(Ranking.number.desc()).limit(project.gold_window)
    return reading.keys_in(await session.execute(newest))


async def agreement_of(session: AsyncSession, keys: Sequence[reading.Key]) -> float:
    """Pairwise agreement of rankings with the known orders of their tasks, a tie as a third answer."""
    rows = await reading.judgements(session, keys)
    found = with_gold(rows, await orders_of(session, [row.task for row in rows]))
    return found.value if found else 0.0


async def orders_of(session: AsyncSession, task_ids: Sequence[Any]) -> Gold:
    """The known orders of these tasks."""
    query = select(GoldOrder.task_id, GoldOrder.places).where(GoldOrder.task_id.in_(task_ids))
    return {task_id: places for task_id, places in await session.execute(query)}


async def feedback_on(session: AsyncSession, standing: Standing) -> list[Feedback]:
    """The tasks of a try that is over, in the order in which they were answered."""
    if not standing.num_asked or standing.num_done < standing.num_asked or standing.state == StandingState.PAUSED:
        return []
    answered = [ranking_id for ranking_id, _ in await answered_in(session, standing)]
    rankings = await session.scalars(select(Ranking).where(Ranking.id.in_(answered)))
    views = await views_of(session, sorted(rankings, key=lambda ranking: ranking.number))
    query = select(GoldOrder, Prompt).join(Task, Task.id == GoldOrder.task_id).join(Prompt, Prompt.id == Task.prompt_id)
    found = await session.execute(query.where(GoldOrder.task_id.in_([view.ranking.task_id for view in views])))
    known = {order.task_id: (order, prompt) for order, prompt in found}
    return [await feedback_of(session, view, *known[view.ranking.task_id]) for view in views]


async def feedback_of(session: AsyncSession, view: RankingView, order: GoldOrder, prompt: Prompt) -> Feedback:
    """One ranking beside the known order of its task."""
    ids = await tasks.completion_ids(session, order.task_id)
    places = dict(zip(ids, order.places, strict=True))
    cells = [sorted(view.letters[item] for item in ids if places[item] == place) for place in sorted(set(order.places))]
    return Feedback(
        prompt=prompt,
        cards=await tasks.cards_of(session, view.display_order),
        order=view.letter_order,
        known=cells,
        agreement=await agreement_of(session, [(view.ranking.id, view.ranking.annotator_id)]),
        why=order.why,
    )


# For admins


async def list_standings(
    session: AsyncSession, project: Project, people: Sequence[uuid.UUID]
) -> dict[uuid.UUID, Standing]:
    """Where these people stand, by person."""
    query = select(Standing).where(Standing.project_id == project.id, Standing.annotator_id.in_(people))
    return {standing.annotator_id: standing for standing in await session.scalars(query)}


async def count_tests(session: AsyncSession, project: Project) -> int:
    """How many tasks the project's qualification has."""
    query = select(func.count()).select_from(Task)
    where = (Task.project_id == project.id, Task.is_gold, Task.is_qualifying, Task.withdrawn_at.is_(None))
    return await session.scalar(query.where(*where)) or 0


DECISIONS = {"let_in": StandingState.QUALIFIED, "retry": StandingState.FAILED, "exclude": StandingState.EXCLUDED}


async def decide(
    session: AsyncSession, project: Project, person: uuid.UUID, decision: str, *, actor_id: uuid.UUID
) -> Standing:
    """An admin lets somebody in, gives them all their tries again, or leaves them out. What is in hand stays theirs.

    Raises:
        NotFound: there is nobody of this id with a role in this project.
        Invalid: it is none of these decisions.
    """
    if decision not in DECISIONS:
        raise Invalid.field("decision", "must be one of let_in, retry and exclude")
    user = await session.get(User, person)
    if user is None or not await standings.may_annotate(session, project, user):
        raise NotFound("Nobody of this id may rank in this project.")
    await tasks.lock_annotator(session, person)
    standing = await find_standing(session, project, person)
    standing = standing or Standing(project_id=project.id, annotator_id=person)
    standing.num_tries = standing.num_asked = standing.num_done = 0
    standing.since_number = await newest_number(session, project, person)
    await settle_flags(session, project, person, actor_id=actor_id)
    return await move(session, standing, DECISIONS[decision], score=None, actor_id=actor_id)


async def settle_flags(session: AsyncSession, project: Project, person: uuid.UUID, *, actor_id: uuid.UUID) -> None:
    """A decision answers what had raised it."""
    query = select(QualityFlag).where(
        QualityFlag.project_id == project.id,
        QualityFlag.annotator_id == person,
        QualityFlag.check_name.in_(["gold", "qualification"]),
        QualityFlag.settled_at.is_(None),
    )
    for found in await session.scalars(query.with_for_update()):
        found.settled_at, found.settled_by, found.settlement = datetime.now(UTC), actor_id, "confirmed"
    await session.flush()
