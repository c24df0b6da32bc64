"""The reward model: InstructGPT's (arXiv 2203.02155, section 3.5), as one loop that is read top to bottom in `_fit`.

What differs from the paper:

1. It starts from the project's own SFT version and learns from the current rankings of all rounds; the paper's 6B model
   was trained on public NLP data before.
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
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerBase

from trainer.config import LoraConfig, RewardConfig
from trainer.data import (
    Task,
    all_rankings,
    chunk_by_length,
    encode_answer,
    encode_rankings,
    for_each_ranking,
    group_by_tokens,
    right_pad,
    split_tasks,
    spread_over_rankings,
    stack_places,
    stack_weights,
)
from trainer.distributed import (
    add_up,
    even_passes,
    is_shard,
    one_voice,
    part_of,
    put_together,
    shard,
    world,
)
from trainer.fitting import (
    Keeper,
    apply_step,
    autocast,
    checkpoint_folder,
    compute_again,
    learning_parameters,
    learning_rate_at,
    plan_batches,
    require_plain_saving,
    save_version,
)
from trainer.losses import davidson_loss, pairwise_loss, plackett_luce_loss
from trainer.models import (
    ModelSource,
    RewardModel,
    context_length,
    count_parameters,
    load_tokenizer,
)
from trainer.preferences import (
    Accuracy,
    Answer,
    Ranking,
    Ties,
    annotator_weights,
    hash_rankings,
    make_folds,
    pairwise_accuracy,
    to_rankings,
)
from trainer.reporting import Reporter, RunCancelled, RunResult, SilentReporter
from trainer.reward_report import make_report
from trainer.sampling import encode_prompt
from trainer.shared_prompt import CannotShare, SharedPrompt, share_prompt

Rows = Iterable[Mapping[str, Any] | Ranking]

PAPER_MAX_LENGTH = 2048
REFERENCE_TASKS = 2_000
"""Whose answers say where a score of 0 is."""
THETA_SPEED = 20.0
"""How much faster than a weight Davidson's theta learns: one number, which a weight's rate would hardly move."""
TOKENS_PER_STEP = 4
"""Forward passes of separate rows whose graphs one backward pass may hold at once."""


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


@dataclass(frozen=True)
class CrossValidation:
    """What held-out folds say."""

    accuracy: Accuracy
    """Over the held-out pairs of all folds; the interval resamples prompts."""
    accuracy_by_conversation: Accuracy
    """The same, resampling whole conversations: wider where prompts continue one another."""
    fold_accuracies: list[float]
    scores: list[list[float]]
    """Of the answers of each of `rankings`, by the model that had not seen its conversation."""
    rankings: list[Ranking]
    """The rankings that were used, those of a task together."""
    refused: list[dict[str, str]]
    report: dict[str, Any]
    """As `RewardResult.report`, on all rankings."""
    seconds: float


def train_reward(
    rows: Rows,
    *,
    source: ModelSource,
    config: RewardConfig,
    out: Path,
    report: Reporter,
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
    tokenizer = load_tokenizer(source)
    config = config.for_model(count_parameters(source), device)
    tasks, refused = _encode(rankings, tokenizer, source, config)
    training, validation = split_tasks(tasks, refused, report)
    config = config.for_rankings(len(all_rankings(training)))
    identity = {
        "kind": "reward",
        "config": config.as_json(),
        "dataset_sha256": dataset_sha256 or hash_rankings(rankings),
        "model": source.name,
    }
    model = _make_model(source, config, device)
    scorer = Scorer(model, pad_id=_pad_id(tokenizer), config=config)
    report.log("info", scorer.way)
    keep = Keeper(checkpoint_folder(out), identity, on_checkpoint, resume_from)
    loss = _fit(scorer, training, validation, config, report, keep)
    _centre(scorer, training)
    scores = scorer.score_tasks(validation)
    save_version(model, out, identity)
    return RewardResult(
        folder=out,
        num_rankings=len(all_rankings(training)),
        num_pairs=sum(ranking.num_pairs(_ties_of(config)) for ranking in all_rankings(training)),
        accuracy=pairwise_accuracy(all_rankings(validation), for_each_ranking(validation, scores)),
        report=_report(validation, scores, tasks, scorer=scorer if config.num_heads > 1 else None),
        loss=loss,
        seconds=time.monotonic() - started,
        refused=refused,
        tie_theta=model.tie_theta.item() if config.ties == "davidson" else None,
    )


def score(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[tuple[Sequence[Mapping[str, str]], Answer]],
    *,
    tokens_per_forward: int = 512,
) -> list[float]:
    """What each (messages, answer) is worth, in their order."""
    return score_with_doubt(model, tokenizer, conversations, tokens_per_forward=tokens_per_forward)[0]


def score_with_doubt(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[tuple[Sequence[Mapping[str, str]], Answer]],
    *,
    tokens_per_forward: int = 512,
) -> tuple[list[float], list[float]]:
    """(scores, doubts) of each (messages, answer): a doubt is the standard deviation of an ensemble's heads, and 0
    where there is one head."""
    rows = [encode_prompt(tokenizer, messages) + encode_answer(tokenizer, answer) for messages, answer in conversations]
    config = RewardConfig(tokens_per_forward=tokens_per_forward, share_prompt=False)
    with torch.no_grad():
        states_ND = Scorer(model, pad_id=_pad_id(tokenizer), config=config).last_states(rows)
        return model.score_states(states_ND).tolist(), model.member_scores(states_ND).std(dim=1, correction=0).tolist()


def cross_validate(
    rows: Rows,
    *,
    source: ModelSource,
    config: RewardConfig,
    folds: int = 5,
    report: Reporter | None = None,
    cache: StateCache | None = None,
    device: str = "cpu",
) -> CrossValidation:
    """Train `folds` reward models, each on all conversations but its fold's, and score every fold by its own model.

    Prompts of one conversation share a fold. The split of the rows plays no part. `cache` takes up what the frozen
    blocks say, for another call with the same model, adapters and rows. ValueError as in `train_reward`.
    """
    started = time.monotonic()
    report = one_voice(report or SilentReporter())
    tokenizer = load_tokenizer(source)
    config = config.for_model(count_parameters(source), device)
    tasks, refused = _encode(to_rankings(rows), tokenizer, source, config)
    for row in refused:
        report.log("warning", f"Ranking {row['ranking_id']} was left out: {row['reason']}")
    scores: list[list[float]] = [[] for _ in tasks]
    accuracies: list[float] = []
    held_out_indices = make_folds([task.rankings[0] for task in tasks], folds, seed=config.seed)
    rankings = all_rankings(tasks)
    config = config.for_rankings(len(rankings) * (folds - 1) // folds)
    cache = {} if cache is None else cache
    for number, fold in enumerate(held_out_indices):
        held_out = set(fold)
        training = [task for index, task in enumerate(tasks) if index not in held_out]
        scorer = Scorer(_make_model(source, config, device), pad_id=_pad_id(tokenizer), config=config, cache=cache)
        tested = [tasks[index] for index in fold]
        num_learned, num_tested = len(all_rankings(training)), len(all_rankings(tested))
        report.log("info", f"fold {number + 1} of {folds}: {num_learned} rankings to learn from, {num_tested} held out")
        _fit(scorer, training, [], config, report, Keeper(None, {}, None, None))
        found_scores = scorer.score_tasks(tested)
        for index, task_scores in zip(fold, found_scores, strict=True):
            scores[index] = task_scores
        found = pairwise_accuracy(all_rankings(tested), for_each_ranking(tested, found_scores))
        accuracies.append(found.value if found else math.nan)
        report.log("info", f"fold {number + 1} of {folds}: accuracy {accuracies[-1]:.3f}")
    report_of_all = _report(tasks, scores, tasks)
    ranking_scores = for_each_ranking(tasks, scores)
    overall = pairwise_accuracy(rankings, ranking_scores)
    by_conversation = pairwise_accuracy(rankings, ranking_scores, cluster=_root_of)
    if overall is None or by_conversation is None:
        raise ValueError("There is no pair to measure: every ranking is one tie.")
    return CrossValidation(
        overall,
        by_conversation,
        accuracies,
        ranking_scores,
        rankings,
        refused,
        report_of_all,
        seconds=time.monotonic() - started,
    )


# --- The loop --------------------------------------------------------------------------------------------------------


def _fit(
    scorer: Scorer,
    training: Sequence[Task],
    validation: Sequence[Task],
    config: RewardConfig,
    report: Reporter,
    keep: Keeper,
) -> float:
    """Train for `config.epochs`; returns the mean loss of the last epoch.

    Everything follows from (config.seed, step), so that a resumed run is the same run.
    """
    assert config.epochs is not None
    model = scorer.model
    if config.num_heads > 1:
        model.add_members(config.num_heads, config.seed)
    if config.ties == "davidson":
        model.learn_ties(_tie_share(training))
    weights = [parameter for parameter in learning_parameters(model) if parameter is not model.tie_theta]
    # Adam takes shards and whole weights in groups of their own only.
    kinds = [[parameter for parameter in weights if is_shard(parameter) == kind] for kind in (True, False)]
    groups = [{"params": kind, "speed": 1.0} for kind in kinds if kind]
    if config.ties == "davidson":
        groups.append({"params": [model.tie_theta], "speed": THETA_SPEED})
    optimizer = torch.optim.Adam(groups, lr=0.0, eps=config.adam_eps)
    importance = _importance(training, config)
    plan = plan_batches(
        [len(task.rankings) for task in training], config.rankings_per_batch, epochs=config.epochs, seed=config.seed
    )
    num_steps = len(plan)
    progress = keep.resume({"reward": model}, optimizer) or {"step": 0, "epoch_losses": []}
    model.average_members()

    for step in range(progress["step"], num_steps):
        if report.should_stop():
            raise RunCancelled
        # 1. The batch: tasks with their rankings, in an order that is new in every epoch.
        batch = plan[step]
        chosen = [training[index] for index in batch.indices]

        # 2. The gradient of the mean loss over the batch's rankings.
        optimizer.zero_grad()
        loss, accuracy = _accumulate(scorer, chosen, config, [importance[index] for index in batch.indices])

        # 3. The step, unless something is not finite.
        rate = learning_rate_at(step, num_steps, config)
        norm = apply_step(model, optimizer, loss, rate=rate, step=step, max_grad_norm=config.max_grad_norm)
        model.average_members()

        # 4. What it led to, and a checkpoint now and then.
        losses = [*(progress["epoch_losses"] if batch.place else []), loss]
        progress = {"step": step + 1, "epoch_losses": losses}
        metrics = {
            "loss/reward": loss,
            "accuracy/train": accuracy,
            "reward/grad_norm": norm,
            "reward/learning_rate": rate,
        }
        if config.ties == "davidson":
            metrics["reward/tie_theta"] = model.tie_theta.item()
        if batch.ends_epoch and (held_out := scorer.accuracy(validation)):
            metrics["accuracy/validation"] = held_out.value
        report.metrics(step + 1, metrics)
        report.progress(step + 1, num_steps, f"epoch {batch.epoch + 1} of {config.epochs}, loss {loss:.3f}")
        if (step + 1) % config.checkpoint_every == 0 and step + 1 < num_steps:
            keep.save({"reward": model}, optimizer, progress)
    return math.fsum(progress["epoch_losses"]) / len(progress["epoch_losses"])


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


# --- Scores ----------------------------------------------------------------------------------------------------------

StateCache = dict[str, Tensor]
"""What the frozen blocks say of a task's prompt and answers, [N, D], by the SHA-256 of its tokens."""


