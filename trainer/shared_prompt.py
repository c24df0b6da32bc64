"""A prompt and its K answers as one row, in which the prompt is computed once, for training as for scoring.

    prompt | answer 1 | ... | answer K | next prompt | ...

All of a transformer but attention looks at one token at a time, so that rankings lie one behind another without any
padding. Attention is cut into its parts: a prompt sees itself, an answer sees its prompt and itself. Scores and
gradients are those of separate rows. On a CPU this takes less time than the ways that need no attention of their own:
a cache of the prompt's keys that is repeated K times, by a tenth to a quarter, and a mask over the whole row, by a
seventh to two fifths (K = 4 and 9, prompts of 256 tokens).

A model whose blocks look across tokens in any other way is seen by a probe, and is not served.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 (the name that every reader of torch knows)
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "rankloop_shared_prompt"
UNKNOWN_OPTIONS = ("softcap", "s_aux", "position_bias")
"""What some models ask of attention and this one does not have."""
KNOWN_LAYERS = ("full_attention", "sliding_attention")
STRETCHED_POSITIONS = ("dynamic", "longrope")
"""Rotary embeddings that depend on the longest conversation of a batch."""
DIFFERS = "what it says with a shared prompt differs from separate rows"


class CannotShare(ValueError):
    """This model's prompts are computed once for every answer; the message says why."""


# --- One row ---------------------------------------------------------------------------------------------------------
# N = tokens of the row, M = answers in it, D = hidden size, H = heads, G = heads of keys and values, T = of a part


@dataclass(frozen=True)
class PackedRow:
    """Rankings one behind another, each with its prompt once."""

    tokens_N: Tensor
    position_N: Tensor
    """Of each token in its own conversation."""
    last_M: Tensor
    """Where each answer ends: its EOS, or its last token; of an empty answer, where its prompt ends."""
    path_P: Tensor
    """Of each answer where its prompt ends, and then each of its tokens; one answer's after another's."""
    answer_P: Tensor
    """The answer that each of these places belongs to, from 0 to M - 1."""
    lengths: tuple[tuple[int, ...], ...]
    """Of each ranking, the parts that attention is cut into: its prompt, and its answers that have a token. An only
    answer is one part with its prompt."""

    @classmethod
    def pack(cls, rankings: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]], device: torch.device) -> PackedRow:
        """(prompt, answers) of each ranking in tokens, one behind another."""
        tokens: list[int] = []
        positions: list[int] = []
        last: list[int] = []
        path: list[int] = []
        owners: list[int] = []
        for prompt, answers in rankings:
            tokens += prompt
            positions += range(len(prompt))
            end_of_prompt = len(tokens) - 1
            for answer in answers:
                tokens += answer
                positions += range(len(prompt), len(prompt) + len(answer))
                last.append(len(tokens) - 1 if answer else end_of_prompt)
                path += [end_of_prompt, *range(len(tokens) - len(answer), len(tokens))]
                owners += [len(last) - 1] * (len(answer) + 1)
        as_tensor = torch.tensor([tokens, positions], device=device)
        last_M, path_P = torch.tensor(last, device=device), torch.tensor(path, device=device)
        answer_P = torch.tensor(owners, device=device)
        lengths = tuple(_parts(*ranking) for ranking in rankings)
        return cls(as_tensor[0], as_tensor[1], last_M, path_P, answer_P, lengths)

    @property
    def steps(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of each token of an answer: (where the one before it is, the token itself, which answer it belongs to)."""
        is_step = self.answer_P[1:] == self.answer_P[:-1]
        return self.path_P[:-1][is_step], self.tokens_N[self.path_P[1:][is_step]], self.answer_P[1:][is_step]


def _parts(prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> tuple[int, ...]:
    if len(answers) == 1:
        return (len(prompt) + len(answers[0]),)
    return (len(prompt), *(len(answer) for answer in answers if answer))


def shared_attention(
    module: nn.Module,
    query_BHND: Tensor,
    key_BGND: Tensor,
    value_BGND: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: PackedRow | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of a packed row (batch of one), as transformers calls it; without one, torch's own of ordinary rows.

    CannotShare where the model asks for an option of attention that is not known here.
    """
    if packed is None:
        options |= {"scaling": scaling, "sliding_window": sliding_window}
        return sdpa_attention_forward(module, query_BHND, key_BGND, value_BGND, attention_mask, **options)
    unknown = [name for name in UNKNOWN_OPTIONS if options.get(name) is not None]
    if sliding_window is None and getattr(module, "sliding_window", None) is not None:
        unknown.append("a window that only its mask knows")
    if unknown:
        raise CannotShare(f"its attention has {', '.join(unknown)}")
    num_repeats = query_BHND.shape[1] // key_BGND.shape[1]
    pieces = [length for lengths in packed.lengths for length in lengths]
    parts = zip(
        query_BHND.split(pieces, dim=2),
        repeat_kv(key_BGND, num_repeats).split(pieces, dim=2),
        repeat_kv(value_BGND, num_repeats).split(pieces, dim=2),
        strict=True,
    )
    found: list[Tensor] = []
    for lengths in packed.lengths:
        query, prompt_key, prompt_value = next(parts)
        found.append(_attend(query, prompt_key, prompt_value, scaling, sliding_window))
        for _ in lengths[1:]:
            query, key, value = next(parts)
            keys, values = torch.cat([prompt_key, key], dim=2), torch.cat([prompt_value, value], dim=2)
            found.append(_attend(query, keys, values, scaling, sliding_window))
    return torch.cat(found, dim=2).transpose(1, 2), None


def _attend(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None) -> Tensor:
    """Causal attention of the last tokens of a conversation, each to at most the last `window` tokens."""
    num_query, num_key = query.shape[2], key.shape[2]
    is_plain = window is None or num_key <= window
    if is_plain and num_query == num_key:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    column_N = torch.arange(num_key, device=query.device)
    row_T1 = column_N[num_key - num_query :, None]
    mask_TN = column_N <= row_T1
    if not is_plain:
        mask_TN &= column_N > row_T1 - cast(int, window)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask_TN, scale=scaling)


