"""Over-optimisation (Gao et al., arXiv 2210.10760): PPO's reward goes on rising while what it stands for falls.

The loop of `rankloop simulate`, made to fail: the reward model learns from 200 rankings, and beta is a fiftieth of its
value there. Every few rollouts the policy sits an exam, by the true utility, which no part of the loop sees: always the
same draws of answers to prompts that nothing learned from. A guard looks just as often, at answers to other prompts:
noisy people, who rank each among answers of the SFT policy. It says when the run should stop, and which weights are
kept; the run goes on without it to its end, as it would have gone (it follows from its seed and its episodes). A seed
mixes the prompts and draws the people's noise and the training's; the SFT policy's answers are drawn once for all.

    python benchmarks/overoptimisation.py [--quick] [--seeds 3] [--pocket FOLDER] [--json FILE] [--plot FILE.svg]
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from trainer.config import PPOConfig, RewardConfig
from trainer.models import load_policy
from trainer.own_answers import draw_answers
from trainer.pocket.build import build_pocket
from trainer.pocket.utility import rank, utility
from trainer.pocket.world import held_out_requests
from trainer.ppo import optimise
from trainer.ppo_guard import Guard
from trainer.ppo_learner import Learner
from trainer.preferences import Answer, Ranking
from trainer.reporting import SilentReporter
from trainer.reward import train_reward
from trainer.reward_model import RewardModel, ValueModel
from trainer.rollout import Question, Rollout
from trainer.sampling import LocalSampler, Prompt, SamplingSettings, encode_prompt
from trainer.simulate import SAMPLING, TEMPERATURE, Annotators, K
from trainer.simulate_cli import PPO, TRAINING
from trainer.simulate_exam import utilities_of
from trainer.weights import ModelSource, load_causal_lm, load_tokenizer

POOL_SEED = 2026
BETA_SHARE = 1 / 50
NEVER = 10**9
TOGETHER = 2
"""Answers of the policy in one ranking of the guard's."""
REWARD = TRAINING["reward"] | {"epochs": 1, "likelihood_weight": 0.0}
"""Read once by a head alone, as when its figures in docs/loop.md were measured."""


@dataclass(frozen=True)
class Setting:
    """How much of everything."""

    num_rankings: int = 200
    """That the reward model learns from."""
    num_guard_prompts: int = 128
    """Other prompts, whose answers people rank for the guard."""
    guard_answers: int = 512
    """That people know at each look: what the policy said before, they have ranked before."""
    guard_patience: int = 3
    """Looks."""
    num_examined: int = 128
    """Prompts of the exam."""
    num_answers: int = 4
    """To each of them."""
    num_rollouts: int = 36
    rollouts_per_look: int = 3
    """Of the guard, and from one exam to the next."""
    batch: int = 128
    """Episodes a rollout."""
    max_new_tokens: int = int(SAMPLING["max_new_tokens"])

    @property
    def num_prompts(self) -> int:
        """Of the pocket world."""
        return self.num_rankings + self.num_guard_prompts + self.num_examined


QUICK = Setting(
    num_rankings=16,
    num_guard_prompts=8,
    num_examined=8,
    guard_answers=16,
    num_answers=2,
    num_rollouts=3,
    rollouts_per_look=1,
    batch=32,
)


@dataclass(frozen=True)
class Point:
    """What is known of the policy after so many episodes."""

    episodes: int
    utility: float
    """True, on the exam."""
    kl: float = 0.0
    """Nats an answer, of the next rollout."""
    reward: float = 0.0
    """Of the same, by the model that trains it; in standard deviations of its training answers."""


@dataclass(frozen=True)
class Story:
    """One seed."""

    points: Sequence[Point]
    """Without a guard."""
    kept: Point
    """The version that the guard made: the true utility of the weights it kept."""
    stopped: int | None
    """After how many episodes the guard stopped the run."""
    num_rankings: int = 0
    """That people made for the guard until then."""

    @property
    def gains(self) -> tuple[float, float, float]:
        """Of true utility over the SFT policy's: (kept by the guard, at the best exam, at the last exam)."""
        start, values = self.points[0].utility, [point.utility for point in self.points]
        return self.kept.utility - start, max(values) - start, values[-1] - start


