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

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trainer.config import PPOConfig
from trainer.distributed import add_up, add_up_gradients, clip_gradients
from trainer.fitting import learning_parameters
from trainer.losses import (
    PolicyLoss,
    ValueLoss,
    clipped_policy_loss,
    clipped_value_loss,
    generalised_advantages,
    kl_penalised_rewards,
    masked_whiten,
)
from trainer.models import Policy
from trainer.ppo_guard import Guard, Judgement, ModelGuard
from trainer.ppo_learner import Interval, Learner
from trainer.ppo_text import AlignmentTax, accumulate_pretraining
from trainer.pretraining import Passage
from trainer.reporting import Reporter, stop_if_cancelled
from trainer.reward_model import RewardModel, ValueModel
from trainer.rollout import (
    PerToken,
    Question,
    Rollout,
    Score,
    all_rows,
    log_samples,
    own_parts,
    per_token,
    report_progress,
    require_finite,
    roll_out,
    score_answers,
    seeded,
    sequences_per_batch,
    walk,
)
from trainer.sampling import LocalSampler
from trainer.shared_prompt import CannotShare, allow_packing
from trainer.weights import products_dtype

STEP_METRICS = (
    "ppo/policy/loss",
    "ppo/policy/clipfrac",
    "ppo/policy/approxkl",
    "ppo/policy/ratio_error",
    "ppo/value/loss",
    "ppo/value/clipfrac",
)
"""Token means over a minibatch."""


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

    def select(self, row_R: Tensor, rollout: Rollout) -> Trajectory:
        """These rows of it, as wide as the `rollout` of them."""
        columns = slice(0, rollout.mask_BT.shape[1])
        return Trajectory(
            rollout,
            self.logprobs_BT[row_R, columns],
            self.values_BT[row_R, columns],
            self.advantages_BT[row_R, columns],
            self.returns_BT[row_R, columns],
        )


class Judged(NamedTuple):
    """What the models say of the answers of a rollout. In fp32, 0 outside the mask."""

    logprobs_BT: Tensor
    """log pi_old of each completion token, at the sampling temperature."""
    reference_BT: Tensor
    """log pi_ref of the same."""
    values_BT: Tensor
    """V before each completion token."""
    score_B: Tensor
    """What the reward model says of each answer as a whole."""


def optimise(
    learner: Learner,
    score: Score,
    questions: Sequence[Question],
    tokenizer: PreTrainedTokenizerBase,
    config: PPOConfig,
    report: Reporter,
    *,
    passages: Sequence[Passage] = (),
    tax: AlignmentTax | None = None,
    guard: Guard | None = None,
    keep: Callable[[], None] = lambda: None,
) -> None:
    """Run the episodes that are left; `keep` saves a checkpoint, every `checkpoint_every` rollouts but the last.

    `passages`: what the policy learns to write in the same steps, where `ptx_coefficient` is over 0. `tax` and `guard`
    look at the policy before the first rollout, and after every `tax_every` and `guard_every` updates.

    Randomness comes only from (config.seed, episode or iteration), so that a resumed run is the same run.
    Raises TrainingFailed at the first NaN or infinity, before it reaches a weight, and RunCancelled.
    """
    progress = learner.progress
    _allow_packing(learner, score, guard, report)
    asked = [*questions, *(guard.questions if guard else ())]
    sampler = LocalSampler(learner.policy.model, tokenizer, sequences_per_batch=sequences_per_batch(asked, config))
    looks: dict[str, float] = {}
    if guard is not None and progress.guard is None:
        looks = _consult(guard, learner, score, sampler, config, report)
    if tax is not None and progress.num_iterations == 0:
        looks |= tax.measure(learner.policy, config)
    if looks:
        report.metrics(progress.num_episodes, looks)
    while num_left := _num_left(learner, config):
        batch_size = min(config.episodes_per_batch, num_left)
        started = time.perf_counter()

        # 1. Rollout: the policy answers; what it and the reference think of each token, what the value model expects.
        rollout = _draw(sampler, questions, batch_size, progress.num_episodes, config, report)
        judged = _judge(learner, score, rollout, config)

        # 2. Reward: the score at the EOS, less a penalty where there is none; the KL penalty at every token.
        rewards_BT = _rewards(rollout, judged, config, beta=progress.beta)
        metrics = _describe(rollout, judged, rewards_BT)
        progress.observe(metrics, _intervals(rollout, judged))
        if _is_too_far(learner, config, report):
            break

        # 3. Advantage: GAE, then whitening over the batch; the value model learns the unwhitened returns.
        trajectory = _estimate(rollout, judged, rewards_BT, config)

        # 4. Update: clipped policy and value losses in minibatches; then beta.
        metrics |= {"ppo/beta": progress.beta, "sample/tokens_per_second": sampler.tokens_per_second}
        metrics |= _update(learner, trajectory, passages, config, report)
        metrics["ppo/seconds"] = time.perf_counter() - started
        progress.advance(batch_size, metrics["ppo/seconds"])
        progress.beta = _next_beta(progress.beta, metrics["objective/kl"], batch_size, config)

        # 5. What it led to, what guard and texts say of it, and a checkpoint now and then.
        if guard is not None and progress.num_iterations % config.guard_every == 0:
            metrics |= _consult(guard, learner, score, sampler, config, report)
        if tax is not None and (progress.num_iterations % config.tax_every == 0 or not _num_left(learner, config)):
            metrics |= tax.measure(learner.policy, config)
        report.metrics(progress.num_episodes, metrics)
        log_samples(report, tokenizer, rollout, judged.score_B, judged.logprobs_BT - judged.reference_BT)
        if _is_exploited(learner, config, report):
            break
        if progress.num_iterations % config.checkpoint_every == 0 and _num_left(learner, config):
            keep()


