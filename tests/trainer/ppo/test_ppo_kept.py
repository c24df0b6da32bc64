"""Which weights a version takes: the last ones, their average, or those of a guard's best moment."""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.ppo.tools import (
    LORA,
    PROMPTS,
    QUESTIONS,
    TOKENIZER,
    A,
    Diary,
    all_answers,
    count,
    log_law,
    make_config,
    make_learner,
    run,
    train,
    weights,
)
from trainer import ppo, ppo_run
from trainer.config import LoraConfig
from trainer.fitting import Keeper, learning_parameters
from trainer.models import load_policy
from trainer.ppo import optimise
from trainer.ppo_guard import Judgement, Look, ModelGuard
from trainer.ppo_learner import Learner
from trainer.reward_model import RewardModel, ValueModel
from trainer.sampling import LocalSampler
from trainer.weights import ModelSource


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_average_is_that_of_the_weights_after_each_step(
    base: ModelSource, lora: LoraConfig | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(ema_decay=0.9, lora=lora)
    learner = make_learner(base, config)
    assert learner.average is not None
    seen = [[p.detach().clone() for p in learning_parameters(learner.policy)]]
    step = ppo._step

    def watched(own: Learner, *rest: Any) -> dict[str, float]:
        norms = step(own, *rest)
        seen.append([p.detach().clone() for p in learning_parameters(own.policy)])
        return norms

    monkeypatch.setattr(ppo, "_step", watched)
    run(learner, config)
    assert len(seen) == 5  # the start, and 2 rollouts of 2 minibatches
    for number, averaged in enumerate(learner.average):
        expected = seen[0][number]
        for later in seen[1:]:
            expected = 0.9 * expected + 0.1 * later[number]
        torch.testing.assert_close(averaged.detach(), expected, atol=1e-6, rtol=0)
    assert (lora is None) == (len(learner.average) > 14)  # an adapter has a pair for each of one block's 7 layers


def test_the_saved_version_is_the_average_and_says_so(base: ModelSource, reward: ModelSource, tmp_path: Path) -> None:
    fields = {"lora": LORA.as_json()}
    result = train(base, reward, tmp_path / "still", ema_decay=1.0, **fields)
    assert result.is_average
    assert json.loads((tmp_path / "still" / "manifest.json").read_text())["result"]["is_average"]
    still = load_policy(replace(base, version=tmp_path / "still"), lora=None, reference=base)
    with torch.no_grad(), still.reference():
        reference = log_law(still, QUESTIONS[0], all_answers(1))
    # With a decay of 1 the average stays where it began: there the policy is the reference, whatever it learned.
    assert torch.equal(log_law(still, QUESTIONS[0], all_answers(1)), reference)
    assert not train(base, reward, tmp_path / "last", **fields).is_average


def look(score: float, training_score: float = 0.0, num_episodes: int = 0) -> Look:
    """Four answers whose scores lie 0.1 apart, as far from their mean in each look: all differences are the same."""
    return Look([score + part for part in (-0.15, -0.05, 0.05, 0.15)], training_score, num_episodes)


def scattered(score: float, number: int, spread: float = 20.0) -> Look:
    """The same of answers that chance moves: from one look to the next, half of them by twice the spread."""
    signs = (1, 1, -1, -1) if number % 2 else (1, -1, 1, -1)
    return Look([score + spread * sign for sign in signs], 0.0, 8 * number)


def heard(*looks: Look) -> Judgement:
    guard = Judgement.begin(looks[0])
    for after in looks[1:]:
        guard.hear(after)
    return guard


def test_a_look_stands_as_high_as_it_and_its_neighbours() -> None:
    """0, 9, 2, 8, 7, 2: they stand at 2.25, 5, 5.25, 6.25, 6 and 3.25. The second was the luckiest, not the best."""
    guard = Judgement.begin(scattered(0.0, 0))
    scores = (9.0, 2.0, 8.0, 7.0, 2.0)
    best = [guard.hear(scattered(score, number)) for number, score in enumerate(scores, 1)]
    assert best == [True, True, True, True, False]
    assert (guard.kept.num_episodes, guard.first_score, guard.is_newest_best) == (24, 0.0, False)
    assert guard.kept.score == pytest.approx(6.25)
    assert guard.newest.score == pytest.approx(3.25)


def test_neighbours_that_chance_does_not_explain_lower_no_height() -> None:
    """0, 5, 5, 9, 1 without chance: the height of 9 stands at 9, not at 6, and what comes after at 1, not at 3."""
    guard = heard(*(look(score, num_episodes=8 * number) for number, score in enumerate((0.0, 5.0, 5.0, 9.0, 1.0))))
    assert (guard.kept.num_episodes, guard.is_newest_best) == (24, False)
    assert [guard.kept.score, guard.newest.score] == pytest.approx([9.0, 1.0])


@pytest.mark.parametrize(("far", "stands"), [(3.9, 0.75 * 3.9), (4.1, 4.1)])
def test_neighbours_are_apart_from_four_standard_errors_on(far: float, stands: float) -> None:
    """Differences that lie 1 from their mean, half of them on either side: with four, the error of the mean is 0.58."""
    low = Look([0.0, 0.0, 0.0, 0.0], 0.0, 0)
    error = (4 / 3) ** 0.5 / 2
    high = Look([far * error + sign for sign in (1, -1, 1, -1)], 0.0, 8)
    assert high.above(low) == pytest.approx(far)
    assert heard(low, high).newest.score == pytest.approx(stands * error)


def test_the_last_look_is_kept_while_scores_rise() -> None:
    """At the end the look itself takes the missing neighbour's place: 0, 3, 6 stand at 0.75, 3 and 5.25."""
    for number in (1, 2, 3):
        guard = heard(*(scattered(3.0 * place, place) for place in range(number)))
        assert guard.is_newest_best
        assert guard.kept.num_episodes == 8 * (number - 1)
    assert guard.kept.score == pytest.approx(5.25)


def test_a_guard_counts_looks_in_a_row_that_are_surely_worse() -> None:
    guard = heard(look(0.0, 0.0, 0), look(1.0, 1.0, 8), look(1.0, 2.0, 16))
    assert guard.num_exploited == 0
    guard.hear(look(0.5, 3.0, 24))
    guard.hear(look(0.5, 3.0, 32))
    assert guard.num_exploited == 2
    guard.hear(look(0.5, -1.0, 40))  # the training score fell, too: nothing is exploited
    assert guard.num_exploited == 0
    guard.hear(look(0.5, 3.0, 48))
    assert guard.num_exploited == 1
    guard.hear(Look([1.35, -0.65, 0.85, 0.65], 3.0, 56))  # lower on average, as one answer was out of luck
    assert (guard.num_exploited, guard.kept.num_episodes) == (0, 8)
    guard.hear(look(0.5, 3.0, 64))
    guard.hear(look(1.0, 3.0, 72))  # as good as ever
    assert (guard.num_exploited, guard.kept.num_episodes) == (0, 8)


@pytest.mark.parametrize(("last", "is_surely"), [(-0.2, True), (-0.1, False)])
def test_what_chance_explains_is_not_surely_worse(last: float, is_surely: bool) -> None:
    """Differences -1, -1, -0.2 and -0.2: -0.6 on average, 0.231 is its standard error, and 1.645 of these are 0.38.

    Of -1, 0.9, -0.2 and -0.1 the mean is -0.1, and its standard error 0.39.
    """
    before = Look([2.0, 1.0, 0.5, 0.3], 0.0, 0)
    changes = (-1.0, -1.0, -0.2, last) if is_surely else (-1.0, 0.9, -0.2, last)
    after = Look([score + change for score, change in zip(before.scores, changes, strict=True)], 0.0, 8)
    assert after.is_surely_below(before) == is_surely
    assert not before.is_surely_below(after)


def test_one_answer_is_never_sure() -> None:
    assert not Look([0.0], 0.0, 8).is_surely_below(Look([1.0], 0.0, 0))


def test_a_run_stops_when_the_guard_sees_that_the_reward_is_exploited(base: ModelSource) -> None:
    config = make_config(num_episodes=800, guard_patience=2, guard_answers=16, beta=0.0)
    guard = ModelGuard(QUESTIONS, lambda tokens, attention: -count(A)(tokens, attention))
    learner = make_learner(base, config, is_guarded=True)
    before = weights(learner)
    report = Diary()
    optimise(learner, count(A), QUESTIONS, TOKENIZER, config, report, guard=guard)
    assert learner.progress.stopped_by == "guard"
    assert learner.progress.num_episodes < 100
    assert report.lines[-1][0] == "warning"
    assert "the policy exploits its reward model" in report.lines[-1][1]
    scores = [point["guard/score"] for point in report.points]
    assert report.points[0]["step"] == 0
    assert [point["guard/training_score"] for point in report.points] == [-score for score in scores]
    judged = learner.progress.guard
    assert judged is not None
    highest = highest_standing(scores)
    assert judged.kept.score == pytest.approx(max(standings(scores)))
    assert judged.kept.num_episodes == 8 * highest
    learner.settle()
    kept = {name: tensor for name, tensor in weights(learner).items() if name.startswith("policy/")}
    assert all(torch.equal(tensor, before[name]) for name, tensor in kept.items()) == (highest == 0)


def standings(scores: Sequence[float]) -> list[float]:
    """The slow definition: three in a row, the middle one twice; the first and the last are their own neighbours."""
    padded = [scores[0], *scores, scores[-1]]
    return [(sum(padded[place : place + 3]) + scores[place]) / 4 for place in range(len(scores))]


def highest_standing(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=standings(scores).__getitem__)


def rise(number: Iterator[int], tokens: Tensor, attention: Tensor) -> Tensor:
    return torch.full((len(tokens),), float(next(number)))


def test_a_guard_that_agrees_keeps_the_last_weights_and_changes_nothing_of_the_training(base: ModelSource) -> None:
    config = make_config(num_episodes=48)
    found = {}
    for is_guarded in (False, True):
        learner = make_learner(base, config, is_guarded=is_guarded)
        guard = ModelGuard(QUESTIONS, partial(rise, itertools.count()))
        optimise(learner, count(A), QUESTIONS, TOKENIZER, config, Diary(), guard=guard if is_guarded else None)
        learner.settle()
        found[is_guarded] = weights(learner)
    assert all(torch.equal(tensor, found[True][name]) for name, tensor in found[False].items())


def test_a_guard_looks_before_the_first_rollout_and_then_every_few(base: ModelSource) -> None:
    config = make_config(num_episodes=56, guard_every=3, guard_answers=4)
    learner, report = make_learner(base, config, is_guarded=True), Diary()
    guard = ModelGuard(QUESTIONS, partial(rise, itertools.count()))
    optimise(learner, count(A), QUESTIONS, TOKENIZER, config, report, guard=guard)
    assert [point["step"] for point in report.points if "guard/score" in point] == [0, 24, 48]
    assert learner.progress.guard is not None
    assert learner.progress.guard.kept.num_episodes == 48


def test_the_version_of_a_guarded_run_holds_the_weights_of_the_guard_s_best_moment(
    base: ModelSource, reward: ModelSource, tmp_path: Path
) -> None:
    report = Diary()
    result = train(
        base, reward, tmp_path / "v2", report=report, guard=reward, guard_prompts=PROMPTS[:1], num_episodes=24
    )
    assert result.guard is not None
    scores = [point["guard/score"] for point in report.points]
    assert len(scores) == 4
    highest = highest_standing(scores)
    assert result.guard.kept.num_episodes == 8 * highest
    saved = json.loads((tmp_path / "v2" / "manifest.json").read_text())
    assert saved["result"]["guard"] == {
        "first_score": pytest.approx(scores[0]),
        "best_score": pytest.approx(max(standings(scores))),
        "training_score": pytest.approx(report.points[highest]["guard/training_score"]),
        "num_episodes": 8 * highest,
        "num_exploited": result.guard.num_exploited,
    }
    # The weights that are kept say again what the guard heard then.
    config = make_config()
    policy = load_policy(replace(base, version=tmp_path / "v2"), lora=None)
    judge = RewardModel.load(reward)
    questions, _ = ppo_run._encode(PROMPTS[:1], tokenizer=TOKENIZER, policy=policy, config=config, report=report)
    learner = Learner.create(policy, ValueModel.from_reward(judge), config, is_guarded=True)
    again = ppo._consult(
        ModelGuard(questions, judge), learner, judge, LocalSampler(policy.model, TOKENIZER), config, report
    )
    assert again["guard/score"] == pytest.approx(scores[highest], abs=1e-5)


def test_a_checkpoint_keeps_the_average_and_what_the_guard_remembers(base: ModelSource, tmp_path: Path) -> None:
    config = make_config(ema_decay=0.5)
    kept, found = (make_learner(base, config, is_guarded=True) for _ in range(2))
    guard = ModelGuard(QUESTIONS, partial(rise, itertools.count()))
    optimise(kept, count(A), QUESTIONS, TOKENIZER, config, Diary(), guard=guard)
    keep = Keeper(tmp_path / "checkpoint", {}, None, None)
    kept.save(keep)
    remembered = {
        name: [tensor.detach().clone() for tensor in kept.models[name].parameters()] for name in ("best", "newest")
    }
    assert not all(torch.equal(a, b) for a, b in zip(*remembered.values(), strict=True))
    found.resume(replace(keep, resume_from=keep.folder))
    assert found.progress == kept.progress
    for name, tensors in remembered.items():
        assert all(torch.equal(a, b) for a, b in zip(found.models[name].parameters(), tensors, strict=True))


def test_the_weights_are_those_of_the_look_before_where_that_one_was_the_best(base: ModelSource) -> None:
    """Scores 0, 5, 1: the second look stands highest, which is known only after the third."""
    config = make_config(num_episodes=16)
    scores = iter((0.0, 5.0, 1.0))
    guard = ModelGuard(QUESTIONS, lambda tokens, attention: torch.full((len(tokens),), next(scores)))
    guarded, short = make_learner(base, config, is_guarded=True), make_learner(base, config)
    optimise(guarded, count(A), QUESTIONS, TOKENIZER, config, Diary(), guard=guard)
    optimise(short, count(A), QUESTIONS, TOKENIZER, replace(config, num_episodes=8), Diary())
    last = weights(guarded)
    guarded.settle()
    found, expected = weights(guarded), weights(short)
    policy = [name for name in found if name.startswith("policy/")]
    assert all(torch.equal(found[name], expected[name]) for name in policy)
    assert not all(torch.equal(found[name], last[name]) for name in policy)


def test_prompts_for_a_guard_that_is_not_there_are_refused(
    base: ModelSource, reward: ModelSource, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="name its reward model"):
        train(base, reward, tmp_path / "v2", guard_prompts=PROMPTS)
