"""Anthropic's HH pairs: `chosen` and `rejected`, each a whole conversation (https://github.com/anthropics/hh-rlhf)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from app.formats.items import Item, Misfit, Record, about, ranked, text_of
from app.formats.rows import RankedRow
from app.formats.transcripts import read_transcript, transcript


def hh_pairs(ranking: RankedRow) -> Iterator[dict[str, Any]]:
    """The pairs of a ranking, as lines of the file."""
    start = transcript(ranking.row["messages"]) + " "
    for better, worse, _ in ranking.better_pairs():
        yield {"chosen": start + ranking.texts[better], "rejected": start + ranking.texts[worse]}
    if ranking.options.ties == "both":
        for one, other in ranking.tied_pairs():
            yield {"chosen": start + ranking.texts[one], "rejected": start + ranking.texts[other]}
            yield {"chosen": start + ranking.texts[other], "rejected": start + ranking.texts[one]}


def from_hh(record: Record) -> Iterator[Item]:
    """Two transcripts that differ in the last turn."""
    better, worse = (read_transcript(text_of(record, name)) for name in ("chosen", "rejected"))
    if better[:-1] != worse[:-1]:
        raise Misfit("`chosen` and `rejected` must be the same up to their last turn")
    if better[-1]["role"] != "assistant" or worse[-1]["role"] != "assistant":
        raise Misfit("`chosen` and `rejected` must end with the assistant's turn")
    answers = [("chosen", better[-1]["content"]), ("rejected", worse[-1]["content"])]
    yield about(record, ranked(better[:-1], answers, {"chosen": 1, "rejected": 2}, "hh"))
