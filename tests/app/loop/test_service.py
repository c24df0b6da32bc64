"""The arrows of the loop: from answers to tasks, from rankings to a reward model, to a policy, to the next round."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from app.datasets.models import Dataset, DatasetRow
from app.errors import RankloopError
from app.loop import alternatives, arrivals, forecast, sampling, training
from app.loop import service as loop
from app.loop.clock import train_if_due
from app.prompts.models import Prompt, RunPrompt, Split
from app.registry import service as registry
from app.registry.models import VersionKind
from app.runs import service as runs
from app.runs.models import Run, RunKind, RunState
from app.tasks.models import Task
from tests.app.corpora.test_corpora import send
from tests.app.loop.conftest import Loop
from tests.factories import make_prompt, make_ranking, make_task

REWARD_RESULT = {"num_rankings": 6, "accuracy": None, "seconds": 12.0}
PPO_RESULT = {"num_episodes": 8, "kl": 0.5, "reward": {"first": 0.0, "last": 1.0}, "seconds": 30.0}


async def splits_of(turned: Loop, run: Run) -> set[str]:
    query = select(Prompt.split).join(RunPrompt).where(RunPrompt.run_id == run.id)
    return set((await turned.session.scalars(query)).all())


async def tasks_of(turned: Loop) -> Sequence[Task]:
    return (await turned.session.scalars(select(Task).where(Task.project_id == turned.project.id))).all()


async def whole_round(turned: Loop) -> None:
    await turned.sample()
    await turned.rank_all()
    await training.start_training(turned.session, project=turned.project)
    await turned.finish(await turned.claim(), REWARD_RESULT)
    await turned.finish(await turned.claim(), PPO_RESULT)


async def test_a_new_project_begins_with_its_model(turned: Loop) -> None:
    base = await registry.base_version(turned.session, turned.project.id)
    assert (base.number, base.kind, base.alias, base.is_live) == (1, VersionKind.POLICY, "pocket", True)
    assert (await loop.current_round(turned.session, turned.project)).policy_version_id == base.id


async def test_tasks_appear_as_answers_come_in(turned: Loop) -> None:
    await sampling.start_sampling(turned.session, project=turned.project)
    run = await turned.claim()
    first = await turned.session.scalar(select(RunPrompt.prompt_id).where(RunPrompt.run_id == run.id).limit(1))
    assert first is not None
    await turned.answer(run, first, ["a", "b", "c"])
    assert [(task.prompt_id, task.round) for task in await tasks_of(turned)] == [(first, 1)]


async def test_equal_answers_are_one_and_a_single_one_makes_no_task(turned: Loop) -> None:
    await sampling.start_sampling(turned.session, project=turned.project)
    run = await turned.claim()
    ids = (await turned.session.scalars(select(RunPrompt.prompt_id).where(RunPrompt.run_id == run.id))).all()
    await turned.answer(run, ids[0], ["same", "same", "same"])
    assert await tasks_of(turned) == []
    await turned.answer(run, ids[1], ["same", "other", "same"])
    assert len(await tasks_of(turned)) == 1


async def test_test_prompts_are_not_sampled_for_ranking(turned: Loop) -> None:
    run = await sampling.start_sampling(turned.session, project=turned.project)
    assert await splits_of(turned, run) == {Split.TRAIN, Split.VALIDATION}


async def test_evaluation_takes_test_prompts_and_makes_no_task(turned: Loop) -> None:
    base = await registry.base_version(turned.session, turned.project.id)
    await sampling.start_evaluation(turned.session, project=turned.project, policy=base)
    run = await turned.claim()
    assert await splits_of(turned, run) == {Split.TEST}
    (prompt_id,) = (await turned.session.scalars(select(RunPrompt.prompt_id).where(RunPrompt.run_id == run.id))).all()
    await turned.answer(run, prompt_id, ["a", "b", "c"])
    assert await tasks_of(turned) == []


async def test_sampling_again_takes_only_what_has_no_task(turned: Loop) -> None:
    await turned.sample()
    with pytest.raises(sampling.NothingToSample):
        await sampling.start_sampling(turned.session, project=turned.project)


async def test_one_sampling_at_a_time(turned: Loop) -> None:
    await sampling.start_sampling(turned.session, project=turned.project)
    with pytest.raises(sampling.SamplingUnderWay):
        await sampling.start_sampling(turned.session, project=turned.project)


async def test_training_needs_a_ranking(turned: Loop) -> None:
    with pytest.raises(RankloopError, match=r"Rank some tasks first"):
        await training.start_training(turned.session, project=turned.project)


async def test_pretraining_text_goes_along_where_it_is_switched_on(turned: Loop) -> None:
    session, project = turned.session, turned.project
    project.training = {"ppo": {"ptx_coefficient": 27.8}}
    await turned.sample()
    await turned.rank_all()
    with pytest.raises(RankloopError, match="import a corpus, or set liked"):
        await training.start_training(session, project=project)
    await send(session, project, {"text": "Plain."})
    await training.start_training(session, project=project)
    await turned.finish(await turned.claim(), REWARD_RESULT)
    ppo = await turned.claim()
    assert [corpus["kind"] for corpus in ppo.config["corpora"]] == ["text"]


async def test_text_goes_along_where_it_measures_the_alignment_tax(turned: Loop) -> None:
    session, project = turned.session, turned.project
    project.training = {"ppo": {"tax_texts": 8, "ptx_coefficient": 0.1, "liked": {}}}
    await turned.sample()
    await turned.rank_all()
    with pytest.raises(RankloopError, match=r"training\.ppo\.tax_texts: is above 0 and needs text to measure by"):
        await training.start_training(session, project=project)
    await send(session, project, {"text": "Plain."})
    project.training = {"ppo": {"tax_texts": 8}}
    await training.start_training(session, project=project)
    await turned.finish(await turned.claim(), REWARD_RESULT)
    ppo = await turned.claim()
    assert [corpus["kind"] for corpus in ppo.config["corpora"]] == ["text"]


async def test_the_rankings_go_along_where_ppo_begins_with_what_people_liked(turned: Loop) -> None:
    # They are text, too: PPO-ptx needs no other.
    turned.project.training = {"ppo": {"liked": {"epochs": 1}, "ptx_coefficient": 0.1}}
    await turned.sample()
    await turned.rank_all()
    reward = await training.start_training(turned.session, project=turned.project)
    await turned.finish(await turned.claim(), REWARD_RESULT)
    ppo = await turned.claim()
    assert ppo.config["liked"] == reward.config["dataset"]
    assert ppo.config["training"] == {"liked": {"epochs": 1}, "ptx_coefficient": 0.1}
    assert ppo.config["corpora"] == []


async def test_without_it_no_text_goes_along(turned: Loop) -> None:
    await send(turned.session, turned.project, {"text": "Plain."})
    await turned.sample()
    await turned.rank_all()
    await training.start_training(turned.session, project=turned.project)
    await turned.finish(await turned.claim(), REWARD_RESULT)
    ppo = await turned.claim()
    assert (ppo.config["corpora"], ppo.config["liked"]) == ([], None)


async def test_a_project_names_the_reward_version_that_watches_ppo(turned: Loop) -> None:
    session, project = turned.session, turned.project
    project.training = {"ppo": {"guard": 2, "kl_stop": 12.0}}
    await turned.sample()
    await turned.rank_all()
    with pytest.raises(RankloopError, match=r"training\.ppo\.guard: must be the number of a reward version"):
        await training.start_training(session, project=project)
    project.training = {}
    await training.start_training(session, project=project)
    await turned.finish(await turned.claim(), REWARD_RESULT)
    await turned.finish(await turned.claim(), PPO_RESULT)
    watching = await registry.get_version_by_number(session, project_id=project.id, number=2)
    assert watching.kind == VersionKind.REWARD
    # The policy that the first round led to, whose answers the second is of, is no reward version.
    project.training = {"ppo": {"guard": 3}}
    await turned.work_off_sampling()
    await turned.rank_all()
    with pytest.raises(RankloopError, match="must be the number of a reward version"):
        await training.start_training(session, project=project)
    project.training = {"ppo": {"guard": 2, "kl_stop": 12.0}}
    await training.start_training(session, project=project)
    await turned.finish(await turned.claim(), REWARD_RESULT)
    await turned.score(new=3, live=2)
    ppo = await turned.claim()
    assert ppo.config["guard"]["version_id"] == str(watching.id)
    assert ppo.config["reward"]["version_id"] != str(watching.id)
    assert ppo.config["training"] == {"kl_stop": 12.0}


async def test_a_guard_that_is_gone_from_the_settings_stops_nobody(turned: Loop) -> None:
    await turned.sample()
    await turned.rank_all()
    await training.start_training(turned.session, project=turned.project)
    turned.project.training = {"ppo": {"guard": 99}}
    await turned.finish(await turned.claim(), REWARD_RESULT)
    ppo = await turned.claim()
    assert ppo.config["guard"] is None
    said = [line.text for line in await runs.list_log(turned.session, ppo.id)]
    assert any("No guard watches this run" in line for line in said)


async def test_one_training_at_a_time(turned: Loop) -> None:
    await turned.sample()
    await turned.rank_all()
    await training.start_training(turned.session, project=turned.project)
    with pytest.raises(training.TrainingUnderWay):
        await training.start_training(turned.session, project=turned.project)


async def test_a_round_leads_to_the_next(turned: Loop) -> None:
    await whole_round(turned)
    now = await loop.current_round(turned.session, turned.project)
    policy = await registry.live_version(turned.session, project_id=turned.project.id, kind=VersionKind.POLICY)
    reward = await registry.live_version(turned.session, project_id=turned.project.id, kind=VersionKind.REWARD)
    assert policy is not None
    assert reward is not None
    assert (now.number, now.policy_version_id) == (2, policy.id)
    assert (reward.number, policy.number) == (2, 3)
    assert policy.reward_version_id == reward.id
    assert policy.dataset_id == reward.dataset_id
    sampling = await turned.claim()
    assert (sampling.kind, sampling.config["policy"]["version_id"]) == (RunKind.SAMPLE, str(policy.id))


async def test_the_reward_model_starts_from_sft_and_the_policy_from_the_rounds(turned: Loop) -> None:
    await whole_round(turned)
    await turned.work_off_sampling()
    await turned.rank_all()
    base = await registry.base_version(turned.session, turned.project.id)
    policy = await registry.live_version(turned.session, project_id=turned.project.id, kind=VersionKind.POLICY)
    assert policy is not None
    reward_run = await training.start_training(turned.session, project=turned.project)
    assert reward_run.config["sft"]["version_id"] == str(base.id)
    assert reward_run.config["dataset"]["num_rows"] == 12, "the rankings of both rounds"
    await turned.finish(await turned.claim(), REWARD_RESULT)
    await turned.score(new=3, live=2)
    ppo = await turned.claim()
    assert ppo.config["sft"]["version_id"] == str(base.id)
    assert ppo.config["policy"]["version_id"] == str(policy.id)
    assert await splits_of(turned, ppo) == {Split.TRAIN}


async def test_a_later_round_draws_with_other_seeds(turned: Loop) -> None:
    first = await turned.sample()
    await turned.rank_all()
    await training.start_training(turned.session, project=turned.project)
    await turned.finish(await turned.claim(), REWARD_RESULT)
    await turned.finish(await turned.claim(), PPO_RESULT)
    second = await turned.claim()
    assert first.config["sampling"]["seed"] != second.config["sampling"]["seed"]


async def test_how_far_sampling_is_without_counting_its_answers(turned: Loop) -> None:
    run = await sampling.start_sampling(turned.session, project=turned.project)
    assert await sampling.num_sampled_prompts(turned.session, run.id) == (0, 6)
    await turned.claim()
    ids = (await turned.session.scalars(select(RunPrompt.prompt_id).where(RunPrompt.run_id == run.id))).all()
    for prompt_id in ids[:2]:
        await turned.answer(run, prompt_id, ["one", "two", "three"])
    assert await sampling.num_sampled_prompts(turned.session, run.id) == (2, 6)
    run.progress = {"step": 3, "total": 6}
    assert await sampling.num_sampled_prompts(turned.session, run.id) == (3, 6)
    await turned.finish(run, {"tokens_per_second": 50.0})
    assert await sampling.num_sampled_prompts(turned.session, run.id) == (6, 6)


async def test_the_threshold_starts_one_training(turned: Loop) -> None:
    turned.project.train_threshold = 7
    await turned.sample()
    assert await turned.rank_all() == 6
    now = datetime.now(UTC)
    assert not await train_if_due(turned.session, turned.project.id, now=now)
    turned.project.train_threshold = 6
    assert await training.num_new_rankings(turned.session, turned.project.id) == 6
    assert await train_if_due(turned.session, turned.project.id, now=now)
    waiting = (await turned.session.scalars(select(Run).where(Run.state == RunState.QUEUED))).all()
    assert [(run.kind, run.is_triggered) for run in waiting] == [(RunKind.REWARD, True)]
    assert waiting[0].config["dataset"]["num_rows"] == 6
    assert await training.num_new_rankings(turned.session, turned.project.id) == 0


async def test_a_training_learns_as_much_of_one_person_as_the_project_says_and_none_begins_for_the_rest(
    turned: Loop,
) -> None:
    """For training one person ranks 7 times and two once: of three people two thirds may be one person's, 4 of 6."""
    session, project = turned.session, turned.project
    project.max_annotator_share, project.train_threshold = 0.5, 1
    await turned.sample()
    await turned.rank_all()
    for annotator in (*[turned.annotator] * 3, None, None):
        await make_ranking(session, await make_task(session, await make_prompt(session, project)), annotator=annotator)
    dpo = await alternatives.start(session, project=project, kind=RunKind.DPO)
    reward = await training.start_training(session, project=project)
    for run in (dpo, reward):
        dataset = await session.get_one(Dataset, uuid.UUID(run.config["dataset"]["id"]))
        assert (dataset.counts["train"], dataset.counts["validation"]) == (6, 2)
        assert dataset.counts["left_out"] == {"num_rankings": 3, "num_annotators": 1}
        assert dataset.filter["max_annotator_share"] == 0.5
    assert await training.num_new_rankings(session, project.id) == 0
    for run in (dpo, reward):
        run.state = RunState.CANCELLED
    assert not await train_if_due(session, project.id, now=datetime.now(UTC))
    await make_ranking(session, await make_task(session, await make_prompt(session, project)))
    assert await training.num_new_rankings(session, project.id) == 1


