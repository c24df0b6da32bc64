"""Best-of-n: of n answers, the one with the highest reward; and fine-tuning on those (rejection sampling, RAFT).

Best-of-n needs no training: `choose_best` is an improved policy by itself, whose KL to the policy it draws from is at
most log n - (n - 1)/n nats an answer (2009.01325; a bound, proven in 2401.01879). `train_best_of_n` puts it into
weights, as RAFT does (2304.06767). What differs from that paper:

1. A run is one iteration; for more, start another from its version. RAFT goes on until the reward stops rising.
2. Answers that were cut by length, or are empty, are never learned: the best of the others is. Of equal rewards, the
   first answer is kept.
3. The fine-tuning is our SFT (its loss, early stop, schedule), on a fresh adapter or full weights.
4. The reward model has no length limit of its own: what doesn't fit the policy's context is refused by name.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from trainer.config import BestOfNConfig
from trainer.fitting import parents
from trainer.own_answers import Drawn, Judge, OwnAnswersResult, Verdict, is_learnable, train_on_own_answers
from trainer.preferences import Answer
from trainer.reporting import Reporter
from trainer.reward_model import RewardModel
from trainer.sampling import Prompt
from trainer.scorer import score
from trainer.weights import ModelSource, load_tokenizer

ScoreAll = Callable[[Sequence[tuple[Sequence[Mapping[str, str]], Answer]]], Sequence[float]]
"""What each (messages, answer) is worth."""


@dataclass(frozen=True)
class Best:
    """The best of a prompt's answers; the first of those where several are equal."""

    drawn: Drawn
    scores: list[float]

    @property
    def index(self) -> int:
        """Which answer it is."""
        return self.scores.index(max(self.scores))

    @property
    def answer(self) -> Answer:
        """The answer."""
        return self.drawn.answers[self.index]


@dataclass(frozen=True)
class BestOfNResult(OwnAnswersResult):
    """What a `best_of_n` run reports, and the folder of its version."""

    num_cut: int
    """Prompts all of whose answers were cut by length, and so not learned."""
    reward: dict[str, float]
    """Means over all answers, and over the kept one of each prompt."""
    kl_bound: float
    """log n - (n - 1)/n: what best-of-n itself may cost, in nats an answer."""


def kl_bound(n: int) -> float:
    """log n - (n - 1)/n: the KL of best-of-n to the policy it draws from, exact where no two answers are equal."""
    return math.log(n) - (n - 1) / n


def choose_best(drawn: Sequence[Drawn], score_all: ScoreAll) -> list[Best | None]:
    """The best answer to each prompt; None where a prompt was refused. ValueError when a score is not finite."""
    scores = iter(score_all([(item.prompt.messages, answer) for item in drawn for answer in item.answers]))
    best: list[Best | None] = []
    for item in drawn:
        own = [float(next(scores)) for _ in item.answers]
        if not all(math.isfinite(value) for value in own):
            raise ValueError(
                f"The reward model's score of an answer to the prompt {item.prompt.id} is NaN or infinite."
            )
        best.append(Best(item, own) if own else None)
    return best


def scorer_of(reward: ModelSource, *, device: str = "cpu") -> ScoreAll:
    """A reward version as a function of conversations and answers."""
    model, tokenizer = RewardModel.load(reward, device=device), load_tokenizer(reward)
    return lambda conversations: _score(model, tokenizer, conversations)


def _score(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[tuple[Sequence[Mapping[str, str]], Answer]],
) -> Sequence[float]:
    return score(model, tokenizer, conversations) if conversations else []


def judge_by(score_all: ScoreAll) -> Judge:
    """Keeps the best answer to each prompt that can be learned; figures: `all` and `best`, sums of rewards, and of how
    many answers each is."""
    return lambda drawn: [_judge(best) if best else Verdict([]) for best in choose_best(drawn, score_all)]


def _judge(best: Best) -> Verdict:
    learnable = [index for index, answer in enumerate(best.drawn.answers) if is_learnable(answer)]
    kept = [max(learnable, key=lambda index: best.scores[index])] if learnable else []
    return Verdict(
        kept,
        {
            "num_answers": len(best.scores),
            "all": math.fsum(best.scores),
            "num_best": len(kept),
            "best": math.fsum(best.scores[index] for index in kept),
        },
    )


def _means(sums: Mapping[str, float]) -> dict[str, float]:
    """The mean rewards of all answers, and of the kept ones; 0 of none."""
    return {
        "mean": sums.get("all", 0.0) / max(1.0, sums.get("num_answers", 0)),
        "best": sums.get("best", 0.0) / max(1.0, sums.get("num_best", 0)),
    }


def train_best_of_n(
    prompts: Sequence[Prompt],
    *,
    policy: ModelSource,
    reward: ModelSource,
    config: BestOfNConfig,
    out: Path,
    report: Reporter,
    on_checkpoint: Callable[[Path], None] | None = None,
    resume_from: Path | None = None,
    device: str = "cpu",
) -> BestOfNResult:
    """Draw n answers to each prompt from `policy`, and fine-tune it on the one that `reward` likes best.

    Args:
        prompts: one over the model's context is refused by name, and the others go on.
        policy: the version to draw from and to start from.
        reward: a reward version.
        out: the new version's folder; appears when all is done. Checkpoints lie beside it, in `<out>.checkpoint`.
        on_checkpoint: is called with the checkpoint's folder whenever a new one is complete.
        resume_from: a checkpoint's folder; the run goes on bit for bit (on a CPU) as if it had not been interrupted.

    Raises:
        ValueError: nothing to learn from, a model that cannot be loaded, another run's checkpoint, NaN or infinity.
        RunCancelled: the reporter said stop.
    """
    started = time.monotonic()
    selection, sft = train_on_own_answers(
        prompts,
        kind="best_of_n",
        policy=policy,
        start=policy,
        judge=judge_by(scorer_of(reward, device=device)),
        config=config,
        identity={"sources": parents(policy=policy, reward=reward)},
        out=out,
        report=report,
        on_checkpoint=on_checkpoint,
        resume_from=resume_from,
        device=device,
    )
    return BestOfNResult(
        **selection.figures(out, sft, started),
        num_cut=selection.num_cut,
        reward=_means(selection.judge),
        kl_bound=kl_bound(config.n),
    )
