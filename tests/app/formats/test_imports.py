"""Others' files: what each record becomes, and how a file is told from its first bytes."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from app.errors import Invalid, TooLarge
from app.formats import parquet_lines
from app.formats.imports import Kind
from app.formats.parquet_lines import OneAtATime, Openers, TooManyAtOnce
from app.formats.sources import FileReader
from app.ndjson import BadLine, Line

ASKED = [{"role": "user", "content": "2+2?"}]
TALK = [*ASKED, {"role": "assistant", "content": "4"}, {"role": "user", "content": "sure?"}]


async def read(
    content: bytes | list[Any], kind: Kind, *, step: int = 7, **options: Any
) -> tuple[FileReader, list[Line | BadLine]]:
    """Read a file that comes in small pieces, as networks bring it."""
    body = content if isinstance(content, bytes) else b"\n".join(json.dumps(line).encode() for line in content)

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), step):
            yield body[start : start + step]

    reader = FileReader(kind, **options)
    return reader, [line async for line in reader.lines(chunks())]


async def values(content: bytes | list[Any], kind: Kind, **options: Any) -> tuple[str, list[dict[str, Any]]]:
    """The format that was found and the lines, all of them good."""
    reader, lines = await read(content, kind, **options)
    assert all(isinstance(line, Line) for line in lines), lines
    return reader.format, [line.value for line in lines if isinstance(line, Line)]


def order_in(line: dict[str, Any]) -> list[str]:
    """The texts of a ranked line by rank, with `=` for a tie."""
    ranks = line["annotations"][0]["ranks"]
    texts = {answer["id"]: answer["text"] for answer in line["responses"]}
    return [f"{rank}{texts[key]}" for key, rank in sorted(ranks.items(), key=lambda pair: pair[1])]


CONVERSATIONS = {
    "messages": {"messages": [*TALK, {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}]},
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "2+2?"},
            {"from": "gpt", "value": "4"},
            {"from": "human", "value": "sure?"},
            {"from": "gpt", "value": "yes"},
        ]
    },
    "alpaca": {"instruction": "sure?", "input": "", "output": "yes", "history": [["2+2?", "4"]]},
    "chatglm": {"prompt": "sure?", "response": "yes", "history": [["2+2?", "4"]]},
    "moss": {
        "chat": {
            "turn_2": {"Human": "<|Human|>: sure?<eoh>\n", "MOSS": "<|MOSS|>: yes<eom>\n"},
            "turn_1": {"Human": "<|Human|>: 2+2?<eoh>\n", "Inner Thoughts": "none", "MOSS": "<|MOSS|>: 4<eom>\n"},
        }
    },
}


@pytest.mark.parametrize("name", CONVERSATIONS)
async def test_a_conversation_is_learned_whole_asked_again_or_an_answer(name: str) -> None:
    record = [CONVERSATIONS[name]]
    answer = {"role": "assistant", "content": "yes"}
    assert await values(record, "corpus") == (name, [{"messages": [*TALK, answer]}])
    assert await values(record, "prompts") == (name, [{"messages": TALK}])
    assert (await values(record, "completions"))[1] == [{"messages": TALK, "completions": [{"text": "yes"}]}]


async def test_chatglms_prompt_may_hold_rounds() -> None:
    text = "[Round 1]\n\n问：2+2?\n\n答：4\n\n[Round 2]\n\n问：sure?\n\n答："
    _, lines = await values([{"prompt": text, "response": "yes"}], "corpus")
    assert lines == [{"messages": [*TALK, {"role": "assistant", "content": "yes"}]}]


async def test_moss_also_writes_plain_text() -> None:
    record = {
        "prefix": "You are MOSS.\n",
        "plain_text": "[Human]: 2+2?<eoh> [MOSS]: 4<eoa> [Human]: sure?<eoh> [MOSS]: yes<eoa>",
    }
    found, lines = await values([record], "corpus")
    system = {"role": "system", "content": "You are MOSS."}
    assert (found, lines) == ("moss", [{"messages": [system, *TALK, {"role": "assistant", "content": "yes"}]}])


async def test_rounds_as_text_are_conversations_that_begin_where_the_number_falls() -> None:
    text = "[Round 1]\n\n问：2+2?\n\n答：4\n\n[Round 2]\n\n问：sure?\n\n答：yes\n\n[Round 1]\n\n问：你好\n\n答：您好\n"
    found, lines = await values(text.encode(), "corpus")
    assert (found, [len(line["messages"]) for line in lines]) == ("chatglm-rounds", [4, 2])
    assert lines[0]["messages"] == [*TALK, {"role": "assistant", "content": "yes"}]


async def test_alpacas_input_follows_its_instruction() -> None:
    _, lines = await values([{"instruction": "Add.", "input": "2 2", "output": "4"}], "prompts")
    assert lines == [{"messages": [{"role": "user", "content": "Add.\n2 2"}]}]


async def test_gsm8k_brings_what_a_program_checks() -> None:
    record = {"question": "2+2?", "answer": "Two and two.\n#### 1,004"}
    found, lines = await values([record], "prompts")
    assert (found, lines) == ("gsm8k", [{"messages": ASKED, "meta": {"check": {"kind": "numeric", "value": "1004"}}}])


PREFERENCES: dict[str, dict[str, Any]] = {
    "hh": {"chosen": "\n\nHuman: 2+2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2+2?\n\nAssistant: 5"},
    "pairs": {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
    "openai-preference": {
        "input": {"messages": ASKED},
        "preferred_output": [{"role": "assistant", "content": "4"}],
        "non_preferred_output": [{"role": "assistant", "content": "5"}],
    },
    "sharegpt": {
        "conversations": [{"from": "human", "value": "2+2?"}],
        "chosen": {"from": "gpt", "value": "4"},
        "rejected": {"from": "gpt", "value": "5"},
    },
    "groups": {"prompt": ASKED, "completions": ["5", "4"], "ranks": [2, 1]},
    "oasst": {
        "message_tree_id": "t",
        "prompt": {
            "text": "2+2?",
            "role": "prompter",
            "replies": [
                {"message_id": "b", "text": "5", "role": "assistant", "rank": 1, "replies": []},
                {"message_id": "a", "text": "4", "role": "assistant", "rank": 0, "replies": []},
                {"message_id": "c", "text": "spam", "role": "assistant", "rank": 2, "deleted": True},
            ],
        },
    },
    "label-studio": {
        "id": 1,
        "data": {"prompt": "2+2?", "items": [{"id": "x", "title": "A", "body": "5"}, {"id": "y", "body": "4"}]},
        "annotations": [
            {"completed_by": 3, "result": [{"type": "ranker", "value": {"ranker": {"rank": ["y", "x"]}}}]},
            {"completed_by": 4, "was_cancelled": True, "result": []},
        ],
    },
    "argilla": {
        "fields": {"prompt": "2+2?", "response-1": "5", "response-2": "4"},
        "responses": {
            "ranking": [
                {
                    "user_id": "u",
                    "status": "submitted",
                    "value": [{"value": "response-2", "rank": 1}, {"value": "response-1", "rank": 2}],
                },
                {"user_id": "v", "status": "discarded", "value": None},
            ]
        },
    },
}


@pytest.mark.parametrize("name", PREFERENCES)
async def test_a_preference_is_a_ranking_of_two(name: str) -> None:
    found, (line,) = await values([PREFERENCES[name]], "rankings")
    assert found == name
    assert line["messages"] == ASKED
    assert [said[1:] for said in order_in(line)] == ["4", "5"]
    assert len(line["annotations"]) == 1


async def test_argillas_first_version_lists_responses_by_person() -> None:
    values_ = {"ranking": {"value": [{"value": "response_1", "rank": 2}, {"value": "response_2", "rank": 1}]}}
    record = {
        "fields": {"instruction": "?", "response-1": "a", "response-2": "b"},
        "responses": [{"user_id": "u", "values": values_}],
    }
    _, (line,) = await values([record], "rankings")
    assert order_in(line) == ["1b", "2a"]


async def test_a_tie_of_label_studios_pairwise_is_one() -> None:
    data = {"prompt": "?", "answer1": "a", "answer2": "b"}
    result = (
        [{"type": "pairwise", "value": {"selected": "right"}}],
        [{"type": "pairwise", "value": {"selected": "tie"}}],
    )
    record = {"data": data, "annotations": [{"completed_by": {"id": 1}, "result": one} for one in result]}
    _, (line,) = await values([record], "rankings")
    assert [one["ranks"] for one in line["annotations"]] == [{"left": 2, "right": 1}, {"left": 1, "right": 1}]


async def test_an_implicit_prompt_stands_before_the_last_turn() -> None:
    record = {
        "chosen": [*ASKED, {"role": "assistant", "content": "4"}],
        "rejected": [*ASKED, {"role": "assistant", "content": "5"}],
    }
    _, (line,) = await values([record], "rankings")
    assert line["messages"] == ASKED


async def test_a_tree_asks_at_every_turn_of_the_user() -> None:
    deep = json.loads(json.dumps(PREFERENCES["oasst"]))
    follow = {"text": "sure?", "role": "prompter", "replies": [{"text": "yes", "role": "assistant", "replies": []}]}
    deep["prompt"]["replies"][1]["replies"] = [follow]
    _, prompts = await values([deep], "prompts")
    assert [line["messages"] for line in prompts] == [ASKED, TALK]
    reader, lines = await read([deep], "rankings")
    assert (len(lines), reader.num_unfit) == (1, 1)


async def test_what_is_not_read_is_named() -> None:
    _, (line,) = await read([PREFERENCES["pairs"] | {"margin": 2.0, "id": "7", "empty": ""}], "rankings")
    assert isinstance(line, Line)
    assert list(line.unread) == ["margin"]


@pytest.mark.parametrize(
    ("record", "rule"),
    [
        ({"instruction": 7, "output": "x"}, "`instruction` must be a string"),
        ({"conversations": [{"from": "observer", "value": "x"}]}, "the role 'observer' is none of ours"),
        ({"completions": ["a", "b"], "ranks": [1], "prompt": "?"}, "`ranks` must hold"),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"},
            "must be the same up to",
        ),
        ({"data": [], "annotations": []}, "needs `data`, an object"),
        ({"conversations": [7]}, "each turn must be an object"),
        ({"fields": {"prompt": "?"}, "responses": [7]}, "is not shaped as argilla should be"),
    ],
)
async def test_a_record_that_is_not_what_it_seems_is_refused_by_its_rule(record: dict[str, Any], rule: str) -> None:
    _, (bad,) = await read([record], "rankings")
    assert isinstance(bad, BadLine)
    assert rule in bad.rule


# Kinds of files

LINES = [{"instruction": '一,\n"二"', "output": "=3"}, {"instruction": "four", "output": "'5"}]
EXPECTED = [
    {"messages": [{"role": "user", "content": one["instruction"]}, {"role": "assistant", "content": one["output"]}]}
    for one in LINES
]


@pytest.mark.parametrize(
    ("content", "container"),
    [
        (b"\n".join(json.dumps(one).encode() for one in LINES), "jsonl"),
        (b"\xef\xbb\xbf" + json.dumps(LINES, indent=1).encode(), "json"),
        ('instruction,output\n"一,\n""二""",\'=3\nfour,\'5\n'.encode(), "csv"),
        ('\ufeffinstruction;output\r\n"一,\n""二""";=3\r\nfour;\'5\r\n'.encode(), "csv"),
    ],
)
@pytest.mark.parametrize(
    "squeeze", [lambda data: data, gzip.compress, lambda data: zstandard.ZstdCompressor().compress(data)]
)
async def test_a_file_is_told_from_its_bytes(content: bytes, container: str, squeeze: Any) -> None:
    reader, lines = await read(squeeze(content), "corpus")
    assert (reader.container, reader.format) == (container, "alpaca")
    assert [line.value for line in lines if isinstance(line, Line)] == EXPECTED


