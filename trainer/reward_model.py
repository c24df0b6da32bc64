"""Reward and value model: what they compute, and how a reward model is saved as a version's files.

Adapters and full weights alike; knows no loss, no optimizer and no dataset.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any, cast

import peft
import torch
import torch.nn.functional as F  # noqa: N812 (the name that every reader of torch knows)
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from trainer.checkpoints import save_tensors
from trainer.config import LoraConfig
from trainer.models import answer_states, last_of, pack_rows, position_ids, spread_values
from trainer.shared_prompt import PackedRow, is_packing, packed_states
from trainer.weights import (
    ModelSource,
    add_adapter,
    from_pretrained,
    load_adapter,
    load_causal_lm,
    load_trunk,
    save_weights,
    vocabulary_size,
    without_dropout,
    write_json,
)

REWARD_HEAD, REWARD_FACTS = "reward_head.safetensors", "reward.json"
REWARD_MEMBERS = "reward_members.safetensors"
"""The heads of an ensemble, where there is one; the head is their mean."""
REWARD_OUTPUT = "reward_output.safetensors"
"""The output embeddings of its language model, where a head reads likelihoods and the base does not tie them."""


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

    Where it `reads_likelihood`, r = w · h + c · l + bias, l the mean log-probability in nats of the answer's tokens, by
    the language model on the same transformer: what it knows of writing helps it judge (docs/loop.md).
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
        self.reads_likelihood = False
        # The language model's own, where they are not the embeddings that it reads with; they do not learn.
        self.output_embeddings: nn.Linear | None = None

    def read_likelihood(self, weight: float, sft: ModelSource) -> None:
        """Let the heads see, behind an answer's last hidden state, how likely its own language model finds it, and
        begin by giving that this weight. One that sees it already stays as it is.

        `sft`: the version whose output embeddings turn states into words, where they are not the embeddings.
        """
        if not self.reads_likelihood:
            self._add_output_embeddings(sft)
            self.head = _wider(self.head, weight)
            self.members = _wider(self.members, weight) if self.members is not None else None
            self.reads_likelihood = True

    def require_no_likelihood(self) -> None:
        """ValueError where it reads likelihoods: of a model that is spread over processes, none has the whole output
        embeddings."""
        if self.reads_likelihood:
            raise ValueError(
                'sharding: "full" is not for a reward model that reads how likely an answer is (likelihood_weight)'
            )

    def _add_output_embeddings(self, sft: ModelSource) -> None:
        if not self.blocks.config.get_text_config().tie_word_embeddings:
            found = cast(Any, load_causal_lm(sft, device=str(self.head.weight.device))).get_output_embeddings()
            self.output_embeddings = found.requires_grad_(False)

    def add_members(self, num_members: int, seed: int) -> None:
        """Let so many fresh heads learn in place of the one, each from a start of its own."""
        num_inputs, device = self.head.in_features, self.head.weight.device
        members = nn.Linear(num_inputs, num_members, dtype=torch.float32)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            members.weight.normal_(0.0, (num_inputs + 1) ** -0.5, generator=generator)
            members.bias.zero_()
            if self.reads_likelihood:
                members.weight[:, -1] = self.head.weight[0, -1]
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
        facts = json.loads((source.version / REWARD_FACTS).read_text(encoding="utf-8"))
        model.load_heads(source.version, reads_likelihood=facts.get("reads_likelihood", False))
        model.score_std = float(facts["score_std"])
        if facts.get("tie_theta") is not None:
            model.tie_theta.data.fill_(facts["tie_theta"])
        return model.to(device).eval()

    def load_heads(self, version: Path, *, reads_likelihood: bool) -> None:
        """Its heads, as `save` wrote them, and what they read with."""
        self.reads_likelihood = reads_likelihood
        self.head = _linear(load_file(version / REWARD_HEAD))
        self.head.bias.requires_grad_(False)
        if (version / REWARD_OUTPUT).is_file():
            self.output_embeddings = _linear(load_file(version / REWARD_OUTPUT)).requires_grad_(False)
        if (version / REWARD_MEMBERS).is_file():
            state = load_file(version / REWARD_MEMBERS)
            self.add_members(len(state["bias"]), seed=0)
            cast(nn.Linear, self.members).load_state_dict(state)
            self.average_members()

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
            is_answer_BL = attention_BL.bool().clone()
            is_answer_BL[:, :-num_new] = False
            return self.score_states(self.states(tokens_BL, attention_BL, is_answer_BL))
        packed = pack_rows(tokens_BL, attention_BL, num_new=num_new, num_shared=num_shared, is_cut=False)
        return self.score_states(self.states_of_packed(packed, packed_states(self.blocks, packed)))

    def forward(self, tokens_BL: Tensor, attention_BL: Tensor, is_answer_BL: Tensor | None = None) -> Tensor:
        """score_B in fp32 of conversations with their answers, padded on any side; see `states`."""
        return self.score_states(self.states(tokens_BL, attention_BL, is_answer_BL))

    def states(self, tokens_BL: Tensor, attention_BL: Tensor, is_answer_BL: Tensor | None = None) -> Tensor:
        """state_BD, what the heads see of each row: the hidden state of its last real token; behind it, where they read
        likelihoods, that of the answer, whose tokens `is_answer_BL` says. ValueError where they do and it is left out.
        """
        hidden_BLD = self._hidden(tokens_BL, attention_BL)
        last_BD = last_of(hidden_BLD, attention_BL)
        if not self.reads_likelihood:
            return last_BD
        if is_answer_BL is None:
            raise ValueError("This reward model reads how likely an answer is, and must know where it begins.")
        row_A, column_A = is_answer_BL.nonzero(as_tuple=True)
        return self._with_likelihood(last_BD, hidden_BLD[row_A, column_A - 1], tokens_BL[row_A, column_A], row_A)

    def states_of_packed(self, packed: PackedRow, hidden_ND: Tensor) -> Tensor:
        """state_MD, as `states`, of the M answers of a packed row of which the transformer said `hidden_ND`."""
        last_MD = hidden_ND[packed.last_M]
        if not self.reads_likelihood:
            return last_MD
        before_A, token_A, answer_A = packed.steps
        return self._with_likelihood(last_MD, hidden_ND[before_A], token_A, answer_A)

    def _with_likelihood(self, last_MD: Tensor, before_AD: Tensor, token_A: Tensor, answer_A: Tensor) -> Tensor:
        """The states, and behind each the mean log-probability, in nats a token, of its answer; 0 of an empty one. Of
        the A tokens of all answers: what the transformer said before each, the token, and which answer it belongs to.

        No gradient: how to write is learned from text (`text_coefficient`), not from what raters prefer.
        """
        with torch.no_grad():
            unembedding: Any = self.output_embeddings or self.blocks.get_input_embeddings()
            logits_AV = F.linear(before_AD.to(unembedding.weight.dtype), unembedding.weight).to(self.head.weight.dtype)
            logprob_A = -F.cross_entropy(logits_AV, token_A, reduction="none")
            total_M = logprob_A.new_zeros(len(last_MD)).index_add(0, answer_A, logprob_A)
            length_M = torch.bincount(answer_A, minlength=len(last_MD)).clamp(min=1)
            likelihood_M = total_M / length_M
        return torch.cat([last_MD.to(likelihood_M.dtype), likelihood_M[:, None]], dim=1)

    def score_states(self, hidden_BD: Tensor) -> Tensor:
        """score_B from what the heads see of each answer (`states`)."""
        return cast(Tensor, self.head(hidden_BD.to(self.head.weight.dtype))[:, 0])

    def member_scores(self, hidden_BD: Tensor) -> Tensor:
        """score_BE by each of the E heads; by the only one where there is no ensemble. Their mean is the score."""
        return cast(Tensor, (self.members or self.head)(hidden_BD.to(self.head.weight.dtype)))

    def save(self, folder: Path) -> None:
        """Write the version's weights, its head and `reward.json` into an existing folder."""
        save_weights(self.trunk, folder, alias=self.source.name, is_on_base=self.is_on_base)
        parts = {REWARD_HEAD: self.head, REWARD_MEMBERS: self.members, REWARD_OUTPUT: self.output_embeddings}
        for name, part in parts.items():
            if part is not None:
                state = {key: tensor.detach().cpu().contiguous() for key, tensor in part.state_dict().items()}
                save_tensors(state, folder / name)
        facts: dict[str, Any] = {"format": 1, "base": self.source.name, "bias": self.head.bias.item()}
        facts["score_std"] = self.score_std
        if self.tie_theta.requires_grad:
            facts["tie_theta"] = self.tie_theta.item()
        if self.reads_likelihood:
            facts |= {"reads_likelihood": True, "likelihood_weight": self.head.weight[0, -1].item()}
        write_json(folder / REWARD_FACTS, facts)


