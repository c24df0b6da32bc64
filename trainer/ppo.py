"""PPO against a reward model, with a KL penalty to the SFT model: one loop, read top to bottom in `optimise`.

It is InstructGPT's (arXiv 2203.02155, "IG") with the details of 2403.17031 ("N+"). What differs from the paper:

1. Adam's steps are few and small batches are the rule: a project begins with tens of rankings and one machine, so the
   defaults are 64 or 512 episodes where IG took 256,000. The rate warms up over IG's 10 iterations, but never over more
   than a tenth of the run.
2. An answer that was cut by length is scored at its last token, without an added EOS, and one standard deviation of the
   reward model's scores is subtracted. N+ replaces the score by -1, which rewards never stopping wherever scores lie
   below -1.
3. The score is added at the EOS itself; TRL and N+ add it one token later, which changes GAE for lambda < 1.
4. Rollouts sample at the temperature of every log-probability and never cut the law by top-p; how a project samples for
   its annotators is another matter.
5. Old log-probabilities come from the forward that trains; and from the sampler instead, where in the first rollout
   every one of them is the same within rounding. Several answers may share a prompt, which is then computed once.
6. beta may adapt to a target of *summed* KL (1909.08593); IG kept it fixed. A run may stop at a KL that is too high.
7. With adapters, the reference is the policy with its adapters off, and only the last blocks learn. IG trained and kept
   full copies.
8. Pretraining gradients (PPO-ptx) are off unless text is given: a project has none of the base model's. Their loss is
   the mean over the learned tokens of a minibatch's texts, as PPO's is over its answers; IG does not say which mean.
9. The policy's weights are averaged (EMA, 0.992 in IG) only where that is asked for: an average of 125 steps says too
   little of a run of 64. It is updated after every optimizer step.
10. A second reward model may guard the run, and decides which weights are kept; IG chose by hand.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import Module, Parameter, ParameterList
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainer.checkpoints import code_version, load_checkpoint, save_checkpoint
from trainer.config import LoraConfig, PPOConfig
from trainer.data import chunk_by_length
from trainer.distributed import (
    add_up,
    add_up_gradients,
    add_up_tensor,
    one_voice,
    part_of,
    put_together,
    world,
    write_once,
)
from trainer.folders import new_folder, sha256_file, write_manifest
from trainer.losses import (
    clipped_policy_loss,
    clipped_value_loss,
    generalised_advantages,
    kl_penalised_rewards,
    masked_whiten,
    pretraining_loss,
)
from trainer.models import (
    ModelSource,
    Policy,
    RewardModel,
    ValueModel,
    compute_in_bfloat16,
    context_length,
    count_parameters,
    has_plain_head,
    load_policy,
    load_tokenizer,
    products_dtype,
)
from trainer.pretraining import MAX_TOKENS, Passage, encode_texts, hash_passages, passage_batches
from trainer.reporting import Reporter, RunCancelled
from trainer.sampling import Draw, Generated, LocalSampler, Prompt, context_refusal, decode, encode_prompt, left_pad
from trainer.shared_prompt import CannotShare, allow_packing, is_packing

STEP_METRICS = (
    "ppo/policy/loss",
    "ppo/policy/clipfrac",
    "ppo/policy/approxkl",
    "ppo/policy/ratio_error",
    "ppo/value/loss",
    "ppo/value/clipfrac",
)
"""Token means over a minibatch."""

SHOWN_CHARACTERS = 200
"""Of a sampled text in the log."""

Item = TypeVar("Item")

Score = Callable[[Tensor, Tensor], Tensor]
"""(tokens_BL, attention_BL) -> score_B: what a conversation with its answer is worth. A `RewardModel` is one, and also
knows prompts that several answers share."""


@dataclass(frozen=True)
class Rollout:
    """B episodes. Prompts are left-padded to P tokens, completions right-padded to T tokens; L = P + T."""

    tokens_BL: Tensor
    """Prompt and completion."""
    attention_BL: Tensor
    """True on real tokens."""
    mask_BT: Tensor
    """True on the completion's tokens, its EOS among them."""
    sampled_BT: Tensor
    """What the sampler took for log pi_old."""
    has_eos_B: Tensor
    """False where the length cut the completion."""
    num_shared: int = 1
    """Of each so many neighbours the prompt is one and the same; they go through everything together."""

    @property
    def num_prompt_tokens(self) -> int:
        """P, the width of the padded prompts."""
        return self.tokens_BL.shape[1] - self.mask_BT.shape[1]

    def select(self, row_R: Tensor) -> Rollout:
        """These rows without the columns that are padding in all of them."""
        width = self.num_prompt_tokens
        num_prompt = int(self.attention_BL[row_R, :width].sum(1).amax())
        num_new = int(self.mask_BT[row_R].sum(1).amax())
        columns = slice(width - num_prompt, width + num_new)
        return Rollout(
            self.tokens_BL[row_R, columns],
            self.attention_BL[row_R, columns],
            self.mask_BT[row_R, :num_new],
            self.sampled_BT[row_R, :num_new],
            self.has_eos_B[row_R],
            self.num_shared,
        )

    def micro_batches(self, row_R: Tensor, tokens_per_forward: int) -> Iterator[tuple[Tensor, Rollout]]:
        """Parts of these rows, alike in length, each of about `tokens_per_forward` tokens at most (or of one prompt).

        The rows are whole groups of neighbours that share a prompt.
        """
        row_GS = row_R.view(-1, self.num_shared)
        num_prompt_G = self.attention_BL[row_GS[:, 0], : self.num_prompt_tokens].sum(1)
        num_new_G = self.mask_BT.sum(1)[row_GS].amax(1)
        length_G = (num_prompt_G + self.num_shared * num_new_G).tolist()
        for part in chunk_by_length(length_G, tokens_per_forward):
            part_R = row_GS[part].flatten()
            yield part_R, self.select(part_R)


