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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainer.config import LoraConfig, PPOConfig
from trainer.distributed import add_up, add_up_gradients, one_voice, part_of, world
from trainer.fitting import checkpoint_folder, learning_parameters, parents, save_version
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
from trainer.ppo_guard import Guard, Judgement
from trainer.ppo_learner import Learner, PPOResult
from trainer.pretraining import MAX_TOKENS, Passage, encode_texts, hash_passages, passage_batches
from trainer.reporting import Reporter
from trainer.rollout import (
    PerToken,
    Question,
    Rollout,
    Score,
    all_rows,
    hash_questions,
    log_samples,
    own_rows,
    per_token,
    report_progress,
    require_finite,
    roll_out,
    score_answers,
    seeded,
    sequences_per_batch,
    stop_if_cancelled,
    walk,
)
from trainer.sampling import LocalSampler, Prompt, context_refusal, encode_prompt
from trainer.shared_prompt import CannotShare, allow_packing

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
    checkpoint = checkpoint_folder(out)

    def keep() -> None:
        learner.save(checkpoint, identity)
        if on_checkpoint is not None and world().is_first:
            on_checkpoint(checkpoint)

    optimise(learner, reward_model, questions, tokenizer, config, report, passages=passages, guard=watch, keep=keep)
    learner.settle()
    result = learner.progress.result(refused, is_average=learner.average is not None)
    save_version(learner.policy, out, {**identity, "result": result.as_json()})
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
        sequences_per_batch=sequences_per_batch([*questions, *(guard.questions if guard else ())], config),
    )
    if guard is not None and progress.guard is None:
        report.metrics(progress.num_episodes, _consult(guard, learner, score, sampler, config, report))
    while progress.num_episodes < num_episodes:
        batch_size = min(config.episodes_per_batch, num_episodes - progress.num_episodes)
        started = time.perf_counter()

        # 1. Rollout: the policy answers; what it and the reference think of each token, what the value model expects.
        num, num_prompts = config.samples_per_prompt, batch_size // config.samples_per_prompt
        chosen = walk(questions, progress.num_episodes // num, num_prompts, config.seed, "pass")
        asked = [question for question in chosen for _ in range(num)]
        rollout = roll_out(sampler, asked, progress.num_episodes, config, report, num_shared=num_shared)
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
        log_samples(report, tokenizer, rollout, score_B, logprobs_BT - reference_BT)
        if progress.guard is not None and progress.guard.num_exploited >= config.guard_patience:
            report.log("warning", f"Stopped: {progress.guard.verdict}")
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
        reference_BT = per_token(rollout, logprobs, config, "the reference's log-probability")
    values_BT = per_token(rollout, learner.value_model, config, "the value model's value")
    return logprobs_BT, reference_BT, values_BT, score_answers(rollout, score, config)


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


def _consult(
    guard: Guard, learner: Learner, score: Score, sampler: LocalSampler, config: PPOConfig, report: Reporter
) -> dict[str, float]:
    """What the guard says of the policy of now; where its score is the best so far, the weights are remembered."""
    said, training_score = guard.ask(score, sampler, config, report)
    progress = learner.progress
    if progress.guard is None:
        progress.guard = Judgement(said, said, training_score, progress.num_episodes)
    elif progress.guard.hear(said, training_score, progress.num_episodes):
        learner.remember()
    return {"guard/score": said, "guard/training_score": training_score}


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
        stop_if_cancelled(report)
        metrics = _accumulate(learner, trajectory, row_R, config)
        if config.ptx_coefficient > 0:
            texts = walk(passages, num_texts, len(row_R) * config.ptx_examples_per_episode, config.seed, "texts")
            num_texts += len(texts)
            metrics |= _accumulate_pretraining(learner.policy, texts, config)
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
    own_R = own_rows(row_R, trajectory.rollout)
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
        add_up_gradients(learning_parameters(model))
        norm = torch.nn.utils.clip_grad_norm_(learning_parameters(model), config.max_grad_norm)
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
        "prompts_sha256": hash_questions(questions),
        "guard_prompts_sha256": hash_questions(guard.questions) if guard else None,
        "ptx_texts_sha256": hash_passages(passages) if passages else None,
        "model": sources["policy"].name,
        "parents": parents(**sources),
    }
