"""Conversations as one text: Anthropic's HH transcripts, written and read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from app.formats.items import Item, Misfit, Record, Turn, about, ranked, text_of
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


# Reading

TURN = re.compile(r"\n\n(Human|Assistant):(?: |(?=\n|\Z))")


def read_transcript(text: str) -> list[Turn]:
    """The turns of a transcript; what stands before the first is a system prompt.

    Raises:
        Misfit: there is no turn.
    """
    before, *parts = TURN.split(text)
    if not parts:
        raise Misfit("is no transcript: “Human:” and “Assistant:” after empty lines are missing")
    turns = [
        {"role": "user" if who == "Human" else "assistant", "content": words}
        for who, words in zip(parts[::2], parts[1::2], strict=True)
    ]
    return [*([{"role": "system", "content": before}] if before else []), *turns]


def is_transcript(text: Any) -> bool:
    """Whether a prompt is a transcript that waits for the assistant."""
    return isinstance(text, str) and text.endswith("\n\nAssistant:") and "\n\nHuman: " in text


def from_hh(record: Record) -> Iterator[Item]:
    """Two transcripts that differ in the last turn."""
    better, worse = (read_transcript(text_of(record, name)) for name in ("chosen", "rejected"))
    if better[:-1] != worse[:-1]:
        raise Misfit("`chosen` and `rejected` must be the same up to their last turn")
    if better[-1]["role"] != "assistant" or worse[-1]["role"] != "assistant":
        raise Misfit("`chosen` and `rejected` must end with the assistant's turn")
    answers = [("chosen", better[-1]["content"]), ("rejected", worse[-1]["content"])]
    yield about(record, ranked(better[:-1], answers, {"chosen": 1, "rejected": 2}, "hh"))
