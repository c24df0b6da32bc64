"""The figures of a simulated loop: means over seeds, and intervals over prompts."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trainer.simulate import SeedMarks
from trainer.simulate_exam import Marks, mean

NUM_RESAMPLES = 10_000
RESAMPLING_SEED = 2026


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval, by bootstrap over prompts."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class RoundFigures:
    """What came out of a round, mean over seeds."""

    utility: float
    win_rate: float
    kl: float
    """Nats an answer."""
    reward_accuracy: float
    """On the held-out rankings of all rounds so far."""
    true_accuracy: float
    """Of the true utilities on the same noisy rankings."""


@dataclass(frozen=True)
class LoopFigures:
    """What rounds of the loop did, on held-out prompts: see `simulate_exam` for each figure's meaning."""

    seeds: int
    num_prompts: int
    num_rankings: int
    sft_utility: float
    rounds: list[RoundFigures]
    win_rate: Interval
    ceiling: Interval
    best_of_16: Interval
    exact: dict[str, float]
    """Win rate, ceiling and best of 16 where any difference counts."""
    seconds: float
    """By the clock."""
    cpu_seconds: float | None
    """Of all processes but the database's; None while they run."""

    @property
    def room(self) -> float:
        """How much of the room between one half and the ceiling the win rate covers."""
        return (self.win_rate.mean - 0.5) / (self.ceiling.mean - 0.5)

    @property
    def reward_share(self) -> float:
        """The last reward model's accuracy as a share of that of the true utilities."""
        return self.rounds[-1].reward_accuracy / self.rounds[-1].true_accuracy

    def as_json(self) -> dict[str, Any]:
        """For `--json`: plain numbers, with their intervals beside them."""
        figures = asdict(self)
        intervals = {name: figures.pop(name) for name in ("win_rate", "ceiling", "best_of_16")}
        final = {name: interval["mean"] for name, interval in intervals.items()}
        return final | {
            "kl": self.rounds[-1].kl,
            "room": round(self.room, 4),
            "reward_share": round(self.reward_share, 4),
            "intervals": {name: [interval["low"], interval["high"]] for name, interval in intervals.items()},
            **figures,
        }


def figures_of(stories: Sequence[SeedMarks], *, seconds: float, cpu_seconds: float | None = None) -> LoopFigures:
    """The figures of loops that differ only in their seed."""
    last = [story.rounds[-1] for story in stories]
    parts = {
        "win_rate": last,
        "ceiling": [story.ceiling for story in stories],
        "best_of_16": [story.best_of_16 for story in stories],
    }
    rng = random.Random(RESAMPLING_SEED)
    return LoopFigures(
        seeds=len(stories),
        num_prompts=len(pooled(marks.wins for marks in last)),
        num_rankings=sum(story.num_rankings for story in stories),
        sft_utility=round(mean([story.sft.utility for story in stories]), 4),
        rounds=[round_figures(stories, number) for number in range(len(stories[0].rounds))],
        **{name: bootstrap(pooled(item.wins for item in marks), rng) for name, marks in parts.items()},
        exact={name: round(mean([item.exact_win_rate for item in marks]), 4) for name, marks in parts.items()},
        seconds=round(seconds, 1),
        cpu_seconds=None if cpu_seconds is None else round(cpu_seconds, 1),
    )


def round_figures(stories: Sequence[SeedMarks], number: int) -> RoundFigures:
    """The means over seeds of one round, counted from 0."""
    marks: list[Marks] = [story.rounds[number] for story in stories]
    rewards = [story.rewards[number] for story in stories]
    return RoundFigures(
        utility=round(mean([item.utility for item in marks]), 4),
        win_rate=round(mean([item.win_rate for item in marks]), 4),
        kl=round(mean([story.kl[number] for story in stories]), 3),
        reward_accuracy=round(mean([item.reward for item in rewards]), 4),
        true_accuracy=round(mean([item.truth for item in rewards]), 4),
    )


def pooled(measured: Iterable[Mapping[str, float]]) -> list[float]:
    """A value for each prompt, the mean over the seeds whose exam has it: prompts are what the interval resamples."""
    together: dict[str, list[float]] = {}
    for values in measured:
        for prompt, value in values.items():
            together.setdefault(prompt, []).append(value)
    return [mean(together[prompt]) for prompt in sorted(together)]


def bootstrap(values: Sequence[float], rng: random.Random) -> Interval:
    """The mean of one value a prompt, with a 95 % percentile interval over resampled prompts."""
    means = sorted(mean(rng.choices(values, k=len(values))) for _ in range(NUM_RESAMPLES))
    low, high = means[int(0.025 * NUM_RESAMPLES)], means[int(0.975 * NUM_RESAMPLES) - 1]
    return Interval(round(mean(values), 4), round(low, 4), round(high, 4))
