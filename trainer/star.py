"""Fine-tuning on own answers that pass a check, for prompts that carry one (after STaR, arXiv 2203.14465).

What differs from the paper:

1. Several answers are drawn at a temperature, and up to `answers_per_prompt` different ones that pass are learned. The
   paper draws one, greedily.
2. There is no rationalisation: a prompt that no answer passes is not tried again with the right answer as a hint.
3. A run is one iteration. As in the paper, what is fine-tuned is the start (the SFT version), not the policy that drew:
   pass the version of the last run as `policy`, and the SFT version as `sft`.
4. The fine-tuning is our SFT (its loss, early stop, schedule); the paper lengthens each iteration by a fifth.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.checks import Check, CheckTimeout
from trainer.config import StarConfig
from trainer.fitting import parents
from trainer.own_answers import Drawn, Judge, OwnAnswersResult, Verdict, is_learnable, train_on_own_answers
from trainer.reporting import Reporter
from trainer.sampling import Prompt
from trainer.weights import ModelSource


@dataclass(frozen=True)
class CheckedPrompt:
    """A prompt whose answer can be checked."""

    prompt: Prompt
    check: Check

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> CheckedPrompt:
        """A prompt row (docs/protocol.md) with `check` in its `meta`. ValueError names the prompt and the rule."""
        try:
            check = Check.from_json((row.get("meta") or {}).get("check"))
        except ValueError as error:
            raise ValueError(f"Prompt {row['id']}: meta.{error}") from error
        return cls(Prompt.from_json(row), check)


@dataclass(frozen=True)
class StarResult(OwnAnswersResult):
    """What a `star` run reports, and the folder of its version."""

    num_right: int
    """Answers that passed."""
    num_solved: int
    """Prompts of which an answer passed."""
    num_timeouts: int
    """Answers on which a regular expression took too long; they count as wrong."""


def judge_by(checks: Mapping[str, Check], *, answers_per_prompt: int) -> Judge:
    """Keeps different answers that pass the check of their prompt, up to so many; figures: how many were `right`,
    prompts that are `solved`, and `timeouts`."""
    return lambda drawn: [_judge(item, checks[item.prompt.id], answers_per_prompt) for item in drawn]


def _judge(item: Drawn, check: Check, answers_per_prompt: int) -> Verdict:
    right: list[int] = []
    warnings: list[str] = []
    for index, answer in enumerate(item.answers):
        try:
            right += [index] if check.passes(answer.text) else []
        except CheckTimeout as error:
            warnings.append(f"Prompt {item.prompt.id}: {error} It counts as wrong.")
    # An answer that was cut can't be learned, whatever it says: it must not take a whole one's place.
    different: dict[str, int] = {}
    for index in (index for index in right if is_learnable(item.answers[index])):
        different.setdefault(" ".join(item.answers[index].text.split()), index)
    figures = {"right": len(right), "solved": int(bool(right)), "timeouts": len(warnings)}
    return Verdict(list(different.values())[:answers_per_prompt], figures, warnings)


def train_star(
    prompts: Sequence[CheckedPrompt],
    *,
    sft: ModelSource,
    policy: ModelSource,
    config: StarConfig,
    out: Path,
    report: Reporter,
    on_checkpoint: Callable[[Path], None] | None = None,
    resume_from: Path | None = None,
    device: str = "cpu",
) -> StarResult:
    """Draw n answers to each prompt from `policy`, and fine-tune `sft` on some of those that pass their check.

    Arguments and errors are those of `best_of_n.train_best_of_n`; `sft` is the version whose weights are trained.
    """
    started = time.monotonic()
    checks = {item.prompt.id: item.check for item in prompts}
    if len(checks) < len(prompts):
        raise ValueError("Two prompts have the same id: their checks can't be told apart.")
    selection, result = train_on_own_answers(
        [item.prompt for item in prompts],
        kind="star",
        policy=policy,
        start=sft,
        judge=judge_by(checks, answers_per_prompt=config.answers_per_prompt),
        config=config,
        identity={
            "sources": parents(sft=sft, policy=policy),
            "checks": [dataclasses.astuple(check) for check in checks.values()],
        },
        out=out,
        report=report,
        on_checkpoint=on_checkpoint,
        resume_from=resume_from,
        device=device,
    )
    return StarResult(
        **selection.figures(out, result, started),
        num_right=int(selection.judge["right"]),
        num_solved=int(selection.judge["solved"]),
        num_timeouts=int(selection.judge["timeouts"]),
    )
