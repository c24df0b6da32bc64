"""A PPO run from files to a version: what `trainer.ppo.optimise` needs is loaded and encoded, what it made is saved."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainer.config import LoraConfig, PPOConfig
from trainer.demonstrations import to_conversations
from trainer.distributed import one_voice, shard, wait_for_all, write_once
from trainer.fitting import (
    Keeper,
    checkpoint_folder,
    compute_again,
    identity_of,
    is_spread,
    loading_place,
    require_plain_saving,
    save_version,
)
from trainer.models import Policy, load_policy
from trainer.ppo import optimise
from trainer.ppo_guard import Guard, ModelGuard
from trainer.ppo_learner import Learner, PPOResult
from trainer.ppo_text import AlignmentTax, hold_out
from trainer.pretraining import MAX_TOKENS, Passage, encode_texts, hash_passages
from trainer.reporting import Reporter
from trainer.reward_model import RewardModel, ValueModel, require_same_tokens
from trainer.rollout import Question, hash_questions
from trainer.sampling import Prompt, context_refusal, encode_prompt
from trainer.sft import hash_conversations, train_sft
from trainer.weights import ModelSource, compute_in_bfloat16, context_length, count_parameters, load_tokenizer


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
    liked_answers: Sequence[Mapping[str, Any]] = (),
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
            where `ptx_coefficient` or `tax_texts` is over 0, and only there.
        liked_answers: conversations that end with an answer that people liked best (`preferences.liked`), where the
            settings have `liked`, and only there. PPO-ptx goes on learning them, as any text (`ptx_coefficient`).
        guard: a second reward version. After each update it scores answers to the same questions with the same seeds;
            the version takes the weights of its best score, and the run stops when the reward is exploited.
        guard_prompts: what the guard asks, best of all prompts that no reward model learned from; left out: `prompts`.

    Raises:
        ValueError: no prompt that fits, a model that cannot be loaded, another run's checkpoint, texts without a
            coefficient or a coefficient without texts, liked answers without `liked`.
        TrainingFailed: something became NaN or infinite; that step was not applied, and `out` was not written.
        RunCancelled: the reporter said stop.
    """
    report = one_voice(report)
    if guard_prompts and guard is None:
        raise ValueError("guard_prompts are asked by a guard, and there is none: name its reward model, too.")
    sources = {"sft": sft, "policy": policy, "reward": reward} | ({"guard": guard} if guard else {})
    config = config.for_model(count_parameters(policy), device)
    ptx_texts, tax_texts = hold_out(ptx_texts, config)
    config, ptx_texts = _with_liked_texts(config, ptx_texts, liked_answers)
    with _after_liked(liked_answers, policy, config, out, report, device) as begin:
        models = _load_models({**sources, "policy": begin}, config, device)
    if config.missing_eos_penalty is None:
        config = replace(config, missing_eos_penalty=models.reward.score_std)
    texts = (ptx_texts, tax_texts)
    given = _encode_all(prompts, guard_prompts, *texts, policy=policy, models=models, config=config, report=report)
    about = {"liked_sha256": hash_conversations(to_conversations(liked_answers))} if liked_answers else {}
    identity = identity_of("ppo", config, policy, sources, **given.hashes, **about)
    keep = Keeper(checkpoint_folder(out), identity, on_checkpoint, resume_from)
    learner = Learner.create(models.policy, models.value, config, is_guarded=guard is not None)
    learner.resume(keep)
    optimise(
        learner,
        models.reward,
        given.questions,
        given.tokenizer,
        config,
        report,
        passages=given.passages,
        tax=given.tax,
        guard=given.guard,
        keep=partial(learner.save, keep),
    )
    learner.settle()
    result = learner.progress.result(given.refused, is_average=learner.average is not None)
    save_version(learner.policy, out, {**identity, "result": result.as_json()})
    return result


def _with_liked_texts(
    config: PPOConfig, texts: Sequence[Mapping[str, Any]], liked: Sequence[Mapping[str, Any]]
) -> tuple[PPOConfig, Sequence[Mapping[str, Any]]]:
    """What PPO-ptx learns where the settings have `liked`: those answers, too; nothing, where people liked none."""
    if config.liked is None or config.ptx_coefficient == 0:
        return config, texts
    learned = [*texts, *liked]
    return (config if learned else replace(config, ptx_coefficient=0.0)), learned


@contextmanager
def _after_liked(
    liked: Sequence[Mapping[str, Any]], policy: ModelSource, config: PPOConfig, out: Path, report: Reporter, device: str
) -> Iterator[ModelSource]:
    """Where PPO begins: the policy, or what it is after SFT on the answers that people liked best, in `<out>.liked`,
    which is gone after the block.

    A run that goes on does it again: it follows from the same answers and seed, and a checkpoint's weights come after.
    """
    if config.liked is None:
        if liked:
            raise ValueError("There are answers that people liked, and no settings to learn them: set liked (to {}).")
        yield policy
        return
    if not liked:
        report.log("warning", "People liked no answer that can be learned: PPO begins with the policy as it is.")
        yield policy
        return
    folder = out.with_name(f"{out.name}.liked")
    train_sft(liked, source=policy, config=config.liked, out=folder, report=report, device=device, kind="ppo/liked")
    yield replace(policy, version=folder)
    wait_for_all()  # until each process has read it
    write_once(lambda: _remove(folder, checkpoint_folder(folder)))


