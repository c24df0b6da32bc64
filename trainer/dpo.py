"""DPO on rankings (arXiv 2305.18290): a policy learns from people's orders without a reward model, in `_fit`.

The policy is its own reward model: of an answer y to x, r(x, y) = beta log(pi(y|x) / pi_ref(y|x)). What differs from
the paper:

1. One batch element is one ranking of K answers, as for our reward model: each answer is forwarded once, the loss is
   the mean over the ranking's pairs, then over the rankings. The paper knows pairs only; a ranking of nine, cut into
   its 36 pairs, would count 36 times and be forwarded 72 times.
2. Ties are dropped, or count one half both ways, or have a probability of their own by Davidson's model, as in
   2409.17431 (DPO-D), with its fixed nu. That paper found that ties keep the policy near its reference.
3. The reference's log-probabilities are computed once, before the first step, and its weights are let go: where the
   policy starts as the reference, they are the policy's own.
4. Adam, and a cosine down to a tenth after the warm-up; the paper took RMSprop, and a constant rate.
5. An answer that was cut by length is learned without an EOS that it never had.
6. On a CPU, a model of over 50M parameters learns through adapters on its last blocks.
7. A prompt is forwarded with each of its K answers, not once for all of them.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainer.config import DPOConfig
from trainer.data import (
    Task,
    all_rankings,
    encode_rankings,
    for_each_ranking,
    group_by_tokens,
    split_tasks,
    spread_over_rankings,
    stack_weights,
)
from trainer.distributed import add_up, even_passes, one_voice, part_of, put_together, shard
from trainer.fitting import (
    Keeper,
    apply_step,
    as_spread,
    autocast,
    checkpoint_folder,
    identity_of,
    is_spread,
    length_limit,
    loading_place,
    make_optimizer,
    make_policy,
    mean,
    plan_batches,
    save_version,
    say_step,
)
from trainer.losses import davidson_loss, pairwise_loss
from trainer.models import Policy
from trainer.packing import Document, Packed, can_pack, learned_logprobs, pack
from trainer.preferences import Accuracy, Ranking, Ties, hash_rankings, pairwise_accuracy, to_rankings
from trainer.reporting import Reporter, RunResult, stop_if_cancelled
from trainer.weights import ModelSource, count_parameters, load_causal_lm, load_tokenizer

Item = TypeVar("Item")


@dataclass(frozen=True)
class DPOResult(RunResult):
    """What a `dpo` run reports, and the folder of its version."""

    folder: Path
    num_rankings: int
    """Rankings that were learned from."""
    num_pairs: int
    """Their pairs that count, ties among them unless they are dropped."""
    accuracy: Accuracy | None
    """Of the implicit reward on the validation rows; None where there are none."""
    loss: float
    """Mean over the last epoch."""
    margin: float
    """Mean over the last epoch's ordered pairs: how much more reward the better answer has."""
    seconds: float
    refused: list[dict[str, str]] = field(default_factory=list)


@dataclass
class Progress:
    """Where a run stands; plain numbers, so that a checkpoint keeps it as JSON."""

    step: int = 0
    epoch_losses: list[float] = field(default_factory=list)
    epoch_margins: list[float] = field(default_factory=list)


