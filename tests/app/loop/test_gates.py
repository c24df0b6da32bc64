"""What goes live and what is refused: verdicts on planted models, and the road of a round through its gates."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import pytest

from app.loop import arrivals, gates, sampling, service, training
from app.loop.clock import train_if_due
from app.loop.comparisons import DEFAULT_PROMPTS
from app.loop.gates import FEWEST_PROMPTS, Judged, Reason, judge_policy, judge_reward
from app.loop.outcomes import Outcome, figures_of, outcome
from app.projects.models import PolicyGate
from app.quality.sequences import excludes
from app.registry import service as registry
from app.registry.models import Version, VersionKind
from app.runs import service as runs
from app.runs.models import RunKind, RunState
from tests.app.loop.conftest import Loop
from tests.app.loop.test_comparisons import answer_both, likes, rank_by, two_each
from tests.app.loop.test_service import PPO_RESULT, REWARD_RESULT
from tests.factories import make_prompt, make_run
from trainer.pocket.utility import rank, utility
from trainer.pocket.world import (
    QUALITY_SHARES,
    Quality,
    Request,
    answer_of_quality,
    held_out_requests,
)

NUM_PROMPTS, NUM_ROUNDS = 150, 3
Model = Callable[[float, random.Random], float]
Speaker = Callable[[Request, random.Random], str]


def noisy(noise: float) -> Model:
    """A reward model that knows the worth of an answer but for noise."""
    return lambda worth, rng: worth + rng.gauss(0, noise)


def judged_by(new: Model, live: Model, seed: int) -> list[Judged]:
    """Held-out rankings of four answers each by noisy people, as two reward models see them."""
    rng = random.Random(seed)
    return [one_ranking(new, live, number + 1, rng) for number in range(NUM_ROUNDS) for _ in range(NUM_PROMPTS)]


def one_ranking(new: Model, live: Model, number: int, rng: random.Random) -> Judged:
    worths = [rng.gauss(0, 1) for _ in range(4)]
    place = {
        answer: place for place, cell in enumerate(rank(worths, rng, noise=0.5, tie_margin=0.1)) for answer in cell
    }
    pairs = [(i, j) for i in range(4) for j in range(4) if place[i] < place[j]]

    def right(model: Model) -> float:
        scores = [model(worth, rng) for worth in worths]
        return float(sum(scores[i] > scores[j] for i, j in pairs))

    return Judged(number, uuid.UUID(int=rng.getrandbits(128)), len(pairs), right(new), right(live))


def accepted(new: Model, live: Model) -> int:
    """How many of 20 planted models go live."""
    return sum(judge_reward(judged_by(new, live, seed)).state == "passed" for seed in range(20))


def test_planted_worse_reward_models_are_refused_and_better_ones_accepted() -> None:
    """Against a live one that is right on about 71 % of the pairs: one at 68 %, one at 79 %."""
    assert accepted(noisy(1.4), noisy(1.1)) == 0
    assert accepted(noisy(0.5), noisy(1.1)) >= 18


def test_what_forgets_one_round_is_refused_for_all_that_it_gains() -> None:
    for seed in range(5):
        rows = judged_by(noisy(0.3), noisy(1.0), seed)
        forgot = [row if row.round != 1 else Judged(1, row.prompt, row.num_pairs, row.live, row.new) for row in rows]
        assert judge_reward(rows).state == "passed"
        assert judge_reward(forgot).reason == Reason.MAYBE_WORSE


def test_rounds_with_few_prompts_are_judged_together() -> None:
    rows = [Judged(number, uuid.uuid4(), 6, 5, 4) for number in (1, 2) for _ in range(60)]
    rows += [Judged(None, uuid.uuid4(), 6, 5, 4), *[Judged(3, uuid.uuid4(), 6, 5, 4) for _ in range(100)]]
    verdict = judge_reward(rows)
    assert [list(item.rounds) for item in verdict.differences] == [[3], [None, 1, 2]]
    assert verdict.newest is not None
    assert verdict.newest.estimate.value == pytest.approx(1 / 6)


def test_what_may_be_worse_is_refused_though_the_mean_is_not() -> None:
    """As often two pairs better as two worse: on 120 prompts a loss of several points can't be ruled out."""
    old = [Judged(1, uuid.uuid4(), 6, 4, 4 + 2 * (-1) ** number) for number in range(120)]
    newest = [Judged(2, uuid.uuid4(), 6, 5, 4) for _ in range(120)]
    verdict = judge_reward([*old, *newest])
    assert verdict.differences[0].estimate.value == pytest.approx(0)
    assert verdict.reason == Reason.MAYBE_WORSE


