"""Policy, reward and value model: what must not matter, what is read where, and files that open elsewhere."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.trainer.tiny import make_tokenizer, save_tiny
from trainer.config import LoraConfig
from trainer.export import merge_to_folder
from trainer.models import Policy, load_policy, position_ids
from trainer.reward_model import RewardModel, ValueModel
from trainer.weights import (
    ADAPTER_CONFIG,
    ModelSource,
    context_length,
    count_parameters,
    load_causal_lm,
    load_tokenizer,
)

LORA = LoraConfig(rank=4, alpha=8, num_last_blocks=1)
# The same two conversations, padded on both sides in two ways. The last two real tokens are the answer.
TOKENS = torch.tensor([[0, 0, 3, 4, 5, 6, 1], [3, 3, 3, 4, 5, 1, 0]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0]]).bool()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return ModelSource(save_tiny(tmp_path_factory.mktemp("models") / "tiny-base"))


def logprobs(policy: Policy, tokens: Tensor = TOKENS, mask: Tensor = MASK, num_new: int = 3) -> Tensor:
    return policy.logprobs(tokens, mask, num_new=num_new, temperature=0.7)


@torch.no_grad()
def nudge(model: nn.Module) -> None:
    """Stand in for training: move everything that learns."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def save(model: Policy | RewardModel, folder: Path) -> ModelSource:
    folder.mkdir()
    model.save(folder)
    return ModelSource(model.source.base, folder)


# Policy


def test_logprobs_equal_a_plain_log_softmax(base: ModelSource) -> None:
    model = AutoModelForCausalLM.from_pretrained(base.base)
    row = TOKENS[:1, 2:]
    expected = torch.log_softmax(model(row).logits[0] / 0.7, dim=-1)
    plain = torch.stack([expected[place - 1, row[0, place]] for place in (2, 3, 4)])
    torch.testing.assert_close(logprobs(load_policy(base, lora=None))[0], plain, rtol=1e-5, atol=1e-5)


def test_padding_does_not_change_logprobs(base: ModelSource) -> None:
    policy = load_policy(base, lora=None)
    alone = logprobs(policy, TOKENS[1:, :6], MASK[1:, :6], num_new=2)
    torch.testing.assert_close(logprobs(policy)[1:, :2], alone, rtol=1e-5, atol=1e-5)


def test_a_fresh_adapter_changes_nothing_and_its_reference_never_moves(base: ModelSource) -> None:
    policy = load_policy(base, lora=LORA)
    before = logprobs(policy)
    torch.testing.assert_close(before, logprobs(load_policy(base, lora=None)))
    nudge(policy)
    assert not torch.allclose(logprobs(policy), before)
    with policy.reference():
        torch.testing.assert_close(logprobs(policy), before)
    assert not torch.allclose(logprobs(policy), before)


def test_the_reference_of_full_weights_is_a_frozen_copy(base: ModelSource) -> None:
    policy = load_policy(base, lora=None)
    before = logprobs(policy)
    nudge(policy)
    with policy.reference():
        torch.testing.assert_close(logprobs(policy), before)
    assert policy.frozen is not None
    assert not any(parameter.requires_grad for parameter in policy.frozen.parameters())


def test_only_adapters_of_the_last_block_learn(base: ModelSource) -> None:
    policy = load_policy(base, lora=LORA)
    learning = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    assert learning
    assert all("lora_" in name and ".layers.1." in name for name in learning)
    # Seven linear layers, two matrices each.
    assert len(learning) == 14


@pytest.mark.parametrize("lora", [LORA, None])
def test_a_saved_policy_is_the_same_policy(base: ModelSource, lora: LoraConfig | None, tmp_path: Path) -> None:
    policy = load_policy(base, lora=lora)
    nudge(policy)
    source = save(policy, tmp_path / "version")
    again = load_policy(source, lora=lora, reference=base)
    torch.testing.assert_close(logprobs(again), logprobs(policy))
    with again.reference():
        torch.testing.assert_close(logprobs(again), logprobs(load_policy(base, lora=None)))


def test_an_adapter_on_other_weights_than_the_base_is_saved_as_full_weights(base: ModelSource, tmp_path: Path) -> None:
    trained = load_policy(base, lora=None)
    nudge(trained)
    policy = load_policy(save(trained, tmp_path / "full"), lora=LORA)
    nudge(policy)
    source = save(policy, tmp_path / "both")
    assert source.adapter is None
    torch.testing.assert_close(logprobs(load_policy(source, lora=None)), logprobs(policy), rtol=1e-4, atol=1e-4)


def test_a_sampling_model_has_its_adapter_merged(base: ModelSource, tmp_path: Path) -> None:
    policy = load_policy(base, lora=LORA)
    nudge(policy)
    merged = load_causal_lm(save(policy, tmp_path / "version"))
    with torch.no_grad():
        torch.testing.assert_close(merged(TOKENS[1:, :6]).logits, policy.model(TOKENS[1:, :6]).logits)
    assert not any("lora" in name for name, _ in merged.named_parameters())


# Reward and value model


def test_the_head_starts_as_the_paper_says(base: ModelSource) -> None:
    heads = torch.cat([RewardModel.from_sft(base, None, seed=seed).head.weight.detach() for seed in range(60)])
    assert heads.dtype == torch.float32
    # 60 x 32 draws of N(0, 1/sqrt(33)): the standard error of the deviation is 1.6 %.
    assert heads.std().item() == pytest.approx(33**-0.5, rel=0.06)
    assert RewardModel.from_sft(base, None).head.bias.item() == 0


