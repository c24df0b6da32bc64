"""Other ways of training: what each freezes to learn from, what it refuses, and the version that waits."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from app.errors import RankloopError
from app.loop import alternatives, subscriptions, training
from app.loop import service as loop
from app.prompts.models import RunPrompt, Split
from app.registry import service as registry
from app.registry.models import VersionKind
from app.runs.models import RunKind
from tests.app.corpora.test_corpora import send
from tests.app.loop.conftest import Loop
from tests.app.loop.test_service import REWARD_RESULT, splits_of
from tests.factories import make_completion, make_prompt


@pytest.fixture(autouse=True)
def subscribed() -> None:
    subscriptions.subscribe()


async def test_sft_learns_from_every_corpus_and_the_newest_demonstrations(turned: Loop) -> None:
    session, project = turned.session, turned.project
    project.test_share = 0.0
    await send(session, project, {"prompt": "Q?", "completion": "A."}, name="chats")
    await send(session, project, {"text": "Plain."}, name="web")
    runs = []
    for text in ("first", "second"):
        prompt = await make_prompt(session, project, split=Split.TRAIN)
        await make_completion(session, prompt, text=text, is_demonstration=True)
        runs.append(await alternatives.start(session, project=project, kind=RunKind.SFT, training={"epochs": 2}))
    first, second = runs
    assert [corpus["num_rows"] for corpus in first.config["corpora"]] == [1, 1]
    assert [corpus["num_rows"] for corpus in second.config["corpora"]] == [2, 1]
    assert {corpus["kind"] for corpus in second.config["corpora"]} == {"conversations"}
    assert second.config["training"] == {"epochs": 2}
    assert second.config["policy"]["number"] == 1


async def test_dpo_learns_from_the_frozen_rankings(turned: Loop) -> None:
    await turned.sample()
    await turned.rank_all()
    await alternatives.start(turned.session, project=turned.project, kind=RunKind.DPO)
    run = await turned.claim()
    assert run.config["dataset"]["num_rows"] == 6
    assert run.config["sft"]["number"] == run.config["policy"]["number"] == 1
    await turned.finish(run, {"num_pairs": 18})
    version = await registry.get_version_by_number(turned.session, project_id=turned.project.id, number=2)
    assert str(version.dataset_id) == run.config["dataset"]["id"]


async def test_best_of_n_needs_a_reward_model_and_names_it_in_the_version(turned: Loop) -> None:
    session, project = turned.session, turned.project
    with pytest.raises(RankloopError, match="needs a reward model"):
        await alternatives.start(session, project=project, kind=RunKind.BEST_OF_N)
    await turned.sample()
    await turned.rank_all()
    await training.start_training(session, project=project)
    await turned.finish(await turned.claim(), REWARD_RESULT)
    await alternatives.start(session, project=project, kind=RunKind.BEST_OF_N)
    run = next(run for run in [await turned.claim(), await turned.claim()] if run.kind == RunKind.BEST_OF_N)
    assert await splits_of(turned, run) == {Split.TRAIN}
    await turned.finish(run, {})
    reward = await registry.live_version(session, project_id=project.id, kind=VersionKind.REWARD)
    version = await registry.get_version_by_number(session, project_id=project.id, number=3)
    assert reward is not None
    assert (version.reward_version_id, version.kind) == (reward.id, VersionKind.POLICY)


async def test_star_takes_only_prompts_whose_answer_can_be_checked(turned: Loop) -> None:
    session, project = turned.session, turned.project
    with pytest.raises(RankloopError, match="can be checked"):
        await alternatives.start(session, project=project, kind=RunKind.STAR)
    check = {"check": {"kind": "numeric", "value": "4"}}
    known = await make_prompt(session, project, split=Split.TRAIN, meta=check)
    await make_prompt(session, project, split=Split.TEST, meta=check)
    run = await alternatives.start(session, project=project, kind=RunKind.STAR)
    chosen = await session.scalars(select(RunPrompt.prompt_id).where(RunPrompt.run_id == run.id))
    assert chosen.all() == [known.id]


async def test_the_version_waits_to_be_promoted(turned: Loop) -> None:
    session, project = turned.session, turned.project
    project.test_share = 0.0
    await send(session, project, {"prompt": "Q?", "completion": "A."})
    await alternatives.start(session, project=project, kind=RunKind.SFT)
    await turned.finish(await turned.claim(), {"loss": 1.0})
    live = await registry.live_version(session, project_id=project.id, kind=VersionKind.POLICY)
    made = await registry.get_version_by_number(session, project_id=project.id, number=2)
    assert live is not None
    assert live.number == 1
    assert (made.parent_id, made.is_live, made.metrics["loss"]) == (live.id, False, 1.0)
    assert (await loop.current_round(session, project)).number == 1


@pytest.mark.parametrize(
    ("kind", "words"),
    [(RunKind.SFT, "nothing to imitate"), (RunKind.DPO, "Rank some tasks first"), (RunKind.PPO, "must be one of")],
)
async def test_without_anything_to_learn_from_it_says_what_to_bring(turned: Loop, kind: RunKind, words: str) -> None:
    with pytest.raises(RankloopError, match=words) as refused:
        await alternatives.start(turned.session, project=turned.project, kind=kind)
    assert refused.value.status in {409, 422}


async def test_a_run_begins_with_a_policy_of_its_own_project(turned: Loop) -> None:
    await turned.sample()
    await turned.rank_all()
    await training.start_training(turned.session, project=turned.project)
    await turned.finish(await turned.claim(), REWARD_RESULT)
    reward = await registry.live_version(turned.session, project_id=turned.project.id, kind=VersionKind.REWARD)
    with pytest.raises(RankloopError, match="must be a policy of this project"):
        await alternatives.start(turned.session, project=turned.project, kind=RunKind.DPO, version=reward)