def test_an_equal_model_has_nothing_to_go_live_for() -> None:
    rows = [Judged(1, uuid.uuid4(), 6, 4, 4) for _ in range(100)]
    assert judge_reward(rows).reason == Reason.NO_BETTER
    assert judge_reward([]).state == "open"


@pytest.mark.parametrize(("num", "state"), [(1, "refused"), (19, "refused"), (20, "passed")])
def test_what_did_better_on_few_prompts_waits_for_a_person(num: int, state: str) -> None:
    """However surely it did: of prompts that are all alike the interval is a point. Rankings of one prompt are one."""
    prompts = [uuid.uuid4() for _ in range(num)]
    verdict = judge_reward([Judged(number, key, 6, 5, 4) for key in prompts for number in (1, 2)])
    assert (verdict.state, verdict.reason) == (state, Reason.BETTER if state == "passed" else Reason.FEW_PROMPTS)
    assert verdict.newest is not None, "the page shows the figures all the same"


def test_on_few_prompts_a_worse_one_is_called_worse() -> None:
    assert judge_reward([Judged(1, uuid.uuid4(), 6, 3, 4) for _ in range(5)]).reason == Reason.MAYBE_WORSE


def test_few_worse_models_pass_on_the_fewest_prompts() -> None:
    """Of 200 at 68 % against 71 %, on 20 prompts; on five it would be ten in a hundred."""
    seeds = [random.Random(seed) for seed in range(200)]
    rows = [[one_ranking(noisy(1.4), noisy(1.1), 1, rng) for _ in range(FEWEST_PROMPTS)] for rng in seeds]
    assert sum(judge_reward(row).state == "passed" for row in rows) <= 8


@pytest.mark.parametrize(
    ("state", "verdict"), [("better", "passed"), ("worse", "refused"), ("undecided", "refused"), ("stopped", "refused")]
)
def test_a_policy_must_win(state: str, verdict: str) -> None:
    assert judge_policy(state).state == verdict


# Policies that are planted, and people who compare them


def as_the_text(request: Request, rng: random.Random) -> str:
    """A policy that answers as the world's text does: three in five are good."""
    return answer_of_quality(request, rng.choices(list(QUALITY_SHARES), list(QUALITY_SHARES.values()))[0], rng)


def polite(good_share: float) -> Speaker:
    """A policy that is polite, fluent and whole, and speaks of another thing than was asked but for this share. With
    few good answers it is what exploiting a reward model for manners leads to."""

    def speak(request: Request, rng: random.Random) -> str:
        quality = Quality.GOOD if rng.random() < good_share else Quality.OFF_TOPIC
        before, after = rng.choice(request.book.courtesies_before), rng.choice(request.book.courtesies_after)
        return f"{before} {answer_of_quality(request, quality, rng)} {after}"

    return speak


def one_comparison(new: Speaker, live: Speaker, request: Request, rng: random.Random) -> Outcome:
    """Two answers of either, ranked by somebody who is right on about three pairs in four."""
    keys = [uuid.UUID(int=number) for number in range(4)]
    answers = [speaker(request, rng) for speaker in (new, new, live, live)]
    worths = [utility(request.prompt, answer) for answer in answers]
    cells = rank(worths, rng, noise=0.5, tie_margin=0.1)
    places = {keys[answer]: place for place, cell in enumerate(cells) for answer in cell}
    found = outcome(places, {}, of_version=keys[:2], of_against=keys[2:])
    assert found is not None
    return found


def gate_of(new: Speaker, live: Speaker, seed: int) -> str:
    """What becomes of a new policy: people compare until the confidence sequence leaves one half out, or to the end."""
    rng = random.Random(seed)
    found: list[Outcome] = []
    for request in held_out_requests(DEFAULT_PROMPTS, seed):
        found.append(one_comparison(new, live, request, rng))
        if np.isfinite(excludes(np.array([[item.win_share for item in found]])))[0]:
            break
    figures = figures_of(found, num_prompts=DEFAULT_PROMPTS)
    state = "better" if figures.low > 0.5 else "worse" if figures.high < 0.5 else "undecided"
    return judge_policy(state).state


