"""Corpora: what is taken and left out, frozen and hashed, and given out again byte for byte."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from httpx2 import AsyncClient
from sqlalchemy import delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Role, Scope
from app.accounts.tokens import create_token
from app.corpora import service
from app.corpora.models import Corpus, CorpusKind, CorpusRow
from app.ndjson import read_lines
from app.projects.models import Project
from app.prompts.lines import ImportReport
from app.prompts.models import Split
from app.prompts.service import pick_split, root_hash
from tests.factories import make_completion, make_project, make_prompt, make_run, make_user


async def send(session: AsyncSession, project: Project, *rows: Any, **options: Any) -> ImportReport:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"\n".join(json.dumps(row).encode() for row in rows)

    return await service.import_corpus(session, read_lines(chunks(), max_bytes=10**9), project=project, **options)


async def rows_of(session: AsyncSession, corpus: Corpus) -> list[Any]:
    content = b"".join([part async for part in service.stream_lines(session, corpus.id)])
    return [json.loads(line) for line in content.splitlines()]


async def only(session: AsyncSession, project: Project) -> Corpus:
    (corpus,) = await service.list_corpora(session, project.id)
    return corpus


def question(project: Project, *, is_test: bool) -> str:
    """A question on the wanted side of the split."""
    for number in range(1000):
        text = f"Question {number}?"
        root = root_hash([{"role": "user", "content": text}])
        if (pick_split(project, root) == Split.TEST) == is_test:
            return text
    raise AssertionError("no such question")


@pytest.fixture
async def project(session: AsyncSession) -> Project:
    return await make_project(session, test_share=0.3)


async def test_conversations_in_every_form_become_messages(session: AsyncSession, project: Project) -> None:
    asked = question(project, is_test=False)
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": "A."}]
    report = await send(session, project, {"messages": turns}, {"prompt": asked, "completion": "B."}, name="chats")
    corpus = await only(session, project)
    assert (report.taken, corpus.name, corpus.kind, corpus.num_rows) == (2, "chats", CorpusKind.CONVERSATIONS, 2)
    assert [row["messages"][-1]["content"] for row in await rows_of(session, corpus)] == ["A.", "B."]


async def test_the_hash_is_that_of_the_lines_that_are_given_out(session: AsyncSession, project: Project) -> None:
    await send(session, project, {"text": "One."}, {"text": "二。"})
    corpus = await only(session, project)
    content = b"".join([part async for part in service.stream_lines(session, corpus.id)])
    assert hashlib.sha256(content).hexdigest() == corpus.sha256


async def test_what_begins_with_a_test_question_is_left_out_and_counted(
    session: AsyncSession, project: Project
) -> None:
    held_out, taught = question(project, is_test=True), question(project, is_test=False)
    rows = [{"prompt": asked, "completion": "A."} for asked in (f"  {held_out.upper()} ", taught)]
    report = await send(session, project, *rows)
    assert (report.taken, report.num_held_out) == (1, 1)
    (row,) = await rows_of(session, await only(session, project))
    assert row["messages"][0]["content"] == taught


async def test_a_file_holds_one_kind(session: AsyncSession, project: Project) -> None:
    report = await send(session, project, {"text": "One."}, {"prompt": "Two?", "completion": "2"})
    assert not report.is_stored
    assert report.refused[0].line == 2
    assert "another kind than the lines before, which are text" in report.refused[0].rule
    assert await service.list_corpora(session, project.id) == []
    assert await session.scalar(select(func.count()).select_from(CorpusRow)) == 0


@pytest.mark.parametrize(
    ("row", "field", "rule"),
    [
        ({}, "line", "needs one of `text`, `messages`, or `prompt` with `completion`"),
        ({"text": "a", "prompt": "b", "completion": "c"}, "line", "needs one of"),
        ({"prompt": "b"}, "line", "a `prompt` needs its `completion`"),
        ({"text": " "}, "text", "must not be empty"),
        ({"txt": "a"}, "txt", "is not a known field"),
        ({"messages": [{"role": "user", "content": "a"}]}, "messages", "must end with an assistant turn"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages", "needs a user turn"),
    ],
)
async def test_a_bad_line_is_named_with_its_rule(
    session: AsyncSession, project: Project, row: dict[str, Any], field: str, rule: str
) -> None:
    report = await send(session, project, {"text": "good"}, row)
    assert not report.is_stored
    assert report.refused[0].field == field
    assert rule in report.refused[0].rule


async def test_the_same_file_again_makes_no_second_corpus(session: AsyncSession, project: Project) -> None:
    await send(session, project, {"text": "One."}, {"text": "Two."}, {"text": "One."})
    again = await send(session, project, {"text": "One."}, {"text": "Two."})
    assert (again.taken, again.duplicates) == (0, 2)
    assert (await only(session, project)).num_rows == 2
    assert await session.scalar(select(func.count()).select_from(CorpusRow)) == 2


async def test_a_dry_run_stores_nothing(session: AsyncSession, project: Project) -> None:
    report = await send(session, project, {"text": "One."}, dry_run=True)
    assert (report.taken, report.is_stored) == (1, False)
    assert await service.list_corpora(session, project.id) == []


async def test_demonstrations_are_frozen_once_and_never_those_held_out(session: AsyncSession, project: Project) -> None:
    for split, text in ((Split.TRAIN, "shown"), (Split.VALIDATION, "kept"), (Split.TEST, "secret")):
        prompt = await make_prompt(session, project, split=split)
        await make_completion(session, prompt, text=text, is_demonstration=True)
        await make_completion(session, prompt, text="sampled")
    first = await service.freeze_demonstrations(session, project=project)
    assert first is not None
    assert [row["messages"][-1] for row in await rows_of(session, first)] == [{"role": "assistant", "content": "shown"}]
    assert await service.freeze_demonstrations(session, project=project) is first
    await make_completion(session, await make_prompt(session, project), text="more", is_demonstration=True)
    second = await service.freeze_demonstrations(session, project=project)
    assert second is not None
    assert (second.number, second.num_rows) == (2, 2)


async def test_without_demonstrations_there_is_nothing_to_freeze(session: AsyncSession, project: Project) -> None:
    assert await service.freeze_demonstrations(session, project=project) is None


@pytest.mark.parametrize(
    "change", [update(CorpusRow).values(line="x"), delete(CorpusRow), update(Corpus).values(sha256="x"), delete(Corpus)]
)
async def test_a_corpus_never_changes(session: AsyncSession, project: Project, change: Any) -> None:
    await send(session, project, {"text": "One."})
    with pytest.raises(IntegrityError, match="never changed or deleted"):
        await session.execute(change)


async def test_a_worker_reads_the_rows_over_http(client: AsyncClient, session: AsyncSession, project: Project) -> None:
    user = await make_user(session, role=Role.ADMIN)
    secrets = [
        (await create_token(session, user_id=user.id, name="t", scopes=[scope]))[1]
        for scope in (Scope.WRITE, Scope.READ, Scope.WORKER)
    ]
    await session.commit()
    write, read, worker = ({"authorization": f"Bearer {secret}"} for secret in secrets)
    address = f"/api/v1/projects/{project.slug}/corpora"
    taken = await client.post(f"{address}:import", params={"name": "web"}, content=b'{"text": "One."}', headers=write)
    assert (taken.status_code, taken.json()["taken"]) == (200, 1)
    (corpus,) = (await client.get(address, headers=read)).json()["items"]
    assert (corpus["name"], corpus["kind"]) == ("web", "text")
    await make_run(session, project, kind="sft", config={"corpora": [{"id": corpus["id"]}]})
    assert (await client.post("/api/v1/runs:claim", json={"worker": "w", "kinds": ["sft"]}, headers=worker)).is_success
    rows = await client.get(f"/api/v1/corpora/{corpus['id']}/rows", headers=worker)
    assert rows.content == b'{"text":"One."}\n'
    assert rows.headers["etag"] == f'"{corpus["sha256"]}"'
