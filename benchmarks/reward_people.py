"""How well does a reward model that was trained on real rankings predict rankings that it has not seen?

    python benchmarks/reward_people.py [FILE] [--folds 5] [--quick] [--json FILE] [--model FOLDER_OR_ALIAS]
        [--states FILE]

FILE holds rankings as JSON lines (a dataset's export, or the interchange shape that `rankloop import` takes). Every
fold is predicted by a model that has seen none of its conversations. Two trivial predictors stand beside it, and how
often people agree with each other where several ranked the same answers.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from trainer.config import RewardConfig
from trainer.console import find_source
from trainer.cross_validation import CrossValidation, cross_validate
from trainer.preferences import Accuracy, Ranking, pairwise_accuracy, read_rankings
from trainer.reporting import SilentReporter, TerminalReporter
from trainer.reward_report import people_agree
from trainer.scorer import StateCache

PANDALM = Path(__file__).resolve().parents[2] / "shared/data/pairs_pandalm_3annotators.jsonl"
QUICK_RANKINGS = 16
QUICK_CHARACTERS = 1_200


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    options = _parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    if not options.file.is_file():
        print(f"not measured: {options.file} is not here; name a file of rankings")
        return
    rankings = read_rankings(options.file)
    config = RewardConfig.from_overrides(json.loads(options.training))
    folds = options.folds
    if options.quick:
        rankings = _shortest(rankings)
        folds, config = 2, dataclasses.replace(config, epochs=1)
    source = find_source(options.model)
    report = SilentReporter() if options.silent else TerminalReporter(sys.stderr)
    states = _load_states(options.states)
    found = cross_validate(rankings, source=source, config=config, folds=folds, report=report, cache=states)
    if options.states:
        save_file(states, options.states)
    rows = _compare(found)
    print(_table(rows, found, folds))
    if options.json:
        figures = _figures(rows, found, config, folds, source.name, is_quick=options.quick)
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, nargs="?", default=PANDALM, help="rankings as JSON lines")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a few short rankings, two folds: under a minute")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument(
        "--model", default="smollm2-135m", help="folder of the SFT model, or an alias, fetched at first"
    )
    parser.add_argument("--training", default="{}", help="overrides of the training settings, as JSON")
    parser.add_argument("--states", type=Path, help="keep what the frozen blocks say here, for this model and settings")
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
    parser.add_argument("--silent", action="store_true", help="the table only")
    return parser.parse_args(arguments)


def _load_states(path: Path | None) -> StateCache:
    """What an earlier run with the same model and adapters kept: the longest part of the work."""
    return load_file(path) if path and path.is_file() else {}


def _shortest(rankings: Sequence[Ranking]) -> list[Ranking]:
    """A few rankings that a CPU reads in seconds, each of another conversation: no fold is empty."""

    def length(ranking: Ranking) -> int:
        prompt = sum(len(message["content"]) for message in ranking.messages)
        return sum(prompt + len(answer.text) for answer in ranking.answers)

    chosen = [ranking for ranking in rankings if length(ranking) <= QUICK_CHARACTERS * len(ranking.answers)]
    shortest = {ranking.root: ranking for ranking in sorted(chosen, key=length, reverse=True)}
    return sorted(shortest.values(), key=length)[:QUICK_RANKINGS]


def _compare(found: CrossValidation) -> dict[str, Accuracy]:
    """The model beside predictors that have learned nothing, on the same pairs."""
    lengths = [[float(len(answer.text)) for answer in ranking.answers] for ranking in found.rankings]
    generator = np.random.default_rng(17)
    noise = [generator.random(len(ranking.answers)).tolist() for ranking in found.rankings]
    rows = {"reward model, held out": found.accuracy}
    for name, scores in (("the longer answer wins", lengths), ("random", noise)):
        accuracy = pairwise_accuracy(found.rankings, scores)
        assert accuracy is not None
        rows[name] = accuracy
    people = people_agree(found.rankings)
    return rows if people is None else rows | {"another person": people}


def _table(rows: dict[str, Accuracy], found: CrossValidation, folds: int) -> str:
    lines = [f"{'predictor':<24}  accuracy  95 % interval over prompts"]
    lines += [f"{name:<24}  {row.value:>8.3f}  {row.low:.3f} .. {row.high:.3f}" for name, row in rows.items()]
    wide = found.accuracy_by_conversation
    per_fold = ", ".join(f"{value:.3f}" for value in found.fold_accuracies)
    num_rankings, num_prompts, num_pairs = len(found.rankings), found.accuracy.num_prompts, found.accuracy.num_pairs
    lines += [
        f"{folds} folds over {wide.num_prompts} conversations: {per_fold}",
        f"{num_rankings} rankings of {num_prompts} prompts, {num_pairs} pairs; {len(found.refused)} rankings refused",
        f"interval over conversations: {wide.low:.3f} .. {wide.high:.3f}; {found.seconds:.0f} s",
    ]
    return "\n".join(lines)


def _figures(
    rows: dict[str, Accuracy], found: CrossValidation, config: RewardConfig, folds: int, model: str, *, is_quick: bool
) -> dict[str, Any]:
    return {
        "benchmark": "reward_people",
        "is_quick": is_quick,
        "model": model,
        "folds": folds,
        "config": config.as_json(),
        "accuracy": {name: row.as_json() for name, row in rows.items()},
        "accuracy_by_conversation": found.accuracy_by_conversation.as_json(),
        "fold_accuracies": found.fold_accuracies,
        "num_rankings": len(found.rankings),
        "refused": found.refused,
        "seconds": found.seconds,
    }


if __name__ == "__main__":
    main()
