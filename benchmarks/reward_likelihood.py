"""What a reward model gains from reading how likely it finds an answer (`likelihood_weight`), where the truth is known.

The pocket model answers the prompts of `rankloop simulate`, eight times each; three noisy people rank the answers to
four prompts in five, and reward models learn from that as in the loop's first round. The others measure: twelve noisy
people rank their answers, and what a score is worth is its pairwise accuracy there, as a share of that of the true
utilities. A seed divides the prompts, and draws the people's noise and the training. Beside each trained model stands
the likelihood alone, by the language model on its transformer, which learned to write what people liked
(`text_coefficient`), and by the SFT version.

    python benchmarks/reward_likelihood.py [--quick] [--seeds 3] [--pocket FOLDER] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from torch import Tensor

from trainer.config import RewardConfig
from trainer.pocket.build import build_pocket
from trainer.pocket.utility import rank, utility
from trainer.pocket.words import Kind
from trainer.pocket.world import familiar_requests, held_out_requests, parse
from trainer.preferences import Answer, Ranking, pairwise_accuracy
from trainer.reporting import SilentReporter
from trainer.reward import encode_tasks, train_reward
from trainer.reward_model import RewardModel
from trainer.sampling import LocalSampler, Prompt, SamplingSettings
from trainer.scorer import Scorer, pad_id_of
from trainer.simulate import NUM_PROMPTS, PROMPT_SEED, SAMPLING, TEMPERATURE, Annotators, K
from trainer.simulate_cli import TRAINING
from trainer.weights import ModelSource, load_causal_lm, load_tokenizer

NUM_TEACHING, NUM_MEASURING, FEW_PROMPTS = 3, 12, 40
MEASURED = 5
"""Every fifth prompt."""
WEIGHTS = (0.0, 1.0, 3.0)
GROUPS = ("all", "sums", "stories", "others")
NEVER = 10**9
PEOPLE = Annotators()
Heard = Sequence[Sequence[Ranking]]
"""Of each prompt that measures, what people said of its answers."""
Shares = dict[str, dict[str, float]]
"""Of each score and group of prompts: the share of the truth's accuracy."""


@dataclass(frozen=True)
class World:
    """What the pocket model answered, unranked, by prompt."""

    source: ModelSource
    unranked: Sequence[Ranking]

    @property
    def config(self) -> RewardConfig:
        """As the loop's first round has it."""
        return RewardConfig.from_overrides(TRAINING["reward"] | {"checkpoint_every": NEVER})


def make_world(source: ModelSource, num_prompts: int | None = None) -> World:
    """K different answers to each prompt of the loop, or to the first few."""
    held_out = held_out_requests(NUM_PROMPTS, PROMPT_SEED)
    texts = [request.prompt for request in [*held_out, *familiar_requests(held_out, PROMPT_SEED)]][:num_prompts]
    prompts = [Prompt(text, [{"role": "user", "content": text}]) for text in texts]
    settings = SamplingSettings(TEMPERATURE, max_new_tokens=int(SAMPLING["max_new_tokens"]), seed=PROMPT_SEED)
    sampler = LocalSampler(load_causal_lm(source), load_tokenizer(source))
    unranked = []
    for sampled in sampler.sample(prompts, k=K, settings=settings):
        answers = tuple(Answer(str(item.index), item.text, item.finish_reason) for item in sampled.completions)
        messages = [{"role": "user", "content": sampled.prompt_id}]
        unranked.append(Ranking("", sampled.prompt_id, messages, answers, (0,) * len(answers)))
    return World(source, unranked)


def ranked(item: Ranking, num_people: int, rng: random.Random) -> Iterator[Ranking]:
    """What so many noisy people say of the answers to a prompt."""
    worth = truth(item)
    for person in range(num_people):
        cells = rank(worth, rng, noise=PEOPLE.noise, tie_margin=PEOPLE.tie_margin)
        places = {index: place for place, cell in enumerate(cells) for index in cell}
        name = f"{item.prompt_id} by {person}"
        yield replace(item, ranking_id=name, places=tuple(places[index] for index in range(len(worth))))


def truth(item: Ranking) -> list[float]:
    """The true utility of each answer."""
    return [utility(item.prompt_id, answer.text) for answer in item.answers]


def group_of(item: Ranking) -> str:
    """What the prompt asks for."""
    request = parse(item.prompt_id)
    assert request is not None
    return {Kind.SUM: "sums", Kind.STORY: "stories"}.get(request.kind, "others")


