"""People have the last word: a round stops when they turn away. A second reward model judges only where it is asked."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from httpx2 import AsyncClient

from app.errors import Invalid
from app.loop import arrivals, choosing, comparisons, ending, halts, judging, sampling, service, training
from app.loop.gates import Reason
from app.loop.halts import best_liked
from app.loop.models import ComparisonState
from app.loop.outcomes import Outcome, figures_of
from app.loop.service import RoundStopped
from app.projects.models import PolicyGate, RewardStart
from app.projects.service import update_project
from app.registry import service as registry
from app.registry.models import Version, VersionKind
from app.runs import service as runs
from app.runs.models import Run, RunKind, RunState
from tests.app.loop.conftest import Loop
from tests.app.loop.test_comparisons import answer_both, likes, make_policy, rank_by, two_each
from tests.app.loop.test_gates import second_reward
from tests.app.loop.test_service import PPO_RESULT, REWARD_RESULT
from tests.factories import make_prompt, sign_in


async def version(turned: Loop, number: int) -> Version:
    return await registry.get_version_by_number(turned.session, project_id=turned.project.id, number=number)


async def first_policy(turned: Loop) -> Version:
    """A round is over: version 3 answers in the next one."""
    for _ in range(30):
        await make_prompt(turned.session, turned.project, split="test")
    await turned.sample()
    await turned.rank_all()
    await training.start_training(turned.session, project=turned.project)
    await turned.finish(await turned.claim(), REWARD_RESULT)
    await turned.finish(await turned.claim(), PPO_RESULT)
    await turned.work_off_sampling()
    await turned.rank_all()
    return await version(turned, 3)


async def compared(turned: Loop, policy: Version, liked: int) -> None:
    """People compare a policy with version 1, and like the answers of one of them."""
    base = await registry.base_version(turned.session, turned.project.id)
    await comparisons.start(turned.session, project=turned.project, version=policy, against=base)
    await answer_both(turned, two_each)
    await rank_by(turned, likes(liked))


async def test_a_round_stops_when_people_prefer_another_policy(turned: Loop) -> None:
    policy = await first_policy(turned)
    run = await training.start_training(turned.session, project=turned.project)
    claimed = await turned.claim()
    assert claimed.id == run.id
    await compared(turned, policy, liked=1)
    now = await service.current_round(turned.session, turned.project)
    assert (now.policy_version_id, now.stopped["why"], now.stopped["best"]) == (policy.id, "worse", 1)
    assert now.stopped["win_rate"]["high"] < 0.5
    assert run.cancel_requested_at is not None
    with pytest.raises(RoundStopped):
        await sampling.start_sampling(turned.session, project=turned.project)
    run.state, run.lease_expires_at = RunState.CANCELLED, None
    with pytest.raises(RoundStopped):
        await training.start_training(turned.session, project=turned.project)


@pytest.mark.parametrize("back_to", [1, 3])
async def test_an_admin_goes_on_by_making_a_version_live(turned: Loop, back_to: int) -> None:
    await compared(turned, await first_policy(turned), liked=1)
    await arrivals.promote(
        turned.session, project=turned.project, version=await version(turned, back_to), reason="I saw the answers"
    )
    now = await service.current_round(turned.session, turned.project)
    assert (now.number, now.stopped) == (3, {})
    run = await sampling.start_sampling(turned.session, project=turned.project)
    assert run.config["policy"]["number"] == back_to


async def test_a_round_goes_on_while_people_like_it(turned: Loop) -> None:
    await compared(turned, await first_policy(turned), liked=3)
    now = await service.current_round(turned.session, turned.project)
    assert now.stopped == {}


async def test_a_win_rate_surely_below_the_best_one_s_stops_a_round(turned: Loop) -> None:
    """Version 3 won 0.9 (0.8 .. 0.95) over version 1; what comes after it still wins, but surely less often."""
    old = await first_policy(turned)
    old.metrics = {**old.metrics, "win_rate": {"value": 0.9, "low": 0.8, "high": 0.95, "num_prompts": 100}}
    run = await training.start_training(turned.session, project=turned.project)
    await turned.finish(await turned.claim(), REWARD_RESULT)
    await turned.score(new=3, live=2)
    await turned.finish(await turned.claim(), PPO_RESULT)
    assert run.state == RunState.FINISHED
    new = await version(turned, 5)
    base = await registry.base_version(turned.session, turned.project.id)
    comparison = await comparisons.start(turned.session, project=turned.project, version=new, against=base)
    comparison.state, comparison.closed_at = ComparisonState.BETTER, datetime.now(UTC)
    for high, stops in ((0.85, False), (0.79, True)):
        new.metrics = {**new.metrics, "win_rate": {"value": 0.7, "low": 0.55, "high": high, "num_prompts": 100}}
        reason = await halts.reason_to_stop(turned.session, comparison, new)
        assert (reason is not None) == stops
    assert reason is not None
    assert (reason["why"], reason["number"], reason["best"]) == ("fell", 5, 3)
    assert best_liked([old, new]) is old


async def test_a_round_stops_whichever_of_the_two_was_named_first(turned: Loop) -> None:
    """A newer policy that people prefer to the one that answers stops nothing; version 1 does, though it is asked about
    as the new one.
    """
    live = await first_policy(turned)
    newer, base = await make_policy(turned), await registry.base_version(turned.session, turned.project.id)
    wins = figures_of([Outcome(1.0, {}, {})] * 20, num_prompts=20)
    for other, stops in ((newer, False), (base, True)):
        comparison = await comparisons.start(turned.session, project=turned.project, version=other, against=live)
        await ending.fix(turned.session, comparison, ComparisonState.BETTER, wins)
        now = await service.current_round(turned.session, turned.project)
        assert bool(now.stopped) == stops
    assert (now.stopped["why"], now.stopped["number"], now.stopped["best"]) == ("worse", 3, 1)
    assert (now.stopped["win_rate"]["value"], now.stopped["win_rate"]["high"] < 0.5) == (0.0, True)
    assert live.metrics["win_rate"]["value"] == 0.0


@pytest.mark.parametrize(("state", "stops"), [(ComparisonState.UNDECIDED, True), (ComparisonState.SUPERSEDED, False)])
async def test_a_comparison_that_another_policy_ended_stops_no_round(
    turned: Loop, state: ComparisonState, stops: bool
) -> None:
    """That policy is going live just now, and a round that stopped would keep it back."""
    live = await first_policy(turned)
    base = await registry.base_version(turned.session, turned.project.id)
    comparison = await comparisons.start(turned.session, project=turned.project, version=live, against=base)
    other = await make_policy(turned)
    other.metrics = {"win_rate": {"value": 0.9, "low": 0.8, "high": 0.95, "num_prompts": 100}}
    comparison.superseded_by_id = other.id if state == ComparisonState.SUPERSEDED else None
    half = figures_of([Outcome(0.5, {}, {})] * 400, num_prompts=400)
    assert half.high < 0.8
    await ending.fix(turned.session, comparison, state, half)
    now = await service.current_round(turned.session, turned.project)
    assert bool(now.stopped) == stops


# What comes too late


async def stopped_while_training(turned: Loop) -> Run:
    """The second round's PPO run is under way when people turn away from the policy that answers."""
    await first_policy(turned)
    await training.start_training(turned.session, project=turned.project)
    await turned.finish(await turned.claim(), REWARD_RESULT)
    await turned.score(new=3, live=2)
    run = await turned.claim()
    assert run.kind == RunKind.PPO
    await compared(turned, await version(turned, 3), liked=1)
    assert run.cancel_requested_at is not None
    return run


