"""Open-Assistant's message trees (https://projects.laion.ai/Open-Assistant/docs/data/schemas)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from app.formats.rows import RankedRow

ROLES = {"user": "prompter", "assistant": "assistant"}


def trees(ranking: RankedRow) -> Iterator[dict[str, Any]]:
    """One tree a ranking: the conversation as a chain, the answers as the last turn's replies, rank 0 the best."""
    row = ranking.row
    ranks = {key: rank for rank, cell in enumerate(ranking.order) for key in cell}
    replies: list[dict[str, Any]] = [
        message(key, "assistant", ranking.texts[key], row["language"], parent=None) | {"rank": ranks.get(key)}
        for key in ranking.texts
    ]
    system, turns = "", row["messages"]
    if turns[0]["role"] == "system":
        system, turns = turns[0]["content"], turns[1:]
    for position in reversed(range(len(turns))):
        turn = turns[position]
        name = f"{row['ranking_id']}-{position}"
        for reply in replies:
            reply["parent_id"] = name
        one = message(name, ROLES[turn["role"]], turn["content"], row["language"], parent=None)
        replies = [one | {"replies": replies}]
    tree = {"message_tree_id": row["ranking_id"], "tree_state": "ready_for_export", "prompt": replies[0]}
    yield tree | {"system": system} if system else tree


def message(name: str, role: str, text: str, language: str, *, parent: str | None) -> dict[str, Any]:
    """One message of a tree."""
    return {
        "message_id": name,
        "parent_id": parent,
        "text": text,
        "role": role,
        "lang": language,
        "review_count": 0,
        "review_result": True,
        "deleted": False,
        "rank": None,
        "synthetic": False,
        "emojis": {},
        "replies": [],
    }
