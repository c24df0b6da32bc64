"""The same reward model from the same rankings, by TRL's RewardTrainer and by ours: time, memory, loss.

    python benchmarks/reward_vs_trl.py [--trl-python PYTHON] [--quick] [--json FILE]

TRL's environment (benchmarks/requirements-trl.txt) is made in the data folder, unless --trl-python names one.

A tiny Llama of random weights, generated rankings of K answers, everything in fp32 on one thread. Both begin with the
same weights and head, take the same rankings in the same steps, with Adam at the same constant rate: the losses of
their steps agree, and are printed. TRL knows pairs, so it gets the K (K - 1) / 2 pairs of each ranking, in
micro-batches of a few pairs (the fastest size was chosen for it); it is measured with gradient checkpointing, its
default, and without. Its default of bf16 is off: the losses would not be equal.

Each measurement is a process of its own, in turns. Seconds are those of the training loop, from before the first step
to after the last; `job` counts all: reading, encoding, setting up, training, ours also the bias and the report, saving.
Memory is the highest resident size during the loop, less what the process held before it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compared import python_of

LEARNING_RATE, SEED = 1e-4, 17
WAYS = {"ours": "Rankloop", "trl": "TRL", "trl-checkpointing": "TRL, gradient checkpointing (its default)"}
NUM_WORDS = 2_000


@dataclasses.dataclass(frozen=True)
class Case:
    """Rankings of K answers, and how many."""

    k: int
    num_rankings: int
    rankings_per_batch: int
    pairs_per_forward: int = 1
    num_prompt_tokens: int = 256
    num_answer_tokens: tuple[int, int] = (64, 128)


FULL = (Case(4, num_rankings=8, rankings_per_batch=2), Case(9, num_rankings=3, rankings_per_batch=1))
QUICK = (Case(4, num_rankings=4, rankings_per_batch=1), Case(9, num_rankings=2, rankings_per_batch=1))
FULL_MODEL = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4}
QUICK_MODEL = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both, in turns, and print a table."""
    options = _parse(arguments)
    if options.side:
        side = _train_ours if options.side == "ours" else _train_trl
        print(json.dumps(side(options.folder, checkpointing=options.side == "trl-checkpointing")))
        return
    trl_python = python_of("requirements-trl.txt", options.trl_python)
    if trl_python is None:
        return
    turns = 1 if options.quick else options.turns
    ways = [way for way in WAYS if not options.quick or way != "trl-checkpointing"]
    rows: list[dict[str, Any]] = []
    for case in QUICK if options.quick else FULL:
        with tempfile.TemporaryDirectory() as folder:
            _prepare(Path(folder), case, QUICK_MODEL if options.quick else FULL_MODEL)
            found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
            for _ in range(turns):
                for way in ways:
                    found[way].append(_measure(way, Path(folder), trl_python))
            rows.append(_row(case, found))
        print(_table(rows[-1], case), flush=True)
    if options.json:
        figures = {"benchmark": "reward_vs_trl", "is_quick": options.quick, "turns": turns, "rows": rows}
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trl-python", type=Path, help="the Python of the environment with TRL")
    parser.add_argument("--turns", type=int, default=2, help="measurements of each; the median counts")
    parser.add_argument("--quick", action="store_true", help="smaller, one turn, no checkpointing: under a minute")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--side", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _measure(way: str, folder: Path, trl_python: Path) -> dict[str, Any]:
    # Not resolved: an environment's Python is a link, and knows its packages by the link's place.
    python = sys.executable if way == "ours" else str(trl_python.absolute())
    command = [python, __file__, "--side", way, "--folder", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{WAYS[way]} failed:\n{done.stderr[-3000:]}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


# --- What both are given ---------------------------------------------------------------------------------------------


def _prepare(folder: Path, case: Case, sizes: dict[str, Any]) -> None:
    """The base model, the rankings, their pairs in the order in which we take the rankings, and TRL's start."""
    import torch

    from trainer.config import RewardConfig
    from trainer.data import encode_rankings
    from trainer.preferences import read_rankings
    from trainer.reward_model import RewardModel
    from trainer.weights import ModelSource, load_tokenizer

    source = ModelSource(folder / "base")
    _save_base(source.base, sizes)
    tokenizer = load_tokenizer(source)
    _write_lines(folder / "rankings.jsonl", _make_rankings(case, tokenizer))
    config = RewardConfig(
        lora=None,
        epochs=1,
        rankings_per_batch=case.rankings_per_batch,
        learning_rate=LEARNING_RATE,
        final_learning_rate_ratio=1.0,
        warmup_ratio=0.0,
        seed=SEED,
    )
    facts = {"case": dataclasses.asdict(case), "config": config.as_json()}
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")

    tasks, _ = encode_rankings(read_rankings(folder / "rankings.jsonl"), tokenizer, max_length=10_000, ties="drop")
    order = torch.randperm(len(tasks), generator=torch.Generator().manual_seed(SEED)).tolist()
    pairs = [
        {"chosen_ids": tasks[index].rows[better], "rejected_ids": tasks[index].rows[worse]}
        for index in order
        for better, worse in tasks[index].rankings[0].ordered_pairs
    ]
    _write_lines(folder / "pairs.jsonl", pairs)
    _save_classifier(RewardModel.from_sft(source, None, seed=SEED), int(str(tokenizer.pad_token_id)), folder)


def _save_base(folder: Path, sizes: dict[str, Any]) -> None:
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    pad, eos, unknown = "<pad>", "<eos>", "<unk>"
    words = [pad, eos, unknown, *(f"w{number}" for number in range(NUM_WORDS))]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token=unknown))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, eos_token=eos, unk_token=unknown)
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(words),
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        **sizes,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)