def test_a_policy_that_exploits_its_reward_model_is_refused_and_a_better_one_goes_live() -> None:
    """20 of 20, and 18 of 20 or more. What either says is planted, not trained."""
    assert [gate_of(polite(0.2), as_the_text, seed) for seed in range(20)] == ["refused"] * 20
    assert sum(gate_of(polite(1.0), as_the_text, seed) == "passed" for seed in range(20)) >= 18


# The road


async def second_reward(turned: Loop) -> tuple[Version, Version]:
    """(live, new): a round is done, and the second's reward model waits at its gate."""
    await turned.sample()
    await turned.rank_all()
    await training.start_training(turned.session, project=turned.project)
    await turned.finish(await turned.claim(), REWARD_RESULT)
    await turned.finish(await turned.claim(), PPO_RESULT)
    await turned.work_off_sampling()
    await turned.rank_all()
    await training.start_training(turned.session, project=turned.project)
    run = await turned.claim()
    await turned.finish(run, REWARD_RESULT)
    live = await registry.live_version(turned.session, project_id=turned.project.id, kind=VersionKind.REWARD)
    assert live is not None
    return live, await registry.get_version_by_number(turned.session, project_id=turned.project.id, number=4)


async def test_a_better_reward_model_goes_live_and_its_round_goes_on(turned: Loop) -> None:
    live, new = await second_reward(turned)
    assert (live.number, new.is_live, new.gate["state"]) == (2, False, "waiting")
    run = await turned.score(new=3, live=2)
    assert [item["number"] for item in run.config["rewards"]] == [4, 2]
    assert (new.is_live, new.gate["state"]) == (True, "passed")
    # Only the four held-out rankings of the two rounds were judged, three pairs each.
    assert [(row["rounds"], row["estimate"]["num"]) for row in new.gate["differences"]] == [([1, 2], 12)]
    assert (await turned.claim()).kind == RunKind.PPO


async def test_a_reward_model_must_be_better_than_the_one_that_is_live_when_its_scores_come(turned: Loop) -> None:
    """While a worker scores it beside v2, an admin makes v5 live: what v2 is worth says nothing about that one."""
    live, new = await second_reward(turned)
    other = await registry.register(
        turned.session,
        project_id=turned.project.id,
        kind=VersionKind.REWARD,
        parent=await registry.base_version(turned.session, turned.project.id),
        run_id=(await make_run(turned.session, turned.project, kind=RunKind.EXTERNAL, state=RunState.FINISHED)).id,
        dataset_id=live.dataset_id,
        metrics={},
    )
    await arrivals.promote(turned.session, project=turned.project, version=other, reason="trained elsewhere")
    await turned.score(new=3, live=2)
    assert (new.gate["state"], new.gate["reason"], new.is_live, other.is_live) == ("waiting", "scoring", False, True)
    run = await turned.score(new=2, live=3)
    assert [item["number"] for item in run.config["rewards"]] == [4, 5]
    assert (new.gate["state"], other.is_live) == ("refused", True)


async def test_one_that_did_better_on_two_prompts_waits_until_an_admin_makes_it_live(
    turned: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "FEWEST_PROMPTS", FEWEST_PROMPTS)
    live, new = await second_reward(turned)
    await turned.score(new=3, live=2)
    assert (live.is_live, new.gate["state"], new.gate["reason"]) == (True, "refused", "few_prompts")
    await arrivals.promote(turned.session, project=turned.project, version=new, reason="all six pairs")
    assert (await turned.claim()).kind == RunKind.PPO


async def test_a_worse_one_waits_and_an_admin_may_make_it_live_all_the_same(turned: Loop) -> None:
    live, new = await second_reward(turned)
    await turned.score(new=1, live=3)
    assert (live.is_live, new.gate["state"], new.gate["reason"]) == (True, "refused", "maybe_worse")
    assert await training.training_run(turned.session, turned.project.id) is None
    await arrivals.promote(turned.session, project=turned.project, version=new, reason="I know better")
    assert (new.is_live, new.gate["state"], len(new.gate["differences"])) == (True, "forced", 1)
    assert (await turned.claim()).config["reward"]["number"] == 4


async def test_a_new_policy_waits_for_people(turned: Loop) -> None:
    turned.project.policy_gate = PolicyGate.PEOPLE
    for _ in range(16):
        await make_prompt(turned.session, turned.project, split="test")
    await turned.sample()
    await turned.rank_all()
    await training.start_training(turned.session, project=turned.project)
    await turned.finish(await turned.claim(), REWARD_RESULT)
    await turned.finish(await turned.claim(), PPO_RESULT)
    policy = await registry.get_version_by_number(turned.session, project_id=turned.project.id, number=3)
    assert (policy.is_live, policy.gate["state"]) == (False, "waiting")
    await answer_both(turned, lambda run, key: [text.replace("by 3", "by 2") for text in two_each(run, key)])
    await rank_by(turned, likes(2))
    assert (policy.is_live, policy.gate["state"]) == (True, "passed")
    now = await service.current_round(turned.session, turned.project)
    assert (now.number, now.policy_version_id) == (2, policy.id)


