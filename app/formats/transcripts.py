"""Conversations as one text, in the words of Anthropic's HH transcripts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from app.formats.items import Misfit, Turn

HUMAN, ASSISTANT = "\n\nHuman: ", "\n\nAssistant: "


def transcript(messages: Sequence[dict[str, str]]) -> str:
    """A conversation up to where the assistant speaks. A system prompt stands before the first turn."""
    marks = {"user": HUMAN, "assistant": ASSISTANT, "system": ""}
    return "".join(marks[turn["role"]] + turn["content"] for turn in messages) + ASSISTANT.rstrip(" ")


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