async def live_policy(turned: Loop) -> Version | None:
    return await registry.live_version(turned.session, project_id=turned.project.id, kind=VersionKind.POLICY)


async def test_a_policy_of_a_round_that_stopped_waits_for_a_person(turned: Loop) -> None:
    run = await stopped_while_training(turned)
    await turned.finish(run, PPO_RESULT)
    late = await version(turned, 5)
    assert (late.gate["state"], late.gate["reason"], late.is_live) == ("refused", "round_stopped", False)
    now = await service.current_round(turned.session, turned.project)
    assert (now.number, now.stopped["why"], now.closed_at) == (2, "worse", None)
    assert await service.open_run(turned.session, turned.project.id, kinds=tuple(RunKind)) is None
    await arrivals.promote(turned.session, project=turned.project, version=late, reason="I read its answers")
    now = await service.current_round(turned.session, turned.project)
    assert (now.number, now.policy_version_id, now.stopped) == (3, late.id, {})


async def test_a_policy_does_not_undo_a_rollback_that_was_made_while_it_learned(turned: Loop) -> None:
    run = await stopped_while_training(turned)
    base = await version(turned, 1)
    await arrivals.promote(turned.session, project=turned.project, version=base, reason="people like it better")
    await turned.finish(run, PPO_RESULT)
    late = await version(turned, 5)
    assert (late.gate["state"], late.gate["reason"], late.is_live) == ("refused", "round_over", False)
    assert await live_policy(turned) is base
    now = await service.current_round(turned.session, turned.project)
    assert (now.number, now.policy_version_id) == (3, base.id)