@dataclass(frozen=True)
class Trajectory:
    """A rollout with all that an update needs. All [B, T], in fp32, 0 outside the mask."""

    rollout: Rollout
    logprobs_BT: Tensor
    """log pi_old of each completion token, at the sampling temperature."""
    values_BT: Tensor
    """V before each completion token."""
    advantages_BT: Tensor
    """By GAE; whitened over the valid tokens of the batch unless the config says no."""
    returns_BT: Tensor
    """What V should have been: unwhitened advantages + values."""


@dataclass(frozen=True)
class Question:
    """A prompt in tokens, up to where the answer begins."""

    prompt_id: str
    tokens: list[int]


class TrainingFailed(ValueError):
    """The run cannot go on; the message says why, and what is still good."""


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
    """Rollouts in a row with a worse guard's score, and a better training score, than then."""

    def hear(self, score: float, training_score: float, num_episodes: int) -> bool:
        """Both scores of the policy of now; whether it is the best so far."""
        if score > self.best_score:
            self.best_score, self.training_score, self.num_episodes = score, training_score, num_episodes
            self.num_exploited = 0
            return True
        self.num_exploited = self.num_exploited + 1 if training_score > self.training_score else 0
        return False


@dataclass
class Progress:
    """Where a run stands; plain numbers, so that a checkpoint keeps it as JSON."""

    beta: float
    num_iterations: int = 0
    num_episodes: int = 0
    first_reward: float | None = None
    last_reward: float | None = None
    last_kl: float | None = None
    """Nats an answer in the last rollout."""
    guard: Judgement | None = None
    """The guard's best so far; None where there is no guard, or before its first word."""
    stopped_by: Literal["kl", "guard"] | None = None
    is_sampler_exact: bool | None = None
    """Whether the sampler's log-probabilities were those of training in the first rollout; None before it."""

    seconds: float = 0.0

    def observe(self, metrics: Mapping[str, float]) -> None:
        """What a rollout showed."""
        self.last_reward, self.last_kl = metrics["objective/reward"], metrics["objective/kl"]
        self.first_reward = self.last_reward if self.first_reward is None else self.first_reward

    def advance(self, num_episodes: int, seconds: float) -> None:
        """A rollout was learned from."""
        self.num_iterations += 1
        self.num_episodes += num_episodes
        self.seconds += seconds

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Progress:
        """What `asdict` wrote."""
        guard = fields.get("guard")
        return cls(**{**fields, "guard": Judgement(**guard) if guard else None})

    def result(self, refused: list[dict[str, str]], *, is_average: bool) -> PPOResult:
        """What the run reports at its end, after at least one rollout."""
        assert self.first_reward is not None
        assert self.last_reward is not None
        assert self.last_kl is not None
        return PPOResult(
            self.num_episodes,
            self.first_reward,
            self.last_reward,
            self.last_kl,
            self.seconds,
            refused,
            is_average=is_average,
            guard=self.guard,
            stopped_by=self.stopped_by,
        )


