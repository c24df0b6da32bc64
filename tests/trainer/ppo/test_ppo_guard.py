"""Over-optimisation (Gao et al., 2210.10760): the true utility rises, then falls, and a guard that is blind to it keeps
what was gained. Every answer is enumerated, so that utilities are exact."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.trainer.ppo.tools import (
    CPU,
    PAD,
    QUESTIONS,
    TOKENIZER,
    Diary,
    all_answers,
    log_law,
    make_config,
    save_base,
)
from trainer.losses import pairwise_loss
from trainer.models import Policy, load_policy
from trainer.ppo import optimise
from trainer.ppo_guard import ModelGuard
from trainer.ppo_learner import Learner
from trainer.reward_model import RewardModel, ValueModel
from trainer.rollout import Question, make_rollout
from trainer.sampling import Generated
from trainer.weights import ModelSource

ANSWERS = all_answers(3)
BETA = 0.5 / 50


class World(NamedTuple):
    """Questions with answers whose worth is known, and the model that everything starts from."""

    base: ModelSource
    questions: list[Question]
    utilities: list[Tensor]


def small_world(folder: Path, seed: int) -> World:
    """Two questions. A policy that exploits says one answer to each in the end, so that chance decides much."""
    return World(save_base(folder, seed), QUESTIONS, make_utilities(QUESTIONS, seed))


def make_utilities(questions: Sequence[Question], seed: int) -> list[Tensor]:
    """utility_A of each question's answers: what their tokens are worth, and as much again that nothing explains."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(3, len(TOKENIZER), generator=generator)
    own = torch.randn(len(questions), len(ANSWERS), generator=generator)
    padded = [[*answer, *[PAD] * (3 - len(answer))] for answer in ANSWERS]
    words = torch.tensor([sum(table[place, token].item() for place, token in enumerate(row)) for row in padded])
    return [words / 3**0.5 + own[number] for number in range(len(questions))]


def fit_reward(world: World, laws: list[Tensor], *, num_rankings: int, epochs: int, seed: int) -> RewardModel:
    """A reward model from rankings of four answers that were drawn from `laws` and ranked by Plackett and Luce."""
    generator = torch.Generator().manual_seed(seed)
    model = RewardModel.from_sft(world.base, None, seed=seed)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3, eps=1e-5)
    rankings = []
    for number in range(num_rankings):
        place = number % len(world.questions)
        chosen = torch.multinomial(laws[place].softmax(0).float(), 4, replacement=True, generator=generator)
        noisy = world.utilities[place][chosen] - (-torch.rand(4, generator=generator).log()).log()
        rankings.append((world.questions[place], chosen.tolist(), (noisy[:, None] > noisy[None, :]).float()))
    for _ in range(epochs):
        order = torch.randperm(num_rankings, generator=generator)
        for indices in order.split(8):
            batch = [rankings[index] for index in indices]
            asked = [question for question, chosen, _ in batch for _ in chosen]
            said = [Generated(ANSWERS[index], [], "stop") for _, chosen, _ in batch for index in chosen]
            rows = make_rollout(asked, said, pad_id=PAD, device=CPU)
            rewards = model(rows.tokens_BL, rows.attention_BL).view(len(batch), 4)
            optimizer.zero_grad()
            pairwise_loss(rewards, torch.stack([weights for *_, weights in batch])).backward()
            optimizer.step()
    return model.requires_grad_(False)


def true_value(policy: Policy, world: World) -> float:
    values = [
        (log_law(policy, question, ANSWERS).exp() * utility).sum()
        for question, utility in zip(world.questions, world.utilities, strict=True)
    ]
    return torch.stack(values).mean().item()


class Gold(Diary):
    """Writes the true value of the policy down whenever something is reported."""

    def __init__(self, policy: Policy, world: World) -> None:
        super().__init__()
        self.policy, self.world, self.values = policy, world, [true_value(policy, world)]

    def metrics(self, step: int, values: Any) -> None:
        super().metrics(step, values)
        if step:
            self.values.append(true_value(self.policy, self.world))


def optimise_against(world: World, proxy: RewardModel, guard: ModelGuard | None) -> tuple[Learner, Gold]:
    config = make_config(
        num_episodes=30 * 128,
        episodes_per_batch=128,
        minibatch_size=32,
        num_epochs=2,
        max_new_tokens=3,
        beta=BETA,
        learning_rate=1e-3,
        value_learning_rate=2e-3,
        tokens_per_forward=8192,
        guard_answers=512,
        guard_patience=5,
    )
    value_model = ValueModel.from_reward(proxy).requires_grad_(True)
    policy = load_policy(world.base, lora=None, seed=1)
    learner = Learner.create(policy, value_model, config, is_guarded=guard is not None)
    gold = Gold(policy, world)
    optimise(learner, proxy, world.questions, TOKENIZER, config, gold, guard=guard)
    return learner, gold


class Gains(NamedTuple):
    """Of true utility over the reference's."""

    kept: float
    """By the weights that the guard kept."""
    best: float
    """At the best moment, which nobody knows."""
    last: float
    """At the end, without a guard."""


def gains_with_and_without_a_guard(world: World, seed: int) -> Gains:
    """The same run twice. The guard's rankings are other ones, many, and of all kinds of answers; what they are worth
    it is never told."""
    reference = load_policy(world.base, lora=None, seed=1)
    laws = [log_law(reference, question, ANSWERS) for question in world.questions]
    proxy = fit_reward(world, laws, num_rankings=200, epochs=3, seed=seed + 100)
    flatter = [law / 5 for law in laws]
    judge = fit_reward(world, flatter, num_rankings=8000, epochs=2, seed=seed + 200)
    _, alone = optimise_against(world, proxy, None)
    proxies = [point["objective/reward"] for point in alone.points]
    assert proxies[-1] > proxies[0]  # the score that is trained rises all the while
    learner, guarded = optimise_against(world, proxy, ModelGuard(world.questions, judge))
    assert guarded.values == alone.values[: len(guarded.values)]  # a guard changes nothing of the training
    learner.settle()
    start = alone.values[0]
    return Gains(true_value(learner.policy, world) - start, max(alone.values) - start, alone.values[-1] - start)


@pytest.mark.slow
@pytest.mark.parametrize("num_seeds", [1, pytest.param(3, marks=pytest.mark.soak)])
def test_a_guard_that_is_blind_to_the_true_utility_keeps_what_was_gained(num_seeds: int, tmp_path: Path) -> None:
    worlds = [small_world(tmp_path / str(seed), seed) for seed in range(num_seeds)]
    found = [gains_with_and_without_a_guard(world, seed) for seed, world in enumerate(worlds)]
    kept, best, last = (sum(values) for values in zip(*found, strict=True))
    assert last <= 0.8 * best  # without a guard, the true utility has fallen again
    assert kept >= 0.9 * best
