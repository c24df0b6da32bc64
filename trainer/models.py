"""Policy, reward and value model: what they compute, and how they are saved as a version's files.

Adapters and full weights alike; knows no loss, no optimizer and no dataset.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import compress
from pathlib import Path
from typing import Any, cast

import peft
import torch
import torch.nn.functional as F  # noqa: N812 (the name that every reader of torch knows)
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from trainer.checkpoints import save_tensors
from trainer.config import LoraConfig
from trainer.folders import new_folder
from trainer.shared_prompt import PackedRow, is_packing, packed_logits, packed_states
from trainer.weights import (
    ModelSource,
    add_adapter,
    from_pretrained,
    load_adapter,
    load_causal_lm,
    load_tokenizer,
    load_trunk,
    save_full,
    save_weights,
    vocabulary_size,
    without_dropout,
    write_json,
)

REWARD_HEAD, REWARD_FACTS = "reward_head.safetensors", "reward.json"
REWARD_MEMBERS = "reward_members.safetensors"
"""The heads of an ensemble, where there is one; the head is their mean."""


def position_ids(attention_BL: Tensor) -> Tensor:
    """cumsum(mask) - 1, floored at 0: the first real token is at 0, however a row is padded."""
    return (attention_BL.long().cumsum(dim=1) - 1).clamp(min=0)


def _last_position(attention_BL: Tensor) -> Tensor:
    """The column_B of each row's last real token."""
    column_L = torch.arange(attention_BL.shape[1], device=attention_BL.device)
    return (attention_BL.long() * column_L).argmax(dim=1)


def _last_of(hidden_BLD: Tensor, attention_BL: Tensor) -> Tensor:
    """hidden_BD at each row's last real token."""
    row_B = torch.arange(len(hidden_BLD), device=hidden_BLD.device)
    return hidden_BLD[row_B, _last_position(attention_BL)]


# --- What a transformer says before each token of an answer ----------------------------------------------------------
# B = rows, of which each S neighbours share a prompt; L = columns, of which the last T are completion; P = the
# completions' tokens, one row's after another's


def answer_states(
    transformer: Any, tokens_BL: Tensor, attention_BL: Tensor, *, num_new: int, num_shared: int = 1
) -> Tensor:
    """hidden_PD of a transformer without its head, before each real token of the last T = `num_new` columns.

    A transformer that `shared_prompt.allow_packing` has prepared reads the rows without their padding, and computes the
    prompt of each `num_shared` neighbours once; the states are those of separate rows.
    """
    if is_packing(transformer):
        packed = _pack(tokens_BL, attention_BL, num_new=num_new, num_shared=num_shared, is_cut=True)
        return packed_states(transformer, packed)[packed.path_P]
    output = transformer(
        input_ids=tokens_BL[:, :-1],
        attention_mask=attention_BL[:, :-1].long(),
        position_ids=position_ids(attention_BL)[:, :-1],
        use_cache=False,
    )
    return cast(Tensor, output.last_hidden_state[:, -num_new:][attention_BL[:, -num_new:].bool()])


def _pack(tokens_BL: Tensor, attention_BL: Tensor, *, num_new: int, num_shared: int, is_cut: bool) -> PackedRow:
    """The rows one behind another; `is_cut` leaves each one's last token out, after which nothing is asked."""
    is_real, tokens = attention_BL.bool().tolist(), tokens_BL.tolist()
    split = tokens_BL.shape[1] - num_new

    def real(row: int, columns: slice) -> list[int]:
        return list(compress(tokens[row][columns], is_real[row][columns]))

    answers = [real(row, slice(split, None)) for row in range(len(tokens))]
    end = -1 if is_cut else None
    groups = [
        (real(first, slice(0, split)), [answer[:end] for answer in answers[first : first + num_shared]])
        for first in range(0, len(tokens), num_shared)
    ]
    return PackedRow.pack(groups, tokens_BL.device)


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    """A division by 1 would copy all logits, there and back."""
    return logits if temperature == 1.0 else logits / temperature


