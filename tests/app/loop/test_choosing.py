"""What is ranked first: places at random, places by score, and what stays as it was."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import select

from app.loop import choosing, training, watch
from app.loop.choosing import ROOM, Judged, placed
from app.projects.models import RankNext
from app.prompts.models import Prompt, Split
from app.runs import service as runs
from app.runs.models import Run, RunKind
from app.tasks import service as tasks
from app.tasks.models import Task
from tests.app.loop.conftest import Loop
from tests.app.loop.test_service import PPO_RESULT, REWARD_RESULT
from tests.factories import make_project, make_prompt


async def tasks_of(turned: Loop, round_number: int) -> Sequence[Task]:
    query = select(Task).where(Task.project_id == turned.project.id, Task.round == round_number)
    found = await turned.session.scalars(query.order_by(Task.priority.desc()).execution_options(populate_existing=True))
    return found.all()


async def to_the_second_round(turned: Loop, way: RankNext) -> Run:
    """A round is over, the next one's answers are there, and a run waits that judges them."""
    turned.project.rank_next = way
    for _ in range(20):
        await make_prompt(turned.session, turned.project, split=Split.TRAIN)
    await turned.sample()
    await turned.rank_all()
    run = await training.start_training(turned.session, project=turned.project)
    assert run.config["training"].get("num_heads") == (5 if way in choosing.BY_HEADS else None)
    await turned.finish(await turned.claim(), REWARD_RESULT)
    await turned.finish(await turned.claim(), PPO_RESULT)
    await turned.work_off_sampling()
    run = await turned.claim()
    assert run.kind == RunKind.JUDGE
    return run


async def judge(turned: Loop, run: Run, *, num_heads: int = 5) -> dict[str, float]:
    """Play the worker: the n-th row is worth n, its answers 0, 1, 2."""
    rows = [row async for row in choosing.answers_to_judge(turned.session, run)]
    worth = {row["key"]: float(number) for number, row in enumerate(rows)}
    said = [
        {
            "key": row["key"],
            "scores": {answer["id"]: float(rank) for rank, answer in enumerate(row["answers"])},
            **dict.fromkeys(("disagreement", "expected_gain", "novelty"), worth[row["key"]]),
        }
        for row in rows
    ]
    await turned.finish(run, {"judged": said, "num_heads": num_heads, "refused": []})
    return worth


def judged(number: int, *, is_random: bool = False) -> Judged:
    return Judged(uuid.UUID(int=number), 3, is_random, float(number), [])


async def test_tasks_of_a_round_are_in_an_order_that_says_nothing(turned: Loop) -> None:
    for _ in range(20):
        await make_prompt(turned.session, turned.project, split=Split.TRAIN)
    await turned.sample()
    found = await tasks_of(turned, 1)
    assert len({task.priority for task in found}) == len(found) == 26
    assert all(ROOM <= task.priority < 2 * ROOM for task in found)
    assert [task.number for task in found] != sorted(task.number for task in found)
    assert {(task.chosen_by, task.score) for task in found} == {("random", None)}
    assert await turned.session.scalar(select(Run.id).where(Run.kind == RunKind.JUDGE)) is None


async def test_the_most_telling_come_first_and_a_share_at_random(turned: Loop) -> None:
    run = await to_the_second_round(turned, RankNext.DISAGREEMENT)
    assert run.config["dataset"] is None
    worth = await judge(turned, run)
    found = await tasks_of(turned, 2)
    held_out = set(
        await turned.session.scalars(
            select(Prompt.id).where(Prompt.project_id == turned.project.id, Prompt.split == "validation")
        )
    )
    assert {task.chosen_by for task in found if task.prompt_id in held_out} == {"random"}
    chosen = [task for task in found if task.chosen_by == "disagreement"]
    assert 10 <= len(chosen) <= 24
    assert [task.score for task in chosen] == sorted((worth[str(task.id)] for task in chosen), reverse=True)
    assert all(task.score == worth[str(task.id)] and task.judged_run_id == run.id for task in found)
    # Whoever comes next gets the first of them.
    lease = await tasks.next_lease(
        turned.session, project=turned.project, annotator=turned.annotator, now=datetime.now(UTC)
    )
    assert lease is not None
    assert lease.task_id == found[0].id
    ids = await tasks.completion_ids(turned.session, found[0].id)
    assert found[0].judged_order == ids[::-1]