async def test_a_ranking_lists_every_version_that_learned_from_it(turned: Loop) -> None:
    await whole_round(turned)
    policy = await registry.live_version(turned.session, project_id=turned.project.id, kind=VersionKind.POLICY)
    assert policy is not None
    rows = await turned.session.scalars(select(DatasetRow.ranking_id).where(DatasetRow.dataset_id == policy.dataset_id))
    versions = await loop.versions_of_ranking(turned.session, rows.all()[0])
    assert [(version.number, version.kind) for version in versions] == [(2, "reward"), (3, "policy")]


async def test_finishing_again_registers_no_second_version(turned: Loop) -> None:
    await turned.sample()
    await turned.rank_all()
    await training.start_training(turned.session, project=turned.project)
    run = await turned.claim()
    await turned.finish(run, REWARD_RESULT)
    await arrivals.reward_finished(turned.session, run)
    assert len(await registry.list_versions(turned.session, turned.project.id)) == 2


async def test_no_test_prompt_reaches_a_training_run(turned: Loop) -> None:
    run = await runs.enqueue(turned.session, project_id=turned.project.id, kind=RunKind.PPO, config={})
    held_out = await turned.session.scalar(select(Prompt.id).where(Prompt.split == Split.TEST))
    assert held_out is not None
    turned.session.add(RunPrompt(run_id=run.id, position=0, prompt_id=held_out))
    with pytest.raises(IntegrityError, match="may not go to run"):
        await turned.session.flush()


