"""PPO against the exact optimum of tasks whose answers can all be enumerated."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.trainer.ppo.tools import (
    QUESTIONS,
    TOKENIZER,
    all_answers,
    log_law,
    make_config,
    make_learner,
    run,
    save_positional_base,
    score_by_tokens,
)
from trainer.rollout import Question
from trainer.weights import ModelSource


def exact_reward(table: Tensor, question: Question, answers: list[list[int]]) -> Tensor:
    rows = [[*question.tokens, *answer] for answer in answers]
    return torch.cat(
        [score_by_tokens(table, torch.tensor([row]), torch.ones(1, len(row)).bool()) for row in rows]
    ).double()


def objective(law: Tensor, reference: Tensor, reward: Tensor, beta: float) -> float:
    """J = E[r] - beta KL(pi, pi_ref), over every answer."""
    return (law.exp() * (reward - beta * (law - reference))).sum().item()


def test_what_is_missing_to_the_optimum_is_beta_times_the_kl_to_it(base: ModelSource) -> None:
    """J* - J = beta KL(pi, pi*), exactly, for a policy that has learned a little."""
    config = make_config(num_episodes=32, max_new_tokens=3, beta=0.3)
    learner = make_learner(base, config)
    table = torch.randn(3, len(TOKENIZER), generator=torch.Generator().manual_seed(0))
    run(learner, config, score=partial(score_by_tokens, table))
    answers = all_answers(3)
    for question in QUESTIONS:
        reward = exact_reward(table, question, answers)
        law = log_law(learner.policy, question, answers)
        with learner.policy.reference():
            reference = log_law(learner.policy, question, answers)
        # The sums are over laws that fp32 logits make: each is normalised in float64.
        law, reference = law.log_softmax(0), reference.log_softmax(0)
        log_z = torch.logsumexp(reference + reward / 0.3, dim=0)
        optimum = reference + reward / 0.3 - log_z
        assert objective(optimum, reference, reward, 0.3) == pytest.approx(0.3 * log_z.item(), abs=1e-10)
        missing = 0.3 * log_z.item() - objective(law, reference, reward, 0.3)
        assert missing == pytest.approx(0.3 * (law.exp() * (law - optimum)).sum().item(), abs=1e-10)
        assert missing > 0.01
        assert (law - reference).abs().max() > 0.01


def share_of_the_optimum(folder: Path, seed: int, beta: float, *, num_rollouts: int = 40) -> float:
    """(J - J_ref) / (J* - J_ref) over every answer: J = E[r] - beta KL; J* = beta log E_ref[exp(r/beta)]."""
    base = save_positional_base(folder, seed)
    config = make_config(
        num_episodes=256 * num_rollouts,
        episodes_per_batch=256,
        minibatch_size=64,
        num_epochs=2,
        max_new_tokens=3,
        beta=beta,
        learning_rate=1e-3,
        value_learning_rate=2e-3,
        tokens_per_forward=8192,
    )
    learner = make_learner(base, config)
    table = torch.randn(3, len(TOKENIZER), generator=torch.Generator().manual_seed(seed))
    run(learner, config, score=partial(score_by_tokens, table))
    answers = all_answers(3)
    gained = possible = 0.0
    for question in QUESTIONS:
        reward = exact_reward(table, question, answers)
        law = log_law(learner.policy, question, answers)
        with learner.policy.reference():
            reference = log_law(learner.policy, question, answers)
        assert reference.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
        start = (reference.exp() * reward).sum().item()
        gained += objective(law, reference, reward, beta) - start
        possible += beta * torch.logsumexp(reference + reward / beta, dim=0).item() - start
    return gained / possible


@pytest.mark.slow
@pytest.mark.parametrize(("num_seeds", "num_rollouts"), [(1, 20), pytest.param(3, 40, marks=pytest.mark.soak)])
def test_it_reaches_the_exact_optimum(num_seeds: int, num_rollouts: int, tmp_path: Path) -> None:
    folders = [tmp_path / str(seed) for seed in range(num_seeds)]
    shares = [
        share_of_the_optimum(folder, seed, beta=0.5, num_rollouts=num_rollouts) for seed, folder in enumerate(folders)
    ]
    assert sum(shares) / num_seeds >= 0.95, shares
    assert max(shares) <= 1.0 + 1e-6
