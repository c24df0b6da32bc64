"""Freezing: which rankings, in which order, as which bytes; and that nothing changes afterwards."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import uuid
from datetime import UTC, datetime
from itertools import combinations
from typing import Any

import orjson
import pytest
from sqlalchemy import delete, func, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.datasets import pieces, service, snapshots
from app.datasets.cards import share
from app.datasets.models import Dataset, DatasetPiece, DatasetRow
from app.datasets.service import NothingToFreeze
from app.db import SessionMaker, make_engine, make_sessionmaker
from app.projects.models import Project
from app.prompts.models import Completion, Prompt
from app.tasks.models import Task, TaskCompletion
from tests.factories import (
    add,
    completion_ids_of,
    make_completion,
    make_project,
    make_prompt,
    make_ranking,
    make_task,
    make_user,
)


@pytest.fixture
async def project(session: AsyncSession) -> Project:
    return await make_project(session)


async def make_ranked(session: AsyncSession, project: Project, *, split: str = "train", **values: Any) -> Any:
    """A ranking of a task of this project."""
    task = await make_task(session, await make_prompt(session, project, split=split), k=3)
    return await make_ranking(session, task, **values)


async def content_of(session: AsyncSession, dataset: Dataset) -> bytes:
    lines = await pieces.read_rows(session, dataset.id, range(dataset.num_rows))
    return b"".join(line + b"\n" for line in lines)


async def rows_of(session: AsyncSession, dataset: Dataset) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (await content_of(session, dataset)).splitlines()]


async def test_a_row_is_as_the_protocol_has_it(session: AsyncSession, project: Project) -> None:
    prompt = await make_prompt(session, project, language="zh", messages=[{"role": "user", "content": '\\n "哪个"？'}])
    task = await make_task(session, prompt, k=4)
    ranking = await make_ranking(session, task, places=[2, 1, 2, None])
    shown = [str(key) for key in await completion_ids_of(session, task)]
    texts = {str(key): value for key, value in await session.execute(select(Completion.id, Completion.text))}
    (row,) = await rows_of(session, await service.freeze(session, project=project))
    assert row.pop("annotator") != str(ranking.annotator_id)
    assert row == {
        "ranking_id": str(ranking.id),
        "prompt_id": str(prompt.id),
        "split": "train",
        "language": "zh",
        "messages": prompt.messages,
        "completions": [{"id": key, "text": texts[key], "version_id": None, "finish_reason": None} for key in shown],
        "order": [[shown[1]], [shown[0], shown[2]]],
        "labels": {},
        "ratings": {},
        "denied": {},
        "rationale": "",
        "confidence": None,
        "all_bad": None,
        "strength": None,
        "display_order": list(reversed(shown)),
        "provenance": {"chosen_by": "random", "is_assisted": False, "score": None},
        "created_at": ranking.created_at.isoformat(),
    }


HOSTILE = [
    "".join(map(chr, range(1, 0x80))),
    'He said: "\\\\n" \\ / </script> \u2028 \u2029 \ufeff \x7f \x85',
    "שלום \u202e gnirts 🙂👩‍👩‍👧 汉字 e\u0301 \U0010ffff",
]


@pytest.mark.parametrize("words", HOSTILE)
async def test_lines_are_the_very_bytes_of_sorted_compact_json(
    session: AsyncSession, project: Project, words: str
) -> None:
    turns = [{"role": "system", "content": words}, {"role": "user", "content": words}]
    prompt = await make_prompt(session, project, messages=turns)
    task = await make_task(session, prompt, k=1)
    answer = await make_completion(session, prompt, text=words)
    await add(session, TaskCompletion(task_id=task.id, completion_id=answer.id, position=1))
    (other,) = {*await completion_ids_of(session, task)} - {answer.id}
    marks: dict[Any, Any] = {
        other: {"labels": [words, "b"], "rating": 1},
        answer.id: {"labels": ["a"], "denied": [words], "rating": 7},
    }
    at = datetime(2026, 2, 1, 23, 59, tzinfo=UTC)
    await make_ranking(session, task, marks=marks, rationale=words, all_bad=True, confidence=2, created_at=at)
    content = await content_of(session, await service.freeze(session, project=project))
    row = orjson.loads(content)
    assert orjson.dumps(row, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE) == content
    assert (row["messages"], row["rationale"], row["created_at"]) == (turns, words, "2026-02-01T23:59:00+00:00")
    assert row["labels"] == {str(other): [words, "b"], str(answer.id): ["a"]}
    assert row["completions"][1]["text"] == words


async def test_what_a_card_counts_is_what_the_lines_say(
    session: AsyncSession, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a slow count in Python, over rankings with ties, gaps and texts of all lengths, in several batches."""
    monkeypatch.setattr(snapshots, "BATCH", 5)
    chance = random.Random(6)
    for number in range(12):
        prompt = await make_prompt(session, project)
        task = await make_task(session, prompt, k=2 + number % 3)
        places = [chance.choice([1, 2, 3, None]) for _ in range(2 + number % 3)]
        await make_ranking(session, task, places=places)
    await session.execute(text("alter table completions disable trigger completions_immutable"))
    await session.execute(text("update completions set text = repeat('汉', 1 + abs(hashtext(id::text)) % 3)"))
    dataset = await service.freeze(session, project=project)
    rows = await rows_of(session, dataset)
    pairs = [pair for row in rows for pair in pairs_of(row)]
    decided = [row for row in rows if len(row["order"]) > 1 and len(row["order"][0]) == 1]
    apart = [(better, worse) for better, worse in pairs if better != worse]
    assert dataset.counts["num_pairs"] == len(pairs)
    assert dataset.counts["num_ties"] == sum(len(cell) * (len(cell) - 1) // 2 for row in rows for cell in row["order"])
    assert dataset.card["num_with_gaps"] == sum(sum(map(len, row["order"])) < len(row["completions"]) for row in rows)
    assert dataset.card["biases"] == {
        "num_decided": len(decided),
        "first_shown_wins": share(sum(row["order"][0][0] == row["display_order"][0] for row in decided), len(decided)),
        "first_shown_would_win_by_chance": share(sum(1 / len(row["completions"]) for row in decided), len(decided)),
        "num_pairs_of_different_length": len(apart),
        "longer_wins": share(sum(better > worse for better, worse in apart), len(apart)),
    }


def pairs_of(row: dict[str, Any]) -> list[tuple[int, int]]:
    """The lengths of the better and the worse answer of every pair."""
    lengths = {answer["id"]: len(answer["text"]) for answer in row["completions"]}
    above_and_below = combinations(row["order"], 2)
    return [(lengths[one], lengths[other]) for above, below in above_and_below for one in above for other in below]


async def test_labels_and_ratings_are_named_by_completion(session: AsyncSession, project: Project) -> None:
    task = await make_task(session, await make_prompt(session, project), k=2)
    first, second = await completion_ids_of(session, task)
    ranking = await make_ranking(session, task, marks={first: {"labels": ["opinion"]}, second: {"rating": 6}})
    (row,) = await rows_of(session, await service.freeze(session, project=project))
    assert row["ranking_id"] == str(ranking.id)
    assert (row["labels"], row["ratings"]) == ({str(first): ["opinion"]}, {str(second): 6})


async def test_the_hash_is_that_of_the_bytes_and_the_bytes_are_the_same_every_time(
    session: AsyncSession, project: Project
) -> None:
    for _ in range(3):
        await make_ranked(session, project)
    dataset = await service.freeze(session, project=project)
    content = await content_of(session, dataset)
    assert hashlib.sha256(content).hexdigest() == dataset.sha256
    await make_ranked(session, project)
    await session.execute(update(Prompt).values(source="elsewhere", withdrawn_at=func.now()))
    assert await content_of(session, dataset) == content
    assert content.count(b"\n") == dataset.num_rows == 3


async def test_rows_stand_in_the_order_in_which_the_rankings_came(session: AsyncSession, project: Project) -> None:
    rankings = [await make_ranked(session, project) for _ in range(5)]
    rows = await rows_of(session, await service.freeze(session, project=project))
    assert [row["ranking_id"] for row in rows] == [str(ranking.id) for ranking in rankings]


async def test_only_current_rankings_of_what_may_be_learned_from_are_taken(
    session: AsyncSession, project: Project
) -> None:
    kept = await make_ranked(session, project, split="validation")
    await make_ranked(session, project, split="test")
    await make_ranked(session, project, is_surplus=True)
    await make_ranked(session, await make_project(session))
    withdrawn = await make_ranked(session, project)
    await session.execute(update(Task).where(Task.id == withdrawn.task_id).values(withdrawn_at=func.now()))
    forgotten = await make_ranked(session, project)
    task = await session.get_one(Task, forgotten.task_id)
    await session.execute(update(Prompt).where(Prompt.id == task.prompt_id).values(withdrawn_at=func.now()))
    rows = await rows_of(session, await service.freeze(session, project=project))
    assert [(row["ranking_id"], row["split"]) for row in rows] == [(str(kept.id), "validation")]


async def test_a_change_of_mind_takes_the_place_of_the_old_ranking(session: AsyncSession, project: Project) -> None:
    old = await make_ranked(session, project)
    task = await session.get_one(Task, old.task_id)
    annotator = await make_user(session)
    new = await make_ranking(
        session, task, annotator=annotator, lease_id=old.lease_id, supersedes_id=old.id, places=[3, 2, 1]
    )
    rows = await rows_of(session, await service.freeze(session, project=project))
    assert [row["ranking_id"] for row in rows] == [str(new.id)]


async def test_the_counts_are_those_of_the_rows(session: AsyncSession, project: Project) -> None:
    annotator = await make_user(session)
    prompt = await make_prompt(session, project, split="validation")
    one = await make_task(session, prompt, k=4, round=1)
    two = await make_task(session, prompt, k=3, round=2)
    three = await make_task(session, await make_prompt(session, project), k=2)
    # 1 > 2 = 3, the fourth missing: 2 pairs and a tie; all three apart: 3 pairs; a tie of two: none.
    await make_ranking(session, one, annotator=annotator, places=[1, 2, 2, None])
    await make_ranking(session, two, annotator=annotator, places=[3, 1, 2])
    await make_ranking(session, three, places=[1, 1])
    dataset = await service.freeze(session, project=project)
    assert dataset.counts == {
        "num_rankings": 3,
        "num_prompts": 2,
        "num_pairs": 5,
        "num_ties": 2,
        "num_annotators": 2,
        "train": 1,
        "validation": 2,
        "by_round": {"1": 1, "2": 1, "imported": 1},
    }


async def test_a_pseudonym_is_one_person_within_a_dataset_and_another_in_the_next(
    session: AsyncSession, project: Project
) -> None:
    ann, ben = await make_user(session), await make_user(session)
    for annotator in (ann, ben, ann):
        await make_ranked(session, project, annotator=annotator)
    first, second = [
        [row["annotator"] for row in await rows_of(session, await service.freeze(session, project=project))]
        for _ in range(2)
    ]
    assert first[0] == first[2] != first[1]
    assert not set(first) & set(second)
    assert all(len(name) == 16 for name in first)


async def test_datasets_of_a_project_are_numbered_from_one(session: AsyncSession, project: Project) -> None:
    await make_ranked(session, project)
    assert [(await service.freeze(session, project=project)).number for _ in range(2)] == [1, 2]
    newest, oldest = await service.list_datasets(session, project.id)
    assert (newest.number, oldest.number) == (2, 1)
    assert await service.list_datasets(session, project.id, before=2) == [oldest]


async def test_there_must_be_something_to_freeze(session: AsyncSession, project: Project) -> None:
    await make_ranked(session, project, split="test")
    with pytest.raises(NothingToFreeze, match="Rank some tasks first"):
        await service.freeze(session, project=project)
    assert await service.list_datasets(session, project.id) == []


@pytest.mark.parametrize(
    "change",
    [
        update(DatasetRow).values(position=7),
        update(DatasetPiece).values(lines=b""),
        delete(DatasetPiece),
        delete(DatasetRow),
        update(Dataset).values(sha256="0"),
        update(Dataset).values(counts={}),
        delete(Dataset),
    ],
)
async def test_nothing_of_a_dataset_can_be_changed(session: AsyncSession, project: Project, change: Any) -> None:
    await make_ranked(session, project)
    await service.freeze(session, project=project)
    with pytest.raises(IntegrityError, match="never changed or deleted"):
        await session.execute(change)


async def test_the_key_of_the_pseudonyms_can_be_deleted(session: AsyncSession, project: Project) -> None:
    await make_ranked(session, project)
    await service.freeze(session, project=project)
    await session.execute(update(Dataset).values(pseudonym_key=None))
    assert (await session.scalars(select(Dataset.pseudonym_key))).all() == [None]


async def test_a_ranking_knows_the_datasets_that_hold_it(session: AsyncSession, project: Project) -> None:
    ranking = await make_ranked(session, project)
    dataset = await service.freeze(session, project=project)
    await make_ranked(session, project)
    assert await service.datasets_of_ranking(session, ranking.id) == [dataset]
    assert await service.datasets_of_ranking(session, uuid.uuid4()) == []


@pytest.mark.real_commits
async def test_two_freezes_at_once_take_two_numbers(fresh_database_url: str) -> None:
    engine = make_engine(fresh_database_url)
    sessions = make_sessionmaker(engine)
    async with sessions.begin() as session:
        project = await make_project(session)
        await make_ranked(session, project)

    async def freeze() -> int:
        async with sessions.begin() as session:
            return (await service.freeze(session, project=project)).number

    assert sorted(await asyncio.gather(*(freeze() for _ in range(4)))) == [1, 2, 3, 4]
    await engine.dispose()


async def test_a_file_of_many_pieces_is_read_from_any_byte_on(
    session: AsyncSession, sessionmaker: SessionMaker, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line longer than a piece is one by itself; every row is found in the piece that holds it."""
    monkeypatch.setattr(pieces, "PIECE_BYTES", 2500)
    monkeypatch.setattr(snapshots, "BATCH", 4)
    for number in range(9):
        messages = [{"role": "user", "content": f"{number} " + "长" * (2000 * (number == 5))}]
        task = await make_task(session, await make_prompt(session, project, messages=messages), k=3)
        await make_ranking(session, task)
    dataset = await service.freeze(session, project=project)
    content = await content_of(session, dataset)
    stored = (await session.scalars(select(DatasetPiece.num_rows).order_by(DatasetPiece.start))).all()
    assert (len(stored) > 4, sum(stored), 1 in stored) == (True, 9, True)
    assert (await pieces.count_bytes(session, dataset), content.count(b"\n")) == (len(content), 9)
    lines = content.splitlines()
    assert await pieces.read_rows(session, dataset.id, [8, 0, 5]) == [lines[0], lines[5], lines[8]]
    await session.commit()
    for begin in (0, 1, 2499, 2500, len(content) // 2, len(content) - 1):
        chunks = [chunk async for chunk in pieces.read_file(sessionmaker, dataset, begin=begin)]
        assert b"".join(chunks) == content[begin:]