# --- A transformer that reads such rows ------------------------------------------------------------------------------


def packed_output(model: Any, packed: PackedRow, **options: Any) -> Any:
    """What a transformer, or a causal model around one, says of the row, once `allow_packing` or `share_prompt` has
    prepared it; `inputs_embeds` among the options stand in for the row's tokens."""
    # A mask of four dimensions is passed on as it is: nobody builds one of N x N, and attention has no use for it.
    mask = torch.empty(1, 1, 0, 0, device=packed.tokens_N.device)
    inputs = {"attention_mask": mask, "position_ids": packed.position_N[None], "use_cache": False, "packed": packed}
    if "inputs_embeds" not in options:
        inputs["input_ids"] = packed.tokens_N[None]
    return model(**inputs, **options)


def packed_states(transformer: Any, packed: PackedRow, **options: Any) -> Tensor:
    """hidden_ND of the row by a transformer without its head."""
    return cast(Tensor, packed_output(transformer, packed, **options).last_hidden_state[0])


def packed_logits(model: Any, packed: PackedRow, place_P: Tensor) -> Tensor:
    """logits_PV of a causal model at these places of the row: its own way from states to logits, whatever that is."""
    return cast(Tensor, packed_output(model, packed, logits_to_keep=place_P).logits[0])


def allow_packing(model: Any) -> None:
    """Prepare a transformer, or a causal model with its transformer, for packed rows; it goes on taking ordinary ones.

    CannotShare where the architecture does not allow it. That packed rows are said to be what separate ones are is
    checked, not assumed: on three rankings of a few tokens, with answers of several lengths.
    """
    with _packed_attention(model.base_model):
        if model is model.base_model:
            is_exact = _is_exact(SharedPrompt(None, model).last_states, model, _last_state)
        else:
            is_exact = _is_exact(lambda packed: packed_logits(model, packed, packed.last_M), model, _last_logits)
        if not is_exact:
            raise CannotShare(DIFFERS)


def is_packing(transformer: Any) -> bool:
    """Whether it was prepared for `packed_states`."""
    return bool(transformer.config._attn_implementation == ATTENTION)  # noqa: SLF001 (it has no public reader)


@dataclass(frozen=True)
class SharedPrompt:
    """A transformer on packed rows, in two parts: the blocks below everything that learns, and the rest.

    What the lower part says never changes, so that it can be kept from one epoch to the next. It is empty where the
    first block learns.
    """

    lower: Any | None
    upper: Any

    def pack(self, rankings: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]]) -> PackedRow:
        """(prompt, answers) of each ranking, where the transformer is."""
        return PackedRow.pack(rankings, self.upper.device)

    @torch.no_grad()
    def states(self, packed: PackedRow) -> Tensor:
        """hidden_ND after the frozen blocks; only where there is a lower part."""
        assert self.lower is not None
        return packed_states(self.lower, packed)

    def last_states(self, packed: PackedRow, states_ND: Tensor | None = None) -> Tensor:
        """hidden_MD of each answer's last token, from the row's tokens or from what `states` said of them."""
        return self.hidden(packed, states_ND)[packed.last_M]

    def hidden(self, packed: PackedRow, states_ND: Tensor | None = None) -> Tensor:
        """hidden_ND of the whole row, from its tokens or from what `states` said of them."""
        if states_ND is None and self.lower is not None:
            states_ND = self.states(packed)
        inputs = {} if states_ND is None else {"inputs_embeds": states_ND[None]}
        return packed_states(self.upper, packed, **inputs)


