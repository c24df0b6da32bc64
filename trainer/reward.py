"""The reward model: InstructGPT's (arXiv 2203.02155, section 3.5), as one loop that is read top to bottom in `fit`.

What differs from the paper:

1. It starts from the project's own SFT version, or goes on from an earlier reward model (`start`), and learns from the
   current rankings of all rounds, or of a share of the older ones where it goes on (`replay_share`); the paper's 6B
   model was trained on public NLP data before.
2. On a CPU, a model of over 50M parameters learns through adapters on its last blocks. What the blocks below say of an
   answer never changes then: it is computed once and kept from one epoch to the next (exact, not an approximation).
3. Tied answers are dropped as in the paper, or count one half both ways, or are a third answer that Davidson's model
   learns. A ranking may be partial: an answer without a place is missing, not last. Plackett-Luce's loss of the whole
   order, margins, label smoothing and weights of annotators are there to choose, and off.
4. Up to a few hundred rankings are read three times, and at a higher rate: one pass in so few steps hardly moves a
   fresh head (pocket model, 200 rankings: held-out accuracy 0.70 after one epoch at 1e-4, 0.80 after three at 1e-3).
5. The rate rises over the first steps; the paper names no warm-up. Batches are of 8 rankings where it took 64, because
   a project begins with tens of rankings.
6. Afterwards the bias makes the mean score of the *training answers* 0 (of up to 2,000 tasks), where the paper took
   demonstrations.
7. A prompt is computed once for its K answers, and an answer once for all who ranked it, in training too
   (`shared_prompt.py`, `data.Task`); scores and gradients are those of separate rows and rankings. The paper forwards
   each answer once a ranking, with its prompt.
8. The transformer may go on learning to write the answers that people liked best (`text_coefficient`, off): rankings
   are few and noisy, and what they alone leave of a small model knows less of language than before (GRM, 2406.10216).
9. The head may read, beside the last hidden state, how likely that language model finds the answer
   (`likelihood_weight`, off).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from trainer.config import LoraConfig, RewardConfig
from trainer.data import (
    Task,
    all_rankings,
    encode_rankings,
    for_each_ranking,
    split_tasks,
    spread_over_rankings,
    stack_places,
    stack_weights,
)
from trainer.distributed import add_up, one_voice, part_of, shard
from trainer.fitting import (
    Keeper,
    apply_step,
    as_spread,
    autocast,
    checkpoint_folder,
    compute_again,
    identity_of,
    is_spread,
    length_limit,
    loading_place,
    make_optimizer,
    mean,
    plan_batches,
    require_plain_saving,
    save_version,
    say_step,
)
from trainer.folders import sha256_file
from trainer.losses import davidson_loss, pairwise_loss, plackett_luce_loss
from trainer.packing import Document, Packed, learned_logprobs, pack
from trainer.preferences import (
    Accuracy,
    Ranking,
    Ties,
    annotator_weights,
    hash_rankings,
    pairwise_accuracy,
    replayed,
    to_rankings,
)
from trainer.reporting import Reporter, RunResult, stop_if_cancelled
from trainer.reward_model import REWARD_HEAD, RewardModel
from trainer.reward_report import make_report
from trainer.scorer import Scorer, pad_id_of
from trainer.weights import ModelSource, count_parameters, load_tokenizer

Rows = Iterable[Mapping[str, Any] | Ranking]

REFERENCE_TASKS = 2_000
"""Whose answers say where a score of 0 is."""
THETA_SPEED = 20.0
"""How much faster than a weight Davidson's theta learns: one number, which a weight's rate would hardly move."""


@dataclass(frozen=True)
class RewardResult(RunResult):
    """What a `reward` run reports, and the folder of its version."""

    folder: Path
    num_rankings: int
    """Rankings that were learned from."""
    num_pairs: int
    accuracy: Accuracy | None
    """On the validation rows; None where there are none."""
    loss: float
    """Mean over the last epoch."""
    seconds: float
    report: dict[str, Any]
    """What else the validation rows say, beside people's own agreement (docs/protocol.md)."""
    refused: list[dict[str, str]] = field(default_factory=list)
    tie_theta: float | None = None
    """Davidson's theta, where ties are learned by it: two answers of equal worth are tied with the chance
    nu / (2 + nu), nu = e^theta."""


