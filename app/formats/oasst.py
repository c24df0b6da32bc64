"""Open-Assistant's message trees (https://projects.laion.ai/Open-Assistant/docs/data/schemas)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from app.formats.items import Item, Misfit, Record, Turn, turn
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


# Reading


def from_tree(record: Record) -> Iterator[Item]:
    """Every question of a tree with its answers: several ranked ones are a ranking, one is an answer."""
    root = record.get("prompt")
    if not isinstance(root, dict):
        raise Misfit("needs `prompt`, the first message of the tree")
    system = record.get("system")
    start = [{"role": "system", "content": system}] if isinstance(system, str) and system else []
    yield from questions(root, start)


def questions(message: dict[str, Any], before: list[Turn]) -> Iterator[Item]:
    """This message, if it asks, and all that follows from it. Deep trees are read without recursion."""
    waiting = [(message, before)]
    while waiting:
        one, path = waiting.pop()
        here = [*path, turn(one.get("role"), one.get("text"))]
        replies = [reply for reply in one.get("replies") or [] if isinstance(reply, dict) and not reply.get("deleted")]
        if here[-1]["role"] == "user":
            yield question(one, here, replies)
        waiting.extend((reply, here) for reply in reversed(replies))


def question(message: dict[str, Any], path: list[Turn], replies: list[dict[str, Any]]) -> Item:
    """One question with the answers to it."""
    item: Item = {"messages": path, "source": "Open-Assistant"}
    if isinstance(message.get("message_id"), str):
        item["id"] = message["message_id"][:200]
    if isinstance(message.get("lang"), str):
        item["lang"] = message["lang"]
    answers = {str(reply.get("message_id", number)): reply for number, reply in enumerate(replies)}
    item["responses"] = [
        {"id": key, "text": turn(reply.get("role"), reply.get("text"))["content"]}
        | ({"model": reply["model_name"]} if isinstance(reply.get("model_name"), str) else {})
        for key, reply in answers.items()
    ]
    ranks = {key: reply["rank"] for key, reply in answers.items() if isinstance(reply.get("rank"), int)}
    if len(ranks) > 1:
        item["annotations"] = [{"annotator": "open-assistant", "ranks": ranks}]
    return item
