"""Blind comparisons: how they come to annotators, what closes them, and that nothing learns from them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from app.datasets import service as datasets
from app.datasets.models import DatasetRow
from app.errors import Invalid
from app.loop import comparisons, ending, training
from app.loop.comparisons import ComparisonOpen
from app.loop.ending import ComparisonClosed
from app.loop.models import ComparedPrompt, Comparison
from app.loop.outcomes import Figures, Outcome, figures_of, outcome, wilson
from app.prompts.models import Completion, Prompt, RunPrompt, Split
from app.rankings import service as rankings
from app.rankings.answers import RankingAnswer
from app.rankings.models import Ranking
from app.registry import service as registry
from app.registry.models import Version, VersionKind
from app.runs.models import Run, RunKind, RunState
from app.tasks import service as tasks
from app.tasks.models import Lease, Purpose, Task
from tests.app.loop.conftest import Loop
from tests.factories import make_prompt, make_run, make_task, make_user

KEYS = [uuid.UUID(int=number) for number in range(6)]
Preference = Callable[[str], float]


async def make_policy(turned: Loop) -> Version:
    """A policy beside version 1."""
    run = await make_run(turned.session, turned.project, kind=RunKind.SFT, state=RunState.FINISHED)
    return await registry.register(
        turned.session,
        project_id=turned.project.id,
        kind=VersionKind.POLICY,
        parent=await registry.base_version(turned.session, turned.project.id),
        run_id=run.id,
        dataset_id=None,
        metrics={},
    )


async def begin(turned: Loop, *, num_prompts: int = 40) -> Comparison:
    """A comparison of a new policy with version 1, on as many held-out prompts."""
    for _ in range(num_prompts - 3):
        await make_prompt(turned.session, turned.project, split=Split.TEST)
    version = await make_policy(turned)
    base = await registry.base_version(turned.session, turned.project.id)
    return await comparisons.start(turned.session, project=turned.project, version=version, against=base)


async def answer_both(turned: Loop, texts: Callable[[Run, uuid.UUID], Sequence[str]]) -> None:
    """Play the worker for both runs."""
    for _ in range(2):
        run = await turned.claim()
        assert run.kind == RunKind.EVALUATE
        ids = (await turned.session.scalars(select(RunPrompt.prompt_id).where(RunPrompt.run_id == run.id))).all()
        for prompt_id in ids:
            await turned.answer(run, prompt_id, texts(run, prompt_id))
        await turned.finish(run, {"tokens_per_second": 50.0})


def two_each(run: Run, prompt_id: uuid.UUID) -> list[str]:
    """Answers that tell who wrote them, for annotators of a test."""
    return [f"by {run.config['policy']['number']}: {index} to {prompt_id}" for index in range(run.config["k"])]


async def rank_by(turned: Loop, worth: Preference, *, limit: int = 1000) -> list[Task]:
    """Rank what comes by what a text is worth; equal ones tie. Returns the tasks, in their order."""
    done: list[Task] = []
    while len(done) < limit:
        lease = await tasks.next_lease(
            turned.session, project=turned.project, annotator=turned.annotator, now=datetime.now(UTC)
        )
        if lease is None:
            break
        texts = dict(
            (
                await turned.session.execute(
                    select(Completion.id, Completion.text).where(Completion.id.in_(lease.display_order))
                )
            ).all()
        )
        ranks = sorted({worth(text) for text in texts.values()}, reverse=True)
        places = {key: ranks.index(worth(texts[key])) + 1 for key in lease.display_order}
        await rankings.submit(
            turned.session,
            lease_id=lease.id,
            annotator=turned.annotator,
            answer=RankingAnswer(places=places),
            source="api",
        )
        done.append(await turned.session.get_one(Task, lease.task_id))
    return done


def likes(number: int) -> Preference:
    """Somebody who likes one version's answers."""
    return lambda text: float(text.startswith(f"by {number}:"))


# What a ranking says