def shares(world: World, seed: int, folder: Path) -> Shares:
    """What each score is worth, with one seed."""
    rng = random.Random(f"likelihood {seed}")
    mixed = rng.sample(list(world.unranked), len(world.unranked))
    num_measured = len(mixed) // MEASURED
    learned = [ranking for item in mixed[num_measured:] for ranking in ranked(item, NUM_TEACHING, rng)]
    heard = [list(ranked(item, NUM_MEASURING, rng)) for item in mixed[:num_measured]]

    untrained = RewardModel.from_sft(world.source, None)
    untrained.read_likelihood(1.0, world.source)
    found = {"likelihood by the SFT version": likelihoods(untrained, world, heard)}
    for weight in WEIGHTS:
        config = replace(world.config, seed=seed, likelihood_weight=weight)
        out = folder / f"{seed}-{weight}"
        train_reward(learned, source=world.source, config=config, out=out, report=SilentReporter())
        model = RewardModel.load(replace(world.source, version=out))
        if weight == 1.0:
            found["likelihood by the reward model"] = likelihoods(model, world, heard)
        found[f"likelihood_weight {weight:g}"] = said(model, world, heard, model.score_states)
    best = accuracies(heard, [truth(rankings[0]) for rankings in heard])
    right = {name: accuracies(heard, scores) for name, scores in found.items()}
    return {name: {group: of[group] / best[group] for group in of} for name, of in right.items()}


def likelihoods(model: RewardModel, world: World, heard: Heard) -> list[list[float]]:
    """How likely a reward model finds each answer: the last of what its head sees."""
    return said(model, world, heard, lambda states: states[:, -1])


def said(model: RewardModel, world: World, heard: Heard, say: Callable[[Tensor], Tensor]) -> list[list[float]]:
    """What is said of each prompt's answers, from what the model's head sees of them."""
    config = world.config.for_model(0, "cpu")
    tasks, _ = encode_tasks([rankings[0] for rankings in heard], world.source, config)
    scorer = Scorer(model, pad_id=pad_id_of(load_tokenizer(world.source)), config=config)
    of: dict[tuple[str, str], float] = {}
    for task, states in zip(tasks, scorer.states(tasks), strict=True):
        ranking = task.rankings[0]
        values = say(states).tolist()
        of |= {(ranking.prompt_id, answer.id): value for answer, value in zip(ranking.answers, values, strict=True)}
    return [[of[rankings[0].prompt_id, answer.id] for answer in rankings[0].answers] for rankings in heard]


def accuracies(heard: Heard, scores: Sequence[Sequence[float]]) -> dict[str, float]:
    """How often a score puts two answers in the order in which a person did, in each group of prompts."""
    found = {}
    for group in GROUPS:
        pairs = [
            (ranking, values)
            for rankings, values in zip(heard, scores, strict=True)
            if group in ("all", group_of(rankings[0]))
            for ranking in rankings
        ]
        accuracy = pairwise_accuracy([ranking for ranking, _ in pairs], [values for _, values in pairs])
        if accuracy is not None:
            found[group] = accuracy.value
    return found


def main() -> None:
    """Measure, and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, few prompts: says nothing")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pocket", type=Path, default=Path(".data/models/pocket"), help="built where it is missing")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    build_pocket(chosen.pocket, progress=lambda *_: None)
    world = make_world(ModelSource(chosen.pocket), FEW_PROMPTS if chosen.quick else None)
    of_seeds: list[Shares] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(1, 2 if chosen.quick else chosen.seeds + 1):
            of_seeds.append(shares(world, seed, Path(folder)))
            of_all = ", ".join(f"{name} {of['all']:.1%}" for name, of in of_seeds[-1].items())
            print(f"seed {seed}: {of_all}", flush=True)
    show(of_seeds)
    if chosen.json:
        chosen.json.write_text(json.dumps(of_seeds, indent=1) + "\n", encoding="utf-8")


def show(of_seeds: Sequence[Shares]) -> None:
    """A line for each score, mean over seeds."""
    print(f"\n{'share of the truth’s accuracy':<32}" + "".join(f"{group:>9}" for group in GROUPS))
    for name in of_seeds[0]:
        means = [fmean(of[name].get(group, math.nan) for of in of_seeds) for group in GROUPS]
        print(f"{name:<32}" + "".join(f"{value:>9.1%}" for value in means))


if __name__ == "__main__":
    main()