async def test_no_policy_is_trained_after_a_reward_model_whose_round_stopped(turned: Loop) -> None:
    policy = await first_policy(turned)
    await training.start_training(turned.session, project=turned.project)
    run = await turned.claim()
    await compared(turned, policy, liked=1)
    await turned.finish(run, REWARD_RESULT)
    await turned.score(new=3, live=2)
    reward = await version(turned, 4)
    assert reward.is_live, "it learned from people, who are not at fault"
    assert await service.open_run(turned.session, turned.project.id, kinds=tuple(RunKind)) is None


async def test_what_people_prefer_to_a_policy_that_they_dislike_waits_too(turned: Loop) -> None:
    """Version 5 waits at its gate, to be compared with version 3; meanwhile version 1 beats version 3."""
    await first_policy(turned)
    await training.start_training(turned.session, project=turned.project)
    await turned.finish(await turned.claim(), REWARD_RESULT)
    await turned.score(new=3, live=2)
    turned.project.policy_gate = PolicyGate.PEOPLE
    await turned.finish(await turned.claim(), PPO_RESULT)
    new = await version(turned, 5)
    assert new.gate["state"] == "waiting"
    now = await service.current_round(turned.session, turned.project)
    await halts.stop(turned.session, now, {"why": "worse"})
    await answer_both(turned, two_each)
    await rank_by(turned, likes(5))
    (view,) = await comparisons.list_comparisons(turned.session, turned.project.id)
    assert view.comparison.state == ComparisonState.BETTER
    assert (new.gate["state"], new.gate["reason"], new.is_live) == ("refused", "round_stopped", False)


async def test_a_round_that_ended_before_it_could_be_stopped_stays_as_it_is(turned: Loop) -> None:
    await first_policy(turned)
    ended = (await service.list_rounds(turned.session, turned.project.id))[-1]
    await halts.stop(turned.session, ended, {"why": "worse"})
    assert (ended.number, ended.stopped) == (1, {})


# A second reward model


async def to_the_judge(turned: Loop) -> Version:
    """The second round's policy has answered beside the live one; the first round's reward model is to judge."""
    for _ in range(30):
        await make_prompt(turned.session, turned.project, split="test")
    turned.project.policy_gate = PolicyGate.SECOND_REWARD_MODEL
    await second_reward(turned)
    await turned.score(new=3, live=2)
    await turned.finish(await turned.claim(), PPO_RESULT)
    policy = await version(turned, 5)
    assert (policy.gate["state"], policy.gate["reason"]) == ("waiting", "judging")
    await answer_both(turned, two_each)
    return policy


@pytest.mark.parametrize(("liked", "reason"), [(5, "judged_better"), (3, "judged_worse"), (0, "judged_undecided")])
async def test_a_second_reward_model_decides_about_a_policy(turned: Loop, liked: int, reason: str) -> None:
    policy = await to_the_judge(turned)
    run = await turned.claim()
    assert (run.kind, run.config["reward"]["number"]) == (RunKind.JUDGE, 2)
    rows = [row async for row in judging.answers_to_judge(turned.session, run)]
    assert len(rows) == 33
    said = [
        {"key": row["key"], "scores": {a["id"]: float(a["text"].startswith(f"by {liked}:")) for a in row["answers"]}}
        for row in rows
    ]
    await turned.finish(run, {"judged": said, "num_heads": 1, "refused": []})
    assert policy.gate["reason"] == reason
    assert policy.is_live == (reason == "judged_better")
    (view,) = await comparisons.list_comparisons(turned.session, turned.project.id)
    assert (view.judge and view.judge.number, view.figures.num_ranked) == (2, 33)
    assert "win_rate" not in policy.metrics, "that is what people say"
    assert await choosing.open_judge(turned.session, turned.project) is None


