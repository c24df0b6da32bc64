"""A prompt that its answers share: scores and gradients of separate rows, and models that can't are seen."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from tests.trainer.tiny import save_tiny
from trainer.config import LoraConfig
from trainer.reward_model import RewardModel
from trainer.shared_prompt import ATTENTION, CannotShare, PackedRow, SharedPrompt, share_prompt
from trainer.weights import ModelSource

# (prompt, answers): both ragged, K mixed, one answer empty.
RANKINGS = [
    ([5, 4, 3, 4, 6, 7, 7], [[6, 3, 1], [4], [], [3, 3, 3, 4, 5, 6, 1]]),
    ([7, 4], [[8, 3, 4, 1], [5, 1]]),
    ([3, 8, 4, 5, 5], [[1], [6, 6, 6], [3, 7, 4, 4, 1]]),
]
SIZES: dict[str, Any] = {
    "vocab_size": 16,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}


def nudge(model: RewardModel) -> RewardModel:
    """Adapters that do something, and whose first factors get a gradient."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    return model


def make_llama(tmp_path: Path, lora: LoraConfig | None) -> RewardModel:
    return nudge(RewardModel.from_sft(ModelSource(save_tiny(tmp_path / "deep", num_layers=4)), lora))


def make_any(kind: str, **changes: Any) -> RewardModel:
    torch.manual_seed(1)
    trunk = AutoModel.from_config(AutoConfig.for_model(kind, **(SIZES | changes))).eval()
    return RewardModel(trunk, ModelSource(Path("none")), is_on_base=True).eval()


def separate(model: RewardModel) -> Tensor:
    rows = [torch.tensor([[*prompt, *answer]]) for prompt, answers in RANKINGS for answer in answers]
    return torch.cat([model(row, torch.ones_like(row)) for row in rows])


def scores(model: RewardModel, shared: SharedPrompt) -> Tensor:
    return model.score_states(shared.last_states(shared.pack(RANKINGS)))


def require_equal(model: RewardModel, *, keep_states: bool = True) -> SharedPrompt:
    shared = share_prompt(model.blocks, keep_states=keep_states)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    apart, packed = separate(model), scores(model, shared)
    assert ((packed - apart).norm() / apart.norm()).item() < 1e-5
    pull = torch.randn(len(apart), generator=torch.Generator().manual_seed(2))
    expected = torch.autograd.grad((apart * pull).sum(), learning, allow_unused=True)
    found = torch.autograd.grad((packed * pull).sum(), learning, allow_unused=True)
    whole = torch.cat([g.flatten() for g in expected if g is not None]).norm()
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert ((one - other).norm() / whole).item() < 1e-5
            assert (one - other).norm() <= 1e-4 * other.norm() + 1e-6 * whole
    return shared


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4, alpha=8, num_last_blocks=2), LoraConfig(num_last_blocks=9)])
def test_scores_and_gradients_are_those_of_separate_rows(lora: LoraConfig | None, tmp_path: Path) -> None:
    shared = require_equal(make_llama(tmp_path, lora))
    assert (shared.lower is not None) == (lora is not None and lora.num_last_blocks == 2)


def test_what_the_frozen_blocks_say_can_be_kept(tmp_path: Path) -> None:
    model = make_llama(tmp_path, LoraConfig(rank=4, alpha=8, num_last_blocks=2))
    shared = share_prompt(model.blocks)
    assert shared.lower is not None
    assert (len(shared.lower.layers), len(shared.upper.layers)) == (2, 2)
    kept = torch.cat([shared.states(shared.pack([ranking])) for ranking in RANKINGS])
    found = model.score_states(shared.last_states(shared.pack(RANKINGS), kept))
    torch.testing.assert_close(found, scores(model, shared), rtol=1e-5, atol=1e-6)


def test_states_are_kept_only_if_wished(tmp_path: Path) -> None:
    model = make_llama(tmp_path, LoraConfig(rank=4, alpha=8, num_last_blocks=2))
    assert require_equal(model, keep_states=False).lower is None


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("mistral", {"sliding_window": 4, "head_dim": 8}),
        ("qwen3", {"head_dim": 8}),
        ("gemma3_text", {"head_dim": 8, "sliding_window": 4, "num_hidden_layers": 6}),
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
        ("gpt_neox", {}),
    ],
)
def test_other_decoders_share_too(kind: str, changes: dict[str, Any]) -> None:
    require_equal(make_any(kind, **changes))


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("bloom", {"n_head": 4, "n_layer": 2}, "its attention is “eager”"),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, "layers of conv"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "longest row"),
        ("gemma3_text", {"head_dim": 8, "use_bidirectional_attention": True}, "differs from separate rows"),
    ],
)
def test_a_model_that_cannot_share_is_seen(kind: str, changes: dict[str, Any], reason: str) -> None:
    model = make_any(kind, **changes)
    before = model.blocks.config._attn_implementation
    with pytest.raises(CannotShare, match=reason):
        share_prompt(model.blocks)
    assert model.blocks.config._attn_implementation == before


def test_ordinary_rows_are_read_as_before(tmp_path: Path) -> None:
    model = make_llama(tmp_path, None)
    tokens = torch.tensor([[0, 0, 3, 4, 5, 1], [7, 6, 5, 4, 1, 0]])
    before = model(tokens, tokens != 0)
    share_prompt(model.blocks)
    assert model.blocks.config._attn_implementation == ATTENTION
    assert torch.equal(model(tokens, tokens != 0), before)


def test_a_saved_model_does_not_ask_for_this_attention(tmp_path: Path) -> None:
    model = make_llama(tmp_path, None)
    share_prompt(model.blocks)
    (tmp_path / "saved").mkdir()
    model.save(tmp_path / "saved")
    assert ATTENTION not in (tmp_path / "saved" / "config.json").read_text()


def test_a_packed_row_says_where_answers_end() -> None:
    packed = PackedRow.pack(RANKINGS[:1], torch.device("cpu"))
    assert packed.lengths == ((7, 3, 1, 7),)
    assert packed.position_N.tolist() == [*range(7), 7, 8, 9, 7, *range(7, 14)]
    # The empty answer is read at the end of its prompt.
    assert packed.last_M.tolist() == [9, 10, 6, 17]
    assert packed.path_P.tolist() == [6, 7, 8, 9, 6, 10, 6, 6, *range(11, 18)]
    assert packed.answer_P.tolist() == [0] * 4 + [1] * 2 + [2] + [3] * 8
    before, token, answer = packed.steps
    assert before.tolist() == [6, 7, 8, 6, 6, *range(11, 17)]
    assert token.tolist() == [6, 3, 1, 4, 3, 3, 3, 4, 5, 6, 1]
    assert answer.tolist() == [0] * 3 + [1] + [3] * 7


def test_an_only_answer_is_one_part_with_its_prompt() -> None:
    packed = PackedRow.pack([([5, 4, 3], [[6, 3]]), ([5], [[]])], torch.device("cpu"))
    assert packed.lengths == ((5,), (1,))
    assert packed.path_P.tolist() == [2, 3, 4, 5]
