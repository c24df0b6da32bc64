"""Exports over HTTP: every format as every kind of file, the same bytes again, and any part of them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import zstandard
from httpx2 import AsyncClient, Response
from pyarrow import parquet
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Role, Scope
from app.accounts.tokens import create_token
from app.datasets import pieces, service
from app.datasets.models import Dataset
from app.formats.exports import EXPORTS
from app.formats.rows import Options
from app.spreadsheets import as_csv
from tests.factories import completion_ids_of, make_project, make_prompt, make_ranking, make_task, make_user, sign_in

Get = Callable[..., Awaitable[Response]]
CHAT = [
    {"role": "system", "content": "简短回答。"},
    {"role": "user", "content": "=1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "ثم؟ 🧮"},
]


@pytest.fixture
async def dataset(session: AsyncSession, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Three rankings: 1 > 2 = 3 with the fourth missing, in a conversation; 1 > 2 for training and for validation.

    Each is stored as a piece of its own.
    """
    monkeypatch.setattr(pieces, "PIECE_BYTES", 100)
    project = await make_project(session, slug="exports", guidelines="Be fair.\n# Not a heading")
    long = await make_task(session, await make_prompt(session, project, messages=CHAT, language="zh"), k=4)
    first, *_ = await completion_ids_of(session, long)
    marks: dict[Any, Any] = {first: {"labels": ["opinion"], "rating": 6}}
    await make_ranking(session, long, places=[1, 2, 2, None], marks=marks)
    for split in ("train", "validation"):
        await make_ranking(session, await make_task(session, await make_prompt(session, project, split=split), k=2))
    dataset = await service.freeze(session, project=project, name="First | try", licence="CC-BY-4.0")
    await session.commit()
    return dataset


@pytest.fixture
async def get(client: AsyncClient, session: AsyncSession, dataset: Dataset) -> Get:
    user = await make_user(session, role=Role.ADMIN)
    _, secret = await create_token(session, user_id=user.id, name="test", scopes=[Scope.READ])
    await session.commit()

    async def ask(headers: dict[str, str] | None = None, path: str = "export", **choices: str) -> Response:
        address = f"/api/v1/datasets/{dataset.id}/{path}"
        return await client.get(
            address, params=choices, headers={"Authorization": f"Bearer {secret}"} | (headers or {})
        )

    return ask


def lines(answer: Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.content.splitlines()]


async def test_pairs_are_what_trl_takes(get: Get) -> None:
    pairs = lines(await get(format="pairs"))
    assert len(pairs) == 2 + 1 + 1
    assert all(list(pair) == ["prompt", "chosen", "rejected"] for pair in pairs)
    assert pairs[0]["prompt"] == CHAT
    assert [turn["role"] for turn in pairs[0]["chosen"] + pairs[0]["rejected"]] == ["assistant", "assistant"]
    plain = lines(await get(format="pairs", style="standard"))
    assert plain[0]["prompt"] == "简短回答。\n\nHuman: =1+1?\n\nAssistant: 2\n\nHuman: ثم؟ 🧮\n\nAssistant:"
    assert plain[0]["chosen"] == pairs[0]["chosen"][0]["content"]


async def test_a_split_is_exported_alone(get: Get) -> None:
    rows = lines(await get(split="validation"))
    assert [row["split"] for row in rows] == ["validation"]
    assert len(lines(await get(format="pairs", split="train"))) == 3