def _make_rankings(case: Case, tokenizer: Any) -> list[dict[str, Any]]:
    """Rankings of random words in random orders, without ties: there is nothing to learn but themselves."""
    from trainer.sampling import encode_prompt

    chance = random.Random(SEED)

    def text(num_words: int) -> str:
        return " ".join(f"w{chance.randrange(NUM_WORDS)}" for _ in range(num_words))

    around = len(encode_prompt(tokenizer, [{"role": "user", "content": text(1)}])) - 1
    rows = []
    for number in range(case.num_rankings):
        messages = [{"role": "user", "content": text(case.num_prompt_tokens - around)}]
        # An answer's last token is its EOS.
        answers = [
            {"id": str(index), "text": text(chance.randint(*case.num_answer_tokens) - 1)} for index in range(case.k)
        ]
        order = [[str(index)] for index in chance.sample(range(case.k), case.k)]
        names = {"ranking_id": str(number), "prompt_id": str(number)}
        rows.append(names | {"messages": messages, "completions": answers, "order": order})
    return rows


def _save_classifier(reward: Any, pad_id: int, folder: Path) -> None:
    """Our fresh reward model as the classifier that TRL trains."""
    import copy

    import torch
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(reward.trunk.config)
    config.num_labels, config.pad_token_id = 1, pad_id
    model: Any = AutoModelForSequenceClassification.from_config(config)
    model.base_model.load_state_dict(reward.trunk.state_dict())
    with torch.no_grad():
        model.score.weight.copy_(reward.head.weight)
    model.save_pretrained(folder / "classifier")


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# --- The two sides ---------------------------------------------------------------------------------------------------


class Meter:
    """CPU and wall seconds between two moments, and the highest resident memory between them (Linux)."""

    def start(self) -> None:
        """The first moment."""
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the highest so far
        self._before = self._memory("VmRSS")
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def stop(self) -> None:
        """The second one, or a later one."""
        self.seconds = {"cpu_seconds": time.process_time() - self._cpu, "wall_seconds": time.monotonic() - self._wall}
        self.memory = {"peak_mb": self._memory("VmHWM"), "added_mb": self._memory("VmHWM") - self._before}

    def _memory(self, name: str) -> float:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) / 1024


def _train_ours(folder: Path, *, checkpointing: bool) -> dict[str, Any]:
    import torch

    from trainer.config import RewardConfig
    from trainer.preferences import read_rankings
    from trainer.reporting import SilentReporter
    from trainer.reward import train_reward
    from trainer.weights import ModelSource

    torch.set_num_threads(1)
    meter, job = Meter(), Meter()
    losses: list[float] = []

    class Watch(SilentReporter):
        """The loop asks it whether to stop before each step, and tells it the loss after."""

        def should_stop(self) -> bool:
            if not losses:
                meter.start()
            return False

        def metrics(self, step: int, values: Any) -> None:
            meter.stop()
            losses.append(values["loss/reward"])

    job.start()
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    train_reward(
        read_rankings(folder / "rankings.jsonl"),
        source=ModelSource(folder / "base"),
        config=RewardConfig.from_overrides(facts["config"]),
        out=Path(tempfile.mkdtemp(dir=folder)) / "version",
        report=Watch(),
    )
    job.stop()
    return meter.seconds | meter.memory | {"job_cpu_seconds": job.seconds["cpu_seconds"], "losses": losses}


