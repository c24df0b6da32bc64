"""Several documents in one row of tokens, and the log-probabilities of those tokens that are learned.

No token sees another document: position ids restart with each, and transformers builds the mask from them. Whether a
model keeps to that is checked by `can_pack`, not assumed. How rows are cut changes time and memory, never a result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Document:
    """Tokens that belong together, and which of them are learned. The first never is: nothing comes before it."""

    tokens: list[int]
    is_learned: list[bool]

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.is_learned) or any(self.is_learned[:1]):
            raise ValueError("A document needs one mark a token, and its first token can't be learned.")

    @property
    def num_learned(self) -> int:
        """Tokens that count in a loss."""
        return sum(self.is_learned)


# R = rows, L = columns, M = learned tokens of all rows, V = vocabulary
class Packed(NamedTuple):
    """One forward pass."""

    tokens_RL: Tensor
    place_RL: Tensor
    """Of each token in its document, from 0. What is padding is a document of its own."""
    owner_RL: Tensor
    """Which document's learned token stands here; -1 elsewhere."""


EMPTY = Packed(torch.zeros(1, 2, dtype=torch.long), torch.arange(2)[None], torch.full((1, 2), -1))
"""A forward pass in which nothing is learned."""


def pack(
    documents: Sequence[Document], *, tokens_per_forward: int, pad_id: int, is_packing: bool = True
) -> Iterator[Packed]:
    """All documents, in forward passes of at most `tokens_per_forward` tokens, or of one row.

    Rows are as wide as the longest document and filled first fit, longest first. Without packing, a document has a row
    to itself, among others of about its length.
    """
    lengths = [len(document.tokens) for document in documents]
    if is_packing:
        width = max(lengths, default=0)
        rows = _first_fit(lengths, width)
    else:
        rows = [[index] for index in sorted(range(len(lengths)), key=lambda index: -lengths[index])]
    while rows:
        # The first row is the longest of those that are left.
        width = max(sum(lengths[index] for index in row) for row in rows)
        num = max(1, tokens_per_forward // width)
        taken, rows = rows[:num], rows[num:]
        yield _stack(documents, taken, pad_id=pad_id, is_packing=is_packing)


def _first_fit(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Indices in rows of at most `width` tokens."""
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = next((number for number, left in enumerate(room) if left >= lengths[index]), None)
        if place is None:
            rows.append([index])
            room.append(width - lengths[index])
        else:
            rows[place].append(index)
            room[place] -= lengths[index]
    return rows


def _stack(documents: Sequence[Document], rows: Sequence[Sequence[int]], *, pad_id: int, is_packing: bool) -> Packed:
    width = max(sum(len(documents[index].tokens) for index in row) for row in rows)
    tokens_RL = torch.full((len(rows), width), pad_id, dtype=torch.long)
    owner_RL = torch.full_like(tokens_RL, -1)
    # Unpacked rows go on counting over their padding: they are one sequence, which no later token can change.
    place_RL = torch.arange(width).repeat(len(rows), 1)
    for number, row in enumerate(rows):
        start = 0
        for index in row:
            document = documents[index]
            end = start + len(document.tokens)
            tokens_RL[number, start:end] = torch.tensor(document.tokens)
            owner_RL[number, start:end] = torch.where(torch.tensor(document.is_learned), index, -1)
            place_RL[number, start:end] = torch.arange(end - start)
            start = end
        if is_packing:
            place_RL[number, start:] = torch.arange(width - start)
    return Packed(tokens_RL, place_RL, owner_RL)


def learned_logprobs(model: Callable[..., Any], packed: Packed) -> tuple[Tensor, Tensor]:
    """(log p_M in fp32, owner_M): of every learned token given what comes before it in its document."""
    tokens_RL, place_RL, owner_RL = packed
    # Without an attention mask transformers takes position ids that restart for the borders of documents.
    output = model(input_ids=tokens_RL, attention_mask=None, position_ids=place_RL, use_cache=False)
    is_learned_RL = owner_RL[:, 1:] >= 0
    logits_MV = output.logits[:, :-1][is_learned_RL].float()
    chosen_M = logits_MV.gather(1, tokens_RL[:, 1:][is_learned_RL][:, None])[:, 0]
    return chosen_M - logits_MV.logsumexp(dim=1), owner_RL[:, 1:][is_learned_RL]


@torch.no_grad()
def can_pack(model: PreTrainedModel) -> bool:
    """Whether the model says of documents in one row what it says of each alone. Some architectures see across borders:
    those with a running state, for example."""
    size = min(16, int(model.config.get_text_config().vocab_size))
    documents = [
        Document([(seed * number + seed) % size for number in range(length)], [False] + [True] * (length - 1))
        for seed, length in ((1, 7), (3, 4), (5, 3))
    ]
    found: list[Tensor] = []
    for is_packing in (True, False):
        by_owner: dict[int, Tensor] = {}
        for part in pack(documents, tokens_per_forward=1, pad_id=0, is_packing=is_packing):
            logprob_M, owner_M = learned_logprobs(model, Packed(*(tensor.to(model.device) for tensor in part)))
            by_owner |= {int(owner): logprob_M[owner_M == owner] for owner in owner_M.unique()}
        found.append(torch.cat([by_owner[owner] for owner in range(len(documents))]))
    tolerance = 1e-4 if model.dtype == torch.float32 else 2e-2
    return torch.allclose(found[0], found[1], rtol=tolerance, atol=tolerance)
