"""Prompts that several samples share: computed once, and nothing else changes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from tests.trainer.ppo.tools import (
    CPU,
    EOS,
    LORA,
    PAD,
    QUESTIONS,
    TOKENIZER,
    Diary,
    make_config,
    make_learner,
    policy_gradient,
    run,
)
from tests.trainer.tiny import make_model
from trainer import ppo, shared_prompt
from trainer.config import LoraConfig
from trainer.models import Policy
from trainer.ppo import Trajectory
from trainer.reward_model import RewardModel
from trainer.rollout import Question, make_rollout
from trainer.sampling import Draw, Generated, LocalSampler
from trainer.shared_prompt import CannotShare, allow_packing, is_packing
from trainer.weights import ModelSource


def refuse(transformer: Any) -> None:
    raise CannotShare("a test says so")


def run_shared(base: ModelSource, monkeypatch: pytest.MonkeyPatch, *, is_sharing: bool, **fields: Any) -> Diary:
    if not is_sharing:
        monkeypatch.setattr(ppo, "allow_packing", refuse)
    config = make_config(num_episodes=16, minibatch_size=8, samples_per_prompt=4, **fields)
    learner = make_learner(base, config)
    lora = config.lora if isinstance(config.lora, LoraConfig) else None
    return run(learner, config, score=RewardModel.from_sft(base, lora, seed=1))


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("tokens_per_forward", [1, 8192])
def test_a_shared_prompt_gives_what_separate_rows_give(
    base: ModelSource, lora: LoraConfig | None, tokens_per_forward: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"lora": lora, "tokens_per_forward": tokens_per_forward, "num_epochs": 2}
    shared = run_shared(base, monkeypatch, is_sharing=True, **fields).points
    apart = run_shared(base, monkeypatch, is_sharing=False, **fields).points
    for name in ("objective/reward", "objective/kl", "objective/length", "objective/entropy", "objective/rlhf_reward"):
        assert [point[name] for point in shared] == pytest.approx([point[name] for point in apart], abs=1e-4)


@pytest.mark.parametrize("lora", [None, LORA])
def test_gradients_of_a_shared_prompt_are_those_of_separate_rows(base: ModelSource, lora: LoraConfig | None) -> None:
    config = make_config(lora=lora)
    learner = make_learner(base, config)
    questions = [Question("q", tokens) for tokens in ([3], [3, 4, 5, 3, 4], [5, 5]) for _ in range(4)]
    draws = [
        Draw(question.tokens, f"q{len(question.tokens)}", index, seed=1) for index, question in enumerate(questions)
    ]
    sampler = LocalSampler(learner.policy.model, TOKENIZER)
    drawn = sampler.draw(draws, temperature=1.0, top_p=1.0, max_new_tokens=6)
    noise = torch.Generator().manual_seed(5)
    found = []
    # Padded rows, packed rows, and packed rows that share their prompts.
    for num_shared in (0, 1, 4):
        if num_shared == 1:
            allow_packing(learner.policy.model)
            allow_packing(learner.value_model.blocks)
        rollout = make_rollout(questions, drawn, pad_id=PAD, device=CPU, num_shared=max(1, num_shared))
        made_up = [torch.randn(rollout.mask_BT.shape, generator=noise.manual_seed(5)) * rollout.mask_BT] * 3
        trajectory = Trajectory(rollout, rollout.sampled_BT + 0.1 * rollout.mask_BT, *made_up)
        metrics = ppo._accumulate(learner, trajectory, torch.arange(12), config)
        of_value = [p.grad.flatten().double() for p in learner.value_model.parameters() if p.grad is not None]
        found.append((policy_gradient(learner), torch.cat(of_value), metrics))
    for other in found[1:]:
        for alone, shared in zip(found[0][:2], other[:2], strict=True):
            assert (alone - shared).norm() <= 1e-5 * alone.norm()
            assert alone.norm() > 1e-3
        assert found[0][2] == pytest.approx(other[2], abs=1e-5)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_sampler_that_shares_prompts_draws_the_same_answers(num_layers: int) -> None:
    model = make_model(TOKENIZER, seed=3, num_layers=num_layers)
    prompts = [[3], [3, 4, 5, 3, 4], [5, 5]]
    draws = [Draw(prompt, str(prompt), index, seed=1) for prompt in prompts for index in range(4)]
    for size in (3, 8, 16):
        sampler = LocalSampler(model, TOKENIZER, sequences_per_batch=size)
        alone, shared = (
            sampler.draw(draws, temperature=1.0, top_p=1.0, max_new_tokens=6, num_shared=num) for num in (1, 4)
        )
        assert [answer.tokens for answer in alone] == [answer.tokens for answer in shared]
        for one, other in zip(alone, shared, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    assert len({tuple(answer.tokens) for answer in shared}) > 4


@pytest.mark.parametrize(("kind", "scale"), [("granite", {"logits_scaling": 4.0}), ("cohere", {"logit_scale": 0.5})])
def test_a_model_that_scales_its_logits_shares_by_its_own_way(kind: str, scale: dict[str, float]) -> None:
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": None, "initializer_range": 0.3}
    config = AutoConfig.for_model(kind, vocab_size=len(TOKENIZER), **size, **special, **scale)
    model = AutoModelForCausalLM.from_config(config).eval()
    policy = Policy(model, frozen=None, adapter=None, source=ModelSource(Path("none")))
    answers = [Generated(answer, [], "stop") for answer in ([3, 4, EOS], [5], [4, 4], [EOS])]
    rollout = make_rollout([QUESTIONS[0]] * 2 + [QUESTIONS[1]] * 2, answers, pad_id=PAD, device=CPU, num_shared=2)

    def said() -> Tensor:
        rows = rollout.tokens_BL, rollout.attention_BL
        return policy.logprobs(*rows, num_new=3, temperature=0.7, num_shared=2).masked_fill(~rollout.mask_BT, 0.0)

    apart = said()
    allow_packing(model)
    assert is_packing(model.base_model)
    torch.testing.assert_close(said(), apart, rtol=1e-5, atol=1e-6)


def test_a_model_that_cannot_share_computes_padded_rows_and_says_why(
    base: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = shared_prompt.packed_logits
    monkeypatch.setattr(shared_prompt, "packed_logits", lambda *row: 2 * logits(*row))
    config = make_config(num_episodes=8)
    learner = make_learner(base, config)
    said = run(learner, config).lines
    assert any("padded row" in line and "differs from separate rows" in line for _, line in said)
    assert not is_packing(learner.policy.model.base_model)
    assert is_packing(learner.value_model.blocks)


def test_samples_of_a_prompt_stay_together() -> None:
    config = make_config(num_episodes=8, samples_per_prompt=2, num_epochs=2)
    rollout = make_rollout(
        [Question("q", [3, 4])] * 8, [Generated([3], [0.0], "stop")] * 8, pad_id=PAD, device=CPU, num_shared=2
    )
    trajectory = Trajectory(rollout, *[torch.zeros(8, 1)] * 4)
    seen = [rows.tolist() for rows in ppo._minibatches(trajectory, config, 0)]
    assert len(seen) == 4
    assert sorted(seen[0] + seen[1]) == sorted(seen[2] + seen[3]) == list(range(8))
    assert all(rows[0] % 2 == 0 and rows[1] == rows[0] + 1 for part in seen for rows in (part[:2], part[2:]))


@pytest.mark.parametrize("field", ["minibatch_size", "num_episodes"])
def test_what_does_not_hold_whole_prompts_is_refused(field: str) -> None:
    sizes = {"minibatch_size": 8, "episodes_per_batch": 8, "num_episodes": 16}
    with pytest.raises(ValueError, match=f"{field}: must be a multiple of samples_per_prompt"):
        make_config(**{**sizes, "samples_per_prompt": 4, field: sizes[field] // 8, "episodes_per_batch": 8})
