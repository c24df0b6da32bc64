"""What goes out comes back the same, in every format that can hold it, whatever people write."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Sequence
from itertools import groupby
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.formats.exports import EXPORTS, to_json_lines, to_records
from app.formats.files import cell, make_writer
from app.formats.rows import Options
from app.formats.sources import FileReader
from app.ndjson import Line
from app.rankings.import_lines import AnyLine, parse
from app.spreadsheets import unquoted

# Letters of four scripts, emoji with joiners, marks that turn the direction, newlines of three kinds, formulas, quotes.
PIECES = st.one_of(
    st.sampled_from(list("=+-@'\"\\,;[]{}\t\r\n\u2028\u2029\u0085\u200f\u202e")),
    st.characters(codec="utf-8", exclude_characters="\0"),
    st.sampled_from(["你", "好", "👩‍🔬", "🇨🇳", "e\u0301", "é", "ש", "ع", "Human:", "Assistant:", "\n\n"]),
)
WORDS = st.lists(PIECES, min_size=1, max_size=20).map("".join).filter(lambda text: bool(text.strip()))
# Transcripts can't hold their own marks (the export says so).
PLAIN = WORDS.filter(lambda text: "\n\nHuman:" not in text and "\n\nAssistant:" not in text)
LONG = st.integers(1, 400).map(lambda times: "长文 long طويل 🧵\n" * times)


def rows_of(words: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Rows of a dataset: a conversation, two to five different answers, an order with ties and gaps."""

    @st.composite
    def make(draw: st.DrawFn) -> dict[str, Any]:
        num_turns = draw(st.integers(0, 2))
        turns = [{"role": "user", "content": draw(words)}]
        for _ in range(num_turns):
            turns += [{"role": "assistant", "content": draw(words)}, {"role": "user", "content": draw(words)}]
        system = [{"role": "system", "content": draw(words)}] if draw(st.booleans()) else []
        texts = draw(st.lists(words, min_size=2, max_size=5, unique=True))
        ids = [f"id{number}" for number in range(len(texts))]
        places = draw(st.lists(st.integers(1, 3) | st.none(), min_size=len(ids), max_size=len(ids)))
        placed = [(place, key) for place, key in zip(places, ids, strict=True) if place is not None]
        if len(placed) < 2:
            placed = [(1, ids[0]), (2, ids[1])]
        placed.sort()
        order = [[key for _, key in cells] for _, cells in groupby(placed, key=lambda pair: pair[0])]
        return {
            "ranking_id": "00000000-0000-4000-8000-000000000001",
            "prompt_id": "00000000-0000-4000-8000-000000000002",
            "split": "train",
            "language": draw(st.sampled_from(["en", "zh", "ar"])),
            "messages": [*system, *turns],
            "completions": [
                {"id": key, "text": text, "version_id": None, "finish_reason": None}
                for key, text in zip(ids, texts, strict=True)
            ],
            "order": order,
            "annotator": draw(st.sampled_from(["ann", "1234567890123456"])),
            "labels": {ids[0]: draw(st.lists(st.just("opinion"), max_size=1))},
            "ratings": {ids[0]: draw(st.integers(1, 7))},
            "denied": {},
            "rationale": draw(WORDS),
            "confidence": draw(st.none() | st.integers(1, 3)),
            "all_bad": draw(st.none() | st.booleans()),
            "strength": None,
            "display_order": list(reversed(ids)),
            "created_at": "2026-11-21T10:00:00+00:00",
        }

    return make()


async def back(rows: Sequence[dict[str, Any]], name: Any, file: Any, **choices: Any) -> list[AnyLine]:
    """Rows through a file of this kind, as lines that the import of rankings takes."""
    options = Options(**choices)
    form = EXPORTS[name]
    writer = make_writer(file, form.columns(options))
    if writer is None:
        content = to_json_lines(form, list(map(orjson.dumps, rows)), options)
    else:
        content = writer.write(to_records(form, list(map(orjson.dumps, rows)), options)) + writer.end()

    async def chunks() -> AsyncIterator[bytes]:
        stream = io.BytesIO(content)
        while chunk := stream.read(1000):
            yield chunk

    reader = FileReader("rankings")
    lines = [line async for line in reader.lines(chunks())]
    assert all(isinstance(line, Line) for line in lines), lines
    return [parse(line.value) for line in lines if isinstance(line, Line)]


