"""How many rankings each way of choosing what to rank next needs for the same accuracy of the reward model.

The pocket model answers prompts; simulated annotators with a known utility rank through noise. A project begins with
some rankings at random, and then asks for more in batches: the reward model is trained anew with an ensemble of heads
(the product's own code), and puts what waits in order. A share stays random, as in the product. What the reward model
is worth is measured on answers to other prompts, whose true order is known. A seed shuffles the prompts, the noise of
the annotators and the training. For each seed: how many rankings a strategy needs for the accuracy that both it and
random order reach, on curves that were made to rise (isotonic regression); the interval is over seeds (Student's t).

    python benchmarks/what_to_rank.py [--quick] [--seeds 5] [--heads-only] [--pocket FOLDER] [--json FILE]
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
from torch import Tensor

from trainer import choosing
from trainer.config import RewardConfig
from trainer.data import encode_rankings
from trainer.judging import Judge
from trainer.losses import pairwise_loss
from trainer.pocket.build import build_pocket
from trainer.pocket.utility import rank, utility
from trainer.pocket.world import held_out_requests
from trainer.preferences import Answer, Ranking
from trainer.reporting import SilentReporter
from trainer.reward import train_reward
from trainer.reward_model import RewardModel
from trainer.sampling import LocalSampler, Prompt, SamplingSettings
from trainer.scorer import Scorer, pad_id_of
from trainer.weights import ModelSource, context_length, load_causal_lm, load_tokenizer

STRATEGIES = ("random", "disagreement", "expected_gain", "novelty")
Curve = list[tuple[int, float]]
Said = Mapping[str, Any]
HEAD_STEPS, HEAD_DECAY = 100, 0.003
NOISE, TIE_MARGIN = 0.5, 0.1
POOL_SEED = 2026
# Student's t, two-sided 95 %, by degrees of freedom.
STUDENT_T = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26, 19: 2.09}


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


class Whole:
    """The product's reward model: all of the pocket model's weights learn, below an ensemble of heads."""

    def __init__(self, pool: Pool, source: ModelSource, setting: Setting, seed: int) -> None:
        self._pool, self._source, self._setting, self._seed = pool, source, setting, seed

    @torch.no_grad()
    def look(self, chosen: Sequence[int]) -> list[Said]:
        """What a model that learned from the chosen rankings says of all, as a `judge` run would."""
        judge = self._train([self._pool.rankings[i] for i in chosen])
        tasks, _ = judge.encode(self._pool.rankings)
        states = judge.states(tasks)
        seen = torch.cat([states[i] for i in chosen])
        return [judge.say(task, state, seen) for task, state in zip(tasks, states, strict=True)]

    @torch.enable_grad()
    def _train(self, rankings: Sequence[Ranking]) -> Judge:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "reward"
            config = RewardConfig(num_heads=self._setting.num_heads, seed=self._seed)
            train_reward(rankings, source=self._source, config=config, out=out, report=SilentReporter())
            return Judge(replace(self._source, version=out), "cpu")


class HeadsOnly:
    """Heads alone on what the pocket model's blocks say, which stays as it is: a thousandth of the work."""

    def __init__(self, pool: Pool, states: Mapping[str, Tensor], setting: Setting, seed: int) -> None:
        self._pool, self._num_heads, self._seed = pool, setting.num_heads, seed
        self._states = [states[ranking.ranking_id] for ranking in pool.rankings]

    def look(self, chosen: Sequence[int]) -> list[Said]:
        """What heads that learned from the chosen rankings say of all."""
        weight = self._fit(chosen)
        seen = torch.cat([self._states[i] for i in chosen])
        return [
            self._say(ranking, state, weight, seen)
            for ranking, state in zip(self._pool.rankings, self._states, strict=True)
        ]

    def _fit(self, chosen: Sequence[int]) -> Tensor:
        """The heads with the least loss, with the product's own loss and resampling of rankings (Poisson)."""
        generator = torch.Generator().manual_seed(self._seed)
        states = torch.nn.utils.rnn.pad_sequence([self._states[i] for i in chosen], batch_first=True)
        is_better = better([self._pool.rankings[i].places for i in chosen], states.shape[1])
        counts = torch.poisson(torch.ones(len(chosen), self._num_heads), generator=generator)
        weight = torch.randn(states.shape[2], self._num_heads, generator=generator).mul(0.01).requires_grad_()
        optimizer = torch.optim.Adam([weight], lr=0.03)
        for _ in range(HEAD_STEPS):
            optimizer.zero_grad()
            scores = states @ weight
            losses = [
                pairwise_loss(scores[:, :, e], is_better, importance_B=counts[:, e]) for e in range(self._num_heads)
            ]
            (torch.stack(losses).sum() + HEAD_DECAY * weight.square().sum()).backward()
            optimizer.step()
        return weight.detach()

    def _say(self, ranking: Ranking, state: Tensor, weight: Tensor, seen: Tensor) -> Said:
        scores = state @ weight
        return {
            "scores": dict(zip((a.id for a in ranking.answers), scores.mean(dim=1).tolist(), strict=True)),
            "disagreement": choosing.disagreement(scores),
            "expected_gain": choosing.expected_gain(scores),
            "novelty": choosing.novelty(state, seen),
        }