def _spread(value_P: Tensor, attention_BL: Tensor, num_new: int) -> Tensor:
    """value_BT from one value for each real token of the last T columns; 0 at padding."""
    is_real_BT = attention_BL[:, -num_new:].bool()
    return value_P.new_zeros(is_real_BT.shape).masked_scatter(is_real_BT, value_P)


# --- Policy ----------------------------------------------------------------------------------------------------------
# B = rows, L = columns (prompt and completion), T = the last columns of them (completion), D = hidden size


class Policy(nn.Module):
    """A causal language model that learns, and the frozen one that it must stay near."""

    def __init__(
        self, model: PreTrainedModel, *, frozen: PreTrainedModel | None, adapter: Any, source: ModelSource
    ) -> None:
        """`adapter`: the peft model around `model`, or None; `frozen`: the reference, None where it is `model` with
        its adapter off."""
        super().__init__()
        self.model = model
        self.frozen = frozen
        self.source = source
        self._adapter = (adapter,)
        self._active = (model,)

    def logprobs(
        self, tokens_BL: Tensor, attention_BL: Tensor, *, num_new: int, temperature: float, num_shared: int = 1
    ) -> Tensor:
        """log p_BT in fp32 of the last T = `num_new` tokens of each row, at this temperature; 0 at padding.

        Rows may be padded on both sides. Of each `num_shared` neighbours the prompt is one and the same, and is
        computed once by a transformer that was prepared for it.
        """
        model = self._active[0]
        is_real_BT = attention_BL[:, -num_new:].bool()
        if is_packing(model.base_model):
            packed = _pack(tokens_BL, attention_BL, num_new=num_new, num_shared=num_shared, is_cut=True)
            logits_PV = packed_logits(model, packed, packed.path_P)
        else:
            output = model(
                input_ids=tokens_BL,
                attention_mask=attention_BL.long(),
                position_ids=position_ids(attention_BL),
                logits_to_keep=num_new + 1,
                use_cache=False,
            )
            logits_PV = output.logits[:, :-1][is_real_BT]
        chosen_P = tokens_BL[:, -num_new:][is_real_BT]
        logprob_P = -F.cross_entropy(_tempered(logits_PV.float(), temperature), chosen_P, reduction="none")
        return _spread(logprob_P, attention_BL, num_new)

    @property
    def has_adapter(self) -> bool:
        """Whether only an adapter learns."""
        return self._adapter[0] is not None

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, `logprobs` are the SFT model's."""
        if self.frozen is None:
            with self._adapter[0].disable_adapter():
                yield
            return
        self._active = (self.frozen,)
        try:
            yield
        finally:
            self._active = (self.model,)

    def save(self, folder: Path) -> None:
        """Write the version's weights into an existing folder."""
        is_on_base = self.source.weights == self.source.base
        save_weights(self._adapter[0] or self.model, folder, alias=self.source.name, is_on_base=is_on_base)


def load_policy(
    source: ModelSource,
    *,
    lora: LoraConfig | None,
    reference: ModelSource | None = None,
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    has_reference: bool = True,
) -> Policy:
    """The policy to train from `source`, with `reference` (the SFT version; left out: `source` itself) beside it.

    An adapter version goes on learning as the adapter that it is. With an adapter on the reference's own weights, the
    reference is the policy with its adapter off; else it is a frozen copy. Without `has_reference`, nothing is copied.
    """
    reference = reference or source
    model = without_dropout(from_pretrained(AutoModelForCausalLM, source, dtype))
    adapter = None
    if source.adapter:
        adapter = load_adapter(model, source.adapter)
    elif lora is not None:
        adapter = add_adapter(model, lora, seed)
    is_switchable = adapter is not None and reference.adapter is None and reference.weights == source.weights
    frozen = (
        None if is_switchable or not has_reference else load_causal_lm(reference, dtype=dtype).requires_grad_(False)
    )
    inner = adapter.base_model.model if adapter is not None else model
    return Policy(inner, frozen=frozen, adapter=adapter, source=source).to(device)


# --- Reward and value model ------------------------------------------------------------------------------------------