async def test_plain_text_is_prompts_by_line_and_texts_by_paragraph() -> None:
    text = "One.\nTwo.\n\n\nThree. 三\n".encode()
    assert (await values(text, "prompts", format="text"))[1] == [
        {"prompt": "One."},
        {"prompt": "Two."},
        {"prompt": "Three. 三"},
    ]
    assert (await values(text, "corpus", format="text"))[1] == [{"text": "One.\nTwo."}, {"text": "Three. 三"}]


async def test_broken_files_are_refused_and_never_break_us() -> None:
    _, lines = await read(b'[{"instruction": "a", "output": "b"}, {"instr', "corpus")
    assert isinstance(lines[-1], BadLine)
    _, lines = await read(b"instruction,output\na,b,c\nd,e\n", "corpus")
    assert [type(line) for line in lines] == [BadLine, Line]
    for damaged in (b"PAR1 nonsense", gzip.compress(b"{}")[:-4], b"\x28\xb5\x2f\xfd nonsense"):
        with pytest.raises(Invalid):
            await read(damaged, "corpus")
    with pytest.raises(Invalid, match="none of its 1 records"):
        await read([{"instruction": "a", "output": "b"}], "rankings")


def parquet_of(table: pa.Table) -> bytes:
    """A Parquet file of other programs, in as few bytes as it can be."""
    file = io.BytesIO()
    parquet.write_table(table, file, compression="zstd", store_schema=False)
    return file.getvalue()