# The world


@dataclass(frozen=True)
class World:
    """What the pocket model answers: rankings without places yet, and the prompts of the exam."""

    source: ModelSource
    setting: Setting
    unranked: Sequence[Ranking]
    examined: Sequence[Prompt]


def make_world(source: ModelSource, setting: Setting) -> World:
    """K different answers to each prompt that is to be ranked, sampled as `rankloop simulate` samples them."""
    requests = held_out_requests(setting.num_prompts, POOL_SEED)
    prompts = [Prompt(item.prompt, [{"role": "user", "content": item.prompt}]) for item in requests]
    random.Random(POOL_SEED).shuffle(prompts)
    examined, asked = prompts[: setting.num_examined], prompts[setting.num_examined :]
    settings = SamplingSettings(TEMPERATURE, max_new_tokens=setting.max_new_tokens, seed=POOL_SEED)
    unranked = []
    for sampled in make_sampler(load_causal_lm(source), source).sample(asked, k=K, settings=settings):
        answers = tuple(Answer(str(item.index), item.text, item.finish_reason) for item in sampled.completions)
        name = sampled.prompt_id
        messages = [{"role": "user", "content": name}]
        unranked.append(Ranking(name, name, messages, answers, (0,) * len(answers)))
    return World(source, setting, unranked, examined)


def ranked(item: Ranking, rng: random.Random) -> Ranking:
    """As a noisy annotator ranks it."""
    places = heard_places(item.messages[-1]["content"], [answer.text for answer in item.answers], rng)
    return replace(item, places=tuple(places))


def heard_places(prompt: str, texts: Sequence[str], rng: random.Random) -> list[int]:
    """The place of each of these answers, 0 the best, as a noisy annotator ranks them."""
    people = Annotators()
    worth = [utility(prompt, text) for text in texts]
    cells = rank(worth, rng, noise=people.noise, tie_margin=people.tie_margin)
    places = {index: place for place, cell in enumerate(cells) for index in cell}
    return [places[index] for index in range(len(worth))]


# One seed


class Examiner(SilentReporter):
    """Examines the policy every few rollouts, always with the same draws."""

    def __init__(self, learner: Learner, world: World, spread: float) -> None:
        self._learner, self._world, self._spread = learner, world, spread
        self._num_rollouts = 0
        self.points: list[Point] = []
        self.exams = [self.examine(0)]

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """What a rollout showed: its answers are those of the policy before it, which may just have been examined."""
        if "objective/kl" not in values:
            return
        every = self._world.setting.rollouts_per_look
        if self._num_rollouts % every == 0:
            reward = values["objective/reward"] / self._spread
            self.points.append(replace(self.exams[-1], kl=values["objective/kl"], reward=reward))
        self._num_rollouts += 1
        if self._num_rollouts % every == 0:
            self.exams.append(self.examine(step))

    def examine(self, episodes: int) -> Point:
        """The true utility of the policy of now."""
        sampler = make_sampler(self._learner.policy.model, self._world.source)
        drawn = draw_answers(
            sampler,
            self._world.examined,
            n=self._world.setting.num_answers,
            temperature=TEMPERATURE,
            max_new_tokens=self._world.setting.max_new_tokens,
            seed=POOL_SEED,
        )
        return Point(episodes, fmean(value for values in utilities_of(drawn).values() for value in values))


