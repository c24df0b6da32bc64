"""How many tokens a second does this machine learn from, and what share of its arithmetic is that?

    python benchmarks/throughput.py [--quick] [--json FILE] [--peak-tflops 989]

A Llama of random weights (1.04B parameters; with --quick, or without a GPU, a tiny one) learns as a reward model from
generated rankings of four answers, and as a policy by PPO, in bfloat16 products on a GPU and fp32 on a CPU. The first
step of each is left out: it warms up.

Model FLOP utilisation = useful FLOPs / (seconds x peak). With P parameters that multiply in the blocks, L layers of
width d, a vocabulary of V, and c the tokens that a token sees on average, a token costs

    forward             2 P + 4 L d c, and 2 V d where the language-model head is computed: at the tokens of answers
    forward, backward   three times as much

"useful" counts each distinct token once: a prompt that K answers share counts once, and recomputation (gradient
checkpointing) not at all. A PPO step costs, per answer and its prompt: drawing it, forward passes of reference, value
and reward model, and forward and backward of policy and value model in each epoch. Drawing reads all weights for each
token, so that it takes far more time than its FLOPs say: PPO's utilisation is low by nature.

The peak is the dense bfloat16 figure of the maker's data sheet; where the device is not in the list, --peak-tflops says
it, or utilisation is left out.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import resource
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trainer.config import PPOConfig, RewardConfig
from trainer.ppo_run import train_ppo
from trainer.preferences import Answer, Ranking
from trainer.reporting import SilentReporter
from trainer.reward import train_reward
from trainer.sampling import Prompt
from trainer.weights import ModelSource

PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "A10G": 70.0, "L4": 121.0}
"""Dense bfloat16, by a part of the device's name (SXM where there are several)."""
K = 4


