"""Supervised fine-tuning on demonstrations: InstructGPT's (arXiv 2203.02155, 3.5 and C.1), one loop in `_fit`.

What differs from the paper:

1. The loss is on the assistant's tokens only, on every turn of it; the paper does not say what it did with prompts. It
   is the mean over the learned tokens of a whole batch, however the batch is cut for memory.
2. Training stops when the validation loss no longer falls, and the best weights are kept. The paper went on for 16
   epochs of overfitting, because people and reward model liked that better, and chose by the reward model's score.
3. No dropout (paper: 0.2 on residuals): the model that is trained is the one that later is the KL reference.
4. The rate rises over the first 3 % of the steps; the paper had no warm-up. Batches are of 8 conversations where it
   took 32, because a project begins with few.
5. Conversations share rows, without seeing each other; the paper does not say. Where a model can't, rows are padded.
6. On a CPU, a model of over 50M parameters learns through adapters on its last blocks.
7. A conversation is learned as it will be sampled: every assistant's turn after exactly the tokens that `encode_prompt`
   gives for what was said before. Where a chat template shows earlier turns otherwise than they were said (without
   their thoughts, say), each turn is a document of its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from trainer.config import SFTConfig
from trainer.data import encode_answer
from trainer.demonstrations import Conversation, to_conversations
from trainer.distributed import add_up, even_passes, one_voice, part_of
from trainer.fitting import (
    Batch,
    Keeper,
    apply_step,
    assign,
    autocast,
    checkpoint_folder,
    copies_of,
    identity_of,
    learning_parameters,
    length_limit,
    make_optimizer,
    make_policy,
    mean,
    plan_batches,
    save_version,
    say_step,
)
from trainer.models import Policy
from trainer.packing import EMPTY, Document, Packed, can_pack, learned_logprobs, pack
from trainer.preferences import Answer
from trainer.reporting import Reporter, RunResult, stop_if_cancelled
from trainer.sampling import encode_prompt
from trainer.weights import ModelSource, count_parameters, load_tokenizer

FEWEST_HELD_OUT = 8
"""Conversations that must be held out by hash for a validation loss."""


@dataclass(frozen=True)
class Lesson:
    """A conversation in tokens: one document, or one for each of the assistant's turns."""

    conversation: Conversation
    documents: list[Document]


@dataclass(frozen=True)
class SFTResult(RunResult):
    """What an `sft` run reports, and the folder of its version. Losses are in nats a learned token."""

    folder: Path
    num_conversations: int
    """Conversations that were learned from."""
    num_tokens: int
    """Their learned tokens, each counted once."""
    loss: float
    """The training loss, mean over the last epoch's batches."""
    validation_loss: dict[str, float] | None
    """Before the first step, and of the weights that were kept; None without held-out conversations."""
    best_step: int
    """After this step, the weights were those that were kept."""
    num_steps: int
    """Steps that were made; fewer than planned when training stopped early."""
    seconds: float
    refused: list[dict[str, str]] = field(default_factory=list)


@dataclass
class Progress:
    """Where a run stands; plain numbers, so that a checkpoint keeps it as JSON."""

    step: int = 0
    epoch_losses: list[float] = field(default_factory=list)
    first_validation: float | None = None
    best_validation: float | None = None
    best_step: int = 0
    num_worse: int = 0
    """Evaluations in a row that were no better than the best."""

    def observe(self, loss: float) -> bool:
        """Take note of a validation loss; whether it is the best so far."""
        if self.first_validation is None:
            self.first_validation = loss
        is_best = self.best_validation is None or loss < self.best_validation
        if is_best:
            self.best_validation, self.best_step, self.num_worse = loss, self.step, 0
        else:
            self.num_worse += 1
        return is_best

    def is_over(self, config: SFTConfig) -> bool:
        """Whether the validation loss has been no better for too long."""
        return config.patience is not None and self.num_worse >= config.patience

    @property
    def validation_loss(self) -> dict[str, float] | None:
        """Before the first step and at best; None without held-out conversations."""
        if self.first_validation is None or self.best_validation is None:
            return None
        return {"first": self.first_validation, "best": self.best_validation}

    def result(
        self, folder: Path, training: Sequence[Lesson], refused: list[dict[str, str]], *, seconds: float
    ) -> SFTResult:
        """What the run reports at its end."""
        return SFTResult(
            folder,
            num_conversations=len(training),
            num_tokens=sum(document.num_learned for lesson in training for document in lesson.documents),
            loss=mean(self.epoch_losses),
            validation_loss=self.validation_loss,
            best_step=self.best_step,
            num_steps=self.step,
            seconds=seconds,
            refused=refused,
        )


