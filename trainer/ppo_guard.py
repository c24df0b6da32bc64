"""A second reward model that watches PPO: it sees whether the policy exploits the reward model that trains it.

It is blind to what is true: it knows its own score of the answers to always the same questions, and the training
reward model's. While both rise, the policy improves; where the training score rises and the guard's falls, it exploits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trainer.config import PPOConfig
from trainer.reporting import Reporter
from trainer.rollout import Question, Score, roll_out, score_answers, walk
from trainer.sampling import LocalSampler


@dataclass
class Judgement:
    """What a guard remembers: when its score was best, and for how long it has said that the reward is exploited."""

    first_score: float
    best_score: float
    training_score: float
    """What the reward model that trains said when the guard's score was best."""
    num_episodes: int
    """Episodes learned from until then."""
    num_exploited: int = 0
    """Looks in a row with a worse guard's score, and a better training score, than then."""

    def hear(self, score: float, training_score: float, num_episodes: int) -> bool:
        """Both scores of the policy of now; whether it is the best so far."""
        if score > self.best_score:
            self.best_score, self.training_score, self.num_episodes = score, training_score, num_episodes
            self.num_exploited = 0
            return True
        self.num_exploited = self.num_exploited + 1 if training_score > self.training_score else 0
        return False

    @property
    def verdict(self) -> str:
        """Why the run stops, for its log."""
        return (
            f"for {self.num_exploited} looks the guard's score has been below its {self.best_score:.3f} after "
            f"{self.num_episodes} episodes, while the training score rose: the policy exploits its reward model. The "
            "version takes the weights of then."
        )


@dataclass(frozen=True)
class Guard:
    """A reward model that training never sees, and the questions whose answers it judges."""

    score: Score
    questions: Sequence[Question]

    @torch.no_grad()
    def ask(self, score: Score, sampler: LocalSampler, config: PPOConfig, report: Reporter) -> tuple[float, float]:
        """(its own mean score, that of the training reward model) of the policy's answers to its questions, which are
        always drawn with the same seeds."""
        asked = walk(self.questions, 0, config.guard_answers, config.seed, "guard")
        rollout = roll_out(sampler, asked, 0, config, report, is_episode=False)
        said, training = (score_answers(rollout, judge, config).mean().item() for judge in (self.score, score))
        return said, training
