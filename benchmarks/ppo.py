"""How many samples a CPU second does PPO learn from, beside TRL's?

    python benchmarks/ppo.py [--trl PYTHON] [--quick] [--json FILE]

TRL 1.12.0 is the last with PPO. Its environment (benchmarks/ppo-requirements.txt) is made in the data folder, unless
--trl names one; where it can't be made, that is said, and only ours is measured. Both train the same tiny Llamas of
random weights on the same prompts, in turns, each in a process of its own with one thread: equal lengths (hardly an
answer ends before the limit), equal batches, minibatches and epochs. TRL is given a prompt four times where four
samples share it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from compared import python_of

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY, EOS, PAD = 8_192, 1, 0
EPISODES_PER_BATCH, MINIBATCH_SIZE = 16, 8
GOALS = {1: 1.2, 4: 1.8}
"""How much faster than TRL, by samples that share a prompt."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print. A child process measures one side and says so in JSON."""
    options = _parse(arguments)
    if options.child:
        setting = json.loads(options.child)
        print(json.dumps({"trl": measure_trl, "ours": measure_ours}[setting.pop("side")](**setting)))
        return
    sizes = {"num_prompt": 64, "num_new": 24} if options.quick else {"num_prompt": 192, "num_new": 64}
    sizes |= {"num_batches": 2 if options.quick else 3, "hidden_size": 128 if options.quick else 256}
    options.trl = python_of("ppo-requirements.txt", options.trl)
    rows = [_compare(samples, sizes, options) for samples in (1, 4)]
    print(_table(rows))
    if options.json:
        about = {"quick": options.quick, "threads": 1, "settings": sizes}
        options.json.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n", encoding="utf-8")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trl", type=Path, help="python of the environment that has TRL 1.12.0")
    parser.add_argument("--repeats", type=int, default=2, help="turns of each side; the best of them counts")
    parser.add_argument("--quick", action="store_true", help="smaller, under a minute")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.quick:
        options.repeats = 1
    return options


def _compare(samples_per_prompt: int, sizes: dict[str, int], options: argparse.Namespace) -> dict[str, Any]:
    """Both sides in turns; of each the turn with the fewest CPU seconds."""
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
    with tempfile.TemporaryDirectory() as folder:
        _in_child(sys.executable, "ours", folder, samples_per_prompt, {**sizes, "num_batches": 0})
        for _ in range(options.repeats):
            found["ours"].append(_in_child(sys.executable, "ours", folder, samples_per_prompt, sizes))
            if options.trl:
                found["trl"].append(_in_child(str(options.trl), "trl", folder, samples_per_prompt, sizes))
    best = {side: min(turns, key=lambda turn: turn["cpu_seconds"]) for side, turns in found.items() if turns}
    ratio = best["trl"]["cpu_seconds"] / best["ours"]["cpu_seconds"] if "trl" in best else None
    return {"samples_per_prompt": samples_per_prompt, "goal": GOALS[samples_per_prompt], "ratio": ratio, **best}


def _in_child(python: str, side: str, folder: str, samples_per_prompt: int, sizes: dict[str, int]) -> dict[str, Any]:
    setting = {"side": side, "folder": folder, "samples_per_prompt": samples_per_prompt, **sizes}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TRL_EXPERIMENTAL_SILENCE": "1"}
    command = [python, str(Path(__file__).resolve()), "--child", json.dumps(setting)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'':24}{'samples/CPU s':>14}{'generation':>12}{'scoring':>10}{'update':>10}{'rest':>8}{'peak MB':>9}"]
    for row in rows:
        for side in ("trl", "ours"):
            if side in row:
                name = f"{row['samples_per_prompt']} a prompt, {'TRL 1.12' if side == 'trl' else 'Rankloop'}"
                parts = "".join(
                    f"{row[side]['parts'][part]:{width}.1f}"
                    for part, width in (("generation", 12), ("scoring", 10), ("update", 10), ("rest", 8))
                )
                lines.append(f"{name:24}{row[side]['samples_per_second']:14.2f}{parts}{row[side]['peak_mb']:9.0f}")
        if row["ratio"] is not None:
            lines.append(f"{'':24}{row['ratio']:13.2f}x  (goal {row['goal']}x)")
    return "\n".join([*lines, "Parts in CPU seconds; the best of all turns."])


# --- What both sides train -------------------------------------------------------------------------------------------


def _model_config(hidden_size: int, context: int) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 3,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=None,
    )


def _prompts(num: int, num_prompt: int) -> list[list[int]]:
    """Random words, all of one length: padding would be a handicap of TRL."""
    import torch

    tokens = torch.randint(3, VOCABULARY, (num, num_prompt), generator=torch.Generator().manual_seed(0))
    return [list(row) for row in tokens.tolist()]


