"""Where a training begins: fresh or from the live reward model, from the round's policy or from version 1."""

from __future__ import annotations

import pytest

from app.loop import lineage, training
from app.projects.models import PolicyStart, RewardStart
from app.registry import service as registry
from app.registry.models import Version, VersionKind
from app.runs.models import Run, RunKind
from tests.app.loop.conftest import Loop
from tests.app.loop.test_service import PPO_RESULT, REWARD_RESULT, whole_round


async def version(turned: Loop, number: int) -> Version:
    return await registry.get_version_by_number(turned.session, project_id=turned.project.id, number=number)


async def second_round(turned: Loop, **wishes: str) -> tuple[Run, Run]:
    """The reward run and the PPO run of a second round; both end well."""
    await whole_round(turned)
    await turned.work_off_sampling()
    await turned.rank_all()
    await training.start_training(turned.session, project=turned.project, **wishes)
    reward = await turned.claim()
    await turned.finish(reward, REWARD_RESULT)
    await turned.score(new=3, live=2)
    policy = await turned.claim()
    assert (reward.kind, policy.kind) == (RunKind.REWARD, RunKind.PPO)
    await turned.finish(policy, PPO_RESULT)
    return reward, policy


async def test_by_itself_a_reward_model_is_fresh_and_the_policy_goes_on(turned: Loop) -> None:
    reward, policy = await second_round(turned)
    assert (reward.config["start"], policy.config["policy"]["number"]) == (None, 3)
    base, first, made, out = [await version(turned, number) for number in (1, 2, 4, 5)]
    assert (first.parent_id, made.parent_id, out.parent_id) == (base.id, base.id, (await version(turned, 3)).id)


@pytest.mark.parametrize("is_the_project_s", [True, False])
async def test_a_reward_model_goes_on_from_the_live_one_and_ppo_begins_at_version_1(
    turned: Loop, is_the_project_s: bool
) -> None:
    wishes = {"reward_start": RewardStart.LIVE, "policy_start": PolicyStart.SFT}
    if is_the_project_s:
        turned.project.reward_start, turned.project.policy_start = RewardStart.LIVE, PolicyStart.SFT
    reward, policy = await second_round(turned, **({} if is_the_project_s else wishes))
    assert (reward.config["start"]["number"], reward.config["start"]["kind"]) == (2, VersionKind.REWARD)
    assert [policy.config[role]["number"] for role in ("sft", "policy", "reward")] == [1, 1, 4]
    base, first, made, out = [await version(turned, number) for number in (1, 2, 4, 5)]
    assert (made.parent_id, out.parent_id) == (first.id, base.id)
    edges = lineage.version_edges([base, first, made, out])
    assert {(str(first.id), str(made.id)), (str(base.id), str(out.id))} <= set(edges)


async def test_a_round_may_begin_otherwise_than_its_project_says(turned: Loop) -> None:
    turned.project.reward_start, turned.project.policy_start = RewardStart.LIVE, PolicyStart.SFT
    reward, policy = await second_round(turned, reward_start=RewardStart.SFT, policy_start=PolicyStart.ROUND)
    assert (reward.config["start"], policy.config["policy"]["number"]) == (None, 3)


async def test_the_first_reward_model_has_none_to_go_on_from(turned: Loop) -> None:
    turned.project.reward_start = RewardStart.LIVE
    await turned.sample()
    await turned.rank_all()
    run = await training.start_training(turned.session, project=turned.project)
    assert run.config["start"] is None
