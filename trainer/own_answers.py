"""A policy draws answers, some are kept, and it learns those: what `best_of_n` and `star` share.

Draws are independent of each other, unlike those for annotators, which must differ: the closed forms of best-of-n hold
for independent ones only. What was kept travels in every checkpoint, so that nothing is drawn twice. Where several
processes do a run, each draws and judges a part of the prompts.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from trainer.checkpoints import STATE, CheckpointError
from trainer.config import BestOfNConfig, StarConfig
from trainer.demonstrations import Conversation
from trainer.distributed import from_all, one_voice, part_of
from trainer.fitting import CARRIED, Keeper, checkpoint_folder, identity_of
from trainer.preferences import Answer
from trainer.reporting import Reporter, RunResult, stop_if_cancelled
from trainer.sampling import Draw, LocalSampler, Prompt, context_refusal, decode, encode_prompt
from trainer.sft import SFTResult, train_sft
from trainer.weights import ModelSource, load_causal_lm, load_tokenizer


@dataclass(frozen=True)
class Drawn:
    """A prompt and n answers to it, drawn independently; or why it can't be answered (then there are none)."""

    prompt: Prompt
    answers: list[Answer]
    refusal: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one prompt's answers."""

    kept: list[int]
    """Which of them are learned: some of those that `is_learnable`."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Added up over the prompts."""
    warnings: list[str] = field(default_factory=list)


Judge = Callable[[Sequence[Drawn]], list[Verdict]]
"""A verdict on each prompt's answers, which depends on nothing but those."""


@dataclass
class Selection:
    """What was drawn and kept so far; plain JSON."""

    num_prompts: int = 0
    """Prompts that were looked at, refused ones among them."""
    num_answers: int = 0
    num_cut: int = 0
    """Prompts none of whose answers can be learned: all were cut by length, or are empty."""
    kept: list[dict[str, Any]] = field(default_factory=list)
    refused: list[dict[str, str]] = field(default_factory=list)
    judge: dict[str, float] = field(default_factory=dict)
    """The sums of the judge's figures."""

    def add(self, found: Mapping[str, Any]) -> None:
        """What came of one prompt, as `_examine` says it."""
        self.num_prompts += 1
        self.num_answers += found["num_answers"]
        self.num_cut += found["is_cut"]
        self.kept += found["kept"]
        self.refused += found["refused"]
        for name, value in found["figures"].items():
            self.judge[name] = self.judge.get(name, 0) + value

    @property
    def conversations(self) -> list[Conversation]:
        """What was kept, as SFT learns it."""
        return [Conversation(row["id"], tuple(row["messages"]), None, row["finish_reason"]) for row in self.kept]

    def figures(self, folder: Path, sft: SFTResult, started: float) -> dict[str, Any]:
        """The fields of an `OwnAnswersResult`; `started` is of the monotonic clock."""
        return {
            "folder": folder,
            "num_prompts": self.num_prompts - len(self.refused),
            "num_answers": self.num_answers,
            "num_kept": len(self.kept),
            "sft": sft,
            "seconds": time.monotonic() - started,
            "refused": self.refused,
        }


@dataclass(frozen=True)
class OwnAnswersResult(RunResult):
    """What both kinds of run report, and the folder of the version."""

    folder: Path
    num_prompts: int
    num_answers: int
    num_kept: int
    sft: SFTResult
    seconds: float
    refused: list[dict[str, str]]


def draw_answers(
    sampler: LocalSampler, prompts: Sequence[Prompt], *, n: int, temperature: float, max_new_tokens: int, seed: int
) -> list[Drawn]:
    """n independent answers to each prompt, in the order of the prompts; alike lengths are drawn together."""
    refusals: dict[int, str] = {}
    draws: list[tuple[int, Draw]] = []
    for number, prompt in enumerate(prompts):
        tokens = encode_prompt(sampler.tokenizer, prompt.messages)
        refusal = context_refusal(sampler.model, prompt.id, len(tokens), max_new_tokens)
        if refusal is not None:
            refusals[number] = refusal
        else:
            draws += [(number, Draw(tokens, prompt.id, index, seed)) for index in range(n)]
    draws.sort(key=lambda item: len(item[1].prompt_tokens))
    found = sampler.draw(
        [draw for _, draw in draws], temperature=temperature, top_p=1.0, max_new_tokens=max_new_tokens, num_shared=n
    )
    answers: dict[int, list[Answer]] = defaultdict(list)
    for (number, draw), generated in zip(draws, found, strict=True):
        text = decode(sampler.tokenizer, generated.tokens)
        answers[number].append(Answer(str(draw.index), text, generated.finish_reason))
    return [Drawn(prompt, answers[number], refusals.get(number)) for number, prompt in enumerate(prompts)]


def is_learnable(answer: Answer) -> bool:
    """Whether an answer can be learned: it is whole, and says something."""
    return answer.finish_reason != "length" and bool(answer.text.strip())


