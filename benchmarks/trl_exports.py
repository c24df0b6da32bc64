"""Does TRL train on our exports as they are? One step of its DPOTrainer and RewardTrainer, on a real export.

    python benchmarks/trl_exports.py [--trl-python PYTHON] [--quick] [--json FILE]

Rankings are imported, frozen and exported by the app: `pairs` as a folder that `load_dataset` opens, and as one file.
TRL, in an environment of its own (made in the data folder, unless --trl-python names one), then loads both and takes
one step on a tiny model with random weights.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from compared import python_of

CHATML = "{% for turn in messages %}<{{ turn['role'] }}> {{ turn['content'] }} <end> {% endfor %}"


def main() -> None:
    """Export, let TRL take its steps, and print what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", type=Path, help="the Python of the environment with TRL")
    parser.add_argument("--quick", action="store_true", help="the same: it is one step")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder is not None:
        print(json.dumps(train(options.folder)))
        return
    trl_python = python_of("requirements-trl.txt", options.trl_python)
    if trl_python is None:
        return
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        asyncio.run(export(Path(name)))
        found = in_other_python(trl_python, Path(name))
    print(json.dumps(found, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def in_other_python(python: Path, folder: Path) -> dict[str, Any]:
    """The trainers' side."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [str(python.absolute()), __file__, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"TRL failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# --- Our side --------------------------------------------------------------------------------------------------------


async def export(folder: Path) -> None:
    """Rankings with a tie, CJK and several turns, as the app exports them."""
    from app.datasets import service
    from app.datasets.exporting import Export
    from app.datasets.schemas import ExportChoices
    from app.db import make_engine, make_sessionmaker
    from app.embedded import EmbeddedPostgres
    from app.migrate import upgrade
    from app.ndjson import read_lines
    from app.projects.service import create_project
    from app.rankings.importing import import_rankings

    with EmbeddedPostgres(folder / "server") as server:
        await asyncio.to_thread(upgrade, server.url("postgres"))
        engine = make_engine(server.url("postgres"))
        sessionmaker = make_sessionmaker(engine)
        async with sessionmaker.begin() as session:
            project = await create_project(session, name="Export", slug="export", model_alias="pocket", test_share=0)
            await import_rankings(session, read_lines(lines(), max_bytes=10**6), project=project)
            dataset = await service.freeze(session, project=project)
        for file, target in (("jsonl", "pairs.jsonl"), ("folder", "pairs.zip")):
            choices = ExportChoices.model_validate({"format": "pairs", "file": file})
            chunks = Export(dataset, project, choices, sessionmaker).chunks()
            (folder / target).write_bytes(b"".join([chunk async for chunk in chunks]))
        await engine.dispose()
    zipfile.ZipFile(folder / "pairs.zip").extractall(folder / "pairs")


async def lines() -> AsyncIterator[bytes]:
    """Twelve prompts with three answers each, and one person's order of them."""
    for number in range(12):
        asked = [{"role": "user", "content": f"Question {number}, 问题?"}]
        if number % 2:
            asked = [{"role": "system", "content": "Be brief."}, *asked]
        yield (
            json.dumps(
                {
                    "messages": asked,
                    "responses": [{"id": key, "text": f"Answer {key} 答 {number}"} for key in "abc"],
                    "annotations": [{"annotator": "ann", "ranks": {"a": 1, "b": 2, "c": 2 + number % 2}}],
                }
            ).encode()
            + b"\n"
        )


# --- TRL's side ------------------------------------------------------------------------------------------------------


def train(folder: Path) -> dict[str, Any]:
    """Load the file and the folder, and take a step of each trainer."""
    import trl
    from datasets import load_dataset

    file = load_dataset("json", data_files=str(folder / "pairs.jsonl"), split="train")
    opened = load_dataset(str(folder / "pairs"))
    return {
        "trl": trl.__version__,
        "rows": {"file": len(file), **{split: len(rows) for split, rows in opened.items()}},
        "columns": file.column_names,
        "dpo_loss": dpo_step(opened["train"], folder),
        "reward_loss": reward_step(opened["train"], folder),
    }


def tiny(folder: Path, kind: str) -> tuple[Any, Any]:
    """A Llama with random weights, and a tokenizer of words with a chat template."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<unk>", "<end>", "<user>", "<assistant>", "<system>", *(f"w{number}" for number in range(58))]
    marks = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<end>"}
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=marks["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHATML, **marks)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_labels": 1}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 2}
    config = transformers.LlamaConfig(vocab_size=len(words), **sizes, **heads)
    # Saved, because DPOTrainer loads its reference from where the model came from.
    getattr(transformers, kind)(config).save_pretrained(folder / kind)
    return getattr(transformers, kind).from_pretrained(folder / kind), fast


def common(folder: Path, name: str) -> dict[str, Any]:
    """What both trainers are told."""
    return {"output_dir": str(folder / name), "max_steps": 1, "per_device_train_batch_size": 4, "report_to": []} | {
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "bf16": False,
        "gradient_checkpointing": False,
    }


def dpo_step(rows: Any, folder: Path) -> float:
    """The loss of one step; log 2 by hand, as policy and reference are the same."""
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = tiny(folder, "LlamaForCausalLM")
    trainer = DPOTrainer(model, args=DPOConfig(**common(folder, "dpo")), train_dataset=rows, processing_class=tokenizer)
    return float(trainer.train().training_loss)


def reward_step(rows: Any, folder: Path) -> float:
    """The loss of one step; near log 2, as the weights are random."""
    from trl import RewardConfig, RewardTrainer

    model, tokenizer = tiny(folder, "LlamaForSequenceClassification")
    arguments = RewardConfig(**common(folder, "reward"))
    trainer = RewardTrainer(model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    return float(trainer.train().training_loss)


if __name__ == "__main__":
    main()