def _num_left(learner: Learner, config: PPOConfig) -> int:
    """Episodes that are still to come."""
    assert config.num_episodes is not None
    return config.num_episodes - learner.progress.num_episodes


def _allow_packing(learner: Learner, score: Score, guard: Guard | None, report: Reporter) -> None:
    """Let all that compute read rows without padding and a prompt once for its samples, wherever a model allows it."""
    policy = learner.policy
    others = [guard.score] if isinstance(guard, ModelGuard) else []
    judges = [judge for judge in (score, *others) if isinstance(judge, RewardModel)]
    models = [policy.model, policy.frozen, learner.value_model.blocks, *(judge.blocks for judge in judges)]
    refusals: set[str] = set()
    for model in models:
        try:
            if model is not None:
                allow_packing(model)
        except CannotShare as error:
            refusals.add(str(error))
    for reason in sorted(refusals):
        report.log(
            "info", f"Each answer is computed in a padded row with its prompt, as this model can't share: {reason}."
        )


# --- 1. Rollout ------------------------------------------------------------------------------------------------------


def _draw(
    sampler: LocalSampler,
    questions: Sequence[Question],
    batch_size: int,
    first_episode: int,
    config: PPOConfig,
    report: Reporter,
) -> Rollout:
    """`samples_per_prompt` answers to each of the next questions of an endless walk over them."""
    num = config.samples_per_prompt
    chosen = walk(questions, first_episode // num, batch_size // num, config.seed, "pass")
    asked = [question for question in chosen for _ in range(num)]
    return roll_out(sampler, asked, first_episode, config, report, num_shared=num)


@torch.no_grad()
def _judge(learner: Learner, score: Score, rollout: Rollout, config: PPOConfig) -> Judged:
    """What policy, reference, value and reward model say of a rollout."""
    policy = learner.policy
    logprobs = partial(policy.logprobs, temperature=config.temperature)
    logprobs_BT = _old_logprobs(learner, rollout, logprobs, config)
    with policy.reference():
        reference_BT = per_token(rollout, logprobs, config, "the reference's log-probability")
    values_BT = per_token(rollout, learner.value_model, config, "the value model's value")
    return Judged(logprobs_BT, reference_BT, values_BT, score_answers(rollout, score, config))


def _old_logprobs(learner: Learner, rollout: Rollout, logprobs: PerToken, config: PPOConfig) -> Tensor:
    """log pi_old_BT: from the forward that trains, and from the sampler once that was seen to say the same."""
    progress = learner.progress
    if progress.is_sampler_exact:
        return require_finite(rollout.sampled_BT, "the policy's log-probability")
    logprobs_BT = per_token(rollout, logprobs, config, "the policy's log-probability")
    if progress.is_sampler_exact is None:
        error = (logprobs_BT - rollout.sampled_BT).abs().max().item()
        progress.is_sampler_exact = error <= _tolerance(learner.policy)
    return logprobs_BT


# --- 2. Reward, 3. Advantage -----------------------------------------------------------------------------------------


def _rewards(rollout: Rollout, judged: Judged, config: PPOConfig, *, beta: float) -> Tensor:
    """rewards_BT: the KL penalty at every token, the score at the last one; an answer without an EOS pays for it."""
    assert config.missing_eos_penalty is not None
    score_B = judged.score_B - config.missing_eos_penalty * ~rollout.has_eos_B
    return kl_penalised_rewards(score_B, judged.logprobs_BT, judged.reference_BT, rollout.mask_BT, beta=beta)


def _estimate(rollout: Rollout, judged: Judged, rewards_BT: Tensor, config: PPOConfig) -> Trajectory:
    """Advantages by GAE, whitened if the config says so, and returns."""
    mask_BT, values_BT = rollout.mask_BT, judged.values_BT
    advantages_BT, returns_BT = generalised_advantages(
        rewards_BT, values_BT, mask_BT, gamma=config.gamma, lam=config.gae_lambda
    )
    if config.whiten_advantages:
        advantages_BT = masked_whiten(advantages_BT, mask_BT)
    return Trajectory(rollout, judged.logprobs_BT, values_BT, advantages_BT, returns_BT)


def _describe(rollout: Rollout, judged: Judged, rewards_BT: Tensor) -> dict[str, float]:
    """Means over the answers of a rollout; KL (k1) and entropy are estimates summed over an answer, in nats.

    `objective/reward` is what the reward model says, `objective/rlhf_reward` what PPO maximises: less both penalties.
    """
    return {
        "objective/reward": judged.score_B.mean().item(),
        "objective/rlhf_reward": rewards_BT.sum(1).mean().item(),
        "objective/kl": (judged.logprobs_BT - judged.reference_BT).sum(1).mean().item(),
        "objective/entropy": -judged.logprobs_BT.sum(1).mean().item(),
        "objective/length": rollout.mask_BT.sum(1).float().mean().item(),
        "objective/eos": rollout.has_eos_B.float().mean().item(),
    }


def _intervals(rollout: Rollout, judged: Judged) -> dict[str, Interval | None]:
    """95 % intervals of the mean reward and KL of a rollout; answers that share a prompt are no independent draws."""
    kl_B = (judged.logprobs_BT - judged.reference_BT).sum(1)
    of_prompts = {
        name: value_B.view(-1, rollout.num_shared).mean(1)
        for name, value_B in (("reward", judged.score_B), ("kl", kl_B))
    }
    return {name: Interval.of(mean_G) for name, mean_G in of_prompts.items()}


# --- When to stop, and how hard to hold ------------------------------------------------------------------------------


def _is_too_far(learner: Learner, config: PPOConfig, report: Reporter) -> bool:
    """Whether the last rollout's KL is over `kl_stop`; the run says so then."""
    kl = learner.progress.last_kl
    if config.kl_stop is None or kl is None or kl <= config.kl_stop:
        return False
    report.log("warning", f"Stopped: KL {kl:.2f} nats an answer is over kl_stop {config.kl_stop}.")
    learner.progress.stopped_by = "kl"
    return True


def _is_exploited(learner: Learner, config: PPOConfig, report: Reporter) -> bool:
    """Whether the guard has lost its patience; the run says so then."""
    guard = learner.progress.guard
    if guard is None or guard.num_exploited < config.guard_patience:
        return False
    report.log("warning", f"Stopped: {guard.verdict}")
    learner.progress.stopped_by = "guard"
    return True


def _consult(
    guard: Guard, learner: Learner, score: Score, sampler: LocalSampler, config: PPOConfig, report: Reporter
) -> dict[str, float]:
    """What the guard says of the policy of now; its weights are remembered, as they may turn out to be the best."""
    progress = learner.progress
    look = guard.ask(score, sampler, config, report, num_episodes=progress.num_episodes)
    if progress.guard is None:
        progress.guard = Judgement.begin(look)
    else:
        learner.remember(is_best=progress.guard.hear(look))
    return {"guard/score": look.score, "guard/training_score": look.training_score}


def _next_beta(beta: float, kl: float, num_episodes: int, config: PPOConfig) -> float:
    """Fixed, or steered to `target_kl` nats an answer (1909.08593, section 2.2; KL summed over the answer)."""
    if config.target_kl is None:
        return beta
    error = min(max(kl / config.target_kl - 1.0, -0.2), 0.2)
    return beta * (1.0 + error * num_episodes / config.kl_horizon)


# --- 4. Update --------------------------------------------------------------------------------------------------------


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
        stop_if_cancelled(report)
        metrics = _accumulate(learner, trajectory, row_R, config)
        if config.ptx_coefficient > 0:
            texts = walk(passages, num_texts, len(row_R) * config.ptx_examples_per_episode, config.seed, "texts")
            num_texts += len(texts)
            metrics |= accumulate_pretraining(learner.policy, texts, config)
        if learner.progress.num_iterations == 0 and number == 0:
            _check_unmoved(learner.policy, metrics)
        metrics |= _step(learner, config)
        for name, value in metrics.items():
            sums[name] += value
        episode = learner.progress.num_episodes + batch_size * (1 + (number + 1) / len(minibatches)) / 2
        report_progress(report, config, episode, f"step {number + 1} of {len(minibatches)}")
    return {name: total / len(minibatches) for name, total in sums.items()}


def _minibatches(trajectory: Trajectory, config: PPOConfig, iteration: int) -> Iterator[Tensor]:
    """The rows of each step, shuffled anew in each pass; those that share a prompt stay together."""
    generator = seeded(config.seed, f"iteration {iteration}")
    assert config.num_epochs is not None
    num_shared = trajectory.rollout.num_shared
    row_GS = all_rows(trajectory.rollout).view(-1, num_shared)
    for _ in range(config.num_epochs):
        order_G = torch.randperm(len(row_GS), generator=generator).to(row_GS.device)
        yield from torch.split(row_GS[order_G].flatten(), config.minibatch_size)


def _accumulate(learner: Learner, trajectory: Trajectory, row_R: Tensor, config: PPOConfig) -> dict[str, float]:
    """Gradients of the minibatch's token means, part by part, into the parameters: those of this process's rows.

    Returns the metrics of the whole minibatch.
    """
    learner.policy_optimizer.zero_grad()
    learner.value_optimizer.zero_grad()
    num_tokens = int(trajectory.rollout.mask_BT[row_R].sum())
    sums = dict.fromkeys(STEP_METRICS, 0.0)
    for (part_R, part), is_spare in own_parts(trajectory.rollout, row_R, config):
        rows, counts = trajectory.select(part_R, part), 0.0 if is_spare else 1.0
        # One after the other, so that the graph of one network is in memory at a time.
        policy = _policy_loss(learner.policy, rows, config, num_tokens)
        torch.autograd.backward([counts * policy.loss])
        value = _value_loss(learner.value_model, rows, config, num_tokens)
        torch.autograd.backward([counts * config.value_coefficient * value.loss])
        found = (policy.loss, policy.clipfrac, policy.approxkl, policy.ratio_error, value.loss, value.clipfrac)
        for name, share in zip(STEP_METRICS, found, strict=True):
            sums[name] += counts * share.item()
    return dict(zip(sums, add_up(*sums.values()), strict=True))


def _policy_loss(policy: Policy, part: Trajectory, config: PPOConfig, num_tokens: int) -> PolicyLoss:
    """The clipped loss of these rows: their part of the mean over `num_tokens` tokens."""
    rows, num_new = part.rollout, part.rollout.mask_BT.shape[1]
    logprobs_BT = policy.logprobs(
        rows.tokens_BL,
        rows.attention_BL,
        num_new=num_new,
        temperature=config.temperature,
        num_shared=rows.num_shared,
    )
    return clipped_policy_loss(
        logprobs_BT, part.logprobs_BT, part.advantages_BT, rows.mask_BT, clip=config.clip, num_tokens=num_tokens
    )


def _value_loss(value_model: ValueModel, part: Trajectory, config: PPOConfig, num_tokens: int) -> ValueLoss:
    """As `_policy_loss`, of the value model."""
    rows, num_new = part.rollout, part.rollout.mask_BT.shape[1]
    values_BT = value_model(rows.tokens_BL, rows.attention_BL, num_new=num_new, num_shared=rows.num_shared)
    return clipped_value_loss(
        values_BT, part.values_BT, part.returns_BT, rows.mask_BT, clip=config.value_clip, num_tokens=num_tokens
    )


def _step(learner: Learner, config: PPOConfig) -> dict[str, float]:
    """Add up the processes' gradients, clip both, and apply both steps, or neither when one is not finite."""
    norms: dict[str, float] = {}
    for name, model in (("policy", learner.policy), ("value", learner.value_model)):
        add_up_gradients(learning_parameters(model))
        norm = torch.tensor(clip_gradients(learning_parameters(model), config.max_grad_norm))
        norms[f"ppo/{name}/grad_norm"] = require_finite(norm, f"the gradient of the {name} model").item()
    learner.policy_optimizer.step()
    learner.value_optimizer.step()
    if config.ema_decay is not None:
        learner.follow(config.ema_decay)
    return norms


def _check_unmoved(policy: Policy, metrics: dict[str, float]) -> None:
    """Before the first step the policy is the one that sampled; otherwise temperature, padding or dropout is wrong."""
    tolerance = _tolerance(policy)
    for name in ("ppo/policy/ratio_error", "ppo/policy/approxkl"):
        if metrics[name] > tolerance:
            raise AssertionError(f"before the first step, {name} is {metrics[name]:.2g}, over {tolerance}")


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
