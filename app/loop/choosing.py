"""What is ranked first: tasks get a place among those of their round, at random or by what their ranking would teach.

A task is made at a random place. Where the project wants it otherwise, a `judge` run asks the live reward model about
the answers that wait; the most telling move to the front. A fixed share stays at random, and so does all that is held
out for validation: what is measured on them is unbiased. Both kinds are spread over the same places, so that at every
moment as large a share of what is handed out is random. What somebody has had stays where it is.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from typing import cast as typing_cast

from sqlalchemy import ColumnElement, Select, Table, Text, bindparam, cast, func, select, update
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.ext.asyncio import AsyncSession

from app.datasets import service as datasets
from app.draws import draw
from app.projects.models import Help, Project, RankNext
from app.projects.service import get_project
from app.prompts.models import Completion, Prompt, Split
from app.registry import service as registry
from app.registry.models import Version, VersionKind
from app.runs import service as runs
from app.runs.models import Run, RunKind
from app.runs.service import RunFinished
from app.tasks.models import Purpose, Task, TaskCompletion
from app.tasks.service import has_place

# Places of a round: the number of the round, and below it where a task stands among its own.
ROOM = 1_000_000
LAST_ROUND = 2_000
# Nobody ranks more before the next reward model; the others keep their random places.
MOST_JUDGED = 5_000
# These two look at how the heads of an ensemble differ.
BY_HEADS = (RankNext.DISAGREEMENT, RankNext.EXPECTED_GAIN)


@dataclass(frozen=True)
class Judged:
    """What a reward model said of one waiting task."""

    task_id: uuid.UUID
    round: int | None
    is_random: bool
    score: float | None
    """None where nothing is chosen by any."""
    order: Sequence[uuid.UUID]
    """Its answers, the best first."""


# Places


def priority_at(round_number: int | None, place: float) -> int:
    """The priority of a task of a round: the newest round first, and in it the highest place (0 to 1)."""
    return min(round_number or 0, LAST_ROUND) * ROOM + int(place * (ROOM - 1))


def random_place(project: Project, *told: object) -> float:
    """A place that says nothing about the task."""
    return draw(project.seed, "place", *told)


def is_at_random(project: Project, task_id: uuid.UUID, split: str) -> bool:
    """Whether a task keeps a random place whatever is ranked first."""
    return split == Split.VALIDATION or draw(project.seed, "random", task_id) < project.random_share


def placed(project: Project, judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """The new places of judged tasks: those at random anywhere, the others by score, spread evenly."""
    chosen = sorted((item for item in judged if not item.is_random), key=lambda item: (item.score or 0.0, item.task_id))
    place_of = {item.task_id: (rank + 0.5) / len(chosen) for rank, item in enumerate(chosen)}
    return [
        {
            "task": item.task_id,
            "place": priority_at(item.round, place_of.get(item.task_id, random_place(project, item.task_id))),
            "way": RankNext.RANDOM if item.is_random else project.rank_next,
            "worth": item.score,
            "ordered": list(item.order),
        }
        for item in judged
    ]


# Asking


async def judge_waiting(session: AsyncSession, project: Project) -> Run | None:
    """Queue a run that asks the live reward model about the tasks that wait; None where nobody needs to know."""
    is_wanted = project.rank_next != RankNext.RANDOM or project.help != Help.NONE or project.drafts_demonstrations
    if not is_wanted or project.archived_at is not None:
        return None
    reward = await registry.live_version(session, project_id=project.id, kind=VersionKind.REWARD)
    if reward is None or await open_judge(session, project) is not None:
        return None
    if (await session.execute(waiting(project.id).limit(1))).first() is None:
        return None
    return await runs.enqueue(
        session,
        project_id=project.id,
        kind=RunKind.JUDGE,
        config=await config_of(session, project, reward),
        max_queued=None,
    )


async def open_judge(session: AsyncSession, project: Project) -> Run | None:
    """A run that looks at what waits, and waits or runs itself; not one that compares policies."""
    is_open = (
        Run.kind == RunKind.JUDGE,
        Run.state.in_(runs.OPEN_STATES),
        Run.config["rank_next"].as_string().is_not(None),
    )
    return await session.scalar(select(Run).where(Run.project_id == project.id, *is_open).limit(1))


async def config_of(session: AsyncSession, project: Project, reward: Version) -> dict[str, Any]:
    """The frozen settings of such a run; novelty is told from the rankings that the reward model learned from."""
    seen = None
    if project.rank_next == RankNext.NOVELTY and reward.dataset_id is not None:
        seen = datasets.reference(await datasets.get_dataset(session, reward.dataset_id))
    return {"reward": await registry.reference(session, reward), "dataset": seen, "rank_next": project.rank_next}


def waiting(project_id: uuid.UUID) -> Select[uuid.UUID, uuid.UUID, int | None, str]:
    """(task, prompt, round, split) of what nobody has had yet, those first that come first."""
    return (
        select(Task.id, Task.prompt_id, Task.round, Prompt.split)
        .join(Prompt, Prompt.id == Task.prompt_id)
        .where(Task.project_id == project_id, Task.withdrawn_at.is_(None), has_place(), Task.num_taken == 0)
        .where(Task.purpose == Purpose.LEARN)
        .order_by(Task.priority.desc(), Task.number)
        .limit(MOST_JUDGED)
    )


def answer_object() -> ColumnElement[Any]:
    """One answer as a worker reads it."""
    return func.jsonb_build_object(
        "id", Completion.id, "text", Completion.text, "finish_reason", Completion.finish_reason
    )


async def answers_to_judge(session: AsyncSession, run: Run) -> AsyncIterator[dict[str, Any]]:
    """The rows that a `judge` run reads: each task that waits now, with its answers as it was made."""
    asked = waiting(run.project_id).subquery()
    rows = await session.stream(
        select(
            cast(asked.c.id, Text).label("key"),
            Prompt.messages,
            func.jsonb_agg(aggregate_order_by(answer_object(), TaskCompletion.position)).label("answers"),
        )
        .select_from(asked)
        .join(Prompt, Prompt.id == asked.c.prompt_id)
        .join(TaskCompletion, TaskCompletion.task_id == asked.c.id)
        .join(Completion, Completion.id == TaskCompletion.completion_id)
        .group_by(asked.c.id, Prompt.id)
        .order_by(asked.c.id)
    )
    async for row in rows.mappings():
        yield dict(row)


# Hearing


async def run_finished(session: AsyncSession, event: RunFinished) -> None:
    """Answers were drawn: ask about their tasks. Scores came: put the tasks in their order."""
    if event.run.kind == RunKind.SAMPLE:
        await judge_waiting(session, await get_project(session, event.run.project_id))
    elif event.run.kind == RunKind.JUDGE and event.run.config["rank_next"]:
        await put_in_order(session, event.run)


async def put_in_order(session: AsyncSession, run: Run) -> None:
    """Write down what a run said of the tasks that still wait, and where they stand now."""
    project = await get_project(session, run.project_id)
    way = RankNext(run.config["rank_next"])
    result = run.result or {}
    if way in BY_HEADS and result.get("num_heads", 1) < 2:
        said = "The reward model has one head, and can't differ with itself: train one with num_heads of 2 or more."
        await runs.add_log(session, run_id=run.id, lines=[("warning", said)])
        return
    said_of = {uuid.UUID(item["key"]): item for item in result.get("judged", [])}
    judged = [
        judged_of(project, row.id, row.round, row.split, said_of[row.id], way)
        for row in await session.execute(waiting(project.id))
        if row.id in said_of
    ]
    if judged and project.rank_next == way:
        await session.execute(PLACE, [item | {"run": run.id} for item in placed(project, judged)])


def judged_of(
    project: Project, task_id: uuid.UUID, round_number: int | None, split: str, said: Mapping[str, Any], way: RankNext
) -> Judged:
    """What was said of one task."""
    best_first = sorted(said["scores"].items(), key=lambda item: (-item[1], item[0]))
    return Judged(
        task_id=task_id,
        round=round_number,
        is_random=way == RankNext.RANDOM or is_at_random(project, task_id, split),
        score=None if way == RankNext.RANDOM else round(float(said[way]), 4),
        order=[uuid.UUID(key) for key, _ in best_first],
    )


TASKS = typing_cast(Table, Task.__table__)
# Whoever takes a task at this moment has it as it was.
PLACE = (
    update(TASKS)
    .where(TASKS.c.id == bindparam("task"), TASKS.c.num_taken == 0)
    .values(
        priority=bindparam("place"),
        chosen_by=bindparam("way"),
        score=bindparam("worth"),
        judged_order=bindparam("ordered"),
        judged_run_id=bindparam("run"),
    )
)
