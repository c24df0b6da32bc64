"""Conversations as one text: Anthropic's HH transcripts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from app.formats.rows import RankedRow

HUMAN, ASSISTANT = "\n\nHuman: ", "\n\nAssistant: "


def transcript(messages: Sequence[dict[str, str]]) -> str:
    """A conversation up to where the assistant speaks. A system prompt stands before the first turn."""
    marks = {"user": HUMAN, "assistant": ASSISTANT, "system": ""}
    return "".join(marks[turn["role"]] + turn["content"] for turn in messages) + ASSISTANT.rstrip(" ")


def hh_pairs(ranking: RankedRow) -> Iterator[dict[str, Any]]:
    """`chosen` and `rejected`, each the whole conversation (https://github.com/anthropics/hh-rlhf)."""
    start = transcript(ranking.row["messages"]) + " "
    for better, worse, _ in ranking.better_pairs():
        yield {"chosen": start + ranking.texts[better], "rejected": start + ranking.texts[worse]}
    if ranking.options.ties == "both":
        for one, other in ranking.tied_pairs():
            yield {"chosen": start + ranking.texts[one], "rejected": start + ranking.texts[other]}
            yield {"chosen": start + ranking.texts[other], "rejected": start + ranking.texts[one]}
