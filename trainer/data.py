"""Rankings as tensors: what a reward model reads of an answer, what is too long for it, and how rows are batched.

Owns no model; prompts are encoded by `trainer.sampling`, so that both see the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trainer.preferences import Answer, Ranking, Ties
from trainer.sampling import encode_prompt


@dataclass(frozen=True)
class Example:
    """A ranking in tokens."""

    ranking: Ranking
    rows: list[list[int]]
    """K conversations, each with its answer."""
    num_prompt_tokens: int
    """The first tokens of every row, which all K share."""
    weights: list[list[float]]
    """[K][K]: how much it counts that row beats column."""

    @property
    def prompt(self) -> list[int]:
        """The tokens before every answer."""
        return self.rows[0][: self.num_prompt_tokens]

    @property
    def answers(self) -> list[list[int]]:
        """The tokens of each answer."""
        return [row[self.num_prompt_tokens :] for row in self.rows]

    def num_tokens(self, *, shares_prompt: bool) -> int:
        """Of all K rows; of the prompt only once where they share it."""
        repeated = self.num_prompt_tokens * (len(self.rows) - 1) if shares_prompt else 0
        return sum(len(row) for row in self.rows) - repeated


def encode_answer(tokenizer: PreTrainedTokenizerBase, answer: Answer) -> list[int]:
    """The answer's tokens and EOS; without EOS when its length cut it.

    Text that looks like a special token is taken for text: an answer cannot end itself early.
    """
    eos_id = int(str(tokenizer.eos_token_id))
    tokens = tokenizer.encode(answer.text, add_special_tokens=False, split_special_tokens=True)
    # Some vocabularies hold the EOS as a word, too.
    inner = [token for token in tokens if token != eos_id]
    return inner if answer.finish_reason == "length" else [*inner, eos_id]


def encode_rankings(
    rankings: Sequence[Ranking], tokenizer: PreTrainedTokenizerBase, *, max_length: int, ties: Ties
) -> tuple[list[Example], list[dict[str, str]]]:
    """The rankings that can be learned from, and those that can't: `{"ranking_id", "prompt_id", "reason"}`.

    A ranking is refused as a whole when one of its answers, with the prompt, is over `max_length` tokens, or when it
    holds no pair that counts.
    """
    examples: list[Example] = []
    refused: list[dict[str, str]] = []
    for ranking in rankings:
        prompt = encode_prompt(tokenizer, ranking.messages)
        rows = [prompt + encode_answer(tokenizer, answer) for answer in ranking.answers]
        reason = _refusal(ranking, rows, max_length, ties)
        if reason is None:
            examples.append(Example(ranking, rows, len(prompt), ranking.weights(ties)))
        else:
            refused.append({"ranking_id": ranking.ranking_id, "prompt_id": ranking.prompt_id, "reason": reason})
    return examples, refused


def _refusal(ranking: Ranking, rows: Sequence[Sequence[int]], max_length: int, ties: Ties) -> str | None:
    length, answer = max(zip((len(row) for row in rows), (answer.id for answer in ranking.answers), strict=True))
    if length > max_length:
        return f"The answer {answer} has {length} tokens with its prompt, over the limit of {max_length} (max_length)."
    if not ranking.num_pairs(ties):
        return "No answer is better than another, so there is nothing to learn from it."
    return None


def right_pad(rows: Sequence[Sequence[int]], *, pad_id: int) -> tuple[Tensor, Tensor]:
    """(tokens_BL, mask_BL): rows that all begin at the left edge; the mask is true on real tokens."""
    width = max(len(row) for row in rows)
    tokens_BL = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows])
    length_B1 = torch.tensor([[len(row)] for row in rows])
    return tokens_BL, torch.arange(width)[None] < length_B1


def chunk_by_length(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices in parts that are alike in length, each of at most `max_tokens` padded tokens, or of one row."""
    chunks: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if chunks and lengths[index] * (len(chunks[-1]) + 1) <= max_tokens:
            chunks[-1].append(index)
        else:
            chunks.append([index])
    return chunks


def group_by_tokens(examples: Sequence[Example], max_tokens: int, *, shares_prompt: bool) -> list[list[Example]]:
    """Whole rankings in parts of at most `max_tokens` tokens, or of one ranking, in their order."""
    groups: list[list[Example]] = []
    room = 0
    for example in examples:
        num_tokens = example.num_tokens(shares_prompt=shares_prompt)
        if not groups or num_tokens > room:
            groups.append([])
            room = max_tokens
        groups[-1].append(example)
        room -= num_tokens
    return groups


def stack_places(examples: Sequence[Example]) -> Tensor:
    """place_BK of these rankings, 0 the best; -1 where an answer has no place, or where one has fewer than K."""
    size = max(len(example.rows) for example in examples)
    place_BK = torch.full((len(examples), size), -1)
    for number, example in enumerate(examples):
        places = [-1 if place is None else place for place in example.ranking.places]
        place_BK[number, : len(places)] = torch.tensor(places)
    return place_BK


def stack_weights(examples: Sequence[Example]) -> Tensor:
    """weights_BKK of these rankings, 0 where one has fewer than K answers."""
    size = max(len(example.rows) for example in examples)
    weights_BKK = torch.zeros(len(examples), size, size)
    for number, example in enumerate(examples):
        k = len(example.rows)
        weights_BKK[number, :k, :k] = torch.tensor(example.weights)
    return weights_BKK
