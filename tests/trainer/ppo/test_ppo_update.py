"""PPO's update by hand where a hand can, and what must not matter to it."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.ppo.tools import LORA, make_config, make_learner, make_trajectory, policy_gradient, run, weights
from trainer import ppo
from trainer.config import LoraConfig
from trainer.rollout import TrainingFailed
from trainer.weights import ModelSource


@pytest.mark.parametrize("lora", [None, LORA])
def test_before_the_first_step_the_ratio_is_1(base: ModelSource, lora: LoraConfig | None) -> None:
    config = make_config(num_episodes=8, minibatch_size=8, lora=lora)
    (point,) = run(make_learner(base, config), config).points
    assert point["ppo/policy/ratio_error"] <= 1e-5
    assert point["ppo/policy/approxkl"] <= 1e-5
    assert point["ppo/policy/clipfrac"] == 0.0
    assert point["objective/kl"] == pytest.approx(0.0, abs=1e-5)


def test_a_policy_that_is_not_the_one_that_sampled_is_noticed(
    base: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    learner = make_learner(base, config)
    logprobs = learner.policy.logprobs

    def at_another_temperature(*args: Any, temperature: float, **rest: Any) -> Tensor:
        return logprobs(*args, temperature=temperature if not torch.is_grad_enabled() else 1.1, **rest)

    monkeypatch.setattr(learner.policy, "logprobs", at_another_temperature)
    with pytest.raises(AssertionError, match="before the first step"):
        run(learner, config)


def test_a_step_does_not_depend_on_micro_batches(base: ModelSource) -> None:
    results = []
    for tokens_per_forward in (1, 20, 8192):
        config = make_config(num_episodes=8, minibatch_size=8, tokens_per_forward=tokens_per_forward)
        learner = make_learner(base, config)
        (point,) = run(learner, config).points
        results.append(
            [point[f"ppo/{name}"] for name in ("policy/loss", "value/loss", "policy/grad_norm", "value/grad_norm")]
        )
    torch.testing.assert_close(torch.tensor(results[0]), torch.tensor(results[2]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.tensor(results[1]), torch.tensor(results[2]), atol=1e-5, rtol=1e-5)


def test_with_an_adapter_only_the_last_block_and_the_value_head_learn(base: ModelSource) -> None:
    config = make_config(lora=LORA)
    learner = make_learner(base, config)
    before = weights(learner)
    run(learner, config)
    moved = {name for name, tensor in weights(learner).items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(("lora_" in name and ".layers.1." in name) or name.startswith("value/head.") for name in moved)


def test_an_answer_cut_by_length_pays_the_penalty(base: ModelSource) -> None:
    # Scores 0 and no KL penalty: what is left of the reward is -3 for each answer without EOS.
    config = make_config(missing_eos_penalty=3.0, beta=0.0, num_episodes=8)
    (point,) = run(make_learner(base, config), config, score=lambda tokens, attention: torch.zeros(len(tokens))).points
    assert 0.0 < point["objective/eos"] < 1.0
    assert point["objective/rlhf_reward"] == pytest.approx(-3.0 * (1.0 - point["objective/eos"]), abs=1e-6)


def test_the_rate_rises_over_a_tenth_of_the_run_at_most(base: ModelSource) -> None:
    config = make_config(num_episodes=8 * 40, warmup_iterations=10)  # 40 rollouts: 4 of them warm up
    learner = make_learner(base, config)
    rates = []
    for iteration in range(6):
        learner.progress.num_iterations = iteration
        ppo._set_rates(learner, config)
        rates.append(learner.policy_optimizer.param_groups[0]["lr"] / 1e-2)
    assert rates == pytest.approx([0.1, 0.325, 0.55, 0.775, 1.0, 1.0])


def test_an_adaptive_beta_follows_the_summed_kl() -> None:
    config = make_config(target_kl=6.0, kl_horizon=100)
    assert ppo._next_beta(0.5, 6.6, 10, config) == pytest.approx(0.5 * (1 + 0.1 * 10 / 100))  # error 0.1
    assert ppo._next_beta(0.5, 60.0, 10, config) == pytest.approx(0.5 * (1 + 0.2 * 10 / 100))  # cut off at 0.2
    assert ppo._next_beta(0.5, 0.0, 10, config) == pytest.approx(0.5 * (1 - 0.2 * 10 / 100))
    assert ppo._next_beta(0.5, 60.0, 10, make_config()) == 0.5


def test_it_stops_when_the_kl_is_too_high(base: ModelSource) -> None:
    config = make_config(num_episodes=80, learning_rate=0.3, kl_stop=1.0, beta=0.0)
    learner = make_learner(base, config)
    report = run(learner, config)
    assert learner.progress.num_episodes < 80
    assert learner.progress.last_kl is not None
    assert learner.progress.last_kl > 1.0
    assert report.lines[-1][1].startswith("Stopped: KL")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_no_number_stops_the_run_before_it_reaches_a_weight(base: ModelSource, bad: float) -> None:
    config = make_config()
    learner = make_learner(base, config)
    before = weights(learner)
    with pytest.raises(TrainingFailed, match="the reward model's score is NaN or infinite"):
        run(learner, config, score=lambda tokens, attention: torch.full((len(tokens),), bad))
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(learner).items())


def test_a_gradient_that_is_no_number_is_not_applied(base: ModelSource) -> None:
    config = make_config()
    learner = make_learner(base, config)
    before = weights(learner)
    for parameter in (*learner.policy.parameters(), *learner.value_model.parameters()):
        parameter.grad = torch.zeros_like(parameter)
    next(learner.value_model.parameters()).grad.fill_(math.nan)  # type: ignore[union-attr]
    with pytest.raises(TrainingFailed, match="the gradient of the value model is NaN"):
        ppo._step(learner, config)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(learner).items())


def test_a_minibatch_has_the_gradient_of_the_paper_s_loss_and_of_nothing_else(base: ModelSource) -> None:
    """The clipped loss of 1707.06347, eq. 7, in one forward pass: the KL, which the reward has, is no loss."""
    config = make_config(beta=0.5, tokens_per_forward=8)
    learner = make_learner(base, config)
    trajectory = make_trajectory(learner)
    rollout, advantages = trajectory.rollout, trajectory.advantages_BT
    ppo._accumulate(learner, trajectory, torch.arange(12), config)
    found = policy_gradient(learner)
    learner.policy_optimizer.zero_grad()
    logprobs = learner.policy.logprobs(
        rollout.tokens_BL, rollout.attention_BL, num_new=rollout.mask_BT.shape[1], temperature=config.temperature
    )
    ratio = (logprobs - trajectory.logprobs_BT).exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    (-surrogate[rollout.mask_BT].mean()).backward()
    expected = policy_gradient(learner)
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert expected.norm() > 0