def test_wins_by_hand_a_tie_is_half() -> None:
    """a, b of the one; c, d of the other: a > c = b > d. a wins twice, b ties and wins: 3.5 of 4."""
    a, b, c, d = KEYS[:4]
    found = outcome({a: 1, b: 2, c: 2, d: 3}, {d: ["made_up"]}, of_version=[a, b], of_against=[c, d])
    assert found is not None
    assert found.win_share == 3.5 / 4
    assert (found.of_version, found.of_against) == ({}, {"made_up": 0.5})


def test_the_same_text_of_both_ties_and_what_has_no_place_says_nothing() -> None:
    a, b = KEYS[:2]
    both = outcome({a: 1, b: 2}, {}, of_version=[a, a], of_against=[a, b])
    assert both is not None
    assert both.win_share == (0.5 + 1 + 0.5 + 1) / 4
    assert outcome({a: None, b: 1}, {}, of_version=[a], of_against=[b]) is None


def test_prompts_with_nothing_to_rank_are_ties() -> None:
    figures = figures_of([], num_prompts=4, num_ties=4)
    assert (figures.win_rate, figures.num_ranked) == (0.5, 0)
    assert figures.low < 0.5 < figures.high


def test_labels_come_with_their_difference_and_its_interval() -> None:
    a, b = KEYS[:2]
    one = outcome({a: 1, b: 2}, {b: ["made_up"]}, of_version=[a], of_against=[b])
    none = outcome({a: 1, b: 2}, {}, of_version=[a], of_against=[b])
    assert one is not None
    assert none is not None
    (label,) = figures_of([one, none] * 20, num_prompts=40).labels
    assert (label.of_version, label.of_against, label.difference) == (0.0, 0.5, -0.5)
    assert -0.7 < label.low < -0.5 < label.high < -0.3
    assert label.of_against_low == pytest.approx(0.352, abs=1e-3)
    assert label.of_against_high == pytest.approx(0.648, abs=1e-3)


def test_a_label_that_nobody_marked_may_be_there_all_the_same() -> None:
    """None in 40: by hand 1.96² / (40 + 1.96²) = 8.8 %. Resampling would be sure that there is none."""
    assert wilson(0.0, 40) == pytest.approx((0.0, 3.8416 / 43.8416))
    assert wilson(1.0, 40) == pytest.approx((40 / 43.8416, 1.0))


# How they come


async def test_both_answer_the_same_held_out_prompts(turned: Loop) -> None:
    comparison = await begin(turned, num_prompts=10)
    lists = [
        (await turned.session.scalars(select(RunPrompt.prompt_id).where(RunPrompt.run_id == run_id))).all()
        for run_id in (comparison.version_run_id, comparison.against_run_id)
    ]
    assert lists[0] == lists[1]
    splits = await turned.session.scalars(select(Prompt.split).where(Prompt.id.in_(lists[0])))
    assert sorted(splits) == ["test"] * 8 + ["validation"] * 2


async def test_a_comparison_looks_like_any_task(turned: Loop) -> None:
    turned.project.k = 4
    await begin(turned, num_prompts=6)
    await answer_both(turned, two_each)
    made = (await turned.session.scalars(select(Task).where(Task.purpose == Purpose.COMPARE))).all()
    assert len(made) == 6
    for task in made:
        versions = [
            text.partition(":")[0]
            for text in await turned.session.scalars(
                select(Completion.text).where(Completion.id.in_(await tasks.completion_ids(turned.session, task.id)))
            )
        ]
        assert sorted(versions) == ["by 1", "by 1", "by 2", "by 2"]
        assert (task.overlap, task.round) == (1, None)


async def test_with_an_odd_number_of_answers_either_version_may_have_one_more(turned: Loop) -> None:
    assert turned.project.k == 3
    await begin(turned, num_prompts=30)
    await answer_both(turned, two_each)
    sizes = [
        (len(item.of_version), len(item.of_against)) for item in await turned.session.scalars(select(ComparedPrompt))
    ]
    assert set(sizes) == {(1, 2), (2, 1)}


