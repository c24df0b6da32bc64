"""What readers make of others' records: an item of the interchange form, which every import knows (docs/data.md).

An item has `messages` that end with a question, and what the record holds beside it: `responses` with `annotations`,
one `answer`, or neither; or it is a `text`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
Item = dict[str, Any]
Turn = dict[str, str]
ROLES = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "question": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "answer": "assistant",
    "system": "system",
}


class Misfit(ValueError):
    """A record is not what its format says; the message is the rule for a person."""


def text_of(record: Record, name: str) -> str:
    """A field that must be text.

    Raises:
        Misfit: it is missing, or something else.
    """
    value = record.get(name)
    if not isinstance(value, str):
        raise Misfit(f"needs `{name}`, a string" if value is None else f"`{name}` must be a string")
    return value


def list_of(record: Record, name: str) -> list[Any]:
    """A field that must be a list.

    Raises:
        Misfit: it is missing, or something else.
    """
    value = record.get(name)
    if not isinstance(value, list):
        raise Misfit(f"needs `{name}`, an array" if value is None else f"`{name}` must be an array")
    return value


def turn(role: Any, content: Any) -> Turn:
    """One turn of a conversation; content in parts is put together where all parts are text.

    Raises:
        Misfit: a role or a content that no conversation of ours has.
    """
    known = ROLES.get(str(role).lower())
    if known is None:
        raise Misfit(f"the role {str(role)[:40]!r} is none of ours (user, assistant, system)")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise Misfit(f"the {known} turn must hold text")
    return {"role": known, "content": content}


def turns_of(messages: Sequence[Any], role: str = "role", content: str = "content") -> list[Turn]:
    """A conversation.

    Raises:
        Misfit: an entry is no turn.
    """
    if not all(isinstance(entry, dict) for entry in messages):
        raise Misfit(f"each turn must be an object with `{role}` and `{content}`")
    return [turn(entry.get(role), entry.get(content)) for entry in messages]


def conversation(turns: list[Turn]) -> Item:
    """A conversation as an item: its last answer, if it ends with one, apart from what was asked."""
    if turns and turns[-1]["role"] == "assistant":
        return {"messages": turns[:-1], "answer": turns[-1]["content"]}
    return {"messages": turns}


def ranked(messages: list[Turn], answers: Sequence[tuple[str, str]], ranks: Mapping[str, int], annotator: Any) -> Item:
    """Answers as (id, text), with one person's ranks."""
    return {
        "messages": messages,
        "responses": [{"id": key, "text": text} for key, text in answers],
        "annotations": [{"annotator": str(annotator), "ranks": dict(ranks)}],
    }


def about(record: Record, item: Item) -> Item:
    """The item with what its record says of itself."""
    language = record.get("language", record.get("lang"))
    if isinstance(language, str) and re.fullmatch(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*", language):
        item["lang"] = language
    if isinstance(record.get("source"), str):
        item["source"] = record["source"][:200]
    if isinstance(record.get("id"), str | int):
        item["id"] = str(record["id"])[:200]
    return item