@dataclass(frozen=True)
class Size:
    """A Llama, and how much it is given."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    vocabulary: int
    prompt_tokens: int
    answer_tokens: int
    rankings_per_batch: int
    episodes_per_batch: int
    tokens_per_forward: int
    num_steps: int

    @property
    def num_multiplying(self) -> int:
        """P, without the language-model head; keys and values have a quarter of the heads."""
        attention = self.hidden_size**2 * (2 + 2 / 4)
        mlp = 3 * self.hidden_size * self.intermediate_size
        return int(self.num_layers * (attention + mlp))

    def forward_flops(self, num_tokens: float, seen: float) -> float:
        """Of so many tokens, each of which sees `seen` tokens on average."""
        return num_tokens * (2 * self.num_multiplying + 4 * self.num_layers * self.hidden_size * seen)

    def head_flops(self, num_tokens: float) -> float:
        """Of the language-model head at so many tokens."""
        return num_tokens * 2 * self.vocabulary * self.hidden_size


BILLION = Size(2048, 8192, 16, 32, 32_768, 256, 128, 16, 64, 16_384, 6)
TINY = Size(64, 128, 2, 4, 512, 24, 8, 2, 4, 256, 3)


class Clock(SilentReporter):
    """When each step ended, and what it reported."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.points: list[dict[str, float]] = []

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Every step reports once."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        self.points.append(dict(values))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model: whether the script itself works")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--peak-tflops", type=float, help="of the device, dense, in the precision that is used")
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = TINY if options.quick or device == "cpu" else BILLION
    peak = options.peak_tflops or _peak_of(device)
    with tempfile.TemporaryDirectory() as folder:
        source = ModelSource(_save_model(Path(folder) / "base", size))
        rows = [_measure_reward(source, size, device, peak), _measure_ppo(source, size, device, peak)]
    found = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {platform.machine()}",
        "torch": torch.__version__,
        "precision": "bfloat16" if device == "cuda" else "float32",
        "peak_tflops": peak,
        "size": asdict(size) | {"num_multiplying": size.num_multiplying},
        "rows": rows,
    }
    print(f"{found['hardware']}, {found['precision']}, {size.num_multiplying / 1e6:.1f}M multiplying parameters")
    for row in rows:
        share = "" if row["utilisation"] is None else f", {100 * row['utilisation']:.1f} % of {peak:.0f} TFLOP/s"
        print(f"{row['name']:8} {row['tokens_per_second']:10.0f} tokens/s, {row['peak_megabytes']:.0f} MB{share}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _measure_reward(source: ModelSource, size: Size, device: str, peak: float | None) -> dict[str, Any]:
    """Steps of a reward model; tokens are those of prompts, once each, and of all answers."""
    config = RewardConfig(
        lora=None,
        epochs=1,
        learning_rate=1e-5,
        rankings_per_batch=size.rankings_per_batch,
        tokens_per_forward=size.tokens_per_forward,
        checkpoint_every=10**6,
        gradient_checkpointing=False,
    )
    clock = Clock()
    _reset_memory(device)
    train_reward(
        _rankings(size),
        source=source,
        config=config,
        out=source.base.with_name("reward"),
        report=clock,
        device=device,
    )
    megabytes = _peak_megabytes(device)
    num_answer = K * (size.answer_tokens + 1)
    # A prompt's token sees half of the prompt; an answer's, the prompt and half of the answer.
    flops = size.forward_flops(size.prompt_tokens, size.prompt_tokens / 2)
    flops += size.forward_flops(num_answer, size.prompt_tokens + size.answer_tokens / 2)
    num_tokens = size.prompt_tokens + num_answer
    seconds = _seconds_per_step(clock)
    tokens = size.rankings_per_batch * num_tokens
    return _row("reward", tokens, 3 * size.rankings_per_batch * flops, seconds, megabytes, peak)


def _measure_ppo(source: ModelSource, size: Size, device: str, peak: float | None) -> dict[str, Any]:
    """Rollouts with their updates; tokens are those of answers."""
    config = PPOConfig(
        lora=None,
        num_episodes=size.num_steps * size.episodes_per_batch,
        episodes_per_batch=size.episodes_per_batch,
        minibatch_size=size.episodes_per_batch // 4,
        num_epochs=1,
        learning_rate=1e-6,
        max_new_tokens=size.answer_tokens,
        tokens_per_forward=size.tokens_per_forward,
        checkpoint_every=10**6,
    )
    clock = Clock()
    chance = random.Random(2)
    prompts = [Prompt(f"p{n}", _turn(chance, size.prompt_tokens - 3, size)) for n in range(config.episodes_per_batch)]
    _reset_memory(device)
    train_ppo(
        prompts,
        sft=source,
        policy=source,
        reward=ModelSource(source.base, source.base.with_name("reward")),
        config=config,
        out=source.base.with_name("policy"),
        report=clock,
        device=device,
    )
    megabytes = _peak_megabytes(device)
    answer = sum(point["objective/length"] for point in clock.points[1:]) / len(clock.points[1:])
    forward = size.forward_flops(size.prompt_tokens, size.prompt_tokens / 2)
    forward += size.forward_flops(answer, size.prompt_tokens + answer / 2)
    # With the head: draw, reference, and policy forward and backward. Without: reward, value, value with backward.
    with_head, without = 1 + 1 + 3, 1 + 1 + 3
    flops = size.episodes_per_batch * ((with_head + without) * forward + with_head * size.head_flops(answer))
    seconds = _seconds_per_step(clock)
    return _row("ppo", size.episodes_per_batch * answer, flops, seconds, megabytes, peak) | {
        "answer_tokens": answer,
        "sampled_tokens_per_second": clock.points[-1]["sample/tokens_per_second"],
    }


def _row(
    name: str, tokens: float, flops: float, seconds: float, megabytes: float, peak: float | None
) -> dict[str, Any]:
    return {
        "name": name,
        "seconds_per_step": seconds,
        "tokens_per_second": tokens / seconds,
        "useful_tflops": flops / seconds / 1e12,
        "utilisation": flops / seconds / 1e12 / peak if peak else None,
        "peak_megabytes": megabytes,
    }


def _seconds_per_step(clock: Clock) -> float:
    """The mean from the end of the first step on."""
    return (clock.ends[-1] - clock.ends[0]) / (len(clock.ends) - 1)


def _rankings(size: Size) -> list[Ranking]:
    chance = random.Random(1)
    return [
        Ranking(
            f"r{number}",
            f"p{number}",
            _turn(chance, size.prompt_tokens - 3, size),
            tuple(Answer(f"{number}-{index}", _words(chance, size.answer_tokens, size)) for index in range(K)),
            tuple(chance.sample(range(K), K)),
        )
        for number in range(size.num_steps * size.rankings_per_batch)
    ]


def _turn(chance: random.Random, num: int, size: Size) -> list[dict[str, str]]:
    return [{"role": "user", "content": _words(chance, num, size)}]


def _words(chance: random.Random, num: int, size: Size) -> str:
    return " ".join(f"w{chance.randrange(size.vocabulary - 5)}" for _ in range(num))


def _save_model(folder: Path, size: Size) -> Path:
    """A Llama of random weights whose every word is a token."""
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    words = [*special.values(), "User:", "Assistant:", *(f"w{number}" for number in range(size.vocabulary - 5))]
    law = WordLevel({word: number for number, word in enumerate(words)}, unk_token=special["unk_token"])
    tokenizer = Tokenizer(law)
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    make_model(size).save_pretrained(folder)
    return folder


def make_model(size: Size) -> LlamaForCausalLM:
    """A Llama of this size."""
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.num_heads,
        num_key_value_heads=size.num_heads // 4,
        max_position_embeddings=2 * (size.prompt_tokens + size.answer_tokens),
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    model: LlamaForCausalLM = LlamaForCausalLM(config)
    return model


def _peak_of(device: str) -> float | None:
    if device == "cpu":
        return None
    name = torch.cuda.get_device_name()
    return next((tflops for part, tflops in PEAK_TFLOPS.items() if part in name), None)


def _reset_memory(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak_megabytes(device: str) -> float:
    """On a GPU what tensors took at most in this part; on a CPU the highest resident size of the process so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


if __name__ == "__main__":
    main()