async def test_they_come_between_other_tasks_at_the_rate_of_the_project(turned: Loop) -> None:
    turned.project.compare_share = 0.25
    # Turns are drawn from the person's id: with this one, always alike.
    turned.annotator = await make_user(turned.session, id=uuid.UUID(int=7))
    for _ in range(34):
        await make_prompt(turned.session, turned.project)
    await turned.sample()
    await begin(turned, num_prompts=20)
    await answer_both(turned, two_each)
    done = await rank_by(turned, lambda _: 0.0, limit=40)
    assert 6 <= sum(task.purpose == Purpose.COMPARE for task in done) <= 14


async def test_where_nothing_else_waits_they_come_all_the_same(turned: Loop) -> None:
    turned.project.compare_share = 0.0
    await begin(turned, num_prompts=5)
    await answer_both(turned, two_each)
    assert len(await rank_by(turned, lambda _: 0.0)) == 5


async def test_the_same_answer_of_all_needs_no_ranking(turned: Loop) -> None:
    comparison = await begin(turned, num_prompts=5)
    await answer_both(turned, lambda run, prompt_id: ["the same"] * run.config["k"])
    assert (await turned.session.scalars(select(Task))).all() == []
    assert comparison.state == "undecided"
    assert comparison.figures["win_rate"] == 0.5


# What closes them


@pytest.mark.parametrize(("liked", "state"), [(2, "better"), (1, "worse")])
async def test_it_ends_when_it_is_decided_and_takes_back_the_rest(turned: Loop, liked: int, state: str) -> None:
    comparison = await begin(turned, num_prompts=20)
    await answer_both(turned, two_each)
    done = await rank_by(turned, likes(liked))
    assert comparison.state == state
    assert 5 <= len(done) < 20
    assert comparison.figures["win_rate"] == (1.0 if liked == 2 else 0.0)
    left = (await turned.session.scalars(select(Task).where(Task.withdrawn_at.is_(None)))).all()
    assert {task.id for task in left} == {task.id for task in done}
    version = await registry.get_version(turned.session, comparison.version_id)
    assert version.metrics["win_rate"]["num_prompts"] == len(done)


async def test_equal_versions_are_undecided_when_all_is_ranked(turned: Loop) -> None:
    comparison = await begin(turned, num_prompts=6)
    await answer_both(turned, two_each)
    assert len(await rank_by(turned, lambda _: 0.0)) == 6
    assert comparison.state == "undecided"


async def test_stopping_keeps_what_was_ranked_and_cancels_what_was_not_sampled(turned: Loop) -> None:
    comparison = await begin(turned, num_prompts=5)
    await ending.stop(turned.session, comparison)
    run = await turned.session.get_one(Run, comparison.version_run_id)
    assert (comparison.state, run.state) == ("stopped", RunState.CANCELLED)
    with pytest.raises(ComparisonClosed):
        await ending.stop(turned.session, comparison)


async def test_a_task_in_hand_goes_back_when_it_is_decided(turned: Loop) -> None:
    await begin(turned, num_prompts=20)
    await answer_both(turned, two_each)
    other = await make_user(turned.session)
    held = await tasks.next_lease(turned.session, project=turned.project, annotator=other, now=datetime.now(UTC))
    assert held is not None
    await rank_by(turned, likes(2))
    assert (await turned.session.get_one(Lease, held.id, populate_existing=True)).state == "expired"


# What a policy keeps of them


def rated(*wins: float) -> Figures:
    return figures_of([Outcome(win, {}, {}) for win in wins], num_prompts=200)


def test_what_is_known_better_stays() -> None:
    """A second comparison that somebody stops at once takes nothing from a win rate of 200 rankings; 300 do."""
    base, policy = Version(number=1, metrics={}), Version(number=3, metrics={"kl": 2.0})
    for wins, kept in (([1.0, 0.0] * 100, 200), ([0.0, 0.0, 0.0], 200), ([1.0, 1.0, 0.0] * 100, 300)):
        ending.keep_win_rate(policy, base, rated(*wins))
        assert policy.metrics["win_rate"]["num_prompts"] == kept
    assert policy.metrics["win_rate"]["value"] == pytest.approx(2 / 3)
    assert policy.metrics["kl"] == 2.0