async def test_what_somebody_has_stays_where_it_is(turned: Loop) -> None:
    run = await to_the_second_round(turned, RankNext.NOVELTY)
    assert run.config["dataset"]["num_rows"] == 26
    lease = await tasks.next_lease(
        turned.session, project=turned.project, annotator=turned.annotator, now=datetime.now(UTC)
    )
    assert lease is not None
    await judge(turned, run)
    found = {task.id: task for task in await tasks_of(turned, 2)}
    assert (found[lease.task_id].chosen_by, found[lease.task_id].score) == ("random", None)
    assert sum(task.score is not None for task in found.values()) == 25


async def test_one_head_differs_with_nobody(turned: Loop) -> None:
    run = await to_the_second_round(turned, RankNext.EXPECTED_GAIN)
    await judge(turned, run, num_heads=1)
    assert {task.score for task in await tasks_of(turned, 2)} == {None}
    assert "one head" in (await runs.list_log(turned.session, run.id))[-1].text


async def test_nobody_is_asked_where_nothing_waits_or_a_run_is_open(turned: Loop) -> None:
    turned.project.rank_next = RankNext.NOVELTY
    assert await choosing.judge_waiting(turned.session, turned.project) is None
    await to_the_second_round(turned, RankNext.NOVELTY)
    assert await choosing.judge_waiting(turned.session, turned.project) is None


async def test_random_ones_are_spread_evenly_among_the_chosen(session: Any) -> None:
    """Of the first, second and third hundred that are handed out, about as many are at random."""
    project = await make_project(session, rank_next="novelty", random_share=0.2)
    rows = placed(project, [judged(number, is_random=number % 5 == 0) for number in range(1000)])
    assert len(rows) == 1000
    rows.sort(key=lambda row: -row["place"])
    for part in (rows[:100], rows[100:200], rows[400:500]):
        assert 8 <= sum(row["way"] == "random" for row in part) <= 34
    assert [row["worth"] for row in rows if row["way"] == "novelty"] == sorted(
        (row["worth"] for row in rows if row["way"] == "novelty"), reverse=True
    )


@pytest.mark.parametrize("round_number", [1, 2000, 90_000])
def test_a_place_stays_within_the_room_of_its_round(round_number: int) -> None:
    low, high = choosing.priority_at(round_number, 0.0), choosing.priority_at(round_number, 1.0)
    assert low == min(round_number, 2000) * ROOM
    assert high < low + ROOM < 2**31


async def test_the_watch_page_says_how_often_the_reward_model_was_right(turned: Loop) -> None:
    """Of 26 rankings of three answers each, those of either kind apart."""
    await judge(turned, await to_the_second_round(turned, RankNext.DISAGREEMENT))
    await turned.rank_all()
    found = {choice.chosen_by: choice for choice in await watch.choices(turned.session, turned.project)}
    assert set(found) == {"random", "disagreement"}
    assert sum(choice.num_rankings for choice in found.values()) == 26
    assert all(choice.right is not None and choice.right.num == 3 * choice.num_rankings for choice in found.values())


def test_pairs_that_nobody_ordered_count_for_nothing() -> None:
    """Of A > B > C, somebody says C > A = B, and leaves D out: two pairs, none of them alike."""
    a, b, c, d = (uuid.UUID(int=number) for number in range(4))
    assert watch.agreed([a, b, c, d], {a: 2, b: 2, c: 1, d: None}) == (0, 2)
    assert watch.agreed([a, b, c], {a: 1, b: 2, c: 3}) == (3, 3)