class People(Guard):
    """A guard that is no model: of how many of the SFT policy's answers annotators prefer an answer to.

    They rank two answers of the policy to a prompt, among K - 2 of the SFT policy's, through noise and ties, as they
    rank in `rankloop simulate`. An answer that the policy has given before keeps what they said of it then: that is no
    work, and no noise between two looks.
    """

    def __init__(self, world: World, rankings: Sequence[Ranking], seed: int) -> None:
        super().__init__(questions_of(world, rankings))
        self.num_rankings = 0
        self._tokenizer = load_tokenizer(world.source)
        self._rng = random.Random(f"people who guard {seed}")
        self._known = {tuple(asked.tokens): item for asked, item in zip(self.questions, rankings, strict=True)}
        self._said: dict[tuple[str, str], float] = {}

    def judge(self, rollout: Rollout, config: PPOConfig) -> Tensor:
        """score_B, from 0 to 1."""
        given = [self._read(rollout, row) for row in range(len(rollout.tokens_BL))]
        waiting: dict[str, tuple[Ranking, list[str]]] = {}
        for item, text in given:
            texts = waiting.setdefault(item.prompt_id, (item, []))[1]
            if (item.prompt_id, text) not in self._said and text not in texts:
                texts.append(text)
        for item, texts in waiting.values():
            for start in range(0, len(texts), TOGETHER):
                self._rank(item, texts[start : start + TOGETHER])
        return torch.tensor([self._said[item.prompt_id, text] for item, text in given])

    def _read(self, rollout: Rollout, row: int) -> tuple[Ranking, str]:
        """A prompt's answers of the SFT policy, and what the policy answers to it now."""
        width = rollout.num_prompt_tokens
        prompt = rollout.tokens_BL[row, :width][rollout.attention_BL[row, :width]]
        answer = rollout.tokens_BL[row, width:][rollout.mask_BT[row]]
        text = str(self._tokenizer.decode(answer.tolist(), skip_special_tokens=True))
        return self._known[tuple(prompt.tolist())], text

    def _rank(self, item: Ranking, texts: Sequence[str]) -> None:
        """One ranking: which share of the SFT policy's answers each of these is preferred to, a tie being half."""
        others = [answer.text for answer in item.answers[: K - len(texts)]]
        places = heard_places(item.messages[-1]["content"], [*texts, *others], self._rng)
        self.num_rankings += 1
        for text, place in zip(texts, places, strict=False):
            wins = [1.0 if place < other else 0.5 if place == other else 0.0 for other in places[len(texts) :]]
            self._said[item.prompt_id, text] = fmean(wins)


def tell(world: World, seed: int, folder: Path) -> Story:
    """One seed: rank, train the reward model, push, and watch."""
    setting = world.setting
    rng = random.Random(f"over-optimisation {seed}")
    mixed = rng.sample(list(world.unranked), len(world.unranked))
    own = [ranked(item, rng) for item in mixed[: setting.num_rankings]]
    others = mixed[setting.num_rankings :]
    people = People(world, others, seed)
    story = push(world, own, fit(world, own, seed, folder / "reward"), seed, people)
    return replace(story, num_rankings=people.num_rankings)


def fit(world: World, rankings: Sequence[Ranking], seed: int, out: Path) -> RewardModel:
    """A reward model, as `rankloop simulate` trains it."""
    config = RewardConfig(**REWARD | {"seed": seed, "checkpoint_every": NEVER})
    train_reward(rankings, source=world.source, config=config, out=out, report=SilentReporter())
    return RewardModel.load(replace(world.source, version=out)).requires_grad_(False)


def push(world: World, rankings: Sequence[Ranking], reward: RewardModel, seed: int, guard: Guard) -> Story:
    """PPO on the prompts of these rankings, hardly held back: until the guard stops it, and from there to the end."""
    setting = world.setting
    config = PPOConfig(
        **PPO
        | {
            "seed": seed,
            "num_episodes": setting.num_rollouts * setting.batch,
            "episodes_per_batch": setting.batch,
            "beta": PPO["beta"] * BETA_SHARE,
            "temperature": TEMPERATURE,
            "max_new_tokens": setting.max_new_tokens,
            "missing_eos_penalty": reward.score_std,
            "guard_answers": setting.guard_answers,
            "guard_every": setting.rollouts_per_look,
            "guard_patience": setting.guard_patience,
        }
    ).for_model(0, "cpu")
    value = ValueModel.from_reward(reward).requires_grad_(True)
    policy = load_policy(world.source, lora=None, seed=seed)
    learner = Learner.create(policy, value, config, is_guarded=True)
    examiner = Examiner(learner, world, reward.score_std)
    questions, tokenizer = questions_of(world, rankings), load_tokenizer(world.source)
    optimise(learner, reward, questions, tokenizer, config, examiner, guard=guard)
    judgement, num_episodes = learner.progress.guard, learner.progress.num_episodes
    assert judgement is not None
    stopped = num_episodes if learner.progress.stopped_by == "guard" else None
    learner.progress.guard = None
    optimise(learner, reward, questions, tokenizer, config, examiner)
    kept = next(exam for exam in examiner.exams if exam.episodes == judgement.kept.num_episodes)
    return Story(examiner.points, kept, stopped)