def _train_trl(folder: Path, *, checkpointing: bool) -> dict[str, Any]:
    import torch
    from datasets import Dataset  # type: ignore[import-not-found, unused-ignore]
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl import RewardConfig, RewardTrainer  # type: ignore[import-not-found, unused-ignore]

    torch.set_num_threads(1)
    meter, job = Meter(), Meter()
    losses: list[float] = []

    class Watch(TrainerCallback):
        """The same moments as on our side."""

        def on_train_begin(self, *arguments: Any, **more: Any) -> None:
            meter.start()

        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            meter.stop()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
            if "loss" in logs:
                losses.append(float(logs["loss"]))

    job.start()
    case = Case(**json.loads((folder / "facts.json").read_text(encoding="utf-8"))["case"])
    lines = (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    pairs_per_step = case.rankings_per_batch * case.k * (case.k - 1) // 2
    trainer = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(folder / "classifier"),
        args=RewardConfig(
            output_dir=tempfile.mkdtemp(dir=folder),
            per_device_train_batch_size=case.pairs_per_forward,
            gradient_accumulation_steps=pairs_per_step // case.pairs_per_forward,
            gradient_checkpointing=checkpointing,
            train_sampling_strategy="sequential",
            num_train_epochs=1,
            max_length=None,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            adam_epsilon=1e-5,
            weight_decay=0.0,
            max_grad_norm=1.0,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            bf16=False,
            use_cpu=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_list([json.loads(line) for line in lines]),
        processing_class=AutoTokenizer.from_pretrained(folder / "base"),
        callbacks=[Watch()],
    )
    trainer.train()
    trainer.save_model()
    job.stop()
    return meter.seconds | meter.memory | {"job_cpu_seconds": job.seconds["cpu_seconds"], "losses": losses}


# --- What is said ----------------------------------------------------------------------------------------------------


def _row(case: Case, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians over the turns, and how many times ours fits into TRL's."""
    names = ("cpu_seconds", "wall_seconds", "peak_mb", "added_mb", "job_cpu_seconds")
    ways: dict[str, dict[str, Any]] = {}
    for way, turns in found.items():
        ways[way] = {name: statistics.median(turn[name] for turn in turns) for name in names}
        ways[way]["rankings_per_second"] = case.num_rankings / ways[way]["cpu_seconds"]
        ways[way]["losses"] = turns[0]["losses"]
    ours = ways["ours"]
    row: dict[str, Any] = {"k": case.k, "ratio": ways["trl"]["cpu_seconds"] / ours["cpu_seconds"]}
    row["ratio_wall"] = ways["trl"]["wall_seconds"] / ours["wall_seconds"]
    row["ratio_job"] = ways["trl"]["job_cpu_seconds"] / ours["job_cpu_seconds"]
    if "trl-checkpointing" in ways:
        row["ratio_checkpointing"] = ways["trl-checkpointing"]["cpu_seconds"] / ours["cpu_seconds"]
    pairs = zip(ours["losses"], ways["trl"]["losses"], strict=True)
    row["largest_loss_difference"] = max(abs(one - other) for one, other in pairs)
    return row | {"case": dataclasses.asdict(case), "ways": ways}


def _table(row: dict[str, Any], case: Case) -> str:
    low, high = case.num_answer_tokens
    size = f"{case.num_rankings} rankings, {case.rankings_per_batch} a step"
    lines = [
        f"K = {case.k}: {size}, prompts of {case.num_prompt_tokens} tokens, answers of {low}-{high}",
        f"{'':<42} {'CPU s':>7} {'wall s':>7} {'rankings/s':>10} {'memory MB':>9} {'job CPU s':>9}  loss of each step",
    ]
    for way, got in row["ways"].items():
        losses = " ".join(f"{loss:.4f}" for loss in got["losses"])
        lines.append(
            f"{WAYS[way]:<42} {got['cpu_seconds']:>7.2f} {got['wall_seconds']:>7.2f} "
            f"{got['rankings_per_second']:>10.3f} {got['added_mb']:>9.0f} {got['job_cpu_seconds']:>9.2f}  {losses}"
        )
    checkpointing = row.get("ratio_checkpointing")
    beside = f", {checkpointing:.1f}x its default" if checkpointing else ""
    lines.append(
        f"CPU: {row['ratio']:.1f}x TRL without checkpointing{beside}; wall {row['ratio_wall']:.1f}x, whole job "
        f"{row['ratio_job']:.1f}x; losses differ by at most {row['largest_loss_difference']:.1e}"
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