def train_sft(
    rows: Iterable[Mapping[str, Any] | Conversation],
    *,
    source: ModelSource,
    config: SFTConfig,
    out: Path,
    report: Reporter,
    on_checkpoint: Callable[[Path], None] | None = None,
    resume_from: Path | None = None,
    dataset_sha256: str | None = None,
    device: str = "cpu",
    kind: str = "sft",
    about: Mapping[str, Any] | None = None,
    carried: Mapping[str, Any] | None = None,
) -> SFTResult:
    """Teach `source` to say what the assistant says in these conversations.

    Args:
        rows: demonstrations or instruction data (`trainer.demonstrations`). Those of the split "validation" are not
            learned, but tell when to stop; where no row says its split, `validation_ratio` of them are held out.
        source: the model to start from.
        out: the version's folder; appears when all is done. Checkpoints lie beside it, in `<out>.checkpoint`.
        on_checkpoint: is called with the checkpoint's folder whenever a new one is complete.
        resume_from: a checkpoint's folder; the run goes on bit for bit (on a CPU) as if it had not been interrupted.
        dataset_sha256: the dataset's hash; left out, it is computed from the rows.
        kind: what the manifest calls the run.
        about: what else the manifest says, and a checkpoint must agree with.
        carried: JSON that every checkpoint holds besides.

    Raises:
        ValueError: nothing to learn from, a bad row, another run's checkpoint, or a loss that is not finite.
        RunCancelled: the reporter said stop.
    """
    started = time.monotonic()
    report = one_voice(report)
    conversations = to_conversations(rows)
    tokenizer = load_tokenizer(source)
    config = config.for_model(count_parameters(source), device)
    policy = make_policy(source, config, device)
    limit = length_limit(policy.model.config, config)
    lessons, refused = encode_conversations(conversations, tokenizer, max_length=limit)
    training, validation = _split(lessons, refused, config, report)
    name = dataset_sha256 or hash_conversations(conversations)
    identity = identity_of(kind, config, source, {"sft": source}, dataset_sha256=name) | dict(about or {})
    learner = Learner(policy, tokenizer, config, device, report)
    keep = Keeper(checkpoint_folder(out), identity, on_checkpoint, resume_from, carried)
    progress = _fit(learner, training, validation, config, report, keep)
    save_version(policy, out, identity)
    return progress.result(out, training, refused, seconds=time.monotonic() - started)


# --- The loop --------------------------------------------------------------------------------------------------------


