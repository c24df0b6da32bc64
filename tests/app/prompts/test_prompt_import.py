"""Import of prompts and of ready answers: what is taken, what is refused in which words, what a second time adds."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Base, SessionMaker, make_engine, make_sessionmaker
from app.errors import Invalid
from app.events import events
from app.ndjson import read_lines
from app.projects.models import Project
from app.prompts import adding, service
from app.prompts.importing import ImportRunning
from app.prompts.lines import ImportReport
from app.prompts.models import Completion, Prompt, Split
from app.prompts.service import CompletionsStored
from tests.factories import make_project, make_prompt

DATA = Path(__file__).parents[4] / "shared" / "data"


def shared_file(name: str) -> bytes:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"needs the real data {name} beside the repository")
    return path.read_bytes()


async def send(
    importer: Callable[..., Awaitable[ImportReport]],
    session: AsyncSession,
    project: Project,
    *lines: Any,
    raw: bytes | None = None,
    **options: Any,
) -> ImportReport:
    content = b"\n".join(json.dumps(line).encode() for line in lines) if raw is None else raw

    async def chunks() -> AsyncIterator[bytes]:
        yield content

    return await importer(session, read_lines(chunks(), max_bytes=10**9), project=project, **options)


async def count(session: AsyncSession, table: type[Base]) -> int:
    return await session.scalar(select(func.count()).select_from(table)) or 0


@pytest.fixture
async def project(session: AsyncSession) -> Project:
    return await make_project(session)


@pytest.fixture
def stored() -> Iterator[list[CompletionsStored]]:
    """The events of this test."""
    heard: list[CompletionsStored] = []

    async def handler(_: AsyncSession, event: CompletionsStored) -> None:
        heard.append(event)

    events.subscribe(CompletionsStored, handler)
    yield heard
    events.unsubscribe(CompletionsStored, handler)


async def test_a_prompt_and_a_conversation_are_stored_with_all_that_describes_them(
    session: AsyncSession, project: Project
) -> None:
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "你好"}]
    report = await send(
        adding.import_prompts,
        session,
        project,
        {"prompt": "Hello?", "id": "a-1", "meta": {"topic": "greeting"}},
        {"messages": turns, "kind": "user", "lang": "zh", "source": "shop"},
    )
    assert (report.taken, report.new_prompts, report.duplicates, report.is_stored) == (2, 2, 0, True)
    first, second = (await session.scalars(select(Prompt).order_by(Prompt.number))).all()
    assert (first.messages, first.kind, first.language) == ([{"role": "user", "content": "Hello?"}], "plain", "en")
    assert first.meta == {"import_id": "a-1", "topic": "greeting"}
    assert (second.messages, second.kind, second.language, second.source) == (turns, "user", "zh", "shop")


@pytest.mark.parametrize(
    ("line", "field", "words"),
    [
        ({"prompt": "a", "promt": "b"}, "promt", "not a known field"),
        ({}, "line", "needs `messages`"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "line", "not both"),
        ({"prompt": " \n"}, "prompt", "must not be empty"),
        ({"prompt": 3.5, "messages": None, "meta": []}, "meta", "must be an object"),
        ({"prompt": "a" * 100_001}, "prompt", "has 100,001 characters; at most 100,000"),
        ({"prompt": "a\0b"}, "prompt", "NUL byte"),
        ({"prompt": "a", "kind": "hard"}, "kind", "'plain', 'few_shot' or 'user'"),
        ({"prompt": "a", "meta": {"x": ["\0"]}}, "meta", "NUL byte"),
        ({"messages": []}, "messages", "must end with a user turn"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages", "must end with a user turn"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role", "'system', 'user' or 'assistant'"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages.0.content", "must not be empty"),
        ({"messages": [{"role": "user", "text": "a"}]}, "messages.0.content", "is required"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}] * 2},
            "messages",
            "must end with a user turn",
        ),
        (
            {"messages": [{"role": r, "content": "a"} for r in ("user", "system", "user")]},
            "messages",
            "system turn at the beginning only",
        ),
        (
            {"messages": [{"role": "user", "content": "a" * 60_000}] * 2},
            "messages",
            "has 120,000 characters in all",
        ),
    ],
)
async def test_a_refused_line_names_its_number_the_field_and_the_rule(
    session: AsyncSession, project: Project, line: dict[str, Any], field: str, words: str
) -> None:
    report = await send(adding.import_prompts, session, project, {"prompt": "good"}, line)
    refused = next(item for item in report.refused if item.field == field)
    assert refused.line == 2
    assert words in refused.rule
    assert report.num_refused == 1


async def test_one_bad_line_keeps_the_whole_file_out(session: AsyncSession, project: Project) -> None:
    report = await send(adding.import_prompts, session, project, {"prompt": "good"}, {"prompt": ""})
    assert (report.is_stored, report.num_lines, report.num_refused) == (False, 2, 1)
    assert await count(session, Prompt) == 0


async def test_partial_takes_the_good_lines(session: AsyncSession, project: Project) -> None:
    report = await send(adding.import_prompts, session, project, {"prompt": "good"}, {"prompt": ""}, partial=True)
    assert (report.is_stored, report.taken, report.num_refused) == (True, 1, 1)
    assert await count(session, Prompt) == 1


async def test_a_dry_run_counts_and_stores_nothing(
    session: AsyncSession, project: Project, stored: list[CompletionsStored]
) -> None:
    line = {"prompt": "good", "completions": ["yes", "no"]}
    report = await send(adding.import_completions, session, project, line, dry_run=True)
    assert (report.taken, report.new_prompts, report.is_stored, report.is_dry_run) == (2, 1, False, True)
    assert (await count(session, Prompt), await count(session, Completion), stored) == (0, 0, [])


async def test_an_empty_file_is_refused(session: AsyncSession, project: Project) -> None:
    with pytest.raises(Invalid, match="holds no line"):
        await send(adding.import_prompts, session, project, raw=b"\n \n")


async def test_no_more_than_a_hundred_refusals_are_spelled_out_and_all_are_counted(
    session: AsyncSession, project: Project
) -> None:
    report = await send(adding.import_prompts, session, project, *[{"prompt": ""}] * 250)
    assert (len(report.refused), report.num_refused) == (100, 250)


async def test_the_same_conversation_is_a_duplicate_however_its_accents_are_composed(
    session: AsyncSession, project: Project
) -> None:
    lines = [{"prompt": "Caf\u00e9?"}, {"prompt": "Cafe\u0301?"}, {"messages": [{"role": "user", "content": "Café?"}]}]
    report = await send(adding.import_prompts, session, project, *lines)
    assert (report.taken, report.duplicates) == (1, 2)
    again = await send(adding.import_prompts, session, project, *lines)
    assert (again.taken, again.duplicates, again.is_stored) == (0, 3, True)


async def test_another_project_takes_the_same_prompt(session: AsyncSession, project: Project) -> None:
    await send(adding.import_prompts, session, project, {"prompt": "a"})
    report = await send(adding.import_prompts, session, await make_project(session), {"prompt": "a"})
    assert report.taken == 1


async def test_conversations_with_one_root_stand_on_one_side_of_the_split(
    session: AsyncSession, project: Project
) -> None:
    for number in range(40):
        question = f"Question {number}?"
        lines = [
            {"prompt": question},
            {"prompt": question.upper() + " "},
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": "Yes."},
                    {"role": "user", "content": "Why?"},
                ]
            },
        ]
        await send(adding.import_prompts, session, project, *lines)
    rows = (await session.execute(select(Prompt.root_hash, Prompt.split))).all()
    assert len(rows) == 120
    assert len(set(rows)) == len({root for root, _ in rows}) == 40


async def test_the_shares_of_the_split_are_those_of_the_project(session: AsyncSession) -> None:
    project = await make_project(session, validation_share=0.3, test_share=0.2)
    splits = [service.pick_split(project, number.to_bytes(4)) for number in range(10_000)]
    # Binomial: standard deviations 0.0046 and 0.004.
    assert splits.count(Split.VALIDATION) / 10_000 == pytest.approx(0.3, abs=0.02)
    assert splits.count(Split.TEST) / 10_000 == pytest.approx(0.2, abs=0.02)


async def test_two_projects_with_different_seeds_hold_different_prompts_out(session: AsyncSession) -> None:
    one, other = await make_project(session, seed=1), await make_project(session, seed=2)
    roots = [number.to_bytes(4) for number in range(200)]
    assert [service.pick_split(one, root) for root in roots] != [service.pick_split(other, root) for root in roots]


async def test_fields_that_are_not_read_are_counted_and_named(session: AsyncSession, project: Project) -> None:
    lines = [{"prompt": "a", "answer": "b", "annotations": []}, {"prompt": "c", "responses": [{"text": "d"}]}]
    report = await send(adding.import_prompts, session, project, *lines)
    assert report.unread == {"answer": 1, "responses": 1}


# Ready answers


async def test_answers_bring_their_prompt_and_are_told_to_those_who_listen(
    session: AsyncSession, project: Project, stored: list[CompletionsStored]
) -> None:
    answers = [
        {"text": "4", "model": "m", "finished": True, "sampling": "greedy", "num_tokens": 1},
        {"text": "5", "finish_reason": "length", "sampling": {"temperature": 1.5}, "seed": 3},
    ]
    report = await send(adding.import_completions, session, project, {"prompt": "2 + 2?", "completions": answers})
    assert (report.taken, report.new_prompts, report.new_completions) == (2, 1, 2)
    prompt = (await session.scalars(select(Prompt))).one()
    four, five = (await session.scalars(select(Completion).order_by(Completion.text))).all()
    assert (four.model_name, four.finish_reason, four.sampling, four.num_tokens) == (
        "m",
        "stop",
        {"description": "greedy"},
        1,
    )
    assert (five.model_name, five.finish_reason, five.sampling, five.seed) == (None, "length", {"temperature": 1.5}, 3)
    assert stored == [CompletionsStored(project.id, None, [prompt.id])]


async def test_the_same_answers_again_add_nothing_and_are_told_to_nobody(
    session: AsyncSession, project: Project, stored: list[CompletionsStored]
) -> None:
    line = {"prompt": "2 + 2?", "completions": [{"text": "4", "model": "m"}, {"text": "4", "model": "n"}, "4", "4"]}
    first = await send(adding.import_completions, session, project, line)
    assert (first.taken, first.duplicates) == (3, 1)
    again = await send(adding.import_completions, session, project, line)
    assert (again.taken, again.duplicates) == (0, 4)
    assert len(stored) == 1


async def test_answers_go_to_a_prompt_that_is_named_by_its_id(session: AsyncSession, project: Project) -> None:
    prompt = await make_prompt(session, project)
    await send(adding.import_completions, session, project, {"prompt_id": str(prompt.id), "completions": ["yes"]})
    assert (await session.scalars(select(Completion.prompt_id))).all() == [prompt.id]


async def test_another_projects_prompt_is_not_there(session: AsyncSession, project: Project) -> None:
    foreign = await make_prompt(session)
    line = {"prompt_id": str(foreign.id), "completions": ["yes"]}
    report = await send(adding.import_completions, session, project, line)
    assert [(item.line, item.field) for item in report.refused] == [(1, "prompt_id")]
    assert not report.is_stored


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"prompt": "a"}, "needs `completions`"),
        ({"prompt": "a", "completions": []}, "needs `completions`"),
        ({"prompt": "a", "completions": ["b"], "responses": [{"text": "b"}]}, "not both"),
        ({"completions": ["b"]}, "needs `messages`"),
        ({"prompt": "a", "completions": [{"text": "b", "author": "me"}]}, "not a known field"),
        ({"prompt": "a", "completions": ["b\0"]}, "NUL byte"),
    ],
)
async def test_a_line_without_prompt_or_answers_is_refused(
    session: AsyncSession, project: Project, line: dict[str, Any], words: str
) -> None:
    report = await send(adding.import_completions, session, project, line)
    assert words in report.refused[0].rule


async def test_prompts_with_more_answers_than_a_task_shows_are_counted(session: AsyncSession, project: Project) -> None:
    nine = {"prompt": "nine", "completions": [str(number) for number in range(9)]}
    ten = {"prompt": "ten", "completions": [str(number) for number in range(10)]}
    report = await send(adding.import_completions, session, project, nine, ten)
    assert report.num_crowded_prompts == 1


@pytest.mark.real_commits
async def test_a_second_import_waits_until_the_first_has_ended(fresh_database_url: str) -> None:
    engine = make_engine(fresh_database_url)
    sessions: SessionMaker = make_sessionmaker(engine)
    async with sessions.begin() as session:
        project = await make_project(session)
    async with sessions() as first, sessions() as second:
        await send(adding.import_prompts, first, project, {"prompt": "a"})
        with pytest.raises(ImportRunning):
            await send(adding.import_prompts, second, project, {"prompt": "a"})
        await second.rollback()
        await first.commit()
        report = await send(adding.import_prompts, second, project, {"prompt": "a"})
        assert report.duplicates == 1
    await engine.dispose()


# Real data


async def test_744_real_prompts_in_two_languages_are_taken(session: AsyncSession, project: Project) -> None:
    report = await send(adding.import_prompts, session, project, raw=shared_file("prompts_only_en_zh.jsonl"))
    assert (report.num_lines, report.num_refused, report.taken + report.duplicates) == (744, 0, 744)
    counts = await service.count_prompts(session, project.id)
    assert sum(counts.values()) == report.taken
    assert counts["train"] > counts["validation"] > counts["test"] / 2 > 0


async def test_eleven_real_samples_a_prompt_are_taken_and_their_twins_counted(
    session: AsyncSession, project: Project
) -> None:
    raw = shared_file("k_oasst_sft1_11samples.jsonl")
    different = [len({answer["text"] for answer in json.loads(line)["responses"]}) for line in raw.splitlines()]
    report = await send(adding.import_completions, session, project, raw=raw)
    assert (report.num_refused, report.new_prompts, report.taken) == (0, 99, sum(different))
    assert report.taken + report.duplicates == 99 * 11
    assert report.num_crowded_prompts == sum(number > 9 for number in different)