def train_dpo(
    rows: Iterable[Mapping[str, Any] | Ranking],
    *,
    sft: ModelSource,
    policy: ModelSource,
    config: DPOConfig,
    out: Path,
    report: Reporter,
    on_checkpoint: Callable[[Path], None] | None = None,
    resume_from: Path | None = None,
    dataset_sha256: str | None = None,
    device: str = "cpu",
) -> DPOResult:
    """Teach `policy` the orders of the rows whose split is "train", near `sft`; measure it on those of "validation".

    Args:
        rows: a dataset's rows (docs/protocol.md), or what `preferences.read_rankings` gave.
        sft: the reference, always the project's SFT version.
        policy: the version to start from, usually `sft` itself.
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
    tokenizer = load_tokenizer(policy)
    config = config.for_model(count_parameters(policy), device)
    reference = _load_reference(sft, policy, config, device)
    learner = make_policy(policy, config, device)
    limit = length_limit(learner.model.config, config)
    tasks, refused = encode_rankings(rankings, tokenizer, max_length=limit, ties=_ties_of(config))
    training, validation = split_tasks(tasks, refused, report)
    name = dataset_sha256 or hash_rankings(rankings)
    identity = identity_of("dpo", config, policy, {"sft": sft, "policy": policy}, dataset_sha256=name)
    rewards = ImplicitReward(learner, reference, tokenizer, config, device)
    rewards.compute_reference(training, validation, report)
    keep = Keeper(checkpoint_folder(out), identity, on_checkpoint, resume_from)
    progress = _fit(rewards, training, validation, config, report, keep)
    result = DPOResult(
        folder=out,
        num_rankings=len(all_rankings(training)),
        num_pairs=sum(ranking.num_pairs(_ties_of(config)) for ranking in all_rankings(training)),
        accuracy=rewards.accuracy(validation),
        loss=mean(progress.epoch_losses),
        margin=mean(progress.epoch_margins),
        seconds=time.monotonic() - started,
        refused=refused,
    )
    save_version(learner, out, identity)
    return result


def _ties_of(config: DPOConfig) -> Ties:
    """A tie has no weight as an ordered pair, but a ranking of ties alone is something to learn from."""
    return "drop" if config.ties == "drop" else "half"


# --- The loop --------------------------------------------------------------------------------------------------------


def _fit(
    rewards: ImplicitReward,
    training: Sequence[Task],
    validation: Sequence[Task],
    config: DPOConfig,
    report: Reporter,
    keep: Keeper,
) -> Progress:
    """Train for `config.epochs`. Everything follows from (config.seed, step): a resumed run is the same run."""
    sizes = [len(task.rankings) for task in training]
    plan = plan_batches(sizes, config.rankings_per_batch, epochs=config.epochs, seed=config.seed)
    policy = rewards.policy
    optimizer = make_optimizer(policy, config)
    progress = Progress(**(keep.resume({"policy": policy}, {"policy": optimizer}) or {}))

    while progress.step < len(plan):
        stop_if_cancelled(report)
        # 1. The batch: tasks with their rankings, in an order that is new in every epoch.
        batch = plan[progress.step]

        # 2. The gradient of the mean loss over the batch's rankings, and the step.
        optimizer.zero_grad()
        loss, metrics = _accumulate(rewards, [training[index] for index in batch.indices], config)
        norm, rate = apply_step(policy, optimizer, loss, step=progress.step, num_steps=len(plan), config=config)
        progress.step += 1
        progress.epoch_losses = batch.append(loss, progress.epoch_losses)
        progress.epoch_margins = batch.append(metrics["dpo/margin"], progress.epoch_margins)

        # 3. What it led to, and a checkpoint now and then.
        metrics |= {"loss/dpo": loss, "dpo/grad_norm": norm, "dpo/learning_rate": rate}
        if batch.ends_epoch and (held_out := rewards.accuracy(validation)):
            metrics["accuracy/validation"] = held_out.value
        say_step(report, metrics, loss, step=progress.step, num_steps=len(plan), batch=batch, epochs=config.epochs)
        if keep.is_due(progress.step, len(plan), config):
            keep.save({"policy": policy}, {"policy": optimizer}, dataclasses.asdict(progress))
    return progress


# B = tasks, R = their rankings, K = answers of a task, N = all answers of a batch
def dpo_loss(reward_RK: Tensor, weight_RKK: Tensor, config: DPOConfig) -> Tensor:
    """The mean over the rankings of the mean over a ranking's pairs of -log p, rewards being implicit ones.

    `weight_RKK` is 1 where row beats column and one half, both ways, where they are tied.
    """
    if config.ties == "davidson":
        return davidson_loss(reward_RK, weight_RKK, reward_RK.new_tensor(config.tie_nu).log())
    return pairwise_loss(reward_RK, weight_RKK)


def _accumulate(rewards: ImplicitReward, batch: Sequence[Task], config: DPOConfig) -> tuple[float, dict[str, float]]:
    """Gradients of the batch's loss into the parameters, a few whole tasks at a time, and of this process's part of
    the batch; the loss of the whole batch, and means."""
    loss = reward = margin = num_right = 0.0
    num_pairs, num_rankings = 0, len(all_rankings(batch))
    groups = group_by_tokens(part_of(batch), config.tokens_per_forward, shares_prompt=False)
    for number, group in enumerate(rewards.even(groups, batch[:1])):
        is_spare = number >= len(groups)
        reward_N = rewards.of(group)
        reward_RK = spread_over_rankings(_by_task(reward_N, group), group)
        weight_RKK = stack_weights(group).to(rewards.device)
        group_loss = dpo_loss(reward_RK, weight_RKK, config) * (0 if is_spare else len(reward_RK)) / num_rankings
        torch.autograd.backward([group_loss])
        if is_spare:
            continue
        loss += group_loss.item()
        margin_M = (reward_RK[:, :, None] - reward_RK[:, None, :]).detach()[weight_RKK == 1.0]
        reward, margin = reward + reward_N.sum().item(), margin + margin_M.sum().item()
        num_right, num_pairs = num_right + (margin_M > 0).sum().item(), num_pairs + len(margin_M)
    loss, reward, margin, num_right, num_all_pairs = add_up(loss, reward, margin, num_right, num_pairs)
    return loss, {
        "accuracy/train": num_right / max(1.0, num_all_pairs),
        "dpo/margin": margin / max(1.0, num_all_pairs),
        "dpo/reward": reward / sum(len(task.rows) for task in batch),
    }


def _by_task(value_N: Tensor, batch: Sequence[Task]) -> Tensor:
    """value_BK; 0 where a task has fewer than K answers."""
    parts = torch.split(value_N, [len(task.rows) for task in batch])
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)


class ImplicitReward:
    """r = beta (log pi - log pi_ref), summed over an answer's tokens."""

    def __init__(
        self,
        policy: Policy,
        reference: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerBase,
        config: DPOConfig,
        device: str,
    ) -> None:
        """`reference`: None where it is the policy as it is now."""
        self.policy = policy
        self.device = device
        self._reference = reference
        self._reference_logprobs: dict[tuple[tuple[int, ...], ...], Tensor] = {}
        self._pad_id = int(str(tokenizer.pad_token_id))
        self._config = config
        self._is_packing = can_pack(policy.model)

    def compute_reference(self, training: Sequence[Task], validation: Sequence[Task], report: Reporter) -> None:
        """The reference's log-probabilities of all answers, once and for all; its weights are let go."""
        for name, part in (("training", training), ("validation", validation)):
            report.log("info", f"Computing the reference's log-probabilities of {len(part)} tasks for {name}.")
            self.add_reference(part)
        self._reference = None

    @torch.no_grad()
    def add_reference(self, tasks: Sequence[Task]) -> None:
        """Compute the reference's log-probabilities of these rankings' answers."""
        model = self._reference or self.policy.model
        parts = self._of_each(tasks, lambda task: self._logprobs(model, [task]))
        self._reference_logprobs |= {_key(task): part for task, part in zip(tasks, parts, strict=True)}

    def of(self, tasks: Sequence[Task]) -> Tensor:
        """reward_N of all answers of these rankings, one after another."""
        reference_N = torch.cat([self._reference_logprobs[_key(task)] for task in tasks])
        return self._config.beta * (self._logprobs(self.policy.model, tasks) - reference_N)

    @torch.no_grad()
    def accuracy(self, tasks: Sequence[Task]) -> Accuracy | None:
        """Pairwise accuracy of the implicit reward; None when there is no ordered pair."""
        if not tasks:
            return None
        scores = [part.tolist() for part in self._of_each(tasks, lambda task: self.of([task]))]
        return pairwise_accuracy(all_rankings(tasks), for_each_ranking(tasks, scores))

    def _of_each(self, tasks: Sequence[Task], compute: Callable[[Task], Tensor]) -> list[Tensor]:
        """`compute` of every ranking, one number an answer; each process computes a part of them."""
        counts = [len(task.rows) for task in tasks]
        none_N, mine = torch.zeros(0, device=self.device), part_of(tasks)
        found = [compute(task) for task in self.even(mine, tasks[0])] if tasks else []
        all_N = put_together(torch.cat([none_N, *found[: len(mine)]]), counts)
        return list(torch.split(all_N, counts))

    def even(self, parts: Sequence[Item], spare: Item) -> Sequence[Item]:
        """With the policy spread over processes: spare parts where others have more, since all must compute alike."""
        return even_passes(parts, spare) if self._config.sharding == "full" else parts

    def _logprobs(self, model: PreTrainedModel, tasks: Sequence[Task]) -> Tensor:
        """log p of each answer as a whole, in fp32: [N]."""
        documents = [
            Document(row, [place >= task.num_prompt_tokens for place in range(len(row))])
            for task in tasks
            for row in task.rows
        ]
        # One pass where the policy is spread: all processes must make as many.
        is_sharded = self._config.sharding == "full"
        parts = pack(
            documents,
            tokens_per_forward=sys.maxsize if is_sharded else self._config.tokens_per_forward,
            pad_id=self._pad_id,
            is_packing=self._is_packing,
        )
        total_N = torch.zeros(len(documents), device=self.device)
        for part in parts:
            with autocast(self._config, self.device):
                logprob_M, owner_M = learned_logprobs(model, Packed(*(tensor.to(self.device) for tensor in part)))
            total_N = total_N.index_add(0, owner_M, logprob_M)
        return total_N


def _load_reference(sft: ModelSource, policy: ModelSource, config: DPOConfig, device: str) -> PreTrainedModel | None:
    """The SFT model by itself; None where the policy starts as it."""
    if (policy.base, policy.version) == (sft.base, sft.version):
        return None
    spread = as_spread(sft, config)
    reference = load_causal_lm(spread, device=loading_place(spread, config, device))
    if is_spread(config):
        shard(reference, device)
    return reference


def _key(task: Task) -> tuple[tuple[int, ...], ...]:
    """What the reference's log-probabilities depend on."""
    return tuple(tuple(row) for row in task.rows)
