"""Rankings as tables for spreadsheets and statistics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from app.formats.rows import RankedRow
from app.formats.transcripts import transcript

# A row's own columns in CSV and Parquet; whatever else it holds goes into `more`.
KNOWN = (
    "ranking_id",
    "prompt_id",
    "split",
    "language",
    "messages",
    "completions",
    "order",
    "annotator",
    "labels",
    "ratings",
    "denied",
    "rationale",
    "confidence",
    "all_bad",
    "strength",
    "display_order",
    "created_at",
)


def ranking_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a dataset in columns that never change, whatever rows hold in later versions."""
    more = {name: value for name, value in row.items() if name not in KNOWN}
    return {name: row.get(name) for name in KNOWN} | {"more": more}


def answers(ranking: RankedRow) -> Iterator[dict[str, Any]]:
    """One row an answer of a ranking: where it was shown, which place it got (1 is best; empty: none)."""
    row = ranking.row
    places = {key: place for place, cell in enumerate(ranking.order, start=1) for key in cell}
    shown = {key: position for position, key in enumerate(row["display_order"], start=1)}
    prompt = transcript(row["messages"]) if len(row["messages"]) > 1 else row["messages"][0]["content"]
    for answer in row["completions"]:
        key = answer["id"]
        yield {
            **ranking.names(),
            "created_at": row["created_at"],
            "prompt": prompt,
            "completion_id": key,
            "version_id": answer["version_id"],
            "finish_reason": answer["finish_reason"],
            "shown": shown.get(key),
            "place": places.get(key),
            "rating": row["ratings"].get(key),
            "labels": row["labels"].get(key, []),
            "text": answer["text"],
        }