class _ScalarModel(nn.Module):
    """A transformer whose hidden states a linear head turns into one number each."""

    def __init__(self, trunk: Any, source: ModelSource, *, is_on_base: bool) -> None:
        super().__init__()
        self.trunk = trunk
        self.source = source
        self.is_on_base = is_on_base
        self.head = nn.Linear(trunk.config.get_text_config().hidden_size, 1, dtype=torch.float32)

    def _hidden(self, tokens_BL: Tensor, attention_BL: Tensor) -> Tensor:
        output = self.trunk(
            input_ids=tokens_BL,
            attention_mask=attention_BL.long(),
            position_ids=position_ids(attention_BL),
            use_cache=False,
        )
        return cast(Tensor, output.last_hidden_state)

    @property
    def blocks(self) -> PreTrainedModel:
        """The transformer itself, adapters in place."""
        return cast(PreTrainedModel, self.trunk.base_model.model if self.has_adapter else self.trunk)

    @property
    def has_adapter(self) -> bool:
        """Whether only an adapter learns."""
        return isinstance(self.trunk, peft.PeftModel)


class RewardModel(_ScalarModel):
    """What an answer is worth: r = w · h + bias, h the hidden state of its last real token (InstructGPT, 3.5).

    That token is EOS for a finished answer; an answer that was cut by length has none, and none is added. The head is
    in fp32 and starts at N(0, 1/sqrt(d + 1)) with bias 0 (2009.01325; N+). The bias has no part in the loss: it is set
    after training, so that the mean score of the training answers is 0.
    """

    score_std: float = 1.0
    """Standard deviation of the training answers' scores."""

    def __init__(self, trunk: Any, source: ModelSource, *, is_on_base: bool) -> None:
        super().__init__(trunk, source, is_on_base=is_on_base)
        # Davidson's theta: log of how often people tie, against how they would by chance. It learns where ties do.
        self.tie_theta = nn.Parameter(torch.zeros(()), requires_grad=False)
        # An ensemble: heads that learn apart, of which `head` is the mean. None: `head` learns by itself.
        self.members: nn.Linear | None = None
        self.has_learned = False

    def add_members(self, num_members: int, seed: int) -> None:
        """Let so many fresh heads learn in place of the one, each from a start of its own."""
        hidden_size, device = self.head.in_features, self.head.weight.device
        members = nn.Linear(hidden_size, num_members, dtype=torch.float32)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            members.weight.normal_(0.0, (hidden_size + 1) ** -0.5, generator=generator)
            members.bias.zero_()
        members.bias.requires_grad_(False)
        self.head.weight.requires_grad_(False)
        self.members = members.to(device)
        self.average_members()

    def have_members(self, num_members: int, seed: int) -> None:
        """As many heads as are asked for. A fresh model's begin apart; one that has learned (`load`) goes on from its
        own where they are as many, else from their mean, and then its heads part by learning from other rankings."""
        if num_members == self.num_members:
            return
        learned = copy.deepcopy(self.head)
        self.members = None
        self.head.weight.requires_grad_(True)
        if num_members > 1:
            self.add_members(num_members, seed)
            if self.has_learned:
                self._all_begin_as(learned)

    @torch.no_grad()
    def _all_begin_as(self, learned: nn.Linear) -> None:
        """Each member is the same head at first."""
        assert self.members is not None
        self.members.weight.copy_(learned.weight.expand_as(self.members.weight))
        self.members.bias.copy_(learned.bias.expand_as(self.members.bias))
        self.average_members()

    @property
    def num_members(self) -> int:
        """How many heads it has: 1 where there is no ensemble."""
        return self.members.out_features if self.members is not None else 1

    @torch.no_grad()
    def average_members(self) -> None:
        """Make `head` the mean of the members: the mean of linear functions is linear, so that it is exact."""
        if self.members is not None:
            self.head.weight.copy_(self.members.weight.mean(dim=0, keepdim=True))
            self.head.bias.copy_(self.members.bias.mean(dim=0, keepdim=True))

    @torch.no_grad()
    def shift(self, mean_E: Tensor) -> None:
        """Take the mean score of each of the E heads off its bias."""
        (self.members or self.head).bias.sub_(mean_E.to(self.head.bias))
        self.average_members()

    def learn_ties(self, share: float) -> None:
        """Let theta learn, from where answers of equal worth are tied with the chance `share` (0 < share < 1)."""
        with torch.no_grad():
            self.tie_theta.fill_(math.log(2 * share / (1 - share)))
        self.tie_theta.requires_grad_(True)

    @classmethod
    def from_sft(
        cls,
        source: ModelSource,
        lora: LoraConfig | None,
        *,
        seed: int = 0,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> RewardModel:
        """A fresh reward model on the weights of an SFT version; with `lora`, only adapters and the head learn."""
        trunk = load_trunk(source, dtype)
        if lora is not None:
            trunk = add_adapter(trunk, lora, seed)
        model = cls(trunk, source, is_on_base=source.version is None)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            hidden_size = model.head.in_features
            model.head.weight.normal_(0.0, (hidden_size + 1) ** -0.5, generator=generator)
            model.head.bias.zero_()
        model.head.bias.requires_grad_(False)
        return model.to(device).eval()

    @classmethod
    def load(
        cls,
        source: ModelSource,
        *,
        lora: LoraConfig | None = None,
        seed: int = 0,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> RewardModel:
        """A reward version, as `save` wrote it; to go on learning, with `lora`, full weights get adapters, and an
        adapter stays the one that it is. ValueError when the version is none.
        """
        if source.version is None or not (source.version / REWARD_HEAD).is_file():
            raise ValueError(f"This version of “{source.name}” is no reward model: it has no {REWARD_HEAD}.")
        trunk = without_dropout(from_pretrained(AutoModel, source, dtype))
        if source.adapter:
            trunk = load_adapter(trunk, source.adapter)
        elif lora is not None:
            trunk = add_adapter(trunk, lora, seed)
        model = cls(trunk, source, is_on_base=source.adapter is not None)
        model.has_learned = True
        model.head.load_state_dict(load_file(source.version / REWARD_HEAD))
        model.head.bias.requires_grad_(False)
        facts = json.loads((source.version / REWARD_FACTS).read_text(encoding="utf-8"))
        model.score_std = float(facts["score_std"])
        if facts.get("tie_theta") is not None:
            model.tie_theta.data.fill_(facts["tie_theta"])
        if (source.version / REWARD_MEMBERS).is_file():
            state = load_file(source.version / REWARD_MEMBERS)
            model.add_members(len(state["bias"]), seed=0)
            cast(nn.Linear, model.members).load_state_dict(state)
            model.average_members()
        return model.to(device).eval()

    def writer(self, sft: ModelSource) -> PreTrainedModel:
        """The SFT version's causal language model around this very transformer: what it learns, the scores learn from.
        Its head is the embeddings where the base ties them; elsewhere it stays what it was.
        """
        model: Any = load_causal_lm(sft, device=str(self.head.weight.device)).requires_grad_(False)
        setattr(model, model.base_model_prefix, self.blocks)
        if model.config.get_text_config().tie_word_embeddings:
            model.get_output_embeddings().weight = self.blocks.get_input_embeddings().weight
        return cast(PreTrainedModel, model)

    def score_answers(self, tokens_BL: Tensor, attention_BL: Tensor, *, num_new: int, num_shared: int) -> Tensor:
        """score_B as `forward` gives it, of answers in the last `num_new` columns; each `num_shared` share a prompt."""
        if not is_packing(self.blocks):
            return self.score_states(self.last_states(tokens_BL, attention_BL))
        packed = _pack(tokens_BL, attention_BL, num_new=num_new, num_shared=num_shared, is_cut=False)
        return self.score_states(packed_states(self.blocks, packed)[packed.last_M])

    def forward(self, tokens_BL: Tensor, attention_BL: Tensor) -> Tensor:
        """score_B in fp32 of conversations with their answers, padded on any side."""
        return self.score_states(self.last_states(tokens_BL, attention_BL))

    def last_states(self, tokens_BL: Tensor, attention_BL: Tensor) -> Tensor:
        """hidden_BD of each row's last real token."""
        return _last_of(self._hidden(tokens_BL, attention_BL), attention_BL)

    def score_states(self, hidden_BD: Tensor) -> Tensor:
        """score_B from the hidden states of each answer's last token."""
        return cast(Tensor, self.head(hidden_BD.to(self.head.weight.dtype))[:, 0])

    def member_scores(self, hidden_BD: Tensor) -> Tensor:
        """score_BE by each of the E heads; by the only one where there is no ensemble. Their mean is the score."""
        return cast(Tensor, (self.members or self.head)(hidden_BD.to(self.head.weight.dtype)))

    def save(self, folder: Path) -> None:
        """Write the version's weights, its head and `reward.json` into an existing folder."""
        save_weights(self.trunk, folder, alias=self.source.name, is_on_base=self.is_on_base)
        head = {name: tensor.detach().cpu().contiguous() for name, tensor in self.head.state_dict().items()}
        save_tensors(head, folder / REWARD_HEAD)
        if self.members is not None:
            members = {name: tensor.detach().cpu().contiguous() for name, tensor in self.members.state_dict().items()}
            save_tensors(members, folder / REWARD_MEMBERS)
        facts = {"format": 1, "base": self.source.name, "bias": self.head.bias.item(), "score_std": self.score_std}
        if self.tie_theta.requires_grad:
            facts["tie_theta"] = self.tie_theta.item()
        write_json(folder / REWARD_FACTS, facts)


def require_same_tokens(reward: RewardModel, policy: PreTrainedModel) -> None:
    """ValueError where a reward model would read a policy's tokens as other words."""
    read, said = vocabulary_size(reward.blocks.config), vocabulary_size(policy.config)
    if read != said:
        raise ValueError(
            f"The reward model knows {read} tokens, and the policy {said}: they come from different base models. Train "
            "a reward model on this policy's base."
        )


class ValueModel(_ScalarModel):
    """What is still to come at each token of an answer: a network of its own that begins as the reward model."""

    @classmethod
    def from_reward(cls, reward: RewardModel) -> ValueModel:
        """A copy that learns what the reward model learned: its adapter, or all its weights; and head and bias."""
        model = cls(copy.deepcopy(reward.trunk), reward.source, is_on_base=reward.is_on_base)
        model.head.load_state_dict(reward.head.state_dict())
        return model.to(reward.head.weight.device).eval()

    def forward(self, tokens_BL: Tensor, attention_BL: Tensor, *, num_new: int, num_shared: int = 1) -> Tensor:
        """V_BT in fp32 before each of the last T = `num_new` tokens of each row, 0 at padding; as `Policy.logprobs`."""
        hidden_PD = answer_states(self.blocks, tokens_BL, attention_BL, num_new=num_new, num_shared=num_shared)
        return _spread(self.head(hidden_PD.to(self.head.weight.dtype))[:, 0], attention_BL, num_new)


# --- Export ----------------------------------------------------------------------------------------------------------


def merge_to_folder(source: ModelSource, out: Path) -> None:
    """A version as a folder that stands alone: weights with the adapter merged in, tokenizer, chat template.

    A policy opens with `AutoModelForCausalLM`, a reward model with `AutoModelForSequenceClassification` (one label);
    that class has no bias: add `reward_bias` of its config to the score.
    """
    is_reward = source.version is not None and (source.version / REWARD_HEAD).is_file()
    tokenizer = load_tokenizer(source)
    model: Any = _as_classifier(source, tokenizer.pad_token_id) if is_reward else load_causal_lm(source)
    tokenizer.init_kwargs.pop("local_files_only", None)
    with new_folder(out) as building:
        save_full(model, building)
        tokenizer.save_pretrained(building)


def _as_classifier(source: ModelSource, pad_id: int) -> Any:
    reward = RewardModel.load(source)
    trunk = cast(Any, reward.trunk).merge_and_unload() if reward.has_adapter else reward.trunk
    config = copy.deepcopy(cast(Any, trunk).config)
    config.num_labels, config.pad_token_id, config.reward_bias = 1, pad_id, reward.head.bias.item()
    model = cast(Any, AutoModelForSequenceClassification).from_config(config)
    model.base_model.load_state_dict(cast(Any, trunk).state_dict())
    with torch.no_grad():
        model.score.weight.copy_(reward.head.weight)
    return model