async def test_parquet_of_others_is_read_by_its_kinds() -> None:
    row = {"instruction": "a", "output": b"b", "paid": Decimal("1.50"), "at": datetime(2026, 11, 22, tzinfo=UTC)}
    content = parquet_of(pa.Table.from_pylist([row] * 40))
    reader, lines = await read(content, "corpus")
    assert (reader.container, reader.format, len(lines)) == ("parquet", "alpaca", 40)
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert lines[39] == Line(40, {"messages": talk}, ["paid", "at"])


async def test_a_value_that_parquet_names_again_and_again_counts_each_time() -> None:
    named = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), pa.array(["x" * 2**20]))
    bomb = parquet_of(pa.table({"prompt": named}))
    assert len(bomb) < 1000
    with pytest.raises(TooLarge, match="larger than the 8,000,000 bytes"):
        await read(bomb, "prompts", max_bytes=8_000_000)


async def test_a_row_of_parquet_that_takes_all_memory_ends_the_process_that_opened_it() -> None:
    items = pa.ListArray.from_arrays(pa.array([0, 30_000_000], pa.int32()), pa.nulls(30_000_000, pa.int8()))
    bomb = parquet_of(pa.table({"prompt": items}))
    assert len(bomb) < 1000
    with pytest.raises(TooLarge, match="more memory or time"):
        await read(bomb, "prompts")