def _linear(state: dict[str, Tensor]) -> nn.Linear:
    """A linear layer with these weights, and this bias where there is one."""
    weight = state["weight"]
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in state, dtype=weight.dtype)
    linear.load_state_dict(state)
    return linear


def _wider(head: nn.Linear, weight: float) -> nn.Linear:
    """The same, with one more input, which counts with this weight."""
    wider = nn.Linear(head.in_features + 1, head.out_features, device=head.weight.device, dtype=head.weight.dtype)
    with torch.no_grad():
        wider.weight.copy_(F.pad(head.weight, (0, 1), value=weight))
        wider.bias.copy_(head.bias)
    wider.weight.requires_grad_(head.weight.requires_grad)
    wider.bias.requires_grad_(head.bias.requires_grad)
    return wider


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
        with torch.no_grad():
            # Of an answer that is not yet written there is no likelihood: what the states say is where values begin.
            model.head.weight.copy_(reward.head.weight[:, : model.head.in_features])
            model.head.bias.copy_(reward.head.bias)
        return model.to(reward.head.weight.device).eval()

    def forward(self, tokens_BL: Tensor, attention_BL: Tensor, *, num_new: int, num_shared: int = 1) -> Tensor:
        """V_BT in fp32 before each of the last T = `num_new` tokens of each row, 0 at padding; as `Policy.logprobs`."""
        hidden_PD = answer_states(self.blocks, tokens_BL, attention_BL, num_new=num_new, num_shared=num_shared)
        return spread_values(self.head(hidden_PD.to(self.head.weight.dtype))[:, 0], attention_BL, num_new)