def said(line: AnyLine) -> list[tuple[list[dict[str, str]], list[list[str]]]]:
    """What each judgement of a line says, in texts."""
    texts = {answer.id or "": answer.text for answer in line.answers()}
    return [
        (line.conversation(), [sorted(texts[key] for key in cell) for cell in judgement.cells])
        for judgement in line.judgements()
    ]


def in_texts(row: dict[str, Any]) -> list[list[str]]:
    texts = {answer["id"]: answer["text"] for answer in row["completions"]}
    return [sorted(texts[key] for key in cell) for cell in row["order"]]


SOME = settings(max_examples=25)
# Three rows each: a process of its own reads a Parquet file, and takes half a second to start.
SOME_FILES = settings(max_examples=8)


def three(words: st.SearchStrategy[str]) -> st.SearchStrategy[list[dict[str, Any]]]:
    return st.lists(rows_of(words), min_size=3, max_size=3)


@pytest.mark.parametrize("file", ["jsonl", "csv", "parquet"])
@SOME_FILES
@given(rows=three(WORDS | LONG))
async def test_rankings_come_back_whole(file: str, rows: list[dict[str, Any]]) -> None:
    lines = await back(rows, "rankings", file)
    assert [line.model_dump() for line in lines] == [parse(row).model_dump() for row in rows]


@pytest.mark.parametrize("file", ["jsonl", "csv", "parquet"])
@SOME_FILES
@given(rows=three(WORDS))
async def test_groups_come_back_with_ties_and_gaps(file: str, rows: list[dict[str, Any]]) -> None:
    lines = await back(rows, "groups", file)
    assert [one for line in lines for one in said(line)] == [(row["messages"], in_texts(row)) for row in rows]


@pytest.mark.parametrize("style", ["conversational", "standard"])
@pytest.mark.parametrize("which", ["all", "adjacent", "best"])
@SOME
@given(row=rows_of(WORDS | LONG))
def test_pairs_from_parts_are_the_bytes_of_their_records(style: Any, which: Any, row: dict[str, Any]) -> None:
    options = Options(style=style, pairs=which)
    records = to_records(EXPORTS["pairs"], [orjson.dumps(row)], options)
    expected = b"".join(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE) for record in records)
    assert to_json_lines(EXPORTS["pairs"], [orjson.dumps(row)], options) == expected


@pytest.mark.parametrize("style", ["conversational", "standard"])
@pytest.mark.parametrize("file", ["jsonl", "csv", "parquet"])
@SOME_FILES
@given(rows=three(PLAIN))
async def test_pairs_come_back_with_ties_that_were_kept(file: str, style: str, rows: list[dict[str, Any]]) -> None:
    if style == "standard":
        rows = [row | {"messages": without_system(row["messages"])} for row in rows]
    found = [one for line in await back(rows, "pairs", file, style=style, ties="keep") for one in said(line)]
    expected = [(row["messages"], pair) for row in rows for pair in pairs_of(row)]
    assert sorted(found, key=repr) == sorted(expected, key=repr)


def without_system(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    return messages[1:] if messages[0]["role"] == "system" else messages


def pairs_of(row: dict[str, Any]) -> list[list[list[str]]]:
    """Every two answers that have a place, the better one first or both in one cell."""
    cells = in_texts(row)
    better = [
        [[one], [other]]
        for above, cell in enumerate(cells)
        for low in cells[above + 1 :]
        for one in cell
        for other in low
    ]
    tied = [[sorted([one, other])] for cell in cells for number, one in enumerate(cell) for other in cell[number + 1 :]]
    return better + tied


@SOME
@given(row=rows_of(PLAIN))
async def test_transcripts_come_back_where_their_marks_do_not_stand_in_a_text(row: dict[str, Any]) -> None:
    if len(row["order"]) > 1:
        found = [one for line in await back([row], "hh", "jsonl") for one in said(line)]
        assert all(messages == row["messages"] for messages, _ in found)
        best = in_texts(row)
        assert [[best[0][0]], [best[1][0]]] in [order for _, order in found]


@SOME
@given(row=rows_of(WORDS))
async def test_trees_come_back_with_ties_and_gaps(row: dict[str, Any]) -> None:
    (line,) = await back([row], "oasst", "jsonl")
    assert said(line) == [(row["messages"], in_texts(row))]


@SOME
@given(text=st.text(max_size=20))
def test_a_cell_holds_any_text_and_never_a_formula(text: str) -> None:
    written = cell(text)
    assert not written.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert unquoted(written) == text