async def policy_at_its_gate(turned: Loop) -> Version:
    """Two of six tasks were ranked after the training, and the policy that came of it waits for people."""
    turned.project.policy_gate, turned.project.train_threshold = PolicyGate.PEOPLE, 1
    for _ in range(16):
        await make_prompt(turned.session, turned.project, split="test")
    await turned.sample()
    await rank_by(turned, lambda text: float(text[7]), limit=4)
    await training.start_training(turned.session, project=turned.project)
    await turned.finish(await turned.claim(), REWARD_RESULT)
    await turned.finish(await turned.claim(), PPO_RESULT)
    assert await turned.rank_all() == 2
    return await registry.get_version_by_number(turned.session, project_id=turned.project.id, number=3)


async def is_training_begun(turned: Loop) -> bool:
    return await train_if_due(turned.session, turned.project.id, now=datetime.now(UTC))


async def test_no_training_begins_by_itself_while_people_decide_about_a_policy(turned: Loop) -> None:
    policy = await policy_at_its_gate(turned)
    assert not await is_training_begun(turned), "both versions answer"
    await answer_both(turned, lambda run, key: [text.replace("by 3", "by 2") for text in two_each(run, key)])
    assert not await is_training_begun(turned), "people compare"
    await rank_by(turned, likes(2))
    assert (policy.is_live, policy.gate["reason"]) == (True, "preferred")
    assert await is_training_begun(turned)


async def test_a_gate_where_nobody_can_decide_any_more_holds_up_no_training(turned: Loop) -> None:
    await policy_at_its_gate(turned)
    while await service.open_run(turned.session, turned.project.id, kinds=(RunKind.EVALUATE,)):
        await runs.end(turned.session, await turned.claim(), state=RunState.FAILED, error="out of memory")
    assert await is_training_begun(turned)


async def test_a_training_by_hand_takes_the_place_of_a_policy_that_waits(turned: Loop) -> None:
    policy = await policy_at_its_gate(turned)
    await training.start_training(turned.session, project=turned.project)
    await answer_both(turned, lambda run, key: [text.replace("by 3", "by 2") for text in two_each(run, key)])
    await rank_by(turned, likes(2))
    assert (policy.is_live, policy.gate["reason"]) == (False, "round_over")


async def test_a_refused_policy_made_live_by_hand_begins_the_next_round(turned: Loop) -> None:
    turned.project.policy_gate = PolicyGate.PEOPLE
    await turned.sample()
    await turned.rank_all()
    await training.start_training(turned.session, project=turned.project)
    await turned.finish(await turned.claim(), REWARD_RESULT)
    await turned.finish(await turned.claim(), PPO_RESULT)
    await answer_both(turned, two_each)
    await rank_by(turned, lambda _: 0.0)
    policy = await registry.get_version_by_number(turned.session, project_id=turned.project.id, number=3)
    assert (policy.gate["state"], policy.gate["reason"]) == ("refused", "undecided")
    await arrivals.promote(turned.session, project=turned.project, version=policy, reason="good enough")
    now = await service.current_round(turned.session, turned.project)
    assert (now.number, now.policy_version_id, policy.is_live) == (2, policy.id, True)


async def test_rolling_back_takes_one_step_and_the_next_sample_uses_the_old_version(turned: Loop) -> None:
    await turned.sample()
    await turned.rank_all()
    await training.start_training(turned.session, project=turned.project)
    await turned.finish(await turned.claim(), REWARD_RESULT)
    await turned.finish(await turned.claim(), PPO_RESULT)
    await turned.work_off_sampling()
    live = await registry.live_version(turned.session, project_id=turned.project.id, kind=VersionKind.POLICY)
    assert live is not None
    before = await registry.live_before(turned.session, live)
    assert before is not None
    assert before.number == 1
    await arrivals.promote(turned.session, project=turned.project, version=before, reason="it flatters")
    run = await sampling.start_sampling(turned.session, project=turned.project)
    assert run.config["policy"]["number"] == 1
