"""Trainings that must come out the same in one process and in several: what `test_distributed.py` runs under torchrun.

torchrun --nproc-per-node 2 tests/trainer/two_processes.py BASE_MODEL OUT NAME...
"""

import json
import random
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from trainer import checkpoints
from trainer.best_of_n import train_best_of_n
from trainer.checks import Check
from trainer.config import BestOfNConfig, DPOConfig, LoraConfig, PPOConfig, RewardConfig, SFTConfig, StarConfig
from trainer.distributed import joined, whole
from trainer.dpo import train_dpo
from trainer.fitting import make_policy
from trainer.models import load_policy
from trainer.ppo_run import _load_models, train_ppo
from trainer.preferences import Answer, Ranking
from trainer.reporting import SilentReporter
from trainer.reward import train_reward
from trainer.sampling import Prompt
from trainer.sft import train_sft
from trainer.star import CheckedPrompt, train_star
from trainer.weights import ModelSource

LORA = LoraConfig(rank=4, alpha=8, num_last_blocks=1)
REWARD = RewardConfig(lora=None, epochs=2, learning_rate=3e-3, rankings_per_batch=4, checkpoint_every=2)
DPO = DPOConfig(lora=None, epochs=2, learning_rate=1e-3, rankings_per_batch=4, checkpoint_every=2)
# An eps as large as the other loops': where a gradient is next to nothing, Adam divides rounding by rounding.
SFT = SFTConfig(lora=None, epochs=2, learning_rate=3e-3, conversations_per_batch=4, adam_eps=1e-5, checkpoint_every=2)

PPO = PPOConfig(
    lora=None,
    num_episodes=7,
    episodes_per_batch=3,
    minibatch_size=3,
    num_epochs=2,
    learning_rate=3e-4,
    max_new_tokens=6,
    ema_decay=0.5,
    guard_answers=3,
    ptx_coefficient=1.0,
    ptx_examples_per_episode=1,
    tax_texts=1,
)


class Recorder(SilentReporter):
    """Remembers the points of the curves."""

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.points.append((step, {name: value for name, value in values.items() if "second" not in name}))


def make_rankings(num: int, *, split: str = "train", seed: int = 0) -> list[Ranking]:
    """Two to five answers of one to twelve words, with ties and answers without a place; more "a" is better."""
    chance = random.Random(seed)
    rankings = []
    for number in range(num):
        texts = [" ".join(chance.choices("abcd", k=chance.randint(1, 12))) for _ in range(chance.randint(2, 5))]
        places: list[int | None] = [-text.split().count("a") for text in texts]
        if len(texts) > 3:
            places[0] = None
        places[-1], places[-2] = 1, 2
        answers = tuple(Answer(f"{number}-{index}", text) for index, text in enumerate(texts))
        messages = [{"role": "user", "content": " ".join(chance.choices("abcd", k=chance.randint(1, 20)))}]
        rankings.append(Ranking(f"{split}{number}", f"{split}{number}", messages, answers, tuple(places), split))
    return rankings


# Nine and batches of four: the last batch of an epoch has less than one element for each process.
RANKINGS = [*make_rankings(9), *make_rankings(5, split="validation", seed=1)]


def reward(source: ModelSource, out: Path, report: Recorder, **changes: Any) -> Any:
    """A reward model on packed rows, full weights."""
    config = RewardConfig.from_overrides(REWARD.as_json() | changes.pop("config", {}))
    return train_reward(RANKINGS, source=source, config=config, out=out, report=report, **changes)


def reward_of_all_sorts(source: ModelSource, out: Path, report: Recorder) -> Any:
    """An ensemble that learns ties through adapters, on rows that are separate."""
    config = {"lora": LORA.as_json(), "num_heads": 3, "ties": "davidson", "share_prompt": False}
    return reward(source, out, report, config=config)


def reward_with_adapters(source: ModelSource, out: Path, report: Recorder) -> Any:
    """What the frozen blocks say is kept."""
    return reward(source, out, report, config={"lora": LORA.as_json()})


def sft(source: ModelSource, out: Path, report: Recorder, **changes: Any) -> Any:
    """Conversations of many lengths, some held out."""
    chance = random.Random(3)
    rows = [
        {"id": f"c{number}", "prompt": "a b", "completion": " ".join(chance.choices("abcd", k=chance.randint(1, 20)))}
        for number in range(11)
    ]
    rows = [row | {"split": "validation" if number > 8 else "train"} for number, row in enumerate(rows)]
    config = SFTConfig.from_overrides(SFT.as_json() | changes.pop("config", {}))
    return train_sft(rows, source=source, config=config, out=out, report=report, **changes)


