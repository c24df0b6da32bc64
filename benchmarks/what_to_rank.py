"""How many rankings each way of choosing what to rank next needs for the same accuracy of the reward model.

The pocket model answers prompts; simulated annotators with a known utility rank through noise. A project begins with
some rankings at random, and then asks for more in batches: the reward model is trained anew with an ensemble of heads
(the product's own code), and puts what waits in order. A share stays random, as in the product. What the reward model
is worth is measured on answers to other prompts, whose true order is known. A seed shuffles the prompts, the noise of
the annotators and the training. For each seed: how many rankings a strategy needs for the accuracy that both it and
random order reach, on curves that were made to rise (isotonic regression); the interval is over seeds (Student's t).

    python benchmarks/what_to_rank.py [--quick] [--seeds 5] [--pocket FOLDER] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trainer.config import RewardConfig
from trainer.judging import Judge
from trainer.pocket.build import build_pocket
from trainer.pocket.utility import rank, utility
from trainer.pocket.world import held_out_requests
from trainer.preferences import Answer, Ranking
from trainer.reporting import SilentReporter
from trainer.reward import train_reward
from trainer.sampling import LocalSampler, Prompt, SamplingSettings
from trainer.weights import ModelSource, load_causal_lm, load_tokenizer

STRATEGIES = ("random", "disagreement", "expected_gain", "novelty")
Curve = list[tuple[int, float]]
NOISE, TIE_MARGIN = 0.5, 0.1
POOL_SEED = 2026
# Student's t, two-sided 95 %, by degrees of freedom.
STUDENT_T = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}


@dataclass(frozen=True)
class Setting:
    """One simulated project."""

    num_prompts: int = 500
    """What could be ranked."""
    num_measured: int = 200
    """Prompts whose answers measure."""
    first: int = 50
    """Rankings at random, before there is a reward model."""
    batch: int = 50
    last: int = 200
    random_share: float = 0.2
    num_heads: int = 5

    @property
    def sizes(self) -> list[int]:
        """After how many rankings a reward model is trained."""
        return list(range(self.first, self.last + 1, self.batch))


QUICK = Setting(num_prompts=60, num_measured=20, first=10, batch=10, last=30)


@dataclass(frozen=True)
class Pool:
    """What the pocket model answered: each prompt once, as a ranking that a noisy annotator would give."""

    rankings: Sequence[Ranking]
    utilities: Sequence[Sequence[float]]

    def mixed(self, seed: int) -> Pool:
        """The same answers in another order, ranked by other annotators."""
        rng = random.Random(f"what to rank {seed}")
        order = rng.sample(range(len(self.rankings)), len(self.rankings))
        rankings = [replace(self.rankings[i], places=heard(self.utilities[i], rng)) for i in order]
        return Pool(rankings, [self.utilities[i] for i in order])


# The world


def draw_pool(source: ModelSource, setting: Setting) -> Pool:
    """Different answers of the pocket model to prompts that it was not trained on, and what each is worth."""
    requests = held_out_requests(setting.num_prompts + setting.num_measured, POOL_SEED)
    sampler = LocalSampler(load_causal_lm(source), load_tokenizer(source))
    prompts = [
        Prompt(str(number), [{"role": "user", "content": request.prompt}]) for number, request in enumerate(requests)
    ]
    settings = SamplingSettings(temperature=1.0, max_new_tokens=128, seed=POOL_SEED)
    rankings, utilities = [], []
    for sampled in sampler.sample(prompts, k=4, settings=settings):
        text = requests[int(sampled.prompt_id)].prompt
        different = {completion.text: completion for completion in sampled.completions}.values()
        if len(different) < 2:
            continue
        answers = tuple(Answer(str(item.index), item.text, item.finish_reason) for item in different)
        messages = [{"role": "user", "content": text}]
        rankings.append(Ranking(sampled.prompt_id, sampled.prompt_id, messages, answers, (0,) * len(answers)))
        utilities.append([utility(text, answer.text) for answer in answers])
    return Pool(rankings, utilities)


def heard(worth: Sequence[float], rng: random.Random) -> tuple[int, ...]:
    """The place of each answer, as an annotator with noise sees them."""
    cells = rank(worth, rng, noise=NOISE, tie_margin=TIE_MARGIN)
    return tuple(next(place for place, cell in enumerate(cells) if i in cell) for i in range(len(worth)))


# One strategy


def train(rankings: Sequence[Ranking], source: ModelSource, num_heads: int, seed: int) -> Judge:
    """A reward model that learned from these rankings, as a `judge` run asks it."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "reward"
        config = RewardConfig(num_heads=num_heads, seed=seed)
        train_reward(rankings, source=source, config=config, out=out, report=SilentReporter())
        return Judge(replace(source, version=out), "cpu")


def accuracy(said: Sequence[Mapping[str, Any]], utilities: Sequence[Sequence[float]]) -> float:
    """On which share of the pairs the answer that is truly better has the higher score."""
    right = total = 0
    for item, worth in zip(said, utilities, strict=True):
        score = list(item["scores"].values())
        pairs = [(i, j) for i in range(len(worth)) for j in range(len(worth)) if worth[i] > worth[j]]
        right += sum(score[i] > score[j] for i, j in pairs)
        total += len(pairs)
    return right / total


