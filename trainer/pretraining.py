"""Text that PPO goes on learning to write, so that it forgets less (PPO-ptx: InstructGPT, 3.5 and C.4).

Rows are `{"text": …}`, learned from the second token on, or `{"messages": […]}`, of which only what the assistant says
is learned. It owns no loss and no optimizer; conversations are encoded as they are sampled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trainer.data import chunk_by_length, encode_answer, right_pad
from trainer.jsonl import read_objects
from trainer.preferences import Answer
from trainer.sampling import encode_prompt

MAX_TOKENS = 2048
"""Of one passage, as in the paper; fewer where the model's context is shorter."""


@dataclass(frozen=True)
class Passage:
    """A text in tokens, of which those from `num_given` on are learned; there is at least one given and one learned."""

    tokens: list[int]
    num_given: int

    @property
    def num_learned(self) -> int:
        """Tokens that count in the loss."""
        return len(self.tokens) - self.num_given


def read_texts(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file. ValueError names the line that is no object."""
    return read_objects(path)


def encode_texts(
    rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> tuple[list[Passage], list[str]]:
    """The passages of these rows, and in words which of them were left out and why.

    A text ends with EOS and is cut into pieces of at most `max_tokens`. A conversation gives one passage for each turn
    of the assistant, after all that was said before; a passage that is too long is left out, because its beginning
    could not be understood.

    Raises:
        ValueError: a row of another shape, by its number.
    """
    passages: list[Passage] = []
    refused: list[str] = []
    for number, row in enumerate(rows, start=1):
        try:
            found = _encode_text(row["text"], tokenizer, max_tokens) if "text" in row else _encode_turns(row, tokenizer)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"Text {number} needs `text`, or `messages` with a turn of the assistant ({error})."
            ) from error
        longest = max((len(passage.tokens) for passage in found), default=0)
        if longest > max_tokens:
            refused.append(f"Text {number} has {longest} tokens in one conversation, over the limit of {max_tokens}.")
        elif not found:
            refused.append(f"Text {number} holds nothing to learn.")
        else:
            passages += found
    return passages, refused


def _encode_text(text: Any, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> list[Passage]:
    if not isinstance(text, str):
        raise TypeError("`text` must be a string")
    tokens = encode_answer(tokenizer, Answer("text", text))
    pieces = [tokens[start : start + max_tokens] for start in range(0, len(tokens), max_tokens)]
    return [Passage(piece, 1) for piece in pieces if len(piece) > 1]


def _encode_turns(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[Passage]:
    messages = [{"role": str(turn["role"]), "content": str(turn["content"])} for turn in row["messages"]]
    passages = []
    for number, turn in enumerate(messages):
        if turn["role"] == "assistant" and number > 0:
            given = encode_prompt(tokenizer, messages[:number])
            passages.append(Passage(given + encode_answer(tokenizer, Answer("turn", turn["content"])), len(given)))
    if not passages:
        raise ValueError("no turn of the assistant after another one")
    return passages


def hash_passages(passages: Sequence[Passage]) -> str:
    """What names this text in a manifest and in a checkpoint."""
    return hashlib.sha256(json.dumps([asdict(passage) for passage in passages]).encode()).hexdigest()


# B = passages, L = tokens of the longest of them, T = L - 1: every token but the first
@dataclass(frozen=True)
class PassageBatch:
    """Passages, right-padded."""

    tokens_BL: Tensor
    attention_BL: Tensor
    learned_BT: Tensor
    """True on the tokens that are learned, the first column left out."""


def passage_batches(
    passages: Sequence[Passage], *, tokens_per_forward: int, pad_id: int, device: torch.device
) -> Iterator[PassageBatch]:
    """The passages in parts that are alike in length, each of about `tokens_per_forward` padded tokens at most."""
    for part in chunk_by_length([len(passage.tokens) for passage in passages], tokens_per_forward):
        chosen = [passages[index] for index in part]
        tokens_BL, attention_BL = right_pad([passage.tokens for passage in chosen], pad_id=pad_id)
        given_B1 = torch.tensor([[passage.num_given] for passage in chosen])
        learned_BL = attention_BL & (torch.arange(tokens_BL.shape[1])[None] >= given_B1)
        yield PassageBatch(tokens_BL.to(device), attention_BL.to(device), learned_BL[:, 1:].to(device))