def dpo(source: ModelSource, out: Path, report: Recorder, **changes: Any) -> Any:
    """Rankings of two to five answers, from the version that `sft` made: a policy that is its own reference has margins
    of mere rounding."""
    policy = ModelSource(source.base, out.with_name("sft"))
    config = DPOConfig.from_overrides(DPO.as_json() | changes.pop("config", {}))
    return train_dpo(RANKINGS, sft=source, policy=policy, config=config, out=out, report=report, **changes)


def ppo(
    source: ModelSource,
    out: Path,
    report: Recorder,
    *,
    is_guarded: bool = False,
    resume_from: Path | None = None,
    liked_answers: Sequence[Mapping[str, Any]] = (),
    **changes: Any,
) -> Any:
    """Against the model of `reward`, with text to remember and averaged weights; the last rollout is of one answer."""
    made = ModelSource(source.base, out.with_name("reward"))
    words = ("a", "b c", "d a b a", "c", "b b a d c")
    return train_ppo(
        [Prompt(f"p{number}", [{"role": "user", "content": text}]) for number, text in enumerate(words)],
        sft=source,
        policy=source,
        reward=made,
        guard=made if is_guarded else None,
        config=PPOConfig.from_overrides(PPO.as_json() | changes),
        out=out,
        report=report,
        resume_from=resume_from,
        liked_answers=liked_answers,
        ptx_texts=[{"text": "a b c d"}, {"text": "d d"}, {"text": "c a c a c a"}],
    )


def ppo_of_shared_prompts(source: ModelSource, out: Path, report: Recorder) -> Any:
    """Two answers to each prompt, and a guard, which may keep the weights of any moment."""
    shared = {"samples_per_prompt": 2, "minibatch_size": 6, "episodes_per_batch": 6, "num_episodes": 14}
    return ppo(source, out, report, is_guarded=True, **shared)


def ppo_after_liked_answers(source: ModelSource, out: Path, report: Recorder) -> Any:
    """It begins where an SFT on three answers ended, whose folder goes when each process has read it."""
    turns = (("a", "b b"), ("b c", "c"), ("c", "a d"))
    rows = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
        for asked, said in turns
    ]
    return ppo(source, out, report, liked_answers=rows, liked=SFT.as_json())


OWN = {"n": 4, "max_new_tokens": 6, "prompts_per_checkpoint": 3, "sft": SFT.as_json()}
"""Seven prompts, one over the context: three at a time, so that a part has one for two processes."""


def own_prompts() -> list[Prompt]:
    words = ("a", "b c", "d a b a", "a " * 70, "c", "b b a d c", "d d")
    return [Prompt(f"p{number}", [{"role": "user", "content": text}]) for number, text in enumerate(words)]


def best_of_n(source: ModelSource, out: Path, report: Recorder) -> Any:
    """The best of four of its own answers, by the model of `reward`."""
    made = ModelSource(source.base, out.with_name("reward"))
    config = BestOfNConfig.from_overrides(OWN)
    return train_best_of_n(own_prompts(), policy=source, reward=made, config=config, out=out, report=report)


def star(source: ModelSource, out: Path, report: Recorder) -> Any:
    """Those of four answers that hold a certain word."""
    config = StarConfig.from_overrides(OWN)
    prompts = [CheckedPrompt(prompt, Check("regex", "[ab]")) for prompt in own_prompts()]
    return train_star(prompts, sft=source, policy=source, config=config, out=out, report=report)


FULL = {"sharding": "full"}


def sharded_reward(source: ModelSource, out: Path, report: Recorder) -> Any:
    """Weights, gradients and moments spread over the processes."""
    return reward(source, out, report, config=FULL)


def sharded_reward_of_all_sorts(source: ModelSource, out: Path, report: Recorder) -> Any:
    """The frozen weights are spread, too; blocks are computed again."""
    sorts = {"lora": LORA.as_json(), "num_heads": 3, "ties": "davidson", "share_prompt": False}
    return reward(source, out, report, config=FULL | sorts | {"tokens_per_forward": 64, "gradient_checkpointing": True})


def sharded_sft(source: ModelSource, out: Path, report: Recorder) -> Any:
    """With another number of forward passes in each process."""
    return sft(source, out, report, config=FULL | {"tokens_per_forward": 24})


def sharded_dpo(source: ModelSource, out: Path, report: Recorder) -> Any:
    """Policy and reference spread."""
    return dpo(source, out, report, config=FULL | {"tokens_per_forward": 64})


def sharded_ppo(source: ModelSource, out: Path, report: Recorder) -> Any:
    """All four models and the reference spread, with another number of forward passes in each process."""
    return ppo(source, out, report, **FULL, tokens_per_forward=16)


def sharded_ppo_of_all_sorts(source: ModelSource, out: Path, report: Recorder) -> Any:
    """Adapters, whose reference is the policy without them; shared prompts, a guard, blocks that are computed again."""
    shared = {"samples_per_prompt": 2, "minibatch_size": 6, "episodes_per_batch": 6, "num_episodes": 14}
    sorts = {"lora": LORA.as_json(), "gradient_checkpointing": True}
    return ppo(source, out, report, is_guarded=True, **FULL, **shared, **sorts)