def train_reward(
    rows: Rows,
    *,
    source: ModelSource,
    config: RewardConfig,
    out: Path,
    report: Reporter,
    start: ModelSource | None = None,
    on_checkpoint: Callable[[Path], None] | None = None,
    resume_from: Path | None = None,
    dataset_sha256: str | None = None,
    device: str = "cpu",
) -> RewardResult:
    """Train a reward model on the rows whose split is "train" and measure it on those of "validation".

    Args:
        rows: a dataset's rows (docs/protocol.md), or what `preferences.read_rankings` gave.
        source: the project's SFT version.
        out: the version's folder; appears when all is done. Checkpoints lie beside it, in `<out>.checkpoint`.
        start: a reward version to go on from (a warm start); left out, a fresh one learns on the SFT version's weights.
        on_checkpoint: is called with the checkpoint's folder whenever a new one is complete.
        resume_from: a checkpoint's folder; the run goes on bit for bit (on a CPU) as if it had not been interrupted.
        dataset_sha256: the dataset's hash; left out, it is computed from the rows.

    Raises:
        ValueError: nothing to learn from, a bad row, another run's checkpoint, or a loss that is not finite.
        RunCancelled: the reporter said stop.
    """
    started = time.monotonic()
    report = one_voice(report)
    rankings = to_rankings(rows)
    config = config.for_model(count_parameters(source), device)
    tasks, refused = encode_tasks(rankings, source, config)
    training, validation = split_tasks(tasks, refused, report)
    if start is not None:
        training = _replayed(training, config, report)
    config = config.for_rankings(len(all_rankings(training)), goes_on=start is not None)
    name = dataset_sha256 or hash_rankings(rankings)
    identity = identity_of("reward", config, source, {"sft": source}, dataset_sha256=name)
    model = make_reward_model(source, config, device, start=start)
    if start is not None and start.version is not None:
        identity["start"] = sha256_file(start.version / REWARD_HEAD)
        report.log("info", "It goes on from an earlier reward model.")
    scorer = Scorer(model, pad_id=pad_id_of(load_tokenizer(source)), config=config)
    report.log("info", scorer.way)
    keep = Keeper(checkpoint_folder(out), identity, on_checkpoint, resume_from)
    writer = model.writer(source) if config.text_coefficient else None
    loss = fit(scorer, training, validation, config, report, keep, writer)
    _centre(scorer, training)
    scores = scorer.score_tasks(validation)
    result = RewardResult(
        folder=out,
        num_rankings=len(all_rankings(training)),
        num_pairs=sum(ranking.num_pairs(_ties_of(config)) for ranking in all_rankings(training)),
        accuracy=pairwise_accuracy(all_rankings(validation), for_each_ranking(validation, scores)),
        report=report_on(validation, scores, tasks, scorer=scorer if config.num_heads > 1 else None),
        loss=loss,
        seconds=time.monotonic() - started,
        refused=refused,
        tie_theta=model.tie_theta.item() if config.ties == "davidson" else None,
    )
    save_version(model, out, identity)
    return result


def _replayed(training: Sequence[Task], config: RewardConfig, report: Reporter) -> list[Task]:
    """What a warm start reads: of what was there before the newest policy, a share (`replay_share`)."""
    kept = [
        training[index]
        for index in replayed([task.rankings for task in training], config.replay_share, seed=config.seed)
    ]
    if len(kept) < len(training):
        report.log(
            "info",
            f"It reads {len(kept)} of {len(training)} ranked tasks again: those of the newest policy, and "
            f"of older ones a share of {config.replay_share:g}.",
        )
    return kept


# --- The loop --------------------------------------------------------------------------------------------------------


@dataclass
class Progress:
    """Where a run stands; plain numbers, so that a checkpoint keeps it as JSON."""

    step: int = 0
    epoch_losses: list[float] = field(default_factory=list)


def fit(
    scorer: Scorer,
    training: Sequence[Task],
    validation: Sequence[Task],
    config: RewardConfig,
    report: Reporter,
    keep: Keeper,
    writer: PreTrainedModel | None = None,
) -> float:
    """Train for `config.epochs`; returns the mean loss of the last epoch, of the rankings alone.

    `writer`: the language model on the same transformer, where it learns from text, too (`text_coefficient`).

    Everything follows from (config.seed, step), so that a resumed run is the same run.
    """
    assert config.epochs is not None
    model = scorer.model
    _add_heads(model, training, config)
    fast = [model.tie_theta] if config.ties == "davidson" else []
    optimizer = make_optimizer(model, config, fast=fast, speed=THETA_SPEED)
    importance = _importance(training, config)
    sizes = [len(task.rankings) for task in training]
    plan = plan_batches(sizes, config.rankings_per_batch, epochs=config.epochs, seed=config.seed)
    progress = Progress(**(keep.resume({"reward": model}, {"reward": optimizer}) or {}))
    model.average_members()

    while progress.step < len(plan):
        stop_if_cancelled(report)
        # 1. The batch: tasks with their rankings, in an order that is new in every epoch.
        batch = plan[progress.step]
        chosen = [training[index] for index in batch.indices]

        # 2. The gradient of the mean loss over the batch's rankings.
        optimizer.zero_grad()
        loss, accuracy = _accumulate(scorer, chosen, config, [importance[index] for index in batch.indices])
        text_loss = _accumulate_text(writer, scorer, chosen, config) if writer else 0.0

        # 3. The step, unless something is not finite.
        whole = loss + config.text_coefficient * text_loss
        norm, rate = apply_step(model, optimizer, whole, step=progress.step, num_steps=len(plan), config=config)
        model.average_members()
        progress.step += 1
        progress.epoch_losses = batch.append(loss, progress.epoch_losses)

        # 4. What it led to, and a checkpoint now and then.
        metrics = {"loss/reward": loss, "accuracy/train": accuracy}
        metrics |= {"reward/grad_norm": norm, "reward/learning_rate": rate}
        if writer:
            metrics["loss/text"] = text_loss
        if config.ties == "davidson":
            metrics["reward/tie_theta"] = model.tie_theta.item()
        if batch.ends_epoch and (held_out := scorer.accuracy(validation)):
            metrics["accuracy/validation"] = held_out.value
        say_step(report, metrics, loss, step=progress.step, num_steps=len(plan), batch=batch, epochs=config.epochs)
        if keep.is_due(progress.step, len(plan), config):
            keep.save({"reward": model}, {"reward": optimizer}, dataclasses.asdict(progress))
    return mean(progress.epoch_losses)