def _remove(*folders: Path) -> None:
    """Each of them that is there."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


# --- Models ----------------------------------------------------------------------------------------------------------


class _Models(NamedTuple):
    """All that compute in a run; policy and value model learn."""

    policy: Policy
    value: ValueModel
    reward: RewardModel
    guard: RewardModel | None

    @property
    def transformers(self) -> list[PreTrainedModel]:
        """Each of them, without heads, the policy's reference among them where it is a model of its own."""
        judges = [judge.blocks for judge in (self.reward, self.guard) if judge is not None]
        references = [self.policy.frozen] if self.policy.frozen is not None else []
        return [self.policy.model, *references, self.value.blocks, *judges]


def _load_models(sources: Mapping[str, ModelSource], config: PPOConfig, device: str) -> _Models:
    """The models of a run, as its settings want them computed: again, spread over the processes, in bfloat16."""
    place = loading_place(sources["policy"], config, device)
    assert config.lora is None or isinstance(config.lora, LoraConfig)
    reward = RewardModel.load(sources["reward"], device=place)
    policy = load_policy(sources["policy"], lora=config.lora, reference=sources["sft"], seed=config.seed, device=place)
    value = ValueModel.from_reward(reward)
    guard = RewardModel.load(sources["guard"], device=place) if "guard" in sources else None
    for judge in (reward, guard):
        if judge is not None:
            require_same_tokens(judge, policy.model)
            # Only now: the value model is a copy that learns what the reward model learned.
            judge.requires_grad_(False)
    models = _Models(policy, value, reward, guard)
    if config.gradient_checkpointing:
        compute_again(policy.model)
        compute_again(value.blocks)
    if is_spread(config):
        _spread(models, sources["policy"], device)
    if config.precision == "bfloat16":
        # After the last copy was made, since a copy would call its original.
        for transformer in models.transformers:
            compute_in_bfloat16(transformer)
    return models


def _spread(models: _Models, source: ModelSource, device: str) -> None:
    """Every transformer over the processes; heads are small, and stay whole."""
    require_plain_saving(source, has_adapter=models.policy.has_adapter)
    for judge in (models.reward, models.guard):
        if judge is not None:
            judge.require_no_likelihood()
    for transformer in models.transformers:
        shard(transformer, device)
    for model in models:
        if model is not None:
            model.to(device)


# --- Prompts and texts -----------------------------------------------------------------------------------------------


class _Given(NamedTuple):
    """What a run reads, in tokens."""

    tokenizer: PreTrainedTokenizerBase
    questions: list[Question]
    refused: list[dict[str, str]]
    guard: Guard | None
    passages: list[Passage]
    tax: AlignmentTax | None

    @property
    def hashes(self) -> dict[str, str | None]:
        """What names all of it in a manifest."""
        return {
            "prompts_sha256": hash_questions(self.questions),
            "guard_prompts_sha256": hash_questions(self.guard.questions) if self.guard else None,
            "ptx_texts_sha256": hash_passages(self.passages) if self.passages else None,
            "tax_texts_sha256": hash_passages(self.tax.passages) if self.tax else None,
        }


def _encode_all(
    prompts: Sequence[Prompt],
    guard_prompts: Sequence[Prompt],
    ptx_texts: Sequence[Mapping[str, Any]],
    tax_texts: Sequence[Mapping[str, Any]],
    *,
    policy: ModelSource,
    models: _Models,
    config: PPOConfig,
    report: Reporter,
) -> _Given:
    """Prompts, the guard's prompts and texts in tokens; what doesn't fit is said."""
    tokenizer = load_tokenizer(policy)
    encode = partial(_encode, tokenizer=tokenizer, policy=models.policy, config=config, report=report)
    questions, refused = encode(prompts)
    asked = encode(guard_prompts)[0] if guard_prompts else questions
    guard = ModelGuard(asked, models.guard) if models.guard is not None else None
    if bool(ptx_texts) != (config.ptx_coefficient > 0):
        raise ValueError(
            "PPO-ptx needs both texts and a weight: "
            + (
                "set ptx_coefficient (the paper's is 27.8)."
                if ptx_texts
                else "ptx_coefficient is set, and no text is given."
            )
        )
    limit = min(MAX_TOKENS, context_length(models.policy.model.config))
    passages = _encode_passages(ptx_texts, "PPO-ptx", tokenizer, limit, report)
    held_out = _encode_passages(tax_texts, "tax_texts", tokenizer, limit, report)
    return _Given(tokenizer, questions, refused, guard, passages, AlignmentTax(held_out) if held_out else None)


def _encode(
    prompts: Sequence[Prompt],
    *,
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
    purpose: str,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    report: Reporter,
) -> list[Passage]:
    """Texts in tokens; what is left out is said."""
    passages, refused = encode_texts(texts, tokenizer, max_tokens=max_tokens)
    for reason in refused:
        report.log("warning", reason)
    if texts and not passages:
        raise ValueError(f"There is nothing to learn in the {len(texts)} texts for {purpose}: {refused[0]}")
    return passages
