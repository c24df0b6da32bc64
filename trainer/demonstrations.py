"""Conversations whose assistant's turns are to be imitated: rows of a file or a dataset, read and split.

No torch. A row is `{"messages": […]}` that ends with the assistant's turn, or `{"prompt", "completion"}`; `messages`
that end with a user's turn may go with `completion`, too. `id`, `split` and `finish_reason` are optional.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.jsonl import named_by, read_objects

Split = Literal["train", "validation"]
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Conversation:
    """Turns, the last one the assistant's."""

    id: str
    messages: tuple[Mapping[str, str], ...]
    split: Split | None = None
    """None: nobody said, so that it is split by hash."""
    finish_reason: str | None = None
    """"length" when the last turn was cut; "stop" or None when it is whole."""

    @property
    def root(self) -> str:
        """Names the conversation: those that begin with the same turn of a user share it, and so their split."""
        first = next((turn for turn in self.messages if turn["role"] != "system"), self.messages[0])
        return hashlib.sha256(f"{first['role']}\0{first['content']}".encode()).hexdigest()

    def split_by(self, validation_ratio: float) -> Split:
        """Its own split; where it has none, this share of all conversations is held out, by hash."""
        if self.split is not None:
            return self.split
        return "validation" if int(self.root[:8], 16) / 16**8 < validation_ratio else "train"

    def as_json(self) -> dict[str, Any]:
        """A row that `to_conversations` takes back."""
        return {
            "id": self.id,
            "messages": [dict(turn) for turn in self.messages],
            "split": self.split,
            "finish_reason": self.finish_reason,
        }


def to_conversations(rows: Iterable[Mapping[str, Any] | Conversation]) -> list[Conversation]:
    """Rows as conversations; conversations pass through. ValueError names the row, the field and the rule."""
    found: list[Conversation] = []
    for number, row in enumerate(rows, start=1):
        if isinstance(row, Conversation):
            found.append(row)
            continue
        try:
            found.append(_parse(row, number))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            said = f"the field {error} is missing" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"Row {number}: {said}") from error
    return found


def read_conversations(path: Path) -> list[Conversation]:
    """The conversations of a JSONL file. ValueError names the line, the field and the rule."""
    rows = read_objects(path)
    with named_by(path):
        return to_conversations(rows)


def _parse(row: Mapping[str, Any], number: int) -> Conversation:
    if not isinstance(row, Mapping):
        raise ValueError("must be an object, one a line.")  # noqa: TRY004 (the user's mistake)
    asked = row["messages"] if row.get("messages") else [{"role": "user", "content": row["prompt"]}]
    messages = [_turn(turn) for turn in asked]
    if row.get("completion") is not None:
        if messages[-1]["role"] == "assistant":
            raise ValueError("completion: must not be there when `messages` end with the assistant's turn.")
        messages.append(_turn({"role": "assistant", "content": row["completion"]}))
    if messages[-1]["role"] != "assistant":
        raise ValueError("messages: must end with the assistant's turn, or go with `completion`.")
    if messages[0]["role"] == "assistant":
        raise ValueError("messages: must not begin with the assistant's turn.")
    split = row.get("split")
    if split not in (None, "train", "validation"):
        raise ValueError(f"split: must be train or validation, and is {split}; test prompts never train a model.")
    return Conversation(str(row.get("id", number)), tuple(messages), split, row.get("finish_reason"))


def _turn(turn: Mapping[str, Any]) -> dict[str, str]:
    role, content = turn["role"], turn["content"]
    if role not in ROLES:
        raise ValueError(f"messages: a role must be {', '.join(ROLES)}, and is {role!r}.")
    if not isinstance(content, str) or (role == "assistant" and not content.strip()):
        raise ValueError(f"messages: the content of {role}'s turn must be a text that is not empty.")
    return {"role": role, "content": content}