def _add_heads(model: RewardModel, training: Sequence[Task], config: RewardConfig) -> None:
    """What learns beside the one head, where the settings ask for it."""
    model.have_members(config.num_heads, config.seed)
    if config.ties == "davidson":
        model.learn_ties(_tie_share(training))


def _accumulate(
    scorer: Scorer, batch: Sequence[Task], config: RewardConfig, importance: Sequence[Tensor]
) -> tuple[float, float]:
    """Gradients of the batch's loss, the mean over heads, into the parameters: this process's part of them.

    The loss is the mean over the batch's rankings, each with its importance ([R, E] of each task): that of rankings
    whose answers are computed apart. Returns, of the whole batch, (loss, share of the ordered pairs that the mean score
    has in the right order).
    """
    loss = right = total = 0.0
    whole_E = torch.cat(list(importance)).sum(dim=0).clamp(min=1e-9)
    own = iter(part_of(importance))
    groups = scorer.groups(part_of(batch))
    for number, group in enumerate(scorer.even(groups, batch[:1])):
        scores_BKE = scorer.group_scores(group)
        if number >= len(groups):
            torch.autograd.backward([0.0 * scores_BKE.sum()])
            continue
        scores_RKE = spread_over_rankings(scores_BKE, group)
        importance_RE = torch.cat([next(own) for _ in group])
        share_E = (importance_RE.sum(dim=0) / whole_E).tolist()
        losses = [
            ranking_loss(scores_RK, group, config, scorer.model.tie_theta, importance_R) * share
            for scores_RK, importance_R, share in zip(
                scores_RKE.unbind(2), importance_RE.unbind(1), share_E, strict=True
            )
        ]
        group_loss = torch.stack(losses).mean()
        torch.autograd.backward([group_loss])
        loss += group_loss.item()
        scores_RK = scores_RKE.mean(dim=2)
        is_better_RKK = stack_weights(group).to(scores_RK.device) == 1.0
        won_RKK = (scores_RK[:, :, None] > scores_RK[:, None, :])[is_better_RKK]
        right, total = right + won_RKK.sum().item(), total + won_RKK.numel()
    loss, right, total = add_up(loss, right, total)
    return loss, right / max(total, 1.0)


def _accumulate_text(writer: PreTrainedModel, scorer: Scorer, batch: Sequence[Task], config: RewardConfig) -> float:
    """Gradients of `text_coefficient` times the loss of writing each task's favourite answer after its prompt, into the
    parameters: this process's part of them. Returns the loss, the mean over the batch's tokens of these answers."""
    num_learned = sum(lesson.num_learned for lesson in map(_lesson, batch))
    lessons = [_lesson(task) for task in part_of(batch)]
    total = 0.0
    for part in pack(lessons, tokens_per_forward=config.tokens_per_forward, pad_id=scorer.pad_id, is_packing=False):
        with autocast(config, writer.device.type):
            logprob_M, _ = learned_logprobs(writer, Packed(*(tensor.to(writer.device) for tensor in part)))
        loss = -logprob_M.sum() / max(1, num_learned)
        torch.autograd.backward([config.text_coefficient * loss])
        total += loss.item()
    return add_up(total)[0]


def _lesson(task: Task) -> Document:
    """The prompt and the favourite answer, of which the answer is learned."""
    row = task.rows[task.favourite]
    return Document(row, [place >= task.num_prompt_tokens for place in range(len(row))])