def share_prompt(transformer: Any, *, keep_states: bool = True) -> SharedPrompt:
    """As `allow_packing`, and `keep_states` splits off the blocks that do not learn. CannotShare as there."""
    with _packed_attention(transformer):
        for found in (_split(transformer) if keep_states else None, SharedPrompt(None, transformer)):
            if found is not None and _is_exact(found.last_states, transformer, _last_state):
                return found
        raise CannotShare(DIFFERS)


@contextmanager
def _packed_attention(transformer: Any) -> Iterator[None]:
    """The attention of packed rows from now on; where the block fails, the transformer's own again, and CannotShare."""
    before = transformer.config._attn_implementation  # noqa: SLF001 (it has no public reader)
    _refuse_what_the_probe_is_too_short_for(transformer.config.get_text_config(), before)
    AttentionInterface.register(ATTENTION, shared_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    try:
        transformer.set_attn_implementation(ATTENTION)
        yield
    except Exception as error:
        transformer.set_attn_implementation(before)
        if isinstance(error, CannotShare):
            raise
        # Whatever an architecture makes of a row that it does not expect: separate rows always work.
        raise CannotShare(f"{type(error).__name__}: {error}") from error


def _refuse_what_the_probe_is_too_short_for(config: Any, attention: str) -> None:
    layers = set(getattr(config, "layer_types", None) or ()) - set(KNOWN_LAYERS)
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    if attention not in ("sdpa", ATTENTION):
        raise CannotShare(f"its attention is “{attention}”, not torch's own")
    if layers:
        raise CannotShare(f"it has layers of {', '.join(sorted(layers))}")
    if rope in STRETCHED_POSITIONS:
        raise CannotShare(f"its positions are stretched by the longest row ({rope})")


def _last_state(output: Any) -> Tensor:
    """hidden_D after a row's last token."""
    return cast(Tensor, output.last_hidden_state[0, -1])


def _last_logits(output: Any) -> Tensor:
    """logits_V after a row's last token."""
    return cast(Tensor, output.logits[0, -1])


@torch.no_grad()
def _is_exact(of_packed: Callable[[PackedRow], Tensor], model: Any, last: Callable[[Any], Tensor]) -> bool:
    """Whether packed rows ([M, D], of each answer's last token) and separate ones (`last` of what the model says of
    each) are the same, but for rounding."""
    size = model.config.get_text_config().vocab_size
    token = iter(torch.randint(size, (64,), generator=torch.Generator().manual_seed(0)).tolist())
    rankings = [
        ([next(token) for _ in range(num_prompt)], [[next(token) for _ in range(length)] for length in answers])
        for num_prompt, answers in [(7, (3, 0, 5)), (4, (1, 6)), (3, (5,))]
    ]
    packed_MD = of_packed(PackedRow.pack(rankings, model.device))
    rows = [torch.tensor([[*prompt, *answer]]) for prompt, answers in rankings for answer in answers]
    alone_MD = torch.stack([last(model(input_ids=row.to(packed_MD.device), use_cache=False)) for row in rows])
    is_float32 = getattr(model.base_model, "products_dtype", model.dtype) == torch.float32
    tolerance = 1e-4 if is_float32 else 3e-2
    return bool((packed_MD - alone_MD).abs().max() <= tolerance * alone_MD.abs().max())


def _split(transformer: Any) -> SharedPrompt | None:
    """The two parts, or None where the first block or what is before it learns, or where an architecture cannot be cut.

    Some architectures scale what they take for embeddings, or number their blocks: the probe sees it.
    """
    if not isinstance(getattr(transformer, "layers", None), nn.ModuleList):
        return None
    learning = [any(parameter.requires_grad for parameter in block.parameters()) for block in transformer.layers]
    frozen = learning.index(True) if True in learning else 0
    if frozen == 0 or any(parameter.requires_grad for parameter in transformer.get_input_embeddings().parameters()):
        return None
    lower = _with_blocks(transformer, slice(0, frozen))
    lower.norm = nn.Identity()
    return SharedPrompt(lower, _with_blocks(transformer, slice(frozen, None)))


def _with_blocks(model: Any, kept: slice) -> Any:
    """The same modules in a second model that has only these blocks."""
    part = copy.copy(model)
    # A shallow copy shares the table of modules, too; the part needs a table of its own.
    part.__dict__["_modules"] = dict(model.named_children())
    part.config = copy.deepcopy(model.config)
    part.layers = nn.ModuleList(list(model.layers)[kept])
    part.config.num_hidden_layers = len(part.layers)
    if getattr(part.config, "layer_types", None):
        part.config.layer_types = part.config.layer_types[kept]
    return part
