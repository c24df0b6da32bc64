"""A row of a dataset (docs/protocol.md) in the words that export formats need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import combinations, pairwise
from typing import Any, Literal

import msgspec
import orjson
from pydantic import BaseModel, ConfigDict

from app.formats.transcripts import transcript

Style = Literal["conversational", "standard"]
Which = Literal["all", "adjacent", "best"]
Ties = Literal["drop", "both", "keep"]
Margin = Literal["none", "places", "ratings", "strength"]


# Which places are compared, as (better, worse).
CHOSEN: dict[Which, Callable[[range], Iterable[tuple[int, int]]]] = {
    "all": lambda places: combinations(places, 2),
    "adjacent": pairwise,
    "best": lambda places: ((0, worse) for worse in places[1:]),
}


class Options(BaseModel):
    """What may be chosen beside the format."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    style: Style = "conversational"
    """Messages, or plain text."""
    pairs: Which = "all"
    """All pairs of a ranking, those of neighbouring places, or the best answers against the others."""
    ties: Ties = "drop"
    """Left out, written in both directions, or kept once and marked."""
    margin: Margin = "none"
    """How much better: the distance of the places or of the ratings, or what was said of a pair (`strength`)."""
    ids: bool = False
    """Also name the ranking, the prompt, the annotator, and the pair's share of its ranking."""


def json_fragment(value: Any) -> orjson.Fragment:
    """A value that is encoded once and written into many lines."""
    return orjson.Fragment(orjson.dumps(value))


class RawAnswer(msgspec.Struct, gc=False):
    """An answer whose text stays JSON."""

    id: str
    text: msgspec.Raw


class RawRow(msgspec.Struct, gc=False):
    """Of a row, what plain pairs are made of; the texts stay as they are written in its line."""

    split: str
    messages: msgspec.Raw
    completions: list[RawAnswer]
    order: list[list[str]]


class RankedRow:
    """One ranking: its prompt and its answers in the style asked for, and who is better than whom."""

    def __init__(
        self, row: Mapping[str, Any], options: Options, encode: Callable[[Any], Any] = lambda value: value
    ) -> None:
        self.row = row
        self.options = options
        self.texts: dict[str, str] = {answer["id"]: answer["text"] for answer in row["completions"]}
        self.order: list[list[str]] = row["order"]
        say_prompt, say_answer = (messages_of, as_turn) if options.style == "conversational" else (as_text, str)
        self.prompt = encode(say_prompt(row["messages"]))
        self.answers = {key: encode(say_answer(text)) for key, text in self.texts.items()}

    def better_pairs(self) -> Iterator[tuple[str, str, int]]:
        """(better, worse, distance of their places) of the pairs asked for, the best first."""
        return better_pairs(self.order, self.options.pairs)

    def tied_pairs(self) -> Iterator[tuple[str, str]]:
        """Pairs that share a place: of the best place only, where only the best is asked for."""
        for cell in self.order[:1] if self.options.pairs == "best" else self.order:
            yield from combinations(cell, 2)

    def names(self) -> dict[str, Any]:
        """Which ranking it is."""
        return {name: self.row[name] for name in ("ranking_id", "prompt_id", "split", "language", "annotator")}

    def margin(self, better: str, worse: str, distance: int) -> float | None:
        """How much better, as asked for; None where it was not said."""
        if self.options.margin == "places":
            return float(distance)
        if self.options.margin == "strength":
            strength = self.row.get("strength")
            return None if strength is None else float(strength)
        ratings = self.row["ratings"]
        return float(ratings[better] - ratings[worse]) if better in ratings and worse in ratings else None


def better_pairs(order: list[list[str]], which: Which) -> Iterator[tuple[str, str, int]]:
    """(better, worse, distance of their places) of these pairs, the best first."""
    for above, below in CHOSEN[which](range(len(order))):
        for better in order[above]:
            for worse in order[below]:
                yield better, worse, below - above


def messages_of(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """A conversation as it is."""
    return messages


def as_turn(text: str) -> list[dict[str, str]]:
    """An answer as a conversation of one turn."""
    return [{"role": "assistant", "content": text}]


def as_text(messages: list[dict[str, str]]) -> str:
    """A conversation as plain text: a single question as it is, a longer one as a transcript."""
    if len(messages) == 1:
        return messages[0]["content"]
    return transcript(messages)
