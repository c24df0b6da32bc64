"""A second reward model that watches PPO: it sees whether the policy exploits the reward model that trains it.

It is blind to what is true: it knows its own score of the answers to always the same questions, and the training
reward model's. While both rise, the policy improves; where the training score rises and the guard's falls, it exploits.

One look is noise and signal, and the best of many noisy looks is the luckiest one (the optimizer's curse; Smith and
Winkler 2006). So three rules:

1. A look stands as high as the mean of its score, counted twice, and its two neighbours' (Tukey's hanning). Where one
   is missing, at either end of the run, the look takes its place; so it does where chance hardly explains how far they
   lie apart (4 standard errors), as the policy has changed and a mean over both would hide a height or a fall.
2. The version takes the weights of the look that stands highest.
3. The run stops when the newest look is *surely* below that, so many times in a row, and the training score is above:
   when the mean difference over the answers, each compared with those to the same draw of the same question, lies more
   than 1.645 of its standard errors below 0 (95 %, one-sided).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from trainer.config import PPOConfig
from trainer.reporting import Reporter
from trainer.rollout import Question, Rollout, Score, roll_out, score_answers, walk
from trainer.sampling import LocalSampler

SURELY = 1.645
"""Standard errors: 95 % of a normal law lie above so many below its mean."""
APART = 4.0
"""Standard errors: chance puts one pair of neighbours in sixteen thousand so far apart."""


@dataclass(frozen=True)
class Look:
    """What is said of the answers of one moment; or of those of neighbouring moments, on average."""

    scores: list[float]
    """The guard's, of each answer: always the same draws to the same questions."""
    training_score: float
    """The mean of what the reward model says that trains."""
    num_episodes: int
    """Learned from until then."""

    @property
    def score(self) -> float:
        """The guard's mean."""
        return fmean(self.scores)

    def among(self, before: Look, after: Look) -> Look:
        """How high this look stands between its neighbours."""
        left, right = (self if abs(self.above(other)) > APART else other for other in (before, after))
        scores = [
            (earlier + 2 * own + later) / 4
            for earlier, own, later in zip(left.scores, self.scores, right.scores, strict=True)
        ]
        return Look(scores, self.training_score, self.num_episodes)

    def above(self, other: Look) -> float:
        """How much more the guard likes these answers than the other ones, in standard errors of the mean difference,
        each compared with the one to the same draw; 0 for fewer than two, which tell nothing."""
        differences = [ours - theirs for ours, theirs in zip(self.scores, other.scores, strict=True)]
        mean = fmean(differences)
        if len(differences) < 2 or mean == 0:
            return 0.0
        error = stdev(differences) / math.sqrt(len(differences))
        return mean / error if error else math.copysign(math.inf, mean)

    def is_surely_below(self, other: Look) -> bool:
        """Whether the guard likes these answers less than the other ones, by more than chance explains."""
        return self.above(other) < -SURELY


@dataclass
class Judgement:
    """What a guard remembers. How high a look stands is known after the next one: the newest does not stand fast."""

    first_score: float
    recent: list[Look]
    """The newest look, and the one before it."""
    best: Look | None = None
    """The highest that stands fast."""
    num_exploited: int = 0
    """Looks in a row that were surely below the best, with a better training score."""

    @classmethod
    def begin(cls, look: Look) -> Judgement:
        """The guard's first word."""
        return cls(look.score, [look])

    def hear(self, look: Look) -> bool:
        """The policy of now; whether the look before it is the best that stands fast."""
        *before, middle = self.recent
        stands = middle.among(before[0] if before else middle, look)
        self.recent = [middle, look]
        is_best = self.best is None or stands.score > self.best.score
        if is_best:
            self.best = stands
        kept = self.kept
        is_exploited = look.training_score > kept.training_score and look.is_surely_below(kept)
        self.num_exploited = self.num_exploited + 1 if is_exploited else 0
        return is_best

    @property
    def newest(self) -> Look:
        """How high the newest look stands so far."""
        look = self.recent[-1]
        return look.among(self.recent[0], look)

    @property
    def is_newest_best(self) -> bool:
        """Whether the newest look stands highest of all."""
        return self.best is None or self.newest.score > self.best.score

    @property
    def kept(self) -> Look:
        """The look whose weights the version takes if the run ends now."""
        return self.newest if self.best is None or self.is_newest_best else self.best

    @property
    def figures(self) -> dict[str, float | int]:
        """What the run reports of it."""
        kept = self.kept
        return {
            "first_score": self.first_score,
            "best_score": kept.score,
            "training_score": kept.training_score,
            "num_episodes": kept.num_episodes,
            "num_exploited": self.num_exploited,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Judgement:
        """What `asdict` wrote."""
        best = Look(**fields["best"]) if fields["best"] else None
        return cls(**{**fields, "recent": [Look(**look) for look in fields["recent"]], "best": best})

    @property
    def verdict(self) -> str:
        """Why the run stops, for its log."""
        kept = self.kept
        return (
            f"for {self.num_exploited} looks the guard's score has surely been below its {kept.score:.3f} after "
            f"{kept.num_episodes} episodes, while the training score rose: the policy exploits its reward model. The "
            "version takes the weights of then."
        )


@dataclass
class Guard(ABC):
    """Who judges answers to some questions, and is never seen by training."""

    questions: Sequence[Question]

    @torch.no_grad()
    def ask(
        self, score: Score, sampler: LocalSampler, config: PPOConfig, report: Reporter, *, num_episodes: int
    ) -> Look:
        """Its own scores, and those of the training reward model, of the policy's answers to its questions, which are
        always drawn with the same seeds."""
        asked = walk(self.questions, 0, config.guard_answers, config.seed, "guard")
        rollout = roll_out(sampler, asked, 0, config, report, is_episode=False)
        training = score_answers(rollout, score, config)
        return Look(self.judge(rollout, config).tolist(), training.mean().item(), num_episodes)

    @abstractmethod
    def judge(self, rollout: Rollout, config: PPOConfig) -> Tensor:
        """score_B of these answers."""


@dataclass
class ModelGuard(Guard):
    """A second reward model."""

    score: Score

    def judge(self, rollout: Rollout, config: PPOConfig) -> Tensor:
        """score_B of these answers."""
        return score_answers(rollout, self.score, config)