def _fit(
    learner: Learner,
    training: Sequence[Lesson],
    validation: Sequence[Lesson],
    config: SFTConfig,
    report: Reporter,
    keep: Keeper,
) -> Progress:
    """Train until the last epoch or until the validation loss no longer falls; the best weights are in place then.

    Everything follows from (config.seed, step), so that a resumed run is the same run.
    """
    plan = plan_batches([1] * len(training), config.conversations_per_batch, epochs=config.epochs, seed=config.seed)
    optimizer = make_optimizer(learner.policy, config)
    # The best weights so far are parameters of a module, so that a checkpoint keeps them.
    best = copies_of(learning_parameters(learner.policy))
    models: dict[str, nn.Module] = {"policy": learner.policy} | ({"best": best} if validation else {})
    progress = Progress(**(keep.resume(models, {"policy": optimizer}) or {}))
    if validation and progress.first_validation is None:
        report.metrics(0, _evaluate(learner, validation, progress, best))

    while progress.step < len(plan) and not progress.is_over(config):
        stop_if_cancelled(report)
        # 1. The batch: conversations, in an order that is new in every epoch.
        batch = plan[progress.step]

        # 2. The gradient of the mean loss over the batch's learned tokens, and the step.
        optimizer.zero_grad()
        loss = learner.accumulate([training[index] for index in batch.indices])
        norm, rate = apply_step(learner.policy, optimizer, loss, step=progress.step, num_steps=len(plan), config=config)
        progress.step += 1
        progress.epoch_losses = batch.append(loss, progress.epoch_losses)

        # 3. Now and then: is it still getting better on what it does not learn?
        metrics = {"loss/sft": loss, "sft/grad_norm": norm, "sft/learning_rate": rate}
        if validation and _is_evaluation(batch, config):
            metrics |= _evaluate(learner, validation, progress, best)

        # 4. What it led to, and a checkpoint now and then.
        say_step(report, metrics, loss, step=progress.step, num_steps=len(plan), batch=batch, epochs=config.epochs)
        if keep.is_due(progress.step, len(plan), config):
            keep.save(models, {"policy": optimizer}, dataclasses.asdict(progress))

    if validation:
        _take_best(learner.policy, best, progress, report)
    else:
        progress.best_step = progress.step
    return progress


def _evaluate(
    learner: Learner, validation: Sequence[Lesson], progress: Progress, best: nn.ParameterList
) -> dict[str, float]:
    """The validation loss of now; where it is the best so far, `best` takes the weights."""
    loss = learner.validation_loss(validation)
    if progress.observe(loss):
        assign(best, learning_parameters(learner.policy))
    return {"loss/validation": loss}


def _take_best(policy: Policy, best: nn.ParameterList, progress: Progress, report: Reporter) -> None:
    """The run is over: the policy takes the weights that were the best in validation."""
    if progress.best_step == progress.step:
        return
    assign(learning_parameters(policy), best)
    report.log("info", f"Kept the weights after step {progress.best_step} of {progress.step}: the best in validation.")


def _is_evaluation(batch: Batch, config: SFTConfig) -> bool:
    """Whether this step of an epoch is one of those after which validation is taken; the last one always is."""
    num = min(config.evaluations_per_epoch, batch.per_epoch)
    return (batch.place + 1) * num // batch.per_epoch > batch.place * num // batch.per_epoch


class Learner:
    """A policy with what it takes to compute losses of conversations."""

    def __init__(
        self, policy: Policy, tokenizer: PreTrainedTokenizerBase, config: SFTConfig, device: str, report: Reporter
    ) -> None:
        self.policy = policy
        self._pad_id = int(str(tokenizer.pad_token_id))
        self._config = config
        self._device = device
        self._is_packing = config.packing and can_pack(policy.model)
        if config.packing and not self._is_packing:
            report.log(
                "warning", "This model sees across documents in one row: each conversation gets a row of its own."
            )

    def accumulate(self, batch: Sequence[Lesson]) -> float:
        """Gradients of the mean loss over the batch's learned tokens into the parameters (this process's part of them);
        that loss."""
        return self._loss(batch, torch.autograd.backward)

    @torch.no_grad()
    def validation_loss(self, lessons: Sequence[Lesson]) -> float:
        """The mean loss over the learned tokens. ValueError when it is not finite."""
        loss = self._loss(lessons, lambda _: None)
        if not math.isfinite(loss):
            raise ValueError("Training failed: the validation loss is NaN or infinite. The last checkpoint is good.")
        return loss

    def _loss(self, lessons: Sequence[Lesson], use: Callable[[list[torch.Tensor]], None]) -> float:
        num_learned = sum(document.num_learned for lesson in lessons for document in lesson.documents)
        documents = [document for lesson in part_of(lessons) for document in lesson.documents]
        total = 0.0
        parts: Iterable[Packed] = pack(
            documents,
            tokens_per_forward=self._config.tokens_per_forward,
            pad_id=self._pad_id,
            is_packing=self._is_packing,
        )
        if self._config.sharding == "full":
            parts = even_passes(list(parts), EMPTY)
        for part in parts:
            with autocast(self._config, self._device):
                logprob_M, _ = learned_logprobs(
                    self.policy.model, Packed(*(tensor.to(self._device) for tensor in part))
                )
            loss = -logprob_M.sum() / num_learned
            use([loss])
            total += loss.item()
        return add_up(total)[0]