class Scorer:
    """Scores tasks by a reward model: a prompt is computed once for its answers wherever the model allows it.

    Where only an adapter on the last blocks learns, what the blocks below say of a task is computed apart (so that
    it does not depend on what else is in the batch) and kept while there is room.
    """

    way: str
    """Which way was taken, for the run's log."""

    def __init__(
        self, model: RewardModel, *, pad_id: int, config: RewardConfig, cache: StateCache | None = None
    ) -> None:
        self.model = model
        self._pad_id = pad_id
        self._tokens_per_forward = config.tokens_per_forward
        self._is_sharded = config.sharding == "full"
        self._autocast = partial(autocast, config)
        self._cache = {} if cache is None else cache
        self._room = config.cache_megabytes * 2**20 - sum(state.nbytes for state in self._cache.values())
        self._shared = self._share(config)

    def _share(self, config: RewardConfig) -> SharedPrompt | None:
        if not config.share_prompt:
            self.way = "Every answer is computed with a prompt of its own (share_prompt is off)."
            return None
        try:
            # Blocks that are spread over processes can't be cut in two.
            keep_states = config.cache_megabytes > 0 and not self._is_sharded
            shared = share_prompt(self.model.blocks, keep_states=keep_states)
        except CannotShare as error:
            self.way = f"Every answer is computed with a prompt of its own, as this model can't share one: {error}."
            return None
        kept = " What the frozen blocks say is kept between epochs." if shared.lower is not None else ""
        self.way = f"A prompt is computed once for all its answers (checked: the scores are the same).{kept}"
        return shared

    def last_states(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """hidden_ND of the last tokens of N rows, in their order; each computed on its own, in chunks by length."""
        # One pass where the model is spread over processes: all must make as many.
        tokens_per_forward = sys.maxsize if self._is_sharded else self._tokens_per_forward
        chunks = chunk_by_length([len(row) for row in rows], tokens_per_forward)
        device = self.model.head.weight.device
        found: list[Tensor] = []
        for chunk in chunks:
            tokens_BL, mask_BL = right_pad([rows[index] for index in chunk], pad_id=self._pad_id)
            found.append(self.model.last_states(tokens_BL.to(device), mask_BL.to(device)))
        order = torch.tensor([index for chunk in chunks for index in chunk])
        return torch.cat(found)[order.argsort().to(device)]

    def scores(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """score_N of N rows, each computed on its own."""
        return self.model.score_states(self.last_states(rows))

    def groups(self, tasks: Sequence[Task]) -> list[list[Task]]:
        """The tasks in their order, in parts that `group_scores` takes at once."""
        shares_prompt = self._shared is not None
        max_tokens = self._tokens_per_forward * (1 if shares_prompt or self._is_sharded else TOKENS_PER_STEP)
        return group_by_tokens(tasks, max_tokens, shares_prompt=shares_prompt)

    def even(self, groups: list[list[Task]], spare: Sequence[Task]) -> list[list[Task]]:
        """With the model spread over processes: spare groups where others have more, since all must compute alike."""
        return even_passes(groups, list(spare)) if self._is_sharded else groups

    def group_scores(self, group: Sequence[Task]) -> Tensor:
        """scores_BKE of tasks by each of the E heads; 0 where a task has fewer than K answers."""
        scores_NE = self.model.member_scores(self._group_states(group))
        parts = torch.split(scores_NE, [len(task.rows) for task in group])
        return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)

    @torch.no_grad()
    def score_tasks(self, tasks: Sequence[Task]) -> list[list[float]]:
        """The scores of each task's answers."""
        values = iter(self._all_scores(tasks, self.model.score_states).tolist())
        return [[next(values) for _ in task.rows] for task in tasks]

    @torch.no_grad()
    def score_members(self, tasks: Sequence[Task]) -> Tensor:
        """score_NE of all the tasks' answers, one after another, by each head."""
        return self._all_scores(tasks, self.model.member_scores)

    def _all_scores(self, tasks: Sequence[Task], head: Callable[[Tensor], Tensor]) -> Tensor:
        """What a head says of all the tasks' answers, one after another; each process computes a part."""
        none_ND = self.model.head.weight.new_zeros(0, self.model.head.in_features)
        groups = self.groups(part_of(tasks))
        parts = [head(self._group_states(group)) for group in self.even(groups, tasks[:1])]
        return put_together(torch.cat([head(none_ND), *parts[: len(groups)]]), [len(task.rows) for task in tasks])

    def accuracy(self, tasks: Sequence[Task]) -> Accuracy | None:
        """Pairwise accuracy on the rankings; None when they hold no pair."""
        if not tasks:
            return None
        return pairwise_accuracy(all_rankings(tasks), for_each_ranking(tasks, self.score_tasks(tasks)))

    def _group_states(self, group: Sequence[Task]) -> Tensor:
        """hidden_ND of the last tokens of all answers of these tasks, one after another."""
        # Heads and losses stay in fp32.
        with self._autocast(self.model.head.weight.device.type):
            return self._states_of(group)

    def _states_of(self, group: Sequence[Task]) -> Tensor:
        if self._shared is None:
            return self.last_states([row for task in group for row in task.rows])
        packed = self._shared.pack([(task.prompt, task.answers) for task in group])
        if self._shared.lower is None:
            return self._shared.last_states(packed)
        return self._shared.last_states(packed, torch.cat([self._states(task, self._shared) for task in group]))

    def _states(self, task: Task, shared: SharedPrompt) -> Tensor:
        """What the frozen blocks say of this task alone; kept up to `cache_megabytes`."""
        key = hashlib.sha256(json.dumps([task.num_prompt_tokens, *task.rows]).encode()).hexdigest()
        if key in self._cache:
            return self._cache[key]
        states_ND = shared.states(shared.pack([(task.prompt, task.answers)]))
        if states_ND.nbytes <= self._room:
            self._room -= states_ND.nbytes
            self._cache[key] = states_ND
        return states_ND


# --- Before and after ------------------------------------------------------------------------------------------------


def _make_model(source: ModelSource, config: RewardConfig, device: str) -> RewardModel:
    lora = config.lora
    assert lora is None or isinstance(lora, LoraConfig)
    is_sharded = config.sharding == "full" and world().size > 1
    # Shards go to their GPUs block by block: the whole may be too large for one.
    model = RewardModel.from_sft(source, lora, seed=config.seed, device="cpu" if is_sharded else device)
    if config.gradient_checkpointing:
        compute_again(model.blocks)
    if is_sharded:
        require_plain_saving(source, has_adapter=model.has_adapter)
        shard(model.blocks, device)
    return model.to(device)


def _encode(
    rankings: Sequence[Ranking], tokenizer: PreTrainedTokenizerBase, source: ModelSource, config: RewardConfig
) -> tuple[list[Task], list[dict[str, str]]]:
    context = context_length(AutoConfig.from_pretrained(source.weights, local_files_only=True, trust_remote_code=False))
    max_length = min(context, config.max_length or PAPER_MAX_LENGTH)
    return encode_rankings(rankings, tokenizer, max_length=max_length, ties=_ties_of(config))


def _ties_of(config: RewardConfig) -> Ties:
    """Plackett-Luce learns from ties; its loss looks at places, not at weights of pairs."""
    return "half" if config.loss == "plackett_luce" else config.ties


def _report(
    tasks: Sequence[Task],
    scores: Sequence[Sequence[float]],
    people: Sequence[Task],
    *,
    scorer: Scorer | None = None,
) -> dict[str, Any]:
    """The report; with the scorer of an ensemble, accuracy by doubt is in it."""
    lengths = [[len(answer) for answer in task.answers] for task in tasks]
    members = [scorer.score_members([task]).tolist() for task in tasks] if scorer else None
    return make_report(
        all_rankings(tasks),
        for_each_ranking(tasks, scores),
        for_each_ranking(tasks, lengths),
        people=all_rankings(people),
        members=for_each_ranking(tasks, members) if members else None,
    )


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    return int(str(tokenizer.pad_token_id))


def _root_of(ranking: Ranking) -> Hashable:
    return ranking.root