def train_on_own_answers(
    prompts: Sequence[Prompt],
    *,
    kind: str,
    policy: ModelSource,
    start: ModelSource,
    judge: Judge,
    config: BestOfNConfig | StarConfig,
    identity: Mapping[str, Any],
    out: Path,
    report: Reporter,
    on_checkpoint: Callable[[Path], None] | None,
    resume_from: Path | None,
    device: str,
) -> tuple[Selection, SFTResult]:
    """Draw from `policy`, keep what the judge says, and fine-tune `start` on it. Raises as `train_sft`."""
    report = one_voice(report)
    about = {"config": config.as_json(), "prompts_sha256": hash_prompts(prompts), **identity}
    drawing = identity_of(f"{kind}/drawing", config, policy, {"policy": policy}) | about
    keep = Keeper(checkpoint_folder(out), drawing, on_checkpoint, resume_from)
    selection, is_drawn = _resume(keep)
    if not is_drawn:
        sampler = _make_sampler(policy, config, device)
        _select(prompts, selection, sampler, judge, config, report, keep)
    _require_answers(selection)
    report.log("info", f"{len(selection.kept)} of {selection.num_answers} answers are learned.")
    result = train_sft(
        selection.conversations,
        source=start,
        config=config.sft,
        out=out,
        report=report,
        on_checkpoint=on_checkpoint,
        resume_from=resume_from if is_drawn else None,
        device=device,
        kind=kind,
        about={f"{kind}_{name}": value for name, value in about.items()} | {"policy": policy.name},
        carried=asdict(selection),
    )
    return selection, result


def _require_answers(selection: Selection) -> None:
    """ValueError where nothing of all that was drawn can be learned."""
    if not selection.kept:
        raise ValueError(
            f"There is no answer to learn from: {selection.num_answers} answers to {selection.num_prompts} prompts "
            f"were drawn, {len(selection.refused)} prompts refused; all answers to {selection.num_cut} of them cut "
            "by length. Raise n or max_new_tokens, or add prompts."
        )


def _resume(keep: Keeper) -> tuple[Selection, bool]:
    """What was drawn before, and whether that is all."""
    if keep.resume_from is None:
        return Selection(), False
    try:
        progress = json.loads((keep.resume_from / STATE).read_text(encoding="utf-8"))["progress"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"The checkpoint is damaged: {STATE} can't be read.") from error
    if CARRIED in progress:
        # `train_sft` checks the hashes of this checkpoint, and that it is this run's, before it learns.
        return Selection(**progress[CARRIED]), True
    return Selection(**(keep.resume({}, {}) or {})), False


def _make_sampler(policy: ModelSource, config: BestOfNConfig | StarConfig, device: str) -> LocalSampler:
    model = load_causal_lm(policy, device=device)
    return LocalSampler(model, load_tokenizer(policy), sequences_per_batch=config.sequences_per_batch)


def _select(
    prompts: Sequence[Prompt],
    selection: Selection,
    sampler: LocalSampler,
    judge: Judge,
    config: BestOfNConfig | StarConfig,
    report: Reporter,
    keep: Keeper,
) -> None:
    """Draw and judge the prompts that are left, a few at a time, with a checkpoint after each few."""
    draw = partial(
        draw_answers,
        sampler,
        n=config.n,
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
    )
    while selection.num_prompts < len(prompts):
        stop_if_cancelled(report)
        asked = prompts[selection.num_prompts : selection.num_prompts + config.prompts_per_checkpoint]
        drawn = draw(part_of(asked))
        for found in from_all([_examine(*each) for each in zip(drawn, judge(drawn), strict=True)], len(asked)):
            selection.add(found)
            for line in found["warnings"]:
                report.log("warning", line)
        report.metrics(
            selection.num_prompts,
            {"own/kept": len(selection.kept), "sample/tokens_per_second": sampler.tokens_per_second},
        )
        report.progress(selection.num_prompts, len(prompts), f"{len(selection.kept)} answers kept")
        keep.save({}, {}, asdict(selection))


def _examine(item: Drawn, verdict: Verdict) -> dict[str, Any]:
    """What came of one prompt, as plain JSON: what its answers add to a `Selection`, and lines for the log."""
    return {
        "num_answers": len(item.answers),
        "is_cut": bool(item.answers) and not any(is_learnable(answer) for answer in item.answers),
        "kept": [_conversation(item, index) for index in verdict.kept],
        "refused": [] if item.refusal is None else [{"prompt_id": item.prompt.id, "reason": item.refusal}],
        "figures": dict(verdict.figures),
        "warnings": verdict.warnings + ([] if item.refusal is None else [item.refusal]),
    }


def _conversation(item: Drawn, index: int) -> dict[str, Any]:
    """A kept answer behind what was asked."""
    answer = item.answers[index]
    assert is_learnable(answer)
    said = {"role": "assistant", "content": answer.text}
    asked = [{"role": turn["role"], "content": turn["content"]} for turn in item.prompt.messages]
    return {"id": f"{item.prompt.id}#{index}", "messages": [*asked, said], "finish_reason": answer.finish_reason}


def hash_prompts(prompts: Sequence[Prompt]) -> str:
    """What names these prompts in a manifest."""
    lines = [json.dumps([prompt.id, [dict(turn) for turn in prompt.messages]], sort_keys=True) for prompt in prompts]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
