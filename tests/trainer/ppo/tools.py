"""What the tests of PPO share: tiny models, a reward that can be enumerated, runs, and what was reported."""

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.trainer.tiny import make_model, make_positional_model, make_tokenizer
from trainer.config import LoraConfig, PPOConfig
from trainer.models import Policy, load_policy
from trainer.ppo import Trajectory, optimise
from trainer.ppo_learner import Learner, PPOResult
from trainer.ppo_run import train_ppo
from trainer.reporting import SilentReporter
from trainer.reward_model import RewardModel, ValueModel
from trainer.rollout import Question, Rollout, Score, make_rollout
from trainer.sampling import Draw, Generated, LocalSampler, Prompt
from trainer.weights import ModelSource

TOKENIZER = make_tokenizer(("a", "b", "c"))
EOS, PAD = 1, 0
A, B, C = 3, 4, 5
QUESTIONS = [Question("p1", [3, 4]), Question("p2", [5])]
LORA = LoraConfig(rank=4, alpha=8, num_last_blocks=1)
CPU = torch.device("cpu")
PROMPTS = [Prompt("p1", [{"role": "user", "content": "a b"}]), Prompt("p2", [{"role": "user", "content": "c"}])]
TOO_LONG = Prompt("p3", [{"role": "user", "content": "a " * 70}])


def save_base(folder: Path, seed: int) -> ModelSource:
    make_model(TOKENIZER, seed=seed, spread=0.1).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return ModelSource(folder, alias="tiny")


def save_positional_base(folder: Path, seed: int) -> ModelSource:
    """One that can become the optimum of an enumerable task."""
    make_positional_model(TOKENIZER, seed=seed).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return ModelSource(folder, alias="tiny")


def make_config(**fields: Any) -> PPOConfig:
    small = {
        "num_episodes": 16,
        "episodes_per_batch": 8,
        "minibatch_size": 4,
        "max_new_tokens": 4,
        "missing_eos_penalty": 0.0,
        "learning_rate": 1e-2,
    }
    return PPOConfig.from_overrides(small | fields).for_model(1000, "cpu")


def make_learner(base: ModelSource, config: PPOConfig, *, is_guarded: bool = False) -> Learner:
    lora = config.lora if isinstance(config.lora, LoraConfig) else None
    value_model = ValueModel.from_reward(RewardModel.from_sft(base, lora, seed=1))
    return Learner.create(load_policy(base, lora=lora, seed=1), value_model, config, is_guarded=is_guarded)


class Diary(SilentReporter):
    """Remembers what was reported, and stops the run when told to."""

    def __init__(self, stop_at_progress: int | None = None) -> None:
        self.points: list[dict[str, float]] = []
        self.lines: list[tuple[str, str]] = []
        self.steps: list[tuple[int, int]] = []
        self.stop_at_progress = stop_at_progress

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.points.append({"step": step, **values})

    def progress(self, step: int, total: int, message: str) -> None:
        self.steps.append((step, total))

    def log(self, level: str, text: str) -> None:
        self.lines.append((level, text))

    def should_stop(self) -> bool:
        return self.stop_at_progress is not None and bool(self.steps) and self.steps[-1][0] >= self.stop_at_progress


def score_by_tokens(table: Tensor, every_tokens: Tensor, every_attention: Tensor) -> Tensor:
    """The sum of table[position, token] over an answer; where it has ended, over padding."""
    scores = []
    for tokens, attention in zip(every_tokens, every_attention, strict=True):
        row = tokens[attention].tolist()
        answer = row[2:] if row[:2] == [3, 4] else row[1:]
        padded = [*answer, *[PAD] * (len(table) - len(answer))]
        scores.append(sum(table[position, token].item() for position, token in enumerate(padded)))
    return torch.tensor(scores)