def questions_of(world: World, rankings: Sequence[Ranking]) -> list[Question]:
    """The prompts of these rankings in tokens."""
    tokenizer = load_tokenizer(world.source)
    return [Question(item.prompt_id, encode_prompt(tokenizer, item.messages)) for item in rankings]


def make_sampler(model: Any, source: ModelSource) -> LocalSampler:
    """As simulated exams sample."""
    return LocalSampler(model, load_tokenizer(source))


# Figures


def figures_of(stories: Sequence[Story]) -> dict[str, Any]:
    """Means over seeds of the gains of true utility, and what the guard keeps of the best."""
    kept, best, last = (fmean(values) for values in zip(*(story.gains for story in stories), strict=True))
    return {
        "seeds": len(stories),
        "gain_at_best": round(best, 4),
        "gain_at_end": round(last, 4),
        "gain_kept": round(kept, 4),
        "share_kept": round(kept / best, 4) if best > 0 else None,
        "stories": [asdict(story) for story in stories],
    }


def show(figures: Mapping[str, Any], stories: Sequence[Story]) -> None:
    """The table."""
    print(f"{'seed':>4} {'SFT':>7} {'best':>7} {'at the end':>11} {'with a guard':>13}   the guard stops after")
    for number, story in enumerate(stories, start=1):
        start = story.points[0].utility
        kept, best, last = (start + gain for gain in story.gains)
        stop = f"{story.stopped} episodes" if story.stopped else "never"
        print(f"{number:>4} {start:7.3f} {best:7.3f} {last:11.3f} {kept:13.3f}   {stop}, {story.num_rankings} rankings")
    share = "" if figures["share_kept"] is None else f"; the guard keeps {figures['share_kept']:.1%} of the best gain"
    print(f"gain of true utility: best {figures['gain_at_best']:.3f}, at the end {figures['gain_at_end']:.3f}{share}")


# The drawing

STYLE = """
svg{font:13px system-ui,sans-serif;--ink:#1c2330;--faint:#c9d0da;--true:#0b6bcb;--reward:#b54708;background:none}
@media (prefers-color-scheme:dark){svg{--ink:#e6e9ee;--faint:#475062;--true:#6cb2ff;--reward:#f5a35c}}
text{fill:var(--ink)} .axis{stroke:var(--ink)} .grid{stroke:var(--faint);stroke-dasharray:2 4}
path{fill:none;stroke-width:2} .true{stroke:var(--true)} .reward{stroke:var(--reward);stroke-dasharray:7 4}
circle{fill:var(--true);stroke:var(--ink);stroke-width:1.5}
"""
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 400, 300, 52, 26, 46, 48