async def test_the_judge_is_the_one_that_is_named_and_never_the_policy_s_own(turned: Loop) -> None:
    policy = await to_the_judge(turned)
    turned.project.policy_judge = 2
    assert await judging.find_judge(turned.session, turned.project, policy) is await version(turned, 2)
    turned.project.policy_judge = 4
    assert await judging.find_judge(turned.session, turned.project, policy) == Reason.OWN_JUDGE


async def test_no_kin_of_a_policy_s_own_reward_model_judges_it_unasked(turned: Loop) -> None:
    policy = await to_the_judge(turned)
    older, own = await version(turned, 2), await version(turned, 4)
    assert await judging.find_judge(turned.session, turned.project, policy) is older
    own.parent_id = older.id
    await turned.session.flush()
    assert await judging.find_judge(turned.session, turned.project, policy) == Reason.ONLY_KIN
    turned.project.policy_judge = 2
    assert await judging.find_judge(turned.session, turned.project, policy) is older


async def test_the_first_policy_has_no_second_reward_model_to_ask(turned: Loop) -> None:
    turned.project.policy_gate = PolicyGate.SECOND_REWARD_MODEL
    policy = await first_policy(turned)
    assert (policy.gate["state"], policy.gate["reason"], policy.is_live) == ("open", "no_judge", True)
    assert policy.run_id is not None
    said = [(line.level, line.text) for line in await runs.list_log(turned.session, policy.run_id)]
    assert ("warning", "Version 3 goes live unjudged: there is no second reward model.") in said
    live = await registry.live_version(turned.session, project_id=turned.project.id, kind=VersionKind.POLICY)
    assert live is policy


async def test_warm_starts_leave_no_judge_and_an_admin_is_told_so_of_every_policy(
    turned: Loop, client: AsyncClient
) -> None:
    """The second round's reward model goes on from the first one's: what fools one may fool both."""
    turned.project.policy_gate, turned.project.reward_start = PolicyGate.SECOND_REWARD_MODEL, RewardStart.LIVE
    await second_reward(turned)
    await turned.score(new=3, live=2)
    await turned.finish(await turned.claim(), PPO_RESULT)
    policy = await version(turned, 5)
    assert (policy.gate["state"], policy.gate["reason"], policy.is_live) == ("open", "only_kin", True)
    assert policy.run_id is not None
    assert any("unjudged" in line.text for line in await runs.list_log(turned.session, policy.run_id))
    await sign_in(client, turned.session)
    base = f"/projects/{turned.project.slug}"
    page = (await client.get(f"{base}/versions/5")).text
    assert "every other reward model comes, by warm starts, from the same one" in page
    rounds = (await client.get(f"{base}/rounds")).text
    # Versions 3 and 5, as what came out of a round and as what answers in the next one; not the reward models.
    assert rounds.count(">not judged<") == 4


async def test_scores_of_which_none_can_be_used_let_a_reward_model_through_and_say_so(turned: Loop) -> None:
    _, new = await second_reward(turned)
    await turned.finish(await turned.claim(), {"rankings": [], "refused": []})
    assert (new.gate["state"], new.gate["reason"], new.is_live) == ("open", "no_rankings", True)
    assert new.run_id is not None
    said = [line.text for line in await runs.list_log(turned.session, new.run_id)]
    assert "Version 4 goes live unjudged: no held-out ranking could be judged by." in said


@pytest.mark.parametrize("number", [3, 99])
async def test_a_judge_that_is_no_reward_model_of_the_project_is_refused(turned: Loop, number: int) -> None:
    """Version 3 is a policy."""
    await first_policy(turned)
    with pytest.raises(Invalid, match=r"policy_judge: must be the number of a reward version"):
        await update_project(turned.session, project=turned.project, changes={"policy_judge": number, "overlap": 7})
    assert (turned.project.policy_judge, turned.project.overlap) == (None, 1), "nothing is half changed"
    await update_project(turned.session, project=turned.project, changes={"policy_judge": 2})
    await update_project(turned.session, project=turned.project, changes={"policy_judge": None})
