"""One small training of every kind, for tests that kill it and let it go on."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.trainer.tiny import save_tiny
from tests.trainer.two_processes import DPO, LORA, PPO, RANKINGS, REWARD, SFT
from trainer.best_of_n import train_best_of_n
from trainer.checks import Check
from trainer.config import BestOfNConfig, StarConfig
from trainer.dpo import train_dpo
from trainer.ppo_run import train_ppo
from trainer.reporting import RunResult, SilentReporter
from trainer.reward import train_reward
from trainer.sampling import Prompt
from trainer.sft import train_sft
from trainer.star import CheckedPrompt, train_star
from trainer.weights import ModelSource

WORDS = ("a", "b c", "d a b a", "c", "b b a d c", "d d", "a c", "b", "c a c a", "d b", "a a", "c b d")
PROMPTS = [Prompt(f"p{number}", [{"role": "user", "content": text}]) for number, text in enumerate(WORDS)]
CONVERSATIONS = [
    {"id": f"c{n}", "prompt": "a b", "completion": f"{text} a", "split": "validation" if n > 8 else "train"}
    for n, text in enumerate(WORDS)
]
OWN_SFT = replace(SFT, checkpoint_every=1)

Data = Sequence[Any]
Training = Callable[..., RunResult]
"""(source, reward version, out, report, and what else a training function takes) -> its result."""


def reward(source: ModelSource, _: ModelSource, out: Path, data: Data = RANKINGS, **options: Any) -> RunResult:
    """Full weights, rankings of two to five answers, some held out."""
    return train_reward(data, source=source, config=REWARD, out=out, **options)


def reward_with_adapters(source: ModelSource, _: ModelSource, out: Path, **options: Any) -> RunResult:
    """An ensemble that learns ties, too."""
    config = replace(REWARD, lora=LORA, num_heads=3, ties="davidson")
    return train_reward(RANKINGS, source=source, config=config, out=out, **options)


def sft(source: ModelSource, _: ModelSource, out: Path, data: Data = CONVERSATIONS, **options: Any) -> RunResult:
    """Full weights; the best ones in validation are kept."""
    config = replace(SFT, patience=None, epochs=4)
    return train_sft(data, source=source, config=config, out=out, **options)


def sft_with_adapters(source: ModelSource, _: ModelSource, out: Path, **options: Any) -> RunResult:
    """The same through adapters."""
    config = replace(SFT, patience=None, epochs=4, lora=LORA)
    return train_sft(CONVERSATIONS, source=source, config=config, out=out, **options)


def dpo(source: ModelSource, _: ModelSource, out: Path, data: Data = RANKINGS, **options: Any) -> RunResult:
    """Full weights."""
    return train_dpo(data, sft=source, policy=source, config=DPO, out=out, **options)


def dpo_with_adapters(source: ModelSource, _: ModelSource, out: Path, **options: Any) -> RunResult:
    """The same through adapters."""
    config = replace(DPO, lora=LORA)
    return train_dpo(RANKINGS, sft=source, policy=source, config=config, out=out, **options)


def ppo(source: ModelSource, judge: ModelSource, out: Path, data: Data = PROMPTS, **options: Any) -> RunResult:
    """With texts, averaged weights and a guard, the last rollout smaller than the others."""
    return train_ppo(
        data,
        sft=source,
        policy=source,
        reward=judge,
        guard=judge,
        config=replace(PPO, num_episodes=13),
        out=out,
        ptx_texts=[{"text": "a b c d"}, {"text": "d d"}],
        **options,
    )


def best_of_n(source: ModelSource, judge: ModelSource, out: Path, data: Data = PROMPTS, **options: Any) -> RunResult:
    """Three checkpoints while answers are drawn, more while they are learned."""
    config = BestOfNConfig(n=4, max_new_tokens=4, prompts_per_checkpoint=4, sft=OWN_SFT)
    return train_best_of_n(data, policy=source, reward=judge, config=config, out=out, **options)


def star(source: ModelSource, _: ModelSource, out: Path, data: Data = PROMPTS, **options: Any) -> RunResult:
    """Likewise, of answers that hold an "a"."""
    config = StarConfig(n=8, max_new_tokens=4, prompts_per_checkpoint=4, sft=OWN_SFT)
    prompts = [CheckedPrompt(prompt, Check("regex", "a")) for prompt in data]
    return train_star(prompts, sft=source, policy=source, config=config, out=out, **options)


TRAININGS: dict[str, Training] = {
    training.__name__: training
    for training in (reward, reward_with_adapters, sft, sft_with_adapters, dpo, dpo_with_adapters, ppo, best_of_n, star)
}

KINDS: dict[str, Data] = {
    "reward": RANKINGS,
    "sft": CONVERSATIONS,
    "dpo": RANKINGS,
    "ppo": PROMPTS,
    "best_of_n": PROMPTS,
    "star": PROMPTS,
}
"""What each kind of run learns from; `train(kind, data=…)` gives it something else."""


def make_versions(folder: Path) -> tuple[Path, Path]:
    """(base, reward version) that all of them start from."""
    base = save_tiny(folder / "tiny", spread=0.1)
    torch.manual_seed(0)
    reward(ModelSource(base), ModelSource(base), folder / "reward", report=SilentReporter())
    return base, folder / "reward"


def train(name: str, base: Path, judge: Path, out: Path, **options: Any) -> RunResult:
    """The training of this name, silently."""
    source = ModelSource(base)
    return TRAININGS[name](source, ModelSource(base, judge), out, **{"report": SilentReporter(), **options})


def require_equal(one: Path, other: Path) -> None:
    """Both versions have the same files of weights, equal to the last bit."""
    names = sorted(path.name for path in one.glob("*.safetensors"))
    assert names == sorted(path.name for path in other.glob("*.safetensors"))
    assert names
    for name in names:
        first, second = load_file(one / name), load_file(other / name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), name
