"""PPO's rollouts: masks, log-probabilities, values, advantages, and in which order prompts are asked."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.trainer.ppo.tools import CPU, EOS, LORA, PAD, QUESTIONS, make_config, make_learner, make_mixed_rollout, run
from trainer import ppo
from trainer import rollout as rollouts
from trainer.config import LoraConfig
from trainer.ppo import Trajectory
from trainer.ppo_learner import Learner
from trainer.rollout import Question, Rollout, make_rollout, walk
from trainer.sampling import Generated
from trainer.weights import ModelSource


def test_masks_come_from_lengths_not_from_the_padding_token() -> None:
    answers = [Generated([PAD, 3, EOS], [], "stop"), Generated([4], [], "length")]
    rollout = make_rollout(QUESTIONS, answers, pad_id=PAD, device=CPU)
    assert rollout.tokens_BL.tolist() == [[3, 4, PAD, 3, EOS], [PAD, 5, 4, PAD, PAD]]
    assert rollout.attention_BL.int().tolist() == [[1, 1, 1, 1, 1], [0, 1, 1, 0, 0]]
    assert rollout.mask_BT.int().tolist() == [[1, 1, 1], [1, 0, 0]]
    assert rollout.has_eos_B.tolist() == [True, False]


def test_selected_rows_lose_the_columns_that_are_padding_in_all_of_them() -> None:
    answers = [Generated([PAD, 3, EOS], [], "stop"), Generated([4], [], "length")]
    part = make_rollout(QUESTIONS, answers, pad_id=PAD, device=CPU).select(torch.tensor([1]))
    assert part.tokens_BL.tolist() == [[5, 4]]
    assert part.mask_BT.tolist() == [[True]]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_the_training_forward_says_what_the_sampler_said(base: ModelSource, temperature: float) -> None:
    learner = make_learner(base, make_config())
    rollout, drawn = make_mixed_rollout(learner, temperature)
    with torch.no_grad():
        logprobs = learner.policy.logprobs(
            rollout.tokens_BL, rollout.attention_BL, num_new=rollout.mask_BT.shape[1], temperature=temperature
        )
    sampled = torch.tensor([value for result in drawn for value in result.logprobs])
    torch.testing.assert_close(logprobs[rollout.mask_BT], sampled, atol=1e-4, rtol=0)


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_loop_samples_and_trains_at_one_temperature(
    base: ModelSource, lora: LoraConfig | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `optimise` takes for old log-probabilities is what its own sampler drew with."""
    config = make_config(temperature=0.6, num_episodes=8, lora=lora)
    learner = make_learner(base, config)
    drawn: list[Generated] = []
    used: list[Trajectory] = []
    make, update = make_rollout, ppo._update

    def watched_rollout(asked: Any, answers: Any, **rest: Any) -> Rollout:
        drawn.extend(answers)
        return make(asked, answers, **rest)

    def watched_update(own: Learner, trajectory: Trajectory, *rest: Any) -> dict[str, float]:
        used.append(trajectory)
        return update(own, trajectory, *rest)

    monkeypatch.setattr(rollouts, "make_rollout", watched_rollout)
    monkeypatch.setattr(ppo, "_update", watched_update)
    run(learner, config)
    sampled = torch.tensor([value for result in drawn for value in result.logprobs])
    torch.testing.assert_close(used[0].logprobs_BT[used[0].rollout.mask_BT], sampled, atol=1e-4, rtol=0)


def test_a_value_is_that_of_what_came_before_its_token(base: ModelSource) -> None:
    value_model = make_learner(base, make_config()).value_model
    attention = torch.ones(1, 5).bool()
    with torch.no_grad():
        values = value_model(torch.tensor([[3, 4, 5, 3, 4]]), attention, num_new=3)
        others = value_model(torch.tensor([[3, 4, 5, 3, 5]]), attention, num_new=3)
        earlier = value_model(torch.tensor([[3, 4, 5, 4, 4]]), attention, num_new=3)
    assert torch.equal(values, others)
    assert torch.equal(values[:, :2], earlier[:, :2])
    assert not torch.equal(values[:, 2], earlier[:, 2])


@pytest.mark.parametrize("whiten", [True, False])
def test_advantages_are_whitened_over_the_batch_if_the_config_says_so(
    base: ModelSource, monkeypatch: pytest.MonkeyPatch, whiten: bool
) -> None:
    used: list[Trajectory] = []

    def only_keep(learner: Learner, trajectory: Trajectory, *rest: Any) -> dict[str, float]:
        used.append(trajectory)
        return {}

    monkeypatch.setattr(ppo, "_update", only_keep)
    config = make_config(num_episodes=8, whiten_advantages=whiten)
    run(make_learner(base, config), config)
    advantages = used[0].advantages_BT[used[0].rollout.mask_BT]
    is_white = abs(advantages.mean().item()) < 1e-5 and abs(advantages.std(correction=0).item() - 1.0) < 1e-5
    assert is_white == whiten
    unwhitened = (used[0].returns_BT - used[0].values_BT)[used[0].rollout.mask_BT]
    assert torch.allclose(advantages, unwhitened, atol=1e-6) != whiten


def test_every_pass_asks_every_question_once() -> None:
    questions = [Question(str(number), [3]) for number in range(5)]
    asked = [question.prompt_id for question in walk(questions, 0, 15, 4, "pass")]
    assert [sorted(asked[start : start + 5]) for start in (0, 5, 10)] == [["0", "1", "2", "3", "4"]] * 3
    assert asked[:5] != asked[5:10]
    assert [question.prompt_id for question in walk(questions, 7, 4, 4, "pass")] == asked[7:11]


def test_the_sampler_s_log_probabilities_serve_once_they_were_seen_to_be_exact(
    base: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Trajectory] = []
    update = ppo._update

    def watched(own: Learner, trajectory: Trajectory, *rest: Any) -> dict[str, float]:
        used.append(trajectory)
        return update(own, trajectory, *rest)

    monkeypatch.setattr(ppo, "_update", watched)
    for error, is_exact in ((0.0, True), (1e-3, False)):
        used.clear()

        def with_error(*args: Any, error: float = error, **rest: Any) -> Rollout:
            rollout = make_rollout(*args, **rest)
            return replace(rollout, sampled_BT=rollout.sampled_BT + error * rollout.mask_BT)

        monkeypatch.setattr(rollouts, "make_rollout", with_error)
        config = make_config()
        learner = make_learner(base, config)
        run(learner, config)
        assert learner.progress.is_sampler_exact is is_exact
        assert [t.logprobs_BT is t.rollout.sampled_BT for t in used] == [False, is_exact]
        torch.testing.assert_close(used[1].logprobs_BT, used[1].rollout.sampled_BT, atol=2e-3, rtol=0)