def run(learner: Learner, config: PPOConfig, *, score: Score | None = None, report: Diary | None = None) -> Diary:
    report = report or Diary()
    table = torch.randn(4, len(TOKENIZER), generator=torch.Generator().manual_seed(0))
    optimise(learner, score or partial(score_by_tokens, table), QUESTIONS, TOKENIZER, config, report)
    return report


def train(
    base: ModelSource,
    reward: ModelSource,
    out: Path,
    *,
    report: Diary | None = None,
    prompts: list[Prompt] = PROMPTS,
    policy: ModelSource | None = None,
    resume_from: Path | None = None,
    ptx_texts: Sequence[Mapping[str, Any]] = (),
    liked_answers: Sequence[Mapping[str, Any]] = (),
    guard: ModelSource | None = None,
    guard_prompts: Sequence[Prompt] = (),
    **fields: Any,
) -> PPOResult:
    return train_ppo(
        prompts,
        sft=base,
        policy=policy or base,
        reward=reward,
        config=make_config(**fields),
        out=out,
        report=report or Diary(),
        resume_from=resume_from,
        ptx_texts=ptx_texts,
        liked_answers=liked_answers,
        guard=guard,
        guard_prompts=guard_prompts,
    )


def weights(learner: Learner) -> dict[str, Tensor]:
    models = {"policy": learner.policy, "value": learner.value_model}
    return {
        f"{key}/{name}": p.detach().clone() for key, model in models.items() for name, p in model.named_parameters()
    }


def all_answers(max_new_tokens: int) -> list[list[int]]:
    """Everything that the model can say: words up to an EOS, or cut by length."""
    others = [token for token in range(len(TOKENIZER)) if token != EOS]
    answers = [list(words) for words in itertools.product(others, repeat=max_new_tokens)]
    for length in range(max_new_tokens):
        answers += [[*words, EOS] for words in itertools.product(others, repeat=length)]
    return answers


@torch.no_grad()
def log_law(policy: Policy, question: Question, answers: list[list[int]]) -> Tensor:
    """log p of each answer, exactly."""
    rollout = make_rollout(
        [question] * len(answers), [Generated(answer, [], "stop") for answer in answers], pad_id=PAD, device=CPU
    )
    num_new = rollout.mask_BT.shape[1]
    logprobs = policy.logprobs(rollout.tokens_BL, rollout.attention_BL, num_new=num_new, temperature=1.0)
    return (logprobs * rollout.mask_BT).sum(1).double()


def make_mixed_rollout(learner: Learner, temperature: float) -> tuple[Rollout, list[Generated]]:
    questions = [Question("q", tokens) for tokens in ([3], [3, 4, 5, 3, 4], [5, 5], [4, 3, 3])] * 3
    draws = [Draw(question.tokens, "q", index, seed=1) for index, question in enumerate(questions)]
    drawn = LocalSampler(learner.policy.model, TOKENIZER).draw(
        draws, temperature=temperature, top_p=1.0, max_new_tokens=6
    )
    return make_rollout(questions, drawn, pad_id=PAD, device=CPU), drawn


def make_trajectory(learner: Learner) -> Trajectory:
    """A rollout with made-up advantages and returns, and old log-probabilities that are not the policy's."""
    rollout, drawn = make_mixed_rollout(learner, 1.0)
    noise = torch.Generator().manual_seed(5)
    made_up = [torch.randn(rollout.mask_BT.shape, generator=noise) * rollout.mask_BT for _ in range(3)]
    logprobs = torch.zeros(rollout.mask_BT.shape)
    for row, answer in enumerate(drawn):
        logprobs[row, : len(answer.logprobs)] = torch.tensor(answer.logprobs) + 0.1
    return Trajectory(rollout, logprobs, *made_up)


def policy_gradient(learner: Learner) -> Tensor:
    return torch.cat([p.grad.flatten().double() for p in learner.policy.parameters() if p.grad is not None])


def count(token: int) -> Score:
    return lambda tokens, attention: ((tokens == token) & attention).sum(1).float()