async def test_promoting_an_older_policy_begins_a_round_with_it(turned: Loop) -> None:
    await whole_round(turned)
    base = await registry.base_version(turned.session, turned.project.id)
    await arrivals.promote(turned.session, project=turned.project, version=base, reason="people liked it better")
    now = await loop.current_round(turned.session, turned.project)
    assert (now.number, now.policy_version_id) == (3, base.id)


async def test_the_plan_is_measured_on_earlier_runs(turned: Loop) -> None:
    assert (await forecast.plan_training(turned.session, turned.project)).seconds is None
    await turned.sample()
    await turned.rank_all()
    guess = await forecast.plan_training(turned.session, turned.project)
    assert guess.num_rankings == guess.num_new_rankings == 6
    assert guess.seconds is not None
    await training.start_training(turned.session, project=turned.project)
    await turned.finish(await turned.claim(), REWARD_RESULT)
    await turned.finish(await turned.claim(), PPO_RESULT)
    measured = await forecast.plan_training(turned.session, turned.project)
    assert (measured.num_new_rankings, measured.seconds) == (0, 12.0 + 30.0)


async def test_the_clock_trains_where_something_is_new_and_it_is_time(turned: Loop) -> None:
    session, project = turned.session, turned.project
    project.train_every_hours = 24
    later = datetime.now(UTC) + timedelta(hours=25)
    await turned.sample()
    assert not await train_if_due(session, project.id, now=later), "nothing is ranked"
    await turned.rank_all()
    assert not await train_if_due(session, project.id, now=datetime.now(UTC)), "it is too early"
    assert await train_if_due(session, project.id, now=later)
    run = await turned.claim()
    assert (run.kind, run.is_triggered) == ("reward", True)
    assert not await train_if_due(session, project.id, now=later), "one is under way"