def ranking_loss(
    scores_RK: Tensor, group: Sequence[Task], config: RewardConfig, theta: Tensor, importance_R: Tensor
) -> Tensor:
    """The loss that the settings name: the mean over the rankings of these tasks, each with its importance."""
    device = scores_RK.device
    place_RK, importance_R = stack_places(group).to(device), importance_R.to(device)
    if config.loss == "plackett_luce":
        return plackett_luce_loss(scores_RK, place_RK, importance_B=importance_R)
    weight_RKK = stack_weights(group).to(device)
    # Where one of two has no place, no order of the two counts, and the margin has no effect.
    margin_RKK = config.margin * (place_RK[:, None, :] - place_RK[:, :, None]) if config.margin else None
    loss = partial(davidson_loss, theta=theta) if config.ties == "davidson" else pairwise_loss
    return loss(
        scores_RK,
        weight_RKK,
        margin_BKK=margin_RKK,
        label_smoothing=config.label_smoothing,
        importance_B=importance_R,
    )


def _importance(training: Sequence[Task], config: RewardConfig) -> list[Tensor]:
    """importance_RE of each task's rankings to each head: by its annotator, and in an ensemble by how often a
    resampling of the rankings (Poisson, with mean 1) holds it."""
    rankings = all_rankings(training)
    reliability = annotator_weights(rankings) if config.annotators == "agreement" else {}
    importance_NE = torch.tensor([reliability.get(ranking.annotator, 1.0) for ranking in rankings])[:, None]
    if config.num_heads > 1:
        generator = torch.Generator().manual_seed(config.seed)
        importance_NE = importance_NE * torch.poisson(torch.ones(len(rankings), config.num_heads), generator=generator)
    return list(importance_NE.split([len(task.rankings) for task in training]))


def _tie_share(training: Sequence[Task]) -> float:
    """Of all pairs with places, those in the same one; never quite none and never quite all."""
    tied = sum(len(ranking.tied_pairs) for ranking in all_rankings(training))
    ordered = sum(len(ranking.ordered_pairs) for ranking in all_rankings(training))
    return (tied + 0.5) / (tied + ordered + 1.0)


@torch.no_grad()
def _centre(scorer: Scorer, training: Sequence[Task]) -> None:
    """Shift the scores so that those of the training answers have mean 0, and remember how they spread.

    Of many tasks, every n-th is looked at: the mean of 2,000 is known to a fiftieth of the spread or better.
    """
    reference = training[:: math.ceil(len(training) / REFERENCE_TASKS)]
    score_NE = scorer.score_members(reference).double()
    scorer.model.shift(score_NE.mean(dim=0))
    scorer.model.score_std = score_NE.mean(dim=1).std(correction=0).item()


# --- Before and after ------------------------------------------------------------------------------------------------


def make_reward_model(
    source: ModelSource, config: RewardConfig, device: str, *, start: ModelSource | None = None
) -> RewardModel:
    """A reward model to train, fresh or as an earlier one was; `config` has been through `for_model`."""
    lora = config.lora
    assert lora is None or isinstance(lora, LoraConfig)
    spread = as_spread(source if start is None else start, config)
    begin = RewardModel.from_sft if start is None else RewardModel.load
    model = begin(spread, lora=lora, seed=config.seed, device=loading_place(spread, config, device))
    if config.likelihood_weight:
        model.read_likelihood(config.likelihood_weight, source)
    if config.gradient_checkpointing:
        compute_again(model.blocks)
    if is_spread(config):
        require_plain_saving(start or source, has_adapter=model.has_adapter)
        model.require_no_likelihood()
        shard(model.blocks, device)
    return model.to(device)


def encode_tasks(
    rankings: Sequence[Ranking], source: ModelSource, config: RewardConfig
) -> tuple[list[Task], list[dict[str, str]]]:
    """The rankings in tokens, those of the same answers together, and those that are refused."""
    facts = AutoConfig.from_pretrained(source.weights, local_files_only=True, trust_remote_code=False)
    limit = length_limit(facts, config)
    return encode_rankings(rankings, load_tokenizer(source), max_length=limit, ties=_ties_of(config))


def _ties_of(config: RewardConfig) -> Ties:
    """Plackett-Luce learns from ties; its loss looks at places, not at weights of pairs."""
    return "half" if config.loss == "plackett_luce" else config.ties


def report_on(
    tasks: Sequence[Task],
    scores: Sequence[Sequence[float]],
    people: Sequence[Task],
    *,
    scorer: Scorer | None = None,
) -> dict[str, Any]:
    """What the scores of these tasks are worth, beside what `people` agree on; with the scorer of an ensemble,
    accuracy by doubt is in it."""
    lengths = [[len(answer) for answer in task.answers] for task in tasks]
    members = [scorer.score_members([task]).tolist() for task in tasks] if scorer else None
    return make_report(
        all_rankings(tasks),
        for_each_ranking(tasks, scores),
        for_each_ranking(tasks, lengths),
        people=all_rankings(people),
        members=for_each_ranking(tasks, members) if members else None,
    )