def test_a_win_rate_is_kept_whichever_of_the_two_was_named_first() -> None:
    base, policy = Version(number=1, metrics={}), Version(number=3, metrics={"win_rate": 0.58})
    ending.keep_win_rate(base, policy, rated(0.0, 0.0, 1.0, 0.5))
    rate = policy.metrics["win_rate"]
    assert (rate["value"], base.metrics) == (pytest.approx(5 / 8), {})
    assert rate["low"] < 5 / 8 < rate["high"] <= 1.0
    seen = rated(1.0, 1.0, 0.0, 0.5)
    assert (rate["low"], rate["high"]) == (pytest.approx(seen.low), pytest.approx(seen.high))


def test_policies_that_are_compared_with_another_than_version_1_keep_nothing() -> None:
    older, newer = Version(number=3, metrics={}), Version(number=5, metrics={})
    ending.keep_win_rate(newer, older, rated(1.0))
    assert (older.metrics, newer.metrics) == ({}, {})


# What they may not do


async def test_two_policies_of_the_project_are_compared_once_at_a_time(turned: Loop) -> None:
    comparison = await begin(turned, num_prompts=5)
    version = await registry.get_version(turned.session, comparison.version_id)
    base = await registry.get_version(turned.session, comparison.against_id)
    for first, second, problem in (
        (version, base, ComparisonOpen),
        (base, version, ComparisonOpen),
        (base, base, Invalid),
    ):
        with pytest.raises(problem):
            await comparisons.start(turned.session, project=turned.project, version=first, against=second)


async def test_nothing_learns_from_a_comparison(turned: Loop) -> None:
    await turned.sample()
    await begin(turned, num_prompts=8)
    await answer_both(turned, two_each)
    done = await rank_by(turned, lambda _: 0.0)
    await rank_by(turned, lambda text: float(len(text)))
    compared = [task.id for task in done if task.purpose == Purpose.COMPARE]
    assert len(compared) == 8
    assert await training.num_new_rankings(turned.session, turned.project.id) == 6
    followed = await rankings.follow_rankings(turned.session, project_id=turned.project.id)
    assert not {view.ranking.task_id for view in followed} & set(compared)
    dataset = await datasets.freeze(turned.session, project=turned.project)
    assert dataset.num_rows == 6
    ranking = await turned.session.scalar(select(Ranking.id).where(Ranking.task_id == compared[0]))
    turned.session.add(DatasetRow(dataset_id=dataset.id, position=99, ranking_id=ranking))
    with pytest.raises(IntegrityError, match="may not go to a dataset"):
        await turned.session.flush()


async def test_a_task_keeps_its_purpose(turned: Loop) -> None:
    await turned.sample()
    task = (await turned.session.scalars(select(Task).limit(1))).one()
    task.purpose = Purpose.COMPARE
    with pytest.raises(IntegrityError, match="keeps its purpose"):
        await turned.session.flush()


@pytest.mark.parametrize(("split", "problem"), [(Split.TRAIN, "was learned from"), (Split.TEST, "does not compare")])
async def test_the_database_keeps_comparisons_apart(turned: Loop, split: Split, problem: str) -> None:
    comparison = await begin(turned, num_prompts=4)
    prompt = await make_prompt(turned.session, turned.project, split=split)
    task = await make_task(turned.session, prompt) if split == Split.TEST else None
    row = ComparedPrompt(comparison_id=comparison.id, prompt_id=prompt.id, of_version=[], of_against=[])
    row.task_id = task.id if task else None
    turned.session.add(row)
    with pytest.raises(IntegrityError, match=problem):
        await turned.session.flush()