def better(places: Sequence[Sequence[int | None]], width: int) -> Tensor:
    """[B, K, K] of rankings: 1 where the row's place is before the column's."""
    found = torch.zeros(len(places), width, width)
    for row, of_one in enumerate(places):
        for i, mine in enumerate(of_one):
            for j, other in enumerate(of_one):
                found[row, i, j] = float(mine is not None and other is not None and mine < other)
    return found


@torch.no_grad()
def states_of(pool: Pool, source: ModelSource) -> dict[str, Tensor]:
    """[K, D]: what the pocket model's blocks say at the end of each answer, with mean 0 and spread 1 over all."""
    tokenizer = load_tokenizer(source)
    model = RewardModel.from_sft(source, None)
    tasks, _ = encode_rankings(pool.rankings, tokenizer, max_length=context_length(model.blocks.config), ties="half")
    scorer = Scorer(model, pad_id=pad_id_of(tokenizer), config=RewardConfig(cache_megabytes=0))
    states = scorer.states(tasks)
    mean, std = torch.cat(states).mean(dim=0), torch.cat(states).std(dim=0).clamp(min=1e-6)
    return {task.rankings[0].ranking_id: (state - mean) / std for task, state in zip(tasks, states, strict=True)}


def accuracy(said: Sequence[Said], utilities: Sequence[Sequence[float]]) -> float:
    """On which share of the pairs the answer that is truly better has the higher score."""
    right = total = 0
    for item, worth in zip(said, utilities, strict=True):
        score = list(item["scores"].values())
        pairs = [(i, j) for i in range(len(worth)) for j in range(len(worth)) if worth[i] > worth[j]]
        right += sum(score[i] > score[j] for i, j in pairs)
        total += len(pairs)
    return right / total


def play(
    pool: Pool, learner: Whole | HeadsOnly, setting: Setting, seed: int, strategy: str
) -> Iterator[tuple[int, float]]:
    """(number of rankings, accuracy) as a project grows by one strategy."""
    rng = random.Random(f"{strategy} {seed}")
    waiting = list(range(setting.num_measured, len(pool.rankings)))
    chosen, waiting = waiting[: setting.first], waiting[setting.first :]
    for size in setting.sizes:
        said = learner.look(chosen)
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
    parser.add_argument("--heads-only", action="store_true", help="the blocks do not learn: minutes, not hours")
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
    states = states_of(answers, source) if chosen.heads_only else {}
    for seed in range(1, seeds + 1):
        pool = answers.mixed(seed)
        learner = HeadsOnly(pool, states, setting, seed) if states else Whole(pool, source, setting, seed)
        for strategy in STRATEGIES:
            curves[strategy].append(list(play(pool, learner, setting, seed, strategy)))
            ends = f"{curves[strategy][-1][-1][1]:.4f}"
            print(f"seed {seed} {strategy:14} {ends} at the end, {time.monotonic() - started:.0f} s", flush=True)
    found = figures_of(curves)
    show(found)
    if chosen.json:
        said = {"setting": asdict(setting), "seeds": seeds, "strategies": found, "curves": curves}
        chosen.json.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