@dataclass(frozen=True)
class Line:
    """Points of a curve, and the class that its colour goes by."""

    kind: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """Axes with curves and dots, at a place of its own."""

    x: float
    title: str
    below: str
    lines: Sequence[Line]
    dots: Sequence[tuple[float, float]]

    def draw(self) -> Iterator[str]:
        """The elements of it."""
        every = [point for line in self.lines for point in line.points] + list(self.dots)
        right = max(x for x, _ in every) * 1.03 or 1.0
        low, high = min(y for _, y in every), max(y for _, y in every)
        low, high = low - 0.06 * (high - low or 1.0), high + 0.06 * (high - low or 1.0)

        def at(x: float, y: float) -> tuple[float, float]:
            return (
                self.x + LEFT + x / right * (WIDTH - LEFT - RIGHT),
                HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM),
            )

        (x0, y0), (x1, y1) = at(0, low), at(right, high)
        yield f'<text x="{x0:.0f}" y="20" font-weight="600">{escape(self.title)}</text>'
        for y in round_values(low, high):
            _, py = at(0, y)
            yield f'<line class="grid" x1="{x0:.1f}" x2="{x1:.1f}" y1="{py:.1f}" y2="{py:.1f}"/>'
            yield f'<text x="{x0 - 6:.1f}" y="{py + 4:.1f}" text-anchor="end">{y:.1f}</text>'
        for x in round_values(0, right):
            px, _ = at(x, low)
            yield f'<text x="{px:.1f}" y="{y0 + 18:.1f}" text-anchor="middle">{x:,.0f}</text>'
        yield f'<path class="axis" d="M{x0:.1f} {y1:.1f}V{y0:.1f}H{x1:.1f}"/>'
        yield f'<text x="{(x0 + x1) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(self.below)}</text>'
        for line in self.lines:
            path = "L".join(f"{px:.1f} {py:.1f}" for px, py in (at(x, y) for x, y in line.points))
            yield f'<path class="{line.kind}" d="M{path}"/>'
        for dot in self.dots:
            px, py = at(*dot)
            yield f'<circle cx="{px:.1f}" cy="{py:.1f}" r="5"/>'


def round_values(low: float, high: float) -> list[float]:
    """About five values of 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def plot(stories: Sequence[Story]) -> str:
    """True utility against KL, a line a seed; and the mean gains of utility and reward against episodes."""
    against_kl = [Line("true", [(point.kl, point.utility) for point in story.points]) for story in stories]
    together = list(zip(*(story.points for story in stories), strict=True))
    episodes = [points[0].episodes for points in together]
    means = [[fmean(getattr(point, name) for point in points) for points in together] for name in ("utility", "reward")]
    gains = [
        Line(kind, [(x, value - values[0]) for x, value in zip(episodes, values, strict=True)])
        for kind, values in zip(("true", "reward"), means, strict=True)
    ]
    kept = [(at_episodes(story, story.kept.episodes), story.kept.utility) for story in stories]
    panels = [
        Panel(0, "True utility; a line a seed", "KL to the SFT policy, nats an answer", against_kl, kept),
        Panel(WIDTH, "Gain: true utility, reward (dashed)", "Episodes; means over seeds", gains, []),
    ]
    size = f'viewBox="0 0 {2 * WIDTH} {HEIGHT}" width="{2 * WIDTH}" height="{HEIGHT}"'
    label = "Over-optimisation: true utility rises and falls while the reward rises; dots: what the guard keeps"
    parts = [part for panel in panels for part in panel.draw()]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{label}">'
    return "\n".join([head, f"<style>{STYLE}</style>", *parts, "</svg>\n"])


def at_episodes(story: Story, episodes: int) -> float:
    """The KL after so many episodes: of the nearest exam."""
    return min(story.points, key=lambda point: abs(point.episodes - episodes)).kl


def main() -> None:
    """Measure, and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, little of everything: says nothing")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pocket", type=Path, default=Path(".data/models/pocket"), help="built where it is missing")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="an SVG that suits light and dark pages")
    chosen = parser.parse_args()
    setting, seeds = (QUICK, 1) if chosen.quick else (Setting(), chosen.seeds)
    build_pocket(chosen.pocket, progress=lambda message, _: print(message, flush=True))
    started = time.monotonic()
    world = make_world(ModelSource(chosen.pocket), setting)
    stories: list[Story] = []
    for seed in range(1, seeds + 1):
        with tempfile.TemporaryDirectory() as folder:
            stories.append(tell(world, seed, Path(folder)))
        print(f"seed {seed}: {time.monotonic() - started:.0f} s", flush=True)
        # A seed takes long: what is known is written down at once.
        write(stories, setting, chosen)
    show(figures_of(stories), stories)


def write(stories: Sequence[Story], setting: Setting, chosen: argparse.Namespace) -> None:
    """The figures and the drawing, where that was asked for."""
    if chosen.json:
        figures = {"setting": asdict(setting)} | figures_of(stories)
        chosen.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if chosen.plot:
        chosen.plot.write_text(plot(stories), encoding="utf-8")


if __name__ == "__main__":
    main()
