"""What the truth says of a simulated loop. Nothing here reaches the loop: an exam is sat after a training has ended.

An exam is a list of prompts that nothing trained on. A policy answers each of them several times, independently, as PPO
samples (annotators are shown different answers), and these answers meet the SFT policy's:

- *win rate*: how often an answer of the policy is preferred to one of the SFT policy's by an annotator without noise,
  over all pairs; two answers that annotators can't tell apart (`tie_margin`) are half a win. Each prompt counts once.
  `exact` is the same with no margin: there, any difference counts like the largest, also one that nobody can see;
- *ceiling*: the win rate of the best of 64 other answers of the SFT policy, chosen by the true utility: the best that
  it can say. No prompt's ceiling depends on the answers that it is compared with;
- *best of 16*: the win rate of that answer of the first 16 of these that a reward model likes best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from trainer.client import ModelReference
from trainer.pocket.utility import utility
from trainer.preferences import Ranking, pairwise_accuracy, to_rankings

if TYPE_CHECKING:
    from trainer.own_answers import Drawn
    from trainer.weights import ModelSource

FindModel = Callable[[ModelReference], "ModelSource"]
Utilities = dict[str, list[float]]
"""By prompt, the true utility of each answer."""

NUM_ANSWERS = 4
NUM_BEST = 64
"""Of so many answers of the SFT policy, the best one by true utility is the ceiling."""
NUM_CHOSEN = 16
"""Of so many, a reward model chooses one."""


@dataclass(frozen=True)
class RewardMarks:
    """How often a reward model, and the true utilities, are right about the same noisy held-out rankings."""

    reward: float
    truth: float


@dataclass(frozen=True)
class Marks:
    """What a policy's answers to the exam are worth, by prompt."""

    utilities: Utilities
    wins: Mapping[str, float]
    exact: Mapping[str, float]

    @property
    def utility(self) -> float:
        """The mean over prompts of the mean over answers."""
        return mean([mean(values) for values in self.utilities.values()])

    @property
    def win_rate(self) -> float:
        """Over the SFT policy; the mean over prompts."""
        return mean(list(self.wins.values()))

    @property
    def exact_win_rate(self) -> float:
        """The same where any difference counts."""
        return mean(list(self.exact.values()))


class Exam:
    """Prompts that nothing trained on, and the SFT policy's answers, which all others are compared with."""

    def __init__(
        self, prompts: Sequence[str], sft: ModelSource, *, sampling: Mapping[str, Any], tie_margin: float, seed: int
    ) -> None:
        self._prompts = prompts
        self._sft = sft
        self._sampling = sampling
        self._tie_margin = tie_margin
        self._seed = seed
        self._num_sat = 0
        self._before = utilities_of(self._draw(sft, NUM_ANSWERS))

    @cached_property
    def _others(self) -> list[Drawn]:
        """Further answers of the SFT policy."""
        return self._draw(self._sft, NUM_BEST)

    @property
    def others(self) -> Utilities:
        """What further answers of the SFT policy are worth."""
        return utilities_of(self._others)

    @cached_property
    def sft(self) -> Marks:
        """The SFT policy beside itself."""
        return self._marks(self._before)

    @cached_property
    def ceiling(self) -> Marks:
        """The best answer that the SFT policy can give."""
        return self._marks({prompt: [max(values)] for prompt, values in self.others.items()})

    def sit(self, policy: ModelSource) -> Marks:
        """A policy's answers, drawn with seeds that nobody had before."""
        return self._marks(utilities_of(self._draw(policy, NUM_ANSWERS)))

    def best_of_16(self, reward: ModelSource) -> Marks:
        """The SFT policy's answer, of 16, that a reward model likes best."""
        from trainer.best_of_n import choose_best, scorer_of

        few = [replace(item, answers=item.answers[:NUM_CHOSEN]) for item in self._others]
        chosen = [best for best in choose_best(few, scorer_of(reward)) if best is not None]
        return self._marks(utilities_of(replace(best.drawn, answers=[best.answer]) for best in chosen))

    def _marks(self, utilities: Utilities) -> Marks:
        wins, exact = (
            {name: share_of_wins(values, self._before[name], tie_margin=margin) for name, values in utilities.items()}
            for margin in (self._tie_margin, 0.0)
        )
        return Marks(utilities, wins, exact)

    def _draw(self, policy: ModelSource, n: int) -> list[Drawn]:
        from trainer.own_answers import draw_answers
        from trainer.sampling import LocalSampler, Prompt
        from trainer.weights import load_causal_lm, load_tokenizer

        self._num_sat += 1
        prompts = [Prompt(text, [{"role": "user", "content": text}]) for text in self._prompts]
        sampler = LocalSampler(load_causal_lm(policy), load_tokenizer(policy))
        return draw_answers(
            sampler,
            prompts,
            n=n,
            temperature=self._sampling["temperature"],
            max_new_tokens=self._sampling["max_new_tokens"],
            seed=self._seed + self._num_sat,
        )


def utilities_of(drawn: Iterable[Drawn]) -> Utilities:
    """The true utility of each answer, by the text of its prompt."""
    return {item.prompt.id: [utility(item.prompt.id, answer.text) for answer in item.answers] for item in drawn}


def reward_marks(rows: Iterable[Mapping[str, Any]], reward: float) -> RewardMarks:
    """A reward model's accuracy on the validation rows of its dataset, beside that of the true utilities."""
    rankings = [ranking for ranking in to_rankings(rows) if ranking.split == "validation"]
    truth = pairwise_accuracy(rankings, [true_utilities(ranking) for ranking in rankings])
    assert truth is not None
    return RewardMarks(reward, truth.value)


def true_utilities(ranking: Ranking) -> list[float]:
    """Of each answer of a ranking."""
    prompt = ranking.messages[-1]["content"]
    return [utility(prompt, answer.text) for answer in ranking.answers]


def share_of_wins(after: Sequence[float], before: Sequence[float], *, tie_margin: float) -> float:
    """How often an answer of `after` beats one of `before` by `tie_margin` or more, over all pairs; what lies less
    apart is a tie, half a win, as `pocket.utility.rank` has it."""
    return mean([win(new - old, tie_margin) for new in after for old in before])


def win(difference: float, tie_margin: float) -> float:
    """1, 0, or one half where the difference is none or below the margin."""
    if difference == 0 or abs(difference) < tie_margin:
        return 0.5
    return float(difference > 0)


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)
