"""Which weights a version takes: the last ones, their average, or those of a guard's best moment."""

import itertools
import json
from collections.abc import Iterator
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
from trainer.models import RewardModel, ValueModel, load_policy
from trainer.ppo import optimise
from trainer.ppo_guard import Guard, Judgement
from trainer.ppo_learner import Learner
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


def test_a_guard_remembers_its_best_and_counts_exploited_rollouts_in_a_row() -> None:
    guard = Judgement(first_score=0.0, best_score=0.0, training_score=0.0, num_episodes=0)
    assert guard.hear(1.0, 1.0, 8)
    assert not guard.hear(0.9, 2.0, 16)
    assert guard.num_exploited == 1
    assert not guard.hear(0.9, 0.5, 24)  # the training score fell, too: nothing is exploited
    assert guard.num_exploited == 0
    assert not guard.hear(0.9, 1.1, 32)
    assert not guard.hear(0.8, 1.2, 40)
    assert (guard.num_exploited, guard.best_score, guard.num_episodes, guard.first_score) == (2, 1.0, 8, 0.0)
    assert guard.hear(1.5, 1.5, 48)
    assert (guard.num_exploited, guard.num_episodes) == (0, 48)


def test_a_run_stops_when_the_guard_sees_that_the_reward_is_exploited(base: ModelSource) -> None:
    config = make_config(num_episodes=800, guard_patience=2, guard_answers=16, beta=0.0)
    guard = Guard(lambda tokens, attention: -count(A)(tokens, attention), QUESTIONS)
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
    assert judged.best_score == max(scores)
    assert judged.num_episodes == 8 * scores.index(max(scores))
    learner.settle()
    kept = {name: tensor for name, tensor in weights(learner).items() if name.startswith("policy/")}
    assert all(torch.equal(tensor, before[name]) for name, tensor in kept.items()) == (judged.num_episodes == 0)


def rise(number: Iterator[int], tokens: Tensor, attention: Tensor) -> Tensor:
    return torch.full((len(tokens),), float(next(number)))


def test_a_guard_that_agrees_keeps_the_last_weights_and_changes_nothing_of_the_training(base: ModelSource) -> None:
    config = make_config(num_episodes=48)
    found = {}
    for is_guarded in (False, True):
        learner = make_learner(base, config, is_guarded=is_guarded)
        guard = Guard(partial(rise, itertools.count()), QUESTIONS)
        optimise(learner, count(A), QUESTIONS, TOKENIZER, config, Diary(), guard=guard if is_guarded else None)
        learner.settle()
        found[is_guarded] = weights(learner)
    assert all(torch.equal(tensor, found[True][name]) for name, tensor in found[False].items())


def test_a_guard_looks_before_the_first_rollout_and_then_every_few(base: ModelSource) -> None:
    config = make_config(num_episodes=56, guard_every=3, guard_answers=4)
    learner, report = make_learner(base, config, is_guarded=True), Diary()
    guard = Guard(partial(rise, itertools.count()), QUESTIONS)
    optimise(learner, count(A), QUESTIONS, TOKENIZER, config, report, guard=guard)
    assert [point["step"] for point in report.points if "guard/score" in point] == [0, 24, 48]
    assert learner.progress.guard is not None
    assert learner.progress.guard.num_episodes == 48


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
    assert result.guard.best_score == max(scores)
    assert result.guard.num_episodes == 8 * scores.index(max(scores))
    saved = json.loads((tmp_path / "v2" / "manifest.json").read_text())
    assert saved["result"]["guard"]["num_episodes"] == result.guard.num_episodes
    # The weights that are kept say again what the guard heard then.
    config = make_config()
    policy = load_policy(replace(base, version=tmp_path / "v2"), lora=None)
    judge = RewardModel.load(reward)
    questions, _ = ppo_run._encode(PROMPTS[:1], tokenizer=TOKENIZER, policy=policy, config=config, report=report)
    learner = Learner.create(policy, ValueModel.from_reward(judge), config, is_guarded=True)
    again = ppo._consult(Guard(judge, questions), learner, judge, LocalSampler(policy.model, TOKENIZER), config, report)
    assert again["guard/score"] == pytest.approx(max(scores), abs=1e-5)


def test_a_checkpoint_keeps_the_average_and_the_guard_s_best(base: ModelSource, tmp_path: Path) -> None:
    config = make_config(ema_decay=0.5)
    kept, found = (make_learner(base, config, is_guarded=True) for _ in range(2))
    run(kept, config)
    kept.remember()
    keep = Keeper(tmp_path / "checkpoint", {}, None, None)
    kept.save(keep)
    run(kept, config)  # what comes later is not in it
    remembered = [tensor.detach().clone() for tensor in kept.best or []]
    found.resume(replace(keep, resume_from=keep.folder))
    for models in (found.best, found.average):
        assert all(torch.equal(a, b) for a, b in zip(models or [], remembered, strict=True))


def test_prompts_for_a_guard_that_is_not_there_are_refused(
    base: ModelSource, reward: ModelSource, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="name its reward model"):
        train(base, reward, tmp_path / "v2", guard_prompts=PROMPTS)