@pytest.mark.parametrize("lora", [LORA, None])
def test_the_score_is_read_at_the_last_real_token_however_rows_are_padded(
    base: ModelSource, lora: LoraConfig | None
) -> None:
    model = RewardModel.from_sft(base, lora)
    alone = torch.cat([model(TOKENS[:1, 2:], MASK[:1, 2:]), model(TOKENS[1:, :6], MASK[1:, :6])])
    torch.testing.assert_close(model(TOKENS, MASK), alone, rtol=1e-5, atol=1e-5)
    hidden = model.blocks(TOKENS[1:, :6]).last_hidden_state[0, -1]
    assert alone[1].item() == pytest.approx(model.head(hidden).item(), abs=1e-5)


def test_a_padding_token_inside_an_answer_is_a_token(base: ModelSource) -> None:
    # The last real token has the padding's id: only the mask knows.
    model = RewardModel.from_sft(base, None)
    row = torch.tensor([[3, 4, 5, 0]])
    whole = model(row, torch.ones_like(row))
    padded = model(torch.cat([row, row[:, :2]], dim=1), torch.tensor([[1, 1, 1, 1, 0, 0]]))
    torch.testing.assert_close(whole, padded)


@pytest.mark.parametrize("lora", [LORA, None])
def test_a_saved_reward_model_is_the_same_with_its_bias(
    base: ModelSource, lora: LoraConfig | None, tmp_path: Path
) -> None:
    model = RewardModel.from_sft(base, lora)
    nudge(model)
    model.head.bias.data.fill_(0.5)
    model.score_std = 2.5
    again = RewardModel.load(save(model, tmp_path / "reward"))
    torch.testing.assert_close(again(TOKENS, MASK), model(TOKENS, MASK))
    assert again.score_std == 2.5


def test_a_policy_is_no_reward_model(base: ModelSource) -> None:
    with pytest.raises(ValueError, match=r"is no reward model: it has no reward_head\.safetensors"):
        RewardModel.load(base)


def test_the_value_model_begins_as_the_reward_model_and_learns_apart(base: ModelSource) -> None:
    reward = RewardModel.from_sft(base, LORA)
    reward.head.bias.data.fill_(0.5)
    value = ValueModel.from_reward(reward)
    # The value before the token after the last real one is what the reward model says there.
    longer = torch.cat([TOKENS[1:, :6], TOKENS[1:, :1]], dim=1)
    torch.testing.assert_close(
        value(longer, torch.ones_like(longer), num_new=1)[:, 0], reward(TOKENS[1:, :6], MASK[1:, :6])
    )
    before = reward(TOKENS, MASK)
    nudge(value)
    torch.testing.assert_close(reward(TOKENS, MASK), before)


def test_values_do_not_depend_on_padding(base: ModelSource) -> None:
    value = ValueModel.from_reward(RewardModel.from_sft(base, None))
    alone = value(TOKENS[1:, :6], MASK[1:, :6], num_new=2)
    torch.testing.assert_close(value(TOKENS, MASK, num_new=3)[1:, :2], alone, rtol=1e-5, atol=1e-5)


# Tokenizer, facts, files


@pytest.mark.parametrize("padding", [None, "<eos>"])
def test_padding_is_never_eos(base: ModelSource, padding: str | None, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = padding
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(ModelSource(tmp_path))
    assert loaded.pad_token_id not in (None, loaded.eos_token_id)


def test_a_tokenizer_without_eos_is_refused(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="names no EOS token"):
        load_tokenizer(ModelSource(tmp_path))


def test_a_missing_model_says_what_its_folder_needs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"“nothing” cannot be loaded: its folder needs config\.json"):
        load_causal_lm(ModelSource(tmp_path / "nothing"))


def test_facts_come_from_the_config_alone(base: ModelSource) -> None:
    model = load_causal_lm(base)
    assert count_parameters(base) == sum(parameter.numel() for parameter in model.parameters())
    assert context_length(model.config) == 64


def test_no_saved_file_names_a_folder_of_this_machine(base: ModelSource, tmp_path: Path) -> None:
    for name, lora in (("adapter", LORA), ("full", None)):
        save(load_policy(base, lora=lora), tmp_path / name)
        save(RewardModel.from_sft(base, lora), tmp_path / f"reward-{name}")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert not [path for path in files if str(base.base.parent).encode() in path.read_bytes()]
    facts = json.loads((tmp_path / "adapter" / ADAPTER_CONFIG).read_text())
    assert facts["base_model_name_or_path"] == "tiny-base"


def test_an_exported_policy_opens_elsewhere(base: ModelSource, tmp_path: Path) -> None:
    policy = load_policy(base, lora=LORA)
    nudge(policy)
    merge_to_folder(save(policy, tmp_path / "version"), tmp_path / "exported")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    torch.testing.assert_close(exported(TOKENS[1:, :6]).logits, policy.model(TOKENS[1:, :6]).logits)
    assert load_tokenizer(ModelSource(tmp_path / "exported")).pad_token == "<pad>"


def test_an_exported_reward_model_opens_elsewhere(base: ModelSource, tmp_path: Path) -> None:
    model = RewardModel.from_sft(base, LORA)
    nudge(model)
    model.head.bias.data.fill_(0.5)
    merge_to_folder(save(model, tmp_path / "version"), tmp_path / "exported")
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "exported")
    scores = exported(input_ids=TOKENS[1:], attention_mask=MASK[1:].long()).logits[:, 0] + exported.config.reward_bias
    torch.testing.assert_close(scores, model(TOKENS, MASK)[1:], rtol=1e-4, atol=1e-4)


def test_the_first_real_token_is_at_position_0() -> None:
    assert position_ids(MASK).tolist() == [[0, 0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 5]]
