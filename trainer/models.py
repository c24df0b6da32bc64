"""The policy: what it computes, and how it is saved as a version's files; and what every model reads of an answer.

Adapters and full weights alike; knows no loss, no optimizer and no dataset.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import compress
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 (the name that every reader of torch knows)
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from trainer.config import LoraConfig
from trainer.shared_prompt import PackedRow, is_packing, packed_logits, packed_states
from trainer.weights import (
    ModelSource,
    add_adapter,
    from_pretrained,
    load_adapter,
    load_causal_lm,
    save_weights,
    without_dropout,
)


def position_ids(attention_BL: Tensor) -> Tensor:
    """cumsum(mask) - 1, floored at 0: the first real token is at 0, however a row is padded."""
    return (attention_BL.long().cumsum(dim=1) - 1).clamp(min=0)


def _last_position(attention_BL: Tensor) -> Tensor:
    """The column_B of each row's last real token."""
    column_L = torch.arange(attention_BL.shape[1], device=attention_BL.device)
    return (attention_BL.long() * column_L).argmax(dim=1)


def last_of(hidden_BLD: Tensor, attention_BL: Tensor) -> Tensor:
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
        packed = pack_rows(tokens_BL, attention_BL, num_new=num_new, num_shared=num_shared, is_cut=True)
        return packed_states(transformer, packed)[packed.path_P]
    output = transformer(
        input_ids=tokens_BL[:, :-1],
        attention_mask=attention_BL[:, :-1].long(),
        position_ids=position_ids(attention_BL)[:, :-1],
        use_cache=False,
    )
    return cast(Tensor, output.last_hidden_state[:, -num_new:][attention_BL[:, -num_new:].bool()])


def pack_rows(tokens_BL: Tensor, attention_BL: Tensor, *, num_new: int, num_shared: int, is_cut: bool) -> PackedRow:
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


def spread_values(value_P: Tensor, attention_BL: Tensor, num_new: int) -> Tensor:
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
            packed = pack_rows(tokens_BL, attention_BL, num_new=num_new, num_shared=num_shared, is_cut=True)
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
        return spread_values(logprob_P, attention_BL, num_new)

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