# --- Before and after ------------------------------------------------------------------------------------------------


def encode_conversations(
    conversations: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> tuple[list[Lesson], list[dict[str, str]]]:
    """The conversations in tokens, and those that are too long: `{"conversation_id", "reason"}`."""
    lessons: list[Lesson] = []
    refused: list[dict[str, str]] = []
    for conversation in conversations:
        documents = encode_conversation(conversation, tokenizer)
        longest = max(len(document.tokens) for document in documents)
        if longest <= max_length:
            lessons.append(Lesson(conversation, documents))
        else:
            reason = f"It has {longest} tokens, over the limit of {max_length} (max_length)."
            refused.append({"conversation_id": conversation.id, "reason": reason})
    return lessons, refused


def encode_conversation(conversation: Conversation, tokenizer: PreTrainedTokenizerBase) -> list[Document]:
    """Every assistant's turn, learned after the tokens that the model sees when it is asked for that turn.

    Turns share a document while all that came before is, token by token, the beginning of what the next one sees.
    """
    documents: list[Document] = []
    for number, turn in enumerate(conversation.messages):
        if turn["role"] != "assistant":
            continue
        is_last = number == len(conversation.messages) - 1
        asked = encode_prompt(tokenizer, conversation.messages[:number])
        finish_reason = conversation.finish_reason if is_last else None
        said = encode_answer(tokenizer, Answer(str(number), turn["content"], finish_reason))
        before = documents[-1] if documents else None
        learned_before: list[bool] = []
        if before is not None and asked[: len(before.tokens)] == before.tokens:
            learned_before = before.is_learned
            documents.pop()
        marks = [*learned_before, *[False] * (len(asked) - len(learned_before)), *[True] * len(said)]
        documents.append(Document(asked + said, marks))
    return documents


def _split(
    lessons: Sequence[Lesson], refused: Sequence[Mapping[str, str]], config: SFTConfig, report: Reporter
) -> tuple[list[Lesson], list[Lesson]]:
    """(what is learned, what tells when to stop). ValueError when there is nothing to learn."""
    for row in refused:
        report.log("warning", f"Conversation {row['conversation_id']} was left out: {row['reason']}")
    ratio = _validation_ratio(lessons, config)
    training = [lesson for lesson in lessons if lesson.conversation.split_by(ratio) == "train"]
    validation = [lesson for lesson in lessons if lesson.conversation.split_by(ratio) == "validation"]
    if not training:
        raise ValueError(
            f"There is no conversation to learn from: {len(lessons) + len(refused)} conversations, of them "
            f"{len(refused)} refused and {len(validation)} held out for validation. Add demonstrations first."
        )
    return training, validation


def _validation_ratio(lessons: Sequence[Lesson], config: SFTConfig) -> float:
    """The share to hold out: none where a row says its split (those that don't are for training then), and none where
    so few would be held out that chance would decide when to stop."""
    if any(lesson.conversation.split for lesson in lessons):
        return 0.0
    held_out = [lesson for lesson in lessons if lesson.conversation.split_by(config.validation_ratio) == "validation"]
    return config.validation_ratio if len(held_out) >= FEWEST_HELD_OUT else 0.0


def hash_conversations(conversations: Sequence[Conversation]) -> str:
    """What names this data in a manifest where no dataset does."""
    lines = [json.dumps(conversation.as_json(), sort_keys=True) for conversation in conversations]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