@dataclass
class Learner:
    """All that an update changes, and so all that a checkpoint keeps."""

    policy: Policy
    value_model: ValueModel
    policy_optimizer: torch.optim.Adam
    value_optimizer: torch.optim.Adam
    progress: Progress
    average: ParameterList | None = None
    """The policy's learning weights, averaged over the steps; None where the config does not ask for it."""
    best: ParameterList | None = None
    """What the version would be if the guard's best moment were the last; None without a guard."""

    @classmethod
    def create(cls, policy: Policy, value_model: ValueModel, config: PPOConfig, *, is_guarded: bool = False) -> Learner:
        """Fresh optimizers and beta; `config` has been through `for_model`."""
        policy_rate, value_rate = config.learning_rate, config.value_learning_rate
        assert policy_rate is not None
        assert value_rate is not None
        return cls(
            policy,
            value_model,
            torch.optim.Adam(_learning(policy), lr=policy_rate, eps=config.adam_eps, fused=True),
            torch.optim.Adam(_learning(value_model), lr=value_rate, eps=config.adam_eps, fused=True),
            Progress(beta=config.beta),
            average=_copy(_learning(policy)) if config.ema_decay is not None else None,
            best=_copy(_learning(policy)) if is_guarded else None,
        )

    @property
    def models(self) -> dict[str, Module]:
        """All whose weights a checkpoint keeps."""
        models = {"policy": self.policy, "value": self.value_model, "average": self.average, "best": self.best}
        return {name: model for name, model in models.items() if model is not None}

    def follow(self, decay: float) -> None:
        """Move the average towards the policy, after a step."""
        assert self.average is not None
        with torch.no_grad():
            for averaged, parameter in zip(self.average, _learning(self.policy), strict=True):
                averaged.lerp_(parameter, 1.0 - decay)

    def remember(self) -> None:
        """This is the best moment so far."""
        assert self.best is not None
        _assign(self.best, self.average or _learning(self.policy))

    def settle(self) -> None:
        """The run is over: the policy takes the weights that are kept."""
        kept = self.best or self.average
        if kept is not None:
            _assign(_learning(self.policy), kept)

    def save(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Replace `folder` by a checkpoint of now. Learning rates follow from the iteration: no schedule is kept."""
        save_checkpoint(
            folder,
            models=self.models,
            optimizers={"policy": self.policy_optimizer, "value": self.value_optimizer},
            progress=asdict(self.progress),
            identity=identity,
        )

    def restore(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Go back to a checkpoint. CheckpointError when it is damaged or another run's."""
        progress = load_checkpoint(
            folder,
            models=self.models,
            optimizers={"policy": self.policy_optimizer, "value": self.value_optimizer},
            identity=identity,
        )
        self.progress = Progress.from_json(progress)


@dataclass(frozen=True)
class PPOResult:
    """What a `ppo` run reports (docs/protocol.md). Rewards are the first and the last rollout's means."""

    num_episodes: int
    first_reward: float
    last_reward: float
    kl: float
    """To the SFT model, in nats an answer, in the last rollout."""
    seconds: float
    refused: list[dict[str, str]]
    is_average: bool = False
    """Whether the version holds averaged weights."""
    guard: Judgement | None = None
    stopped_by: Literal["kl", "guard"] | None = None

    def as_json(self) -> dict[str, Any]:
        """The result of docs/protocol.md."""
        return {
            "num_episodes": self.num_episodes,
            "reward": {"first": self.first_reward, "last": self.last_reward},
            "kl": self.kl,
            "seconds": self.seconds,
            "refused": self.refused,
            "is_average": self.is_average,
            "guard": asdict(self.guard) if self.guard else None,
            "stopped_by": self.stopped_by,
        }


@dataclass(frozen=True)
class Guard:
    """A reward model that training never sees, and the questions whose answers it judges."""

    score: Score
    questions: Sequence[Question]


def train_ppo(
    prompts: Sequence[Prompt],
    *,
    sft: ModelSource,
    policy: ModelSource,
    reward: ModelSource,
    config: PPOConfig,
    out: Path,
    report: Reporter,
    on_checkpoint: Callable[[Path], None] | None = None,
    resume_from: Path | None = None,
    ptx_texts: Sequence[Mapping[str, Any]] = (),
    guard: ModelSource | None = None,
    guard_prompts: Sequence[Prompt] = (),
    device: str = "cpu",
) -> PPOResult:
    """Improve `policy` against `reward`, near `sft`.

    Args:
        prompts: one over the model's context is refused by name, and the others go on.
        sft: the KL reference, always the project's SFT version.
        policy: the version to start from.
        reward: a reward version; the value model starts as its copy.
        out: the new version's folder; appears when all is done. Checkpoints lie beside it, in `<out>.checkpoint`.
        on_checkpoint: is called with the checkpoint's folder whenever a new one is complete.
        resume_from: a checkpoint's folder; the run goes on bit for bit (on a CPU) as if it had not been interrupted.
        ptx_texts: rows of text (`trainer.pretraining`) that the policy goes on learning to write; they are needed
            where `ptx_coefficient` is over 0, and only there.
        guard: a second reward version. After each update it scores answers to the same questions with the same seeds;
            the version takes the weights of its best score, and the run stops when the reward is exploited.
        guard_prompts: what the guard asks, best of all prompts that no reward model learned from; left out: `prompts`.

    Raises:
        ValueError: no prompt that fits, a model that cannot be loaded, another run's checkpoint, texts without a
            coefficient or a coefficient without texts.
        TrainingFailed: something became NaN or infinite; that step was not applied, and `out` was not written.
        RunCancelled: the reporter said stop.
    """
    report = one_voice(report)
    config = config.for_model(count_parameters(policy), device)
    tokenizer = load_tokenizer(policy)
    reward_model = RewardModel.load(reward, device=device)
    if config.missing_eos_penalty is None:
        config = replace(config, missing_eos_penalty=reward_model.score_std)
    learner = Learner.create(
        _load_policy(policy, sft, config, device),
        ValueModel.from_reward(reward_model),
        config,
        is_guarded=guard is not None,
    )
    reward_model.requires_grad_(False)
    questions, refused = _encode(prompts, tokenizer, learner.policy, config, report)
    watch: Guard | None = None
    if guard is not None:
        asked = _encode(guard_prompts, tokenizer, learner.policy, config, report)[0] if guard_prompts else questions
        watch = Guard(RewardModel.load(guard, device=device).requires_grad_(False), asked)
    elif guard_prompts:
        raise ValueError("guard_prompts are asked by a guard, and there is none: name its reward model, too.")
    if config.precision == "bfloat16":
        _round_products(learner, reward_model, watch)
    passages = _encode_passages(ptx_texts, tokenizer, learner.policy, config, report)
    sources = {"sft": sft, "policy": policy, "reward": reward} | ({"guard": guard} if guard else {})
    identity = _identity(questions, passages, watch, config, sources)
    if resume_from is not None:
        learner.restore(resume_from, identity)
    checkpoint = out.with_name(f"{out.name}.checkpoint")

    def keep() -> None:
        learner.save(checkpoint, identity)
        if on_checkpoint is not None and world().is_first:
            on_checkpoint(checkpoint)

    optimise(learner, reward_model, questions, tokenizer, config, report, passages=passages, guard=watch, keep=keep)
    learner.settle()
    result = learner.progress.result(refused, is_average=learner.average is not None)
    write_once(partial(_save, learner.policy, out, {**identity, "result": result.as_json()}))
    return result


def optimise(
    learner: Learner,
    score: Score,
    questions: Sequence[Question],
    tokenizer: PreTrainedTokenizerBase,
    config: PPOConfig,
    report: Reporter,
    *,
    passages: Sequence[Passage] = (),
    guard: Guard | None = None,
    keep: Callable[[], None] = lambda: None,
) -> None:
    """Run the episodes that are left; `keep` saves a checkpoint, every `checkpoint_every` rollouts but the last.

    `passages`: what the policy learns to write in the same steps, where `ptx_coefficient` is over 0. `guard`: judges
    the policy before the first rollout and after each update.

    Randomness comes only from (config.seed, episode or iteration), so that a resumed run is the same run.
    Raises TrainingFailed at the first NaN or infinity, before it reaches a weight, and RunCancelled.
    """
    policy, progress = learner.policy, learner.progress
    num_episodes, missing_eos_penalty = config.num_episodes, config.missing_eos_penalty
    assert num_episodes is not None
    assert missing_eos_penalty is not None
    num_shared = config.samples_per_prompt
    _allow_packing(learner, score, guard, report)
    sampler = LocalSampler(
        policy.model,
        tokenizer,
        sequences_per_batch=_sequences_per_batch([*questions, *(guard.questions if guard else ())], config),
    )
    if guard is not None and progress.guard is None:
        report.metrics(progress.num_episodes, _consult(guard, learner, score, sampler, config, report))
    while progress.num_episodes < num_episodes:
        batch_size = min(config.episodes_per_batch, num_episodes - progress.num_episodes)
        started = time.perf_counter()

        # 1. Rollout: the policy answers; what it and the reference think of each token, what the value model expects.
        num, num_prompts = config.samples_per_prompt, batch_size // config.samples_per_prompt
        chosen = _walk(questions, progress.num_episodes // num, num_prompts, config.seed, "pass")
        asked = [question for question in chosen for _ in range(num)]
        rollout = _roll_out(sampler, asked, progress.num_episodes, config, report, num_shared=num_shared)
        mask_BT = rollout.mask_BT

        # 2. Reward: the score at the EOS, less a penalty where there is none; the KL penalty at every token.
        logprobs_BT, reference_BT, values_BT, score_B = _judge(learner, score, rollout, config)
        penalised_B = score_B - missing_eos_penalty * ~rollout.has_eos_B
        rewards_BT = kl_penalised_rewards(penalised_B, logprobs_BT, reference_BT, mask_BT, beta=progress.beta)

        # 3. Advantage: GAE, then whitening over the batch; the value model learns the unwhitened returns.
        advantages_BT, returns_BT = generalised_advantages(
            rewards_BT, values_BT, mask_BT, gamma=config.gamma, lam=config.gae_lambda
        )
        if config.whiten_advantages:
            advantages_BT = masked_whiten(advantages_BT, mask_BT)
        trajectory = Trajectory(rollout, logprobs_BT, values_BT, advantages_BT, returns_BT)

        # 4. Update: clipped policy and value losses in minibatches; then beta.
        metrics = _describe(rollout, score_B, rewards_BT, logprobs_BT, reference_BT)
        progress.observe(metrics)
        kl = metrics["objective/kl"]
        if config.kl_stop is not None and kl > config.kl_stop:
            report.log("warning", f"Stopped: KL {kl:.2f} nats an answer is over kl_stop {config.kl_stop}.")
            progress.stopped_by = "kl"
            break
        metrics |= {"ppo/beta": progress.beta, "sample/tokens_per_second": sampler.tokens_per_second}
        metrics |= _update(learner, trajectory, passages, config, report)
        metrics["ppo/seconds"] = time.perf_counter() - started
        progress.advance(batch_size, metrics["ppo/seconds"])
        progress.beta = _next_beta(progress.beta, kl, batch_size, config)
        if guard is not None:
            metrics |= _consult(guard, learner, score, sampler, config, report)

        report.metrics(progress.num_episodes, metrics)
        _log_samples(report, tokenizer, rollout, score_B, logprobs_BT - reference_BT)
        if progress.guard is not None and progress.guard.num_exploited >= config.guard_patience:
            report.log("warning", f"Stopped: {_verdict(progress.guard)}")
            progress.stopped_by = "guard"
            break
        if progress.num_iterations % config.checkpoint_every == 0 and progress.num_episodes < num_episodes:
            keep()


def _allow_packing(learner: Learner, score: Score, guard: Guard | None, report: Reporter) -> None:
    """Let all that compute read rows without padding and a prompt once for its samples, wherever a model allows it."""
    policy = learner.policy
    judges = [judge for judge in (score, guard.score if guard else None) if isinstance(judge, RewardModel)]
    models = [policy.model, policy.frozen, learner.value_model.blocks, *(judge.blocks for judge in judges)]
    refusals: set[str] = set()
    for model in models:
        try:
            if model is not None:
                _require_plain_head(model)
                allow_packing(model.base_model)
        except CannotShare as error:
            refusals.add(str(error))
    for reason in sorted(refusals):
        report.log(
            "info", f"Each answer is computed in a padded row with its prompt, as this model can't share: {reason}."
        )


def _require_plain_head(model: PreTrainedModel) -> None:
    if model.get_output_embeddings() is not None and not has_plain_head(model):
        raise CannotShare("its logits are more than what its head says")


@torch.no_grad()
def _judge(
    learner: Learner, score: Score, rollout: Rollout, config: PPOConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(logprobs_BT, reference_BT, values_BT, score_B) of a rollout, in fp32."""
    policy = learner.policy
    logprobs = partial(policy.logprobs, temperature=config.temperature)
    logprobs_BT = _old_logprobs(learner, rollout, logprobs, config)
    with policy.reference():
        reference_BT = _per_token(rollout, logprobs, config, "the reference's log-probability")
    values_BT = _per_token(rollout, learner.value_model, config, "the value model's value")
    return logprobs_BT, reference_BT, values_BT, _scores(rollout, score, config)


def _old_logprobs(learner: Learner, rollout: Rollout, logprobs: PerToken, config: PPOConfig) -> Tensor:
    """log pi_old_BT: from the forward that trains, and from the sampler once that was seen to say the same."""
    progress = learner.progress
    if progress.is_sampler_exact:
        return _require_finite(rollout.sampled_BT, "the policy's log-probability")
    logprobs_BT = _per_token(rollout, logprobs, config, "the policy's log-probability")
    if progress.is_sampler_exact is None:
        error = (logprobs_BT - rollout.sampled_BT).abs().max().item()
        progress.is_sampler_exact = error <= _tolerance(learner.policy)
    return logprobs_BT


def _sequences_per_batch(questions: Sequence[Question], config: PPOConfig) -> int:
    longest = max(len(question.tokens) for question in questions)
    return max(1, config.tokens_per_forward // (longest + config.max_new_tokens))


def _walk(items: Sequence[Item], start: int, num: int, seed: int, name: str) -> list[Item]:
    """Places start .. start + num of an endless walk over the items, shuffled anew in every pass."""
    chosen: list[Item] = []
    while len(chosen) < num:
        number, place = divmod(start + len(chosen), len(items))
        order = torch.randperm(len(items), generator=_generator(seed, f"{name} {number}"))
        chosen += [items[index] for index in order[place : place + num - len(chosen)].tolist()]
    return chosen


def _roll_out(
    sampler: LocalSampler,
    asked: Sequence[Question],
    first_episode: int,
    config: PPOConfig,
    report: Reporter,
    *,
    is_episode: bool = True,
    num_shared: int = 1,
) -> Rollout:
    """One completion for each question. Alike lengths are generated together; rows keep the order of `asked`. Each
    process draws a part; an answer follows from its seed, whoever draws it.

    Answers that are no episodes are drawn with other seeds, and do not count as the run's progress.
    """
    prefix = "" if is_episode else "guard "
    draws = [
        Draw(question.tokens, prefix + question.prompt_id, first_episode + number, config.seed)
        for number, question in enumerate(asked)
    ]
    # The order is stable: those that share a prompt stay together.
    waiting = sorted(range(len(draws)), key=lambda row: len(draws[row].prompt_tokens))
    size = max(1, sampler.sequences_per_batch // num_shared) * num_shared
    groups = [waiting[start : start + num_shared] for start in range(0, len(waiting), num_shared)]
    mine = [row for group in part_of(groups) for row in group]
    results: dict[int, Generated] = {}
    # The first process has as many as any: all ask equally often whether to stop.
    for start in range(0, num_shared * math.ceil(len(groups) / world().size), size):
        _stop_if_cancelled(report)
        rows = mine[start : start + size]
        if not rows:
            continue
        generated = sampler.draw(
            [draws[row] for row in rows],
            temperature=config.temperature,
            top_p=1.0,
            max_new_tokens=config.max_new_tokens,
            num_shared=num_shared if is_packing(sampler.model.base_model) else 1,
        )
        results |= dict(zip(rows, generated, strict=True))
        if is_episode:
            num_done = min(len(asked), len(results) * world().size)
            _report_progress(report, config, first_episode + num_done / 2, f"{num_done} of {len(asked)} answers")
    if world().size > 1:
        drawn = _from_all([results[row] for row in mine], [len(group) for group in groups], config)
        results = dict(zip(waiting, drawn, strict=True))
    ordered = [results[row] for row in range(len(draws))]
    pad_id, device = sampler.tokenizer.pad_token_id, sampler.model.device
    return make_rollout(asked, ordered, pad_id=pad_id, device=device, num_shared=num_shared)


def _from_all(mine: Sequence[Generated], counts: Sequence[int], config: PPOConfig) -> list[Generated]:
    """The answers of all processes. They travel as numbers: length, whether it stopped, tokens, log-probabilities."""
    width = config.max_new_tokens
    rows = torch.zeros(len(mine), 2 + 2 * width, dtype=torch.float64)
    for row, answer in zip(rows, mine, strict=True):
        length = len(answer.tokens)
        row[0], row[1] = length, answer.finish_reason == "stop"
        row[2 : 2 + length] = torch.tensor(answer.tokens)
        row[2 + width : 2 + width + length] = torch.tensor(answer.logprobs, dtype=torch.float64)
    found: list[Generated] = []
    for row in put_together(rows, counts).tolist():
        length, tokens, logprobs = int(row[0]), row[2 : 2 + width], row[2 + width :]
        reason: Literal["stop", "length"] = "stop" if row[1] else "length"
        found.append(Generated([int(token) for token in tokens[:length]], logprobs[:length], reason))
    return found


def make_rollout(
    asked: Sequence[Question],
    answers: Sequence[Generated],
    *,
    pad_id: int,
    device: torch.device,
    num_shared: int = 1,
) -> Rollout:
    """The tensors of these questions and answers. Masks come from lengths: a model may say the padding token."""
    prompt_BP, prompt_mask_BP = left_pad([question.tokens for question in asked], pad_id=pad_id)
    # Right padding is left padding, mirrored.
    reversed_BT, reversed_mask_BT = left_pad([answer.tokens[::-1] for answer in answers], pad_id=pad_id)
    answer_BT, answer_mask_BT = reversed_BT.flip(1), reversed_mask_BT.flip(1)
    sampled_BT = torch.zeros(answer_BT.shape)
    for row, answer in enumerate(answers):
        sampled_BT[row, : len(answer.logprobs)] = torch.tensor(answer.logprobs)
    return Rollout(
        tokens_BL=torch.cat([prompt_BP, answer_BT], dim=1).to(device),
        attention_BL=torch.cat([prompt_mask_BP, answer_mask_BT], dim=1).to(device),
        mask_BT=answer_mask_BT.to(device),
        sampled_BT=sampled_BT.to(device),
        has_eos_B=torch.tensor([answer.finish_reason == "stop" for answer in answers], device=device),
        num_shared=num_shared,
    )


class PerToken(Protocol):
    """A model that says one number for each of the last `num_new` tokens."""

    def __call__(self, tokens_BL: Tensor, attention_BL: Tensor, *, num_new: int, num_shared: int) -> Tensor:
        """[rows, num_new], in fp32."""
        ...


def _per_token(rollout: Rollout, model: PerToken, config: PPOConfig, name: str) -> Tensor:
    """`model` on the whole rollout, part by part: [B, T], 0 outside the mask."""
    result_BT = torch.zeros(rollout.mask_BT.shape, device=rollout.mask_BT.device)
    for part_R, part in rollout.micro_batches(_own(_all_rows(rollout), rollout), config.tokens_per_forward):
        values = model(part.tokens_BL, part.attention_BL, num_new=part.mask_BT.shape[1], num_shared=part.num_shared)
        result_BT[part_R, : part.mask_BT.shape[1]] = values.masked_fill(~part.mask_BT, 0.0)
    return _require_finite(add_up_tensor(result_BT), name)


def _scores(rollout: Rollout, score: Score, config: PPOConfig) -> Tensor:
    result_B = torch.zeros(len(rollout.tokens_BL), device=rollout.tokens_BL.device)
    for part_R, part in rollout.micro_batches(_own(_all_rows(rollout), rollout), config.tokens_per_forward):
        if isinstance(score, RewardModel):
            score_R = score.score_answers(
                part.tokens_BL, part.attention_BL, num_new=part.mask_BT.shape[1], num_shared=part.num_shared
            )
        else:
            score_R = score(part.tokens_BL, part.attention_BL)
        result_B[part_R] = score_R.float()
    return _require_finite(add_up_tensor(result_B), "the reward model's score")


def _all_rows(rollout: Rollout) -> Tensor:
    return torch.arange(len(rollout.tokens_BL), device=rollout.tokens_BL.device)


def _own(row_R: Tensor, rollout: Rollout) -> Tensor:
    """Of these rows those that this process computes; whole groups that share a prompt."""
    here = world()
    return row_R.view(-1, rollout.num_shared)[here.rank :: here.size].flatten()


def _require_finite(values: Tensor, name: str) -> Tensor:
    if not bool(values.isfinite().all()):
        raise TrainingFailed(
            f"PPO failed: {name} is NaN or infinite. No step was applied with it; the last checkpoint is good. "
            "Look at the metrics before it; a lower learning rate often helps."
        )
    return values


def _describe(
    rollout: Rollout, score_B: Tensor, rewards_BT: Tensor, logprobs_BT: Tensor, reference_BT: Tensor
) -> dict[str, float]:
    """Means over the answers of a rollout; KL (k1) and entropy are estimates summed over an answer, in nats.

    `objective/reward` is what the reward model says, `objective/rlhf_reward` what PPO maximises: less both penalties.
    """
    return {
        "objective/reward": score_B.mean().item(),
        "objective/rlhf_reward": rewards_BT.sum(1).mean().item(),
        "objective/kl": (logprobs_BT - reference_BT).sum(1).mean().item(),
        "objective/entropy": -logprobs_BT.sum(1).mean().item(),
        "objective/length": rollout.mask_BT.sum(1).float().mean().item(),
        "objective/eos": rollout.has_eos_B.float().mean().item(),
    }


@torch.no_grad()
def _consult(
    guard: Guard, learner: Learner, score: Score, sampler: LocalSampler, config: PPOConfig, report: Reporter
) -> dict[str, float]:
    """Ask the policy the guard's questions, always the same with the same seeds; both reward models score the answers.

    Where the guard's score is the best so far, the weights are remembered.
    """
    asked = _walk(guard.questions, 0, config.guard_answers, config.seed, "guard")
    rollout = _roll_out(sampler, asked, 0, config, report, is_episode=False)
    said = _scores(rollout, guard.score, config).mean().item()
    training_score = _scores(rollout, score, config).mean().item()
    progress = learner.progress
    if progress.guard is None:
        progress.guard = Judgement(said, said, training_score, progress.num_episodes)
    elif progress.guard.hear(said, training_score, progress.num_episodes):
        learner.remember()
    return {"guard/score": said, "guard/training_score": training_score}


def _verdict(guard: Judgement) -> str:
    return (
        f"for {guard.num_exploited} rollouts the guard's score has been below its {guard.best_score:.3f} after "
        f"{guard.num_episodes} episodes, while the training score rose: the policy exploits its reward model. The "
        "version takes the weights of then."
    )


def _next_beta(beta: float, kl: float, num_episodes: int, config: PPOConfig) -> float:
    """Fixed, or steered to `target_kl` nats an answer (1909.08593, section 2.2; KL summed over the answer)."""
    if config.target_kl is None:
        return beta
    error = min(max(kl / config.target_kl - 1.0, -0.2), 0.2)
    return beta * (1.0 + error * num_episodes / config.kl_horizon)


def _update(
    learner: Learner, trajectory: Trajectory, passages: Sequence[Passage], config: PPOConfig, report: Reporter
) -> dict[str, float]:
    """`num_epochs` passes in minibatches, one optimizer step each; the mean of each metric over the steps."""
    assert config.num_epochs is not None
    _set_rates(learner, config)
    minibatches = list(_minibatches(trajectory, config, learner.progress.num_iterations))
    batch_size = len(trajectory.logprobs_BT)
    num_texts = learner.progress.num_episodes * config.num_epochs * config.ptx_examples_per_episode
    sums: defaultdict[str, float] = defaultdict(float)
    for number, row_R in enumerate(minibatches):
        _stop_if_cancelled(report)
        metrics = _accumulate(learner, trajectory, row_R, config)
        if config.ptx_coefficient > 0:
            texts = _walk(passages, num_texts, len(row_R) * config.ptx_examples_per_episode, config.seed, "texts")
            num_texts += len(texts)
            metrics |= _accumulate_pretraining(learner.policy, texts, config)
        if learner.progress.num_iterations == 0 and number == 0:
            _check_unmoved(learner.policy, metrics)
        metrics |= _step(learner, config)
        for name, value in metrics.items():
            sums[name] += value
        episode = learner.progress.num_episodes + batch_size * (1 + (number + 1) / len(minibatches)) / 2
        _report_progress(report, config, episode, f"step {number + 1} of {len(minibatches)}")
    return {name: total / len(minibatches) for name, total in sums.items()}


def _minibatches(trajectory: Trajectory, config: PPOConfig, iteration: int) -> Iterator[Tensor]:
    """The rows of each step, shuffled anew in each pass; those that share a prompt stay together."""
    generator = _generator(config.seed, f"iteration {iteration}")
    assert config.num_epochs is not None
    num_shared = trajectory.rollout.num_shared
    row_GS = _all_rows(trajectory.rollout).view(-1, num_shared)
    for _ in range(config.num_epochs):
        order_G = torch.randperm(len(row_GS), generator=generator).to(row_GS.device)
        yield from torch.split(row_GS[order_G].flatten(), config.minibatch_size)


def _report_progress(report: Reporter, config: PPOConfig, episode: float, message: str) -> None:
    """Sampling an episode counts as one half of it, learning from it as the other."""
    assert config.num_episodes is not None
    report.progress(int(2 * episode), 2 * config.num_episodes, message)


def _accumulate(learner: Learner, trajectory: Trajectory, row_R: Tensor, config: PPOConfig) -> dict[str, float]:
    """Gradients of the minibatch's token means, part by part, into the parameters: those of this process's rows.

    Returns the metrics of the whole minibatch.
    """
    learner.policy_optimizer.zero_grad()
    learner.value_optimizer.zero_grad()
    num_tokens = int(trajectory.rollout.mask_BT[row_R].sum())
    sums = dict.fromkeys(STEP_METRICS, 0.0)
    own_R = _own(row_R, trajectory.rollout)
    for part_R, part in trajectory.rollout.micro_batches(own_R, config.tokens_per_forward):
        num_new = part.mask_BT.shape[1]
        policy = clipped_policy_loss(
            learner.policy.logprobs(
                part.tokens_BL,
                part.attention_BL,
                num_new=num_new,
                temperature=config.temperature,
                num_shared=part.num_shared,
            ),
            trajectory.logprobs_BT[part_R, :num_new],
            trajectory.advantages_BT[part_R, :num_new],
            part.mask_BT,
            clip=config.clip,
            num_tokens=num_tokens,
        )
        value = clipped_value_loss(
            learner.value_model(part.tokens_BL, part.attention_BL, num_new=num_new, num_shared=part.num_shared),
            trajectory.values_BT[part_R, :num_new],
            trajectory.returns_BT[part_R, :num_new],
            part.mask_BT,
            clip=config.value_clip,
            num_tokens=num_tokens,
        )
        torch.autograd.backward([policy.loss, config.value_coefficient * value.loss])
        sums["ppo/policy/loss"] += policy.loss.item()
        sums["ppo/policy/clipfrac"] += policy.clipfrac.item()
        sums["ppo/policy/approxkl"] += policy.approxkl.item()
        sums["ppo/policy/ratio_error"] += policy.ratio_error.item()
        sums["ppo/value/loss"] += value.loss.item()
        sums["ppo/value/clipfrac"] += value.clipfrac.item()
    return dict(zip(sums, add_up(*sums.values()), strict=True))


def _accumulate_pretraining(policy: Policy, passages: Sequence[Passage], config: PPOConfig) -> dict[str, float]:
    """gamma times the gradient of these passages' loss, on top of what PPO left in the policy's parameters."""
    num_tokens = sum(passage.num_learned for passage in passages)
    total = 0.0
    # Masks decide what padding is: any token may stand there.
    for part in passage_batches(
        part_of(passages), tokens_per_forward=config.tokens_per_forward, pad_id=0, device=policy.model.device
    ):
        logprobs_BT = policy.logprobs(
            part.tokens_BL, part.attention_BL, num_new=part.learned_BT.shape[1], temperature=1.0
        )
        loss = pretraining_loss(logprobs_BT, part.learned_BT, num_tokens=num_tokens)
        torch.autograd.backward([config.ptx_coefficient * loss])
        total += loss.item()
    return {"ppo/ptx/loss": add_up(total)[0]}


def _step(learner: Learner, config: PPOConfig) -> dict[str, float]:
    """Add up the processes' gradients, clip both, and apply both steps, or neither when one is not finite."""
    norms: dict[str, float] = {}
    for name, model in (("policy", learner.policy), ("value", learner.value_model)):
        add_up_gradients(_learning(model))
        norm = torch.nn.utils.clip_grad_norm_(_learning(model), config.max_grad_norm)
        norms[f"ppo/{name}/grad_norm"] = _require_finite(norm, f"the gradient of the {name} model").item()
    learner.policy_optimizer.step()
    learner.value_optimizer.step()
    if config.ema_decay is not None:
        learner.follow(config.ema_decay)
    return norms


def _check_unmoved(policy: Policy, metrics: dict[str, float]) -> None:
    """Before the first step the policy is the one that sampled; otherwise temperature, padding or dropout is wrong."""
    tolerance = _tolerance(policy)
    for name in ("ppo/policy/ratio_error", "ppo/policy/approxkl"):
        assert metrics[name] <= tolerance, f"before the first step, {name} is {metrics[name]:.2g}, over {tolerance}"


def _tolerance(policy: Policy) -> float:
    """Of two log-probabilities, or of a ratio, that are the same but for rounding."""
    return 1e-5 if products_dtype(policy.model) == torch.float32 else 2e-2


def _set_rates(learner: Learner, config: PPOConfig) -> None:
    """From a tenth of the rate to the whole over the warm-up iterations (at most a tenth of the run), then constant."""
    assert config.num_episodes is not None
    num_iterations = math.ceil(config.num_episodes / config.episodes_per_batch)
    num_warmup = min(config.warmup_iterations, num_iterations // 10)
    share = min(1.0, 0.1 + 0.9 * learner.progress.num_iterations / num_warmup) if num_warmup else 1.0
    for optimizer, rate in (
        (learner.policy_optimizer, config.learning_rate),
        (learner.value_optimizer, config.value_learning_rate),
    ):
        assert rate is not None
        for group in optimizer.param_groups:
            group["lr"] = rate * share


def _log_samples(
    report: Reporter, tokenizer: PreTrainedTokenizerBase, rollout: Rollout, score_B: Tensor, log_ratio_BT: Tensor
) -> None:
    """The best and the worst answer of a rollout, with score and KL: a reader sees what the policy is after."""
    width = rollout.num_prompt_tokens
    for name, row in (("best", int(score_B.argmax())), ("worst", int(score_B.argmin()))):
        prompt = rollout.tokens_BL[row, :width][rollout.attention_BL[row, :width]].tolist()
        answer = rollout.tokens_BL[row, width:][rollout.mask_BT[row]].tolist()
        question, text = decode(tokenizer, prompt)[-SHOWN_CHARACTERS:], decode(tokenizer, answer)[:SHOWN_CHARACTERS]
        kl = log_ratio_BT[row].sum().item()
        report.log(
            "info", f"{name} of {len(score_B)}: score {score_B[row].item():.3f}, KL {kl:.2f}: {question!r} -> {text!r}"
        )


def _learning(model: Module) -> list[Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _copy(parameters: Iterable[Tensor]) -> ParameterList:
    # Parameters, because those are what a checkpoint keeps.
    return ParameterList(parameter.detach().clone() for parameter in parameters)


def _assign(targets: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    with torch.no_grad():
        for target, value in zip(targets, values, strict=True):
            target.copy_(value)


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _stop_if_cancelled(report: Reporter) -> None:
    if report.should_stop():
        raise RunCancelled


# --- Before and after ------------------------------------------------------------------------------------------------


def _load_policy(policy: ModelSource, sft: ModelSource, config: PPOConfig, device: str) -> Policy:
    assert config.lora is None or isinstance(config.lora, LoraConfig)
    return load_policy(policy, lora=config.lora, reference=sft, seed=config.seed, device=device)


def _round_products(learner: Learner, reward_model: RewardModel, guard: Guard | None) -> None:
    """All that compute do it in bfloat16; after the last copy was made, since a copy would call its original."""
    models = [learner.policy.model, learner.policy.frozen, learner.value_model.blocks, reward_model.blocks]
    if guard is not None and isinstance(guard.score, RewardModel):
        models.append(guard.score.blocks)
    for model in models:
        if model is not None:
            compute_in_bfloat16(model)


def _encode(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    policy: Policy,
    config: PPOConfig,
    report: Reporter,
) -> tuple[list[Question], list[dict[str, str]]]:
    """The prompts that fit the context, and those that don't: `{"prompt_id", "reason"}`."""
    questions: list[Question] = []
    refused: list[dict[str, str]] = []
    for prompt in prompts:
        tokens = encode_prompt(tokenizer, prompt.messages)
        reason = context_refusal(policy.model, prompt.id, len(tokens), config.max_new_tokens)
        if reason is None:
            questions.append(Question(prompt.id, tokens))
        else:
            refused.append({"prompt_id": prompt.id, "reason": reason})
            report.log("warning", reason)
    if not questions:
        raise ValueError(
            f"There is no prompt to learn on: {len(prompts)} prompts, of them {len(refused)} over the model's context. "
            "Import prompts for training first, or lower max_new_tokens."
        )
    return questions, refused


def _encode_passages(
    texts: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    policy: Policy,
    config: PPOConfig,
    report: Reporter,
) -> list[Passage]:
    """The texts of PPO-ptx in tokens; what is left out is said."""
    if bool(texts) != (config.ptx_coefficient > 0):
        raise ValueError(
            "PPO-ptx needs both texts and a weight: "
            + (
                "set ptx_coefficient (the paper's is 27.8)."
                if texts
                else "ptx_coefficient is set, and no text is given."
            )
        )
    limit = min(MAX_TOKENS, context_length(policy.model.config))
    passages, refused = encode_texts(texts, tokenizer, max_tokens=limit)
    for reason in refused:
        report.log("warning", reason)
    if texts and not passages:
        raise ValueError(f"There is nothing to learn in the {len(texts)} texts for PPO-ptx: {refused[0]}")
    return passages


def _identity(
    questions: Sequence[Question],
    passages: Sequence[Passage],
    guard: Guard | None,
    config: PPOConfig,
    sources: Mapping[str, ModelSource],
) -> dict[str, Any]:
    """What must be the same for a run to go on, and what the version's manifest says of its making."""
    return {
        "kind": "ppo",
        "config": config.as_json(),
        "prompts_sha256": _hash_questions(questions),
        "guard_prompts_sha256": _hash_questions(guard.questions) if guard else None,
        "ptx_texts_sha256": hash_passages(passages) if passages else None,
        "model": sources["policy"].name,
        "parents": {name: source.version.name if source.version else None for name, source in sources.items()},
    }


def _hash_questions(questions: Sequence[Question]) -> str:
    lines = "\n".join(json.dumps(asdict(question), sort_keys=True) for question in questions)
    return hashlib.sha256(lines.encode()).hexdigest()


def _save(policy: Policy, out: Path, about: Mapping[str, Any]) -> None:
    """The version's folder, its manifest last."""
    with new_folder(out) as building:
        policy.save(building)
        files = {path.name: sha256_file(path) for path in sorted(building.iterdir())}
        write_manifest(building, {**about, "code_version": code_version(), "files": files})