class Stopwatch:
    """CPU seconds by part; a part within another one counts for itself only."""

    def __init__(self) -> None:
        self.parts: defaultdict[str, float] = defaultdict(float)
        self._open: list[str] = ["rest"]
        self._last = time.process_time()

    def _switch(self) -> None:
        now = time.process_time()
        self.parts[self._open[-1]] += now - self._last
        self._last = now

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What runs inside is this part's."""
        self._switch()
        self._open.append(name)
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

    def watch(self, owner: Any, name: str, part: str) -> None:
        """From now on, calls of owner.name are this part's."""
        function: Callable[..., Any] = getattr(owner, name)

        @wraps(function)
        def timed(*args: Any, **options: Any) -> Any:
            with self.part(part):
                return function(*args, **options)

        setattr(owner, name, timed)

    def result(self, num_samples: int) -> dict[str, Any]:
        """What a side says of itself."""
        self._switch()
        total = sum(self.parts.values())
        parts = {name: round(self.parts[name], 3) for name in ("generation", "scoring", "update", "rest")}
        return {
            "cpu_seconds": round(total, 3),
            "samples_per_second": round(num_samples / total, 3) if total else 0.0,
            "parts": parts,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


# --- Ours ------------------------------------------------------------------------------------------------------------


def measure_ours(
    *, folder: str, samples_per_prompt: int, num_prompt: int, num_new: int, num_batches: int, hidden_size: int
) -> dict[str, Any]:
    """PPO of this project. With no batches, only the base model is written, for both sides."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from trainer import ppo
    from trainer.config import PPOConfig
    from trainer.models import load_policy
    from trainer.ppo_learner import Learner
    from trainer.reporting import SilentReporter
    from trainer.reward_model import RewardModel, ValueModel
    from trainer.rollout import Question
    from trainer.weights import ModelSource

    if not num_batches:
        torch.manual_seed(0)
        model = LlamaForCausalLM(_model_config(hidden_size, num_prompt + num_new))
        with torch.no_grad():
            model.lm_head.weight[EOS] = 0.0  # as likely as any word, so that hardly an answer ends early
        model.save_pretrained(folder)
        words = {"<pad>": PAD, "<eos>": EOS, "<unk>": 2} | {f"w{number}": number for number in range(3, VOCABULARY)}
        PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")),  # noqa: S106 (a word, no password)
            pad_token="<pad>",  # noqa: S106 (as above)
            eos_token="<eos>",  # noqa: S106 (as above)
        ).save_pretrained(folder)
        return {}
    num_episodes = EPISODES_PER_BATCH * num_batches
    config = PPOConfig(
        num_episodes=num_episodes,
        episodes_per_batch=EPISODES_PER_BATCH,
        minibatch_size=MINIBATCH_SIZE,
        samples_per_prompt=samples_per_prompt,
        num_epochs=4,
        max_new_tokens=num_new,
        missing_eos_penalty=1.0,
        learning_rate=1e-5,
        lora=None,
    ).for_model(1, "cpu")
    source = ModelSource(Path(folder), alias="tiny")
    reward = RewardModel.from_sft(source, None)
    learner = Learner.create(load_policy(source, lora=None), ValueModel.from_reward(reward), config)
    reward.requires_grad_(False)
    tokens = _prompts(num_episodes // samples_per_prompt, num_prompt)
    questions = [Question(str(number), row) for number, row in enumerate(tokens)]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    watch = Stopwatch()
    watch.watch(ppo, "roll_out", "generation")
    watch.watch(ppo, "_judge", "scoring")
    watch.watch(ppo, "_update", "update")
    ppo.optimise(learner, reward, questions, tokenizer, config, SilentReporter())
    return watch.result(num_episodes)


# --- TRL -------------------------------------------------------------------------------------------------------------


def measure_trl(
    *, folder: str, samples_per_prompt: int, num_prompt: int, num_new: int, num_batches: int, hidden_size: int
) -> dict[str, Any]:
    """TRL's PPOTrainer on the same models, prompts, batches and epochs."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer
    from trl.experimental.ppo import ppo_trainer as module

    warnings.simplefilter("ignore")
    num_episodes = EPISODES_PER_BATCH * num_batches
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    policy, reference = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for _ in range(2))
    value, reward = (
        AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32) for _ in range(2)
    )
    prompts = _prompts(num_episodes // samples_per_prompt, num_prompt)
    repeated = [prompt for prompt in prompts for _ in range(samples_per_prompt)]
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=str(Path(folder) / "trl"),
            total_episodes=num_episodes,
            # One minibatch is one forward and one step, as ours.
            per_device_train_batch_size=EPISODES_PER_BATCH,
            gradient_accumulation_steps=1,
            num_mini_batches=EPISODES_PER_BATCH // MINIBATCH_SIZE,
            local_rollout_forward_batch_size=EPISODES_PER_BATCH,
            num_ppo_epochs=4,
            response_length=num_new,
            stop_token="eos",  # noqa: S106 (a name, no password)
            missing_eos_penalty=1.0,
            learning_rate=1e-5,
            gradient_checkpointing=False,
            num_sample_generations=0,
            report_to="none",
            save_strategy="no",
            bf16=False,
            use_cpu=True,
            disable_tqdm=True,
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": repeated}),
    )
    watch = Stopwatch()
    watch.watch(module, "batch_generation", "generation")
    watch.watch(module, "get_reward", "scoring")
    _watch_forward(watch, module)
    _watch_update(watch, trainer)
    with contextlib.redirect_stdout(sys.stderr):
        trainer.train()
    return watch.result(num_episodes)


def _watch_forward(watch: Stopwatch, module: Any) -> None:
    """The reference's forward is scoring, that of policy and value together is the update's."""
    import torch

    forward = module.forward

    def timed(*args: Any, **options: Any) -> Any:
        with watch.part("update" if torch.is_grad_enabled() else "scoring"):
            return forward(*args, **options)

    module.forward = timed


def _watch_update(watch: Stopwatch, trainer: Any) -> None:
    """Backward passes and steps are the update's."""
    watch.watch(trainer.accelerator, "backward", "update")
    watch.watch(trainer.optimizer, "step", "update")


if __name__ == "__main__":
    main()