def play(pool: Pool, source: ModelSource, setting: Setting, seed: int, strategy: str) -> Iterator[tuple[int, float]]:
    """(number of rankings, accuracy) as a project grows by one strategy."""
    rng = random.Random(f"{strategy} {seed}")
    waiting = list(range(setting.num_measured, len(pool.rankings)))
    chosen, waiting = waiting[: setting.first], waiting[setting.first :]
    for size in setting.sizes:
        judge = train([pool.rankings[i] for i in chosen], source, setting.num_heads, seed)
        with torch.no_grad():
            tasks, _ = judge.encode(pool.rankings)
            states = judge.states(tasks)
            seen = torch.cat([states[i] for i in chosen])
            said = [judge.say(task, state, seen) for task, state in zip(tasks, states, strict=True)]
        yield size, accuracy(said[: setting.num_measured], pool.utilities[: setting.num_measured])
        num_random = round(setting.batch * (1.0 if strategy == "random" else setting.random_share))
        taken = rng.sample(waiting, num_random)
        rest = [i for i in waiting if i not in set(taken)]
        if strategy != "random":
            rest.sort(key=lambda index, said=said: -said[index][strategy])  # type: ignore[misc]
            taken += rest[: setting.batch - num_random]
        chosen, waiting = chosen + taken, [i for i in waiting if i not in set(taken)]


# Figures


def rising(values: Sequence[float]) -> list[float]:
    """The nearest curve that never falls (isotonic regression, by pooling neighbours that are out of order)."""
    blocks: list[list[float]] = []
    for value in values:
        blocks.append([value])
        while len(blocks) > 1 and statistics.fmean(blocks[-2]) >= statistics.fmean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    return [statistics.fmean(block) for block in blocks for _ in block]


def needed(sizes: Sequence[int], rising_values: Sequence[float], wanted: float) -> float:
    """After how many rankings an accuracy is reached, on a line between two sizes."""
    if rising_values[0] >= wanted:
        return float(sizes[0])
    for at in range(1, len(sizes)):
        before, after = rising_values[at - 1], rising_values[at]
        if after >= wanted:
            return sizes[at - 1] + (wanted - before) / (after - before) * (sizes[at] - sizes[at - 1])
    return float(sizes[-1])


def fewer(own: Curve, other: Curve) -> float:
    """The share of the other's rankings that is saved, at the accuracy that both reach."""
    sizes = [size for size, _ in own]
    ours, theirs = rising([value for _, value in own]), rising([value for _, value in other])
    wanted = min(ours[-1], theirs[-1])
    return 1.0 - needed(sizes, ours, wanted) / needed(sizes, theirs, wanted)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high), 95 %, by Student's t over seeds."""
    middle = statistics.fmean(values)
    if len(values) < 2:
        return middle, math.nan, math.nan
    half = STUDENT_T.get(len(values) - 1, 1.96) * statistics.stdev(values) / math.sqrt(len(values))
    return middle, middle - half, middle + half


def figures_of(curves: dict[str, list[Curve]]) -> dict[str, dict[str, Any]]:
    """Of each strategy: its accuracy at the end, and the share of random's rankings that it saves."""
    found = {}
    for strategy, of_seeds in curves.items():
        saved = [fewer(own, other) for own, other in zip(of_seeds, curves["random"], strict=True)]
        ends = [curve[-1][1] for curve in of_seeds]
        sizes = [size for size, _ in of_seeds[0]]
        means = [statistics.fmean(curve[at][1] for curve in of_seeds) for at in range(len(sizes))]
        found[strategy] = {
            "accuracy": interval(ends),
            "fewer": interval(saved),
            "by_seed": saved,
            "curve": list(zip(sizes, means, strict=True)),
        }
    return found


def show(found: dict[str, dict[str, Any]]) -> None:
    """The table."""
    print(f"\n{'strategy':14} {'accuracy at the end':>24}   {'fewer rankings for the same accuracy':>38}")
    for strategy, row in found.items():
        (end, low, high), (fewer, least, most) = row["accuracy"], row["fewer"]
        print(f"{strategy:14} {end:.4f} ({low:.4f} .. {high:.4f})   {fewer:+.1%} ({least:+.1%} .. {most:+.1%})")


def main() -> None:
    """Measure, print, and write the figures where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed of a few rankings")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pocket", type=Path, default=Path(".data/models/pocket"), help="built where it is missing")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    setting, seeds = (QUICK, 1) if chosen.quick else (Setting(), chosen.seeds)
    build_pocket(chosen.pocket, progress=lambda message, _: print(message, flush=True))
    source = ModelSource(chosen.pocket)
    started = time.monotonic()
    curves: dict[str, list[Curve]] = {strategy: [] for strategy in STRATEGIES}
    answers = draw_pool(source, setting)
    for seed in range(1, seeds + 1):
        pool = answers.mixed(seed)
        for strategy in STRATEGIES:
            curves[strategy].append(list(play(pool, source, setting, seed, strategy)))
            ends = f"{curves[strategy][-1][-1][1]:.4f}"
            print(f"seed {seed} {strategy:14} {ends} at the end, {time.monotonic() - started:.0f} s", flush=True)
    found = figures_of(curves)
    show(found)
    if chosen.json:
        said = {"setting": asdict(setting), "seeds": seeds, "strategies": found, "curves": curves}
        chosen.json.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