@pytest.mark.parametrize("name", EXPORTS)
@pytest.mark.parametrize("file", ["jsonl", "csv", "parquet", "folder"])
async def test_a_file_is_the_same_twice_and_goes_on_where_it_broke(get: Get, name: str, file: str) -> None:
    whole = await get(format=name, file=file)
    assert whole.content == (await get(format=name, file=file)).content
    etag = whole.headers["etag"]
    for begin in (0, 1, len(whole.content) // 2, len(whole.content) - 1):
        part = await get({"Range": f"bytes={begin}-", "If-Range": etag}, format=name, file=file)
        assert (part.status_code, part.headers["etag"]) == (206, etag)
        assert part.content == whole.content[begin:]
        size = len(whole.content)
        assert part.headers["content-range"] == f"bytes {begin}-{size - 1}/{size}"


@pytest.mark.parametrize("name", EXPORTS)
async def test_what_a_row_says_is_in_the_file_or_in_its_report(get: Get, name: str) -> None:
    """What only some formats hold, each by a word of the sentence that says it is lost."""
    columns = set(EXPORTS[name].columns(Options()))  # type: ignore[index]
    lost = " ".join((await get(path="report", format=name)).json()["not_held"]).lower()
    for column, word in {"rationale": "rationales", "labels": "labels", "annotator": "who ranked"}.items():
        assert (column in columns) != (word in lost.replace("denied labels", "")), (column, lost)


@pytest.mark.parametrize("name", EXPORTS)
async def test_every_kind_of_file_holds_the_same_records(get: Get, name: str) -> None:
    expected = lines(await get(format=name))
    columns = EXPORTS[name].columns(Options())  # type: ignore[index]
    table = parquet.read_table(io.BytesIO((await get(format=name, file="parquet")).content)).to_pylist()
    content = (await get(format=name, file="csv")).content.decode("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(content, newline="")))
    assert list(rows[0]) == list(columns) == list(table[0])
    assert len(rows) == len(table) == len(expected)
    for record, row in zip(expected, table, strict=True):
        for column, kind in columns.items():
            if column in record:
                assert (json.loads(row[column]) if kind == "json" else row[column]) == record[column]


async def test_a_part_is_sent_as_it_was_asked_for(get: Get) -> None:
    whole = await get(format="hh")
    size = len(whole.content)
    assert (await get({"Range": "bytes=3-9"}, format="hh")).content == whole.content[3:10]
    assert (await get({"Range": "bytes=-5"}, format="hh")).content == whole.content[-5:]
    assert (await get({"Range": f"bytes={size}-"}, format="hh")).status_code == 416
    # Another file than the one that broke, or no range that we understand: the whole.
    for headers in ({"Range": "bytes=3-", "If-Range": '"other"'}, {"Range": "lines=3-"}, {"Range": "bytes=1-2,4-5"}):
        answer = await get(headers, format="hh")
        assert (answer.status_code, answer.content) == (200, whole.content)


async def test_who_has_it_is_not_sent_it_again(get: Get) -> None:
    etag = (await get(format="pairs")).headers["etag"]
    assert (await get({"If-None-Match": etag}, format="pairs")).status_code == 304
    assert (await get({"If-None-Match": etag}, format="pairs", ties="both")).status_code == 200


async def test_compression_is_part_of_the_file(get: Get) -> None:
    plain = (await get(format="pairs")).content
    squeezed = await get(format="pairs", compression="gzip")
    assert gzip.decompress(squeezed.content) == plain
    assert squeezed.headers["content-type"] == "application/gzip"
    assert squeezed.headers["content-disposition"].endswith("exports-dataset-1-pairs.jsonl.gz")
    framed = (await get(format="pairs", compression="zstd")).content
    assert zstandard.ZstdDecompressor().decompressobj().decompress(framed) == plain
    assert (await get(format="pairs", file="parquet", compression="gzip")).status_code == 422


async def test_a_folder_has_a_card_and_a_file_for_each_split(get: Get) -> None:
    answer = await get(format="pairs", file="folder")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [
            "README.md",
            "card.json",
            "report.json",
            "data/train.jsonl",
            "data/validation.jsonl",
        ]
        card = archive.read("README.md").decode()
        assert archive.read("data/train.jsonl") == (await get(format="pairs", split="train")).content
        report = json.loads(archive.read("report.json"))
    assert '{"split":"train","path":"data/train.jsonl"}' in card
    assert 'license: "CC-BY-4.0"' in card
    assert "# First / try" in card
    assert "> # Not a heading" in card
    assert "Ties are left out." in report["not_held"]
    assert report == (await get(path="report", format="pairs", file="folder")).json()


async def test_cells_that_a_spreadsheet_would_run_are_quoted(client: AsyncClient, session: AsyncSession) -> None:
    project = await make_project(session)
    texts = {f"{begins}1+1" for begins in ("=", "+", "-", "@", "\t", "\r")}
    for text_ in sorted(texts):
        asked = await make_prompt(session, project, messages=[{"role": "user", "content": text_}])
        await make_ranking(session, await make_task(session, asked, k=2))
    dataset = await service.freeze(session, project=project, name="formulas", licence="CC-BY-4.0")
    user = await make_user(session, role=Role.ADMIN)
    _, secret = await create_token(session, user_id=user.id, name="test", scopes=[Scope.READ])
    await session.commit()
    answer = await client.get(
        f"/api/v1/datasets/{dataset.id}/export",
        params={"format": "answers", "file": "csv"},
        headers={"Authorization": f"Bearer {secret}"},
    )
    rows = list(csv.DictReader(io.StringIO(answer.content.decode("utf-8-sig"), newline="")))
    assert {row["prompt"] for row in rows} == {f"'{text_}" for text_ in texts}


@pytest.mark.parametrize("begins", ["=", "+", "-", "@", "\t", "\r"])
def test_every_way_to_begin_a_formula_is_quoted(begins: str) -> None:
    rows = csv.DictReader(io.StringIO(as_csv(["text"], [{"text": f"{begins}1+1"}]), newline=""))
    assert [row["text"] for row in rows] == [f"'{begins}1+1"]


async def test_a_card_says_who_ranked_and_how(get: Get) -> None:
    card = (await get(path="card")).json()
    assert card["counts"]["num_rankings"] == 3
    assert sum(card["annotators"].values()) == 3
    assert card["task"]["guidelines"] == "Be fair.\n# Not a heading"
    assert card["labels"] == {"opinion": 1}
    assert card["agreement"] is None
    # The factories show the answers in reverse, and rank them in order: the first card never wins.
    assert card["biases"]["first_shown_wins"] == 0
    words = await get(path="card.md")
    assert words.headers["content-type"].startswith("text/markdown")
    assert "No task was ranked by two people" in words.text


async def test_the_page_says_what_a_format_loses_before_the_download(
    client: AsyncClient, session: AsyncSession, dataset: Dataset
) -> None:
    await sign_in(client, session)
    base = "/projects/exports/datasets/1"
    page = (await client.get(f"{base}/export", params={"format": "pairs", "style": "standard"})).text
    assert "Ties are left out." in page
    assert "Human: ثم؟ 🧮" in page
    assert 'href="/projects/exports/datasets/1/download?style=standard&amp;format=pairs"' in page
    assert "It holds everything." in (await client.get(f"{base}/export")).text
    assert lines(await client.get(f"{base}/download", params={"format": "pairs"}))[0]["prompt"] == CHAT
    for bad in ({"format": "xml"}, {"format": "pairs", "nonsense": "1"}):
        assert (await client.get(f"{base}/export", params=bad)).status_code == 422


async def test_a_dataset_that_lost_rows_is_not_sent_as_if_it_were_whole(get: Get, session: AsyncSession) -> None:
    await session.execute(text("set constraints fk_dataset_pieces_dataset_id immediate"))
    await session.execute(text("alter table dataset_pieces disable trigger dataset_pieces_immutable"))
    await session.execute(text("delete from dataset_pieces where start > 0"))
    await session.commit()
    for choices in ({}, {"format": "pairs"}):
        with pytest.raises(RuntimeError, match="ends at row 1 of 3"):
            await get(**choices)
