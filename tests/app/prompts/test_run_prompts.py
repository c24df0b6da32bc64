"""The frozen list of prompts of a run, and what a worker delivers for it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import Invalid
from app.events import events
from app.projects.models import Project
from app.prompts import service
from app.prompts.lines import CompletionIn
from app.prompts.models import Completion, Prompt, Split
from app.prompts.service import CompletionsStored
from app.runs.models import Run, RunKind
from tests.factories import make_completion, make_project, make_prompt, make_run


@pytest.fixture
async def project(session: AsyncSession) -> Project:
    return await make_project(session)


@pytest.fixture
async def run(session: AsyncSession, project: Project) -> Run:
    return await make_run(session, project)


@pytest.fixture
def stored() -> Iterator[list[CompletionsStored]]:
    """The events of this test, heard by nobody else."""
    heard: list[CompletionsStored] = []

    async def handler(_: AsyncSession, event: CompletionsStored) -> None:
        heard.append(event)

    before = events._handlers[CompletionsStored]
    events._handlers[CompletionsStored] = {handler: lambda event: True}
    yield heard
    events._handlers[CompletionsStored] = before


async def freeze(session: AsyncSession, run: Run, *splits: str, **options: Any) -> int:
    return await service.freeze_run_prompts(
        session, run_id=run.id, project_id=run.project_id, splits=splits or (Split.TRAIN,), **options
    )


async def listed(session: AsyncSession, run: Run) -> list[dict[str, Any]]:
    return [row async for row in service.stream_run_prompts(session, run.id)]


def answer(prompt: Prompt, index: int = 0, **fields: Any) -> CompletionIn:
    return CompletionIn(**{"prompt_id": prompt.id, "index": index, "text": f"Answer {index}.", **fields})


async def test_the_prompts_of_the_splits_are_listed_in_the_order_in_which_they_came(
    session: AsyncSession, project: Project, run: Run
) -> None:
    made = [await make_prompt(session, project, split=split) for split in ("train", "test", "validation", "train")]
    await make_prompt(session)
    gone = await make_prompt(session, project)
    await session.execute(update(Prompt).where(Prompt.id == gone.id).values(withdrawn_at=func.now()))
    assert await freeze(session, run, "train", "validation") == 3
    assert [row["id"] for row in await listed(session, run)] == [made[0].id, made[2].id, made[3].id]


async def test_the_list_stays_as_it_was_frozen(session: AsyncSession, project: Project, run: Run) -> None:
    first = await make_prompt(session, project)
    await freeze(session, run)
    await make_prompt(session, project)
    assert [row["id"] for row in await listed(session, run)] == [first.id]


async def test_a_limit_takes_the_oldest(session: AsyncSession, project: Project, run: Run) -> None:
    first, second, _ = [await make_prompt(session, project) for _ in range(3)]
    assert await freeze(session, run, limit=2) == 2
    assert [row["id"] for row in await listed(session, run)] == [first.id, second.id]


async def test_a_listed_prompt_is_as_the_protocol_has_it(session: AsyncSession, project: Project, run: Run) -> None:
    prompt = await make_prompt(session, project, language="zh", kind="user", meta={"a": 1})
    await freeze(session, run)
    assert await listed(session, run) == [
        {
            "id": prompt.id,
            "messages": prompt.messages,
            "kind": "user",
            "language": "zh",
            "split": "train",
            "meta": {"a": 1},
            "num_completions": 0,
        }
    ]


async def test_the_database_keeps_test_prompts_from_runs_that_learn(session: AsyncSession, project: Project) -> None:
    await make_prompt(session, project, split="test")
    learns = await make_run(session, project, kind=RunKind.PPO)
    with pytest.raises(IntegrityError, match="may not go to run"):
        await freeze(session, learns, "test")


async def test_delivered_answers_are_stored_and_told(
    session: AsyncSession, project: Project, run: Run, stored: list[CompletionsStored]
) -> None:
    prompt = await make_prompt(session, project)
    await freeze(session, run)
    fields: dict[str, Any] = {"seed": 17, "finish_reason": "length", "num_tokens": 61, "sampling": {"temperature": 1.0}}
    assert await service.store_completions(session, run=run, version_id=None, items=[answer(prompt, **fields)]) == (
        1,
        0,
    )
    kept = (await session.scalars(select(Completion))).one()
    assert (kept.prompt_id, kept.run_id, kept.index, kept.text) == (prompt.id, run.id, 0, "Answer 0.")
    assert {name: getattr(kept, name) for name in fields} == fields
    assert stored == [CompletionsStored(project.id, run.id, [prompt.id])]
    assert (await listed(session, run))[0]["num_completions"] == 1


async def test_answers_of_others_do_not_count_as_this_runs(session: AsyncSession, project: Project, run: Run) -> None:
    prompt = await make_prompt(session, project)
    await make_completion(session, prompt)
    await freeze(session, run)
    assert (await listed(session, run))[0]["num_completions"] == 0


async def test_the_same_delivery_again_is_harmless_and_told_to_nobody(
    session: AsyncSession, project: Project, run: Run, stored: list[CompletionsStored]
) -> None:
    prompt = await make_prompt(session, project)
    await freeze(session, run)
    items = [answer(prompt, 0), answer(prompt, 1)]
    assert await service.store_completions(session, run=run, version_id=None, items=items) == (2, 0)
    more = [answer(prompt, 0, text="Drawn again."), answer(prompt, 1)]
    assert await service.store_completions(session, run=run, version_id=None, items=more) == (0, 2)
    texts = (await session.scalars(select(Completion.text).order_by(Completion.index))).all()
    assert (list(texts), len(stored)) == (["Answer 0.", "Answer 1."], 1)


async def test_an_answer_to_a_prompt_that_the_run_did_not_get_is_refused_by_name(
    session: AsyncSession, project: Project, run: Run
) -> None:
    prompt = await make_prompt(session, project)
    await freeze(session, run)
    foreign = await make_prompt(session, project)
    with pytest.raises(Invalid, match=r"completions\.1\.prompt_id: is not among the prompts of this run"):
        await service.store_completions(session, run=run, version_id=None, items=[answer(prompt), answer(foreign)])


async def test_a_model_may_answer_with_nothing(session: AsyncSession, project: Project, run: Run) -> None:
    prompt = await make_prompt(session, project)
    await freeze(session, run)
    assert await service.store_completions(session, run=run, version_id=None, items=[answer(prompt, text="")]) == (1, 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("text", "a\0"), ("text", "\ud800"), ("text", "a" * 100_001), ("index", 9), ("index", -1), ("num_tokens", 2**40)],
)
def test_an_answer_that_cannot_be_kept_is_refused(field: str, value: Any) -> None:
    fields = {"prompt_id": uuid.uuid4(), "index": 0, "text": "a", field: value}
    with pytest.raises(ValueError, match=field):
        CompletionIn(**fields)