def resumed_ppo(source: ModelSource, out: Path, report: Recorder) -> Any:
    """From the last checkpoint of `sharded_ppo`."""
    return ppo(source, out, report, **FULL, tokens_per_forward=16, resume_from=out.with_name("sharded_ppo.checkpoint"))


def resumed_sft(source: ModelSource, out: Path, report: Recorder) -> Any:
    """From the last checkpoint of `sharded_sft`."""
    return sft(
        source,
        out,
        report,
        config=FULL | {"tokens_per_forward": 24},
        resume_from=out.with_name("sharded_sft.checkpoint"),
    )


def resumed_reward(source: ModelSource, out: Path, report: Recorder) -> Any:
    """From the last checkpoint of `sharded_reward`."""
    return reward(source, out, report, config=FULL, resume_from=out.with_name("sharded_reward.checkpoint"))


Training = Callable[[ModelSource, Path, Recorder], Any]
TRAININGS: dict[str, Training] = {
    "reward": reward,
    "reward_of_all_sorts": reward_of_all_sorts,
    "reward_with_adapters": reward_with_adapters,
    "sft": sft,
    "dpo": dpo,
    "ppo": ppo,
    "ppo_of_shared_prompts": ppo_of_shared_prompts,
    "ppo_after_liked_answers": ppo_after_liked_answers,
    "best_of_n": best_of_n,
    "star": star,
    "sharded_reward": sharded_reward,
    "sharded_reward_of_all_sorts": sharded_reward_of_all_sorts,
    "sharded_sft": sharded_sft,
    "sharded_dpo": sharded_dpo,
    "sharded_ppo": sharded_ppo,
    "sharded_ppo_of_all_sorts": sharded_ppo_of_all_sorts,
    "resumed_ppo": resumed_ppo,
    "resumed_reward": resumed_reward,
    "resumed_sft": resumed_sft,
}


def run(names: list[str], base: Path, out: Path) -> None:
    """Do these trainings; `out/NAME` is the version, `out/NAME.json` what was said and measured."""
    # Small files: a checkpoint has several, each put together by itself.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "FILE_BYTES", 16_384)
        _run(names, base, out)


def _run(names: list[str], base: Path, out: Path) -> None:
    for name in names:
        report = Recorder()
        torch.manual_seed(0)
        result = TRAININGS[name](ModelSource(base), out / name, report).as_json()
        for part in (result, result.get("sft", {})):
            part.pop("seconds", None)
        # Only the process that speaks has heard something.
        if report.points:
            (out / f"{name}.json").write_text(json.dumps({"result": result, "points": report.points}))


def held_by_ppo(base: Path, reward: Path) -> Iterable[torch.Tensor]:
    """The weights of all models of a PPO run that are in this process's memory once answers were drawn."""
    source = ModelSource(base)
    config = PPOConfig.from_overrides(PPO.as_json() | FULL).for_model(1000, "cpu")
    sources = {"sft": source, "policy": source, "reward": ModelSource(base, reward)}
    models = _load_models(sources, config, "cpu")
    models.policy.model(torch.zeros(1, 2, dtype=torch.long))
    with whole(models.policy.model):
        models.policy.model(torch.zeros(1, 2, dtype=torch.long))
    return (parameter for transformer in models.transformers for parameter in transformer.parameters())


def held_by_sft(base: Path) -> Iterable[torch.Tensor]:
    """The same of an SFT run that has just begun."""
    config = SFTConfig.from_overrides(SFT.as_json() | FULL)
    return make_policy(ModelSource(base), config, "cpu").parameters()


def held_when_read(base: Path) -> Iterable[torch.Tensor]:
    """The weights that were just read, before anything else is done with them: block by block."""
    policy = load_policy(ModelSource(base, in_parts=True), lora=None, has_reference=False)
    blocks = [module for module in policy.model.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert blocks
    assert all(isinstance(module, FSDPModule) for module in (*blocks, policy.model))
    return policy.parameters()


def share_held(every: Iterable[torch.Tensor]) -> float:
    """Of all these weights, what this process has in its memory."""
    held = total = 0
    for parameter in every:
        held += (parameter.to_local() if isinstance(parameter, DTensor) else parameter).numel()
        total += parameter.numel()
    return held / total


if __name__ == "__main__":
    with joined() as here:
        assert here.size == 2
        base, out = Path(sys.argv[1]), Path(sys.argv[2])
        run(sys.argv[3:], base, out)
        shares = {
            "read": share_held(held_when_read(base)),
            "read GPT-2": share_held(held_when_read(base.with_name("gpt2"))),
            "sft": share_held(held_by_sft(base)),
            "ppo": share_held(held_by_ppo(base, out / "reward")),
        }
        (out / f"held-{here.rank}.json").write_text(json.dumps(shares))