def reading(whose: str, content: bytes) -> AsyncGenerator[Line | BadLine]:
    """The lines of a file of this person's, which is open until they are closed."""

    async def chunks() -> AsyncIterator[bytes]:
        yield content

    return FileReader("corpus", whose=whose).lines(chunks())


async def test_each_person_opens_one_parquet_file_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_lines, "OPENERS", Openers(at_once=3))
    content = parquet_of(pa.Table.from_pylist([{"text": "a"}] * 40))
    async with aclosing(reading("ada", content)) as lines:
        await anext(lines)
        with pytest.raises(OneAtATime):
            await read(content, "corpus", whose="ada")
        assert len((await read(content, "corpus", whose="bo"))[1]) == 40
        assert len((await read(b"text\na\n", "corpus", whose="ada"))[1]) == 1
    assert len((await read(content, "corpus", whose="ada"))[1]) == 40


async def test_no_more_parquet_files_are_opened_at_once_than_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_lines, "OPENERS", Openers(at_once=1, most_waiting=1))
    content = parquet_of(pa.Table.from_pylist([{"text": "a"}] * 40))
    async with aclosing(reading("ada", content)) as lines:
        await anext(lines)
        waiting = asyncio.create_task(read(content, "corpus", whose="bo"))
        done, _ = await asyncio.wait([waiting], timeout=1)
        assert not done
        with pytest.raises(TooManyAtOnce):
            await read(content, "corpus", whose="eve")
    assert len((await waiting)[1]) == 40


async def test_a_bomb_is_stopped_when_it_is_open() -> None:
    bomb = gzip.compress(b"0" * 50_000_000)
    with pytest.raises(TooLarge):
        await read(bomb, "corpus", max_bytes=1_000_000, step=100_000)
    with pytest.raises(TooLarge):
        await read(b'text\n"' + b"x\n" * 5_000_000, "corpus", step=100_000)
