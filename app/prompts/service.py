"""Prompts and completions: which are the same, the frozen list of a run, what workers deliver, and reading them."""

from __future__ import annotations

import hashlib
import unicodedata
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Row, Select, func, insert, literal, select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import Invalid, NotFound
from app.events import events
from app.projects import tallies
from app.projects.models import Project
from app.prompts.lines import CompletionIn
from app.prompts.models import Completion, Prompt, RunPrompt, Split
from app.registry.models import Version
from app.runs.models import Run


@dataclass(frozen=True)
class CompletionsStored:
    """These prompts have new completions: of a run, or imported (`run_id` is None)."""

    project_id: uuid.UUID
    run_id: uuid.UUID | None
    prompt_ids: Sequence[uuid.UUID]


# What makes two prompts the same, and what holds them together on one side of the split


def content_hash(messages: Sequence[Mapping[str, str]]) -> bytes:
    """Equal for the same conversation, however its characters are composed (Unicode NFC)."""
    turns = [[turn["role"], unicodedata.normalize("NFC", turn["content"])] for turn in messages]
    return hashlib.sha256(orjson.dumps(turns)).digest()


def root_hash(messages: Sequence[Mapping[str, str]]) -> bytes:
    """Equal for conversations that begin with the same question, whatever system prompt stands before it.

    Case, spacing and compatible characters do not count: what is nearly the same must not be learned and held out.
    """
    question = next(turn["content"] for turn in messages if turn["role"] == "user")
    return hashlib.sha256(" ".join(unicodedata.normalize("NFKC", question).casefold().split()).encode()).digest()


def text_hash(text: str) -> bytes:
    """Equal for the same answer, to the byte."""
    return hashlib.sha256(text.encode()).digest()


def pick_split(project: Project, root: bytes) -> Split:
    """The side on which all conversations of one root stand: SHA-256 of seed and root, as a share of [0, 1)."""
    digest = hashlib.sha256(str(project.seed).encode() + b"|" + root).digest()
    share = int.from_bytes(digest[:8]) / 2**64
    if share < project.test_share:
        return Split.TEST
    return Split.VALIDATION if share < project.test_share + project.validation_share else Split.TRAIN


# What runs work on, and what they deliver


async def freeze_run_prompts(
    session: AsyncSession,
    *,
    run_id: uuid.UUID,
    project_id: uuid.UUID,
    splits: Sequence[str],
    exclude: Select[Any] | None = None,
    limit: int | None = None,
) -> int:
    """Write the list of prompts that a run works on, oldest first, without those of the query `exclude`.

    Returns how many there are.
    """
    query = select(Prompt.id, Prompt.number).where(
        Prompt.project_id == project_id, Prompt.split.in_(splits), Prompt.withdrawn_at.is_(None)
    )
    if exclude is not None:
        query = query.where(Prompt.id.not_in(exclude))
    chosen = query.order_by(Prompt.number).limit(limit).subquery()
    position = func.row_number().over(order_by=chosen.c.number) - 1
    added = await session.scalars(
        insert(RunPrompt)
        .from_select(["run_id", "position", "prompt_id"], select(literal(run_id), position, chosen.c.id))
        .returning(RunPrompt.position)
    )
    return len(added.all())


async def freeze_prompt_list(session: AsyncSession, *, run_id: uuid.UUID, prompt_ids: Sequence[uuid.UUID]) -> None:
    """Write the list of prompts that a run works on, in this order."""
    rows = [
        {"run_id": run_id, "position": position, "prompt_id": prompt_id}
        for position, prompt_id in enumerate(prompt_ids)
    ]
    await session.execute(insert(RunPrompt), rows)


async def stream_run_prompts(session: AsyncSession, run_id: uuid.UUID) -> AsyncIterator[dict[str, Any]]:
    """A run's frozen prompts in order, each with the number of completions that this run has delivered for it."""
    num_completions = (
        select(func.count())
        .where(Completion.run_id == run_id, Completion.prompt_id == Prompt.id)
        .correlate(Prompt)
        .scalar_subquery()
    )
    query = (
        select(
            Prompt.id,
            Prompt.messages,
            Prompt.kind,
            Prompt.language,
            Prompt.split,
            Prompt.meta,
            num_completions.label("num_completions"),
        )
        .join(RunPrompt, RunPrompt.prompt_id == Prompt.id)
        .where(RunPrompt.run_id == run_id)
        .order_by(RunPrompt.position)
    )
    async for row in stream_mappings(session, query):
        yield row


async def stream_mappings(session: AsyncSession, query: Select[Any]) -> AsyncIterator[dict[str, Any]]:
    """The rows of a query, some at a time, as dicts."""
    result = await session.stream(query, execution_options={"yield_per": 500})
    async for row in result.mappings():
        yield dict(row)


async def store_completions(
    session: AsyncSession, *, run: Run, version_id: uuid.UUID | None, items: Sequence[CompletionIn]
) -> tuple[int, int]:
    """Keep what a worker delivers; returns how many answers were new, and how many had come before.

    Raises:
        Invalid: a prompt is not on the run's list.
    """
    wanted = {item.prompt_id for item in items}
    listed = set(
        await session.scalars(
            select(RunPrompt.prompt_id).where(RunPrompt.run_id == run.id, RunPrompt.prompt_id.in_(wanted))
        )
    )
    for position, item in enumerate(items):
        if item.prompt_id not in listed:
            raise Invalid.field(f"completions.{position}.prompt_id", "is not among the prompts of this run")
    rows = [sampled_row(run, version_id, item) for item in items]
    statement = upsert(Completion).on_conflict_do_nothing(index_elements=["run_id", "prompt_id", "index"])
    new = (await session.execute(statement.returning(Completion.prompt_id), rows)).scalars().all()
    if new:
        await events.publish(session, CompletionsStored(run.project_id, run.id, list(dict.fromkeys(new))))
    return len(new), len(items) - len(new)


def sampled_row(run: Run, version_id: uuid.UUID | None, item: CompletionIn) -> dict[str, Any]:
    """A sampled answer's columns."""
    return {
        **item.model_dump(),
        "id": uuid.uuid4(),
        "content_hash": text_hash(item.text),
        "run_id": run.id,
        "version_id": version_id,
    }


# Reading


async def list_prompts(
    session: AsyncSession,
    project_id: uuid.UUID,
    *,
    split: str | None = None,
    after: int | None = None,
    limit: int = 50,
) -> Sequence[Row[Prompt, int]]:
    """Prompts in the order in which they came, after the one with number `after`: rows of (Prompt, num_completions)."""
    query = select(Prompt, count_of_completions()).where(Prompt.project_id == project_id).order_by(Prompt.number)
    if split is not None:
        query = query.where(Prompt.split == split)
    if after is not None:
        query = query.where(Prompt.number > after)
    return (await session.execute(query.limit(limit))).all()


def count_of_completions() -> Any:
    """How many answers a prompt has, as a column."""
    counted = select(func.count()).where(Completion.prompt_id == Prompt.id).correlate(Prompt)
    return counted.scalar_subquery().label("num_completions")


async def get_prompt(session: AsyncSession, prompt_id: uuid.UUID, *, project_id: uuid.UUID | None = None) -> Prompt:
    """A prompt by id.

    Raises:
        NotFound: there is none, or it is another project's.
    """
    prompt = await session.get(Prompt, prompt_id)
    if prompt is None or project_id not in (None, prompt.project_id):
        raise NotFound("There is no such prompt.")
    return prompt


async def count_prompts(session: AsyncSession, project_id: uuid.UUID) -> dict[str, int]:
    """How many prompts each split has."""
    held = await tallies.read(session, project_id)
    return {split: held.of_split(split).num_prompts for split in Split}


def uncheckable(project_id: uuid.UUID) -> Select[Any]:
    """The prompts whose answers no program can check: those without `check` in their meta."""
    return select(Prompt.id).where(Prompt.project_id == project_id, ~Prompt.meta.has_key("check"))


async def count_checkable(session: AsyncSession, project_id: uuid.UUID) -> int:
    """How many training prompts have an answer that a program can check."""
    query = select(func.count()).where(
        Prompt.project_id == project_id,
        Prompt.split == Split.TRAIN,
        Prompt.withdrawn_at.is_(None),
        Prompt.id.not_in(uncheckable(project_id)),
    )
    return await session.scalar(query) or 0


async def list_completions(session: AsyncSession, prompt_id: uuid.UUID) -> Sequence[Row[Completion, Version]]:
    """The answers to a prompt, oldest first: rows of (Completion, the Version that wrote it or None)."""
    query = (
        select(Completion, Version)
        .outerjoin(Version, Version.id == Completion.version_id)
        .where(Completion.prompt_id == prompt_id)
        .order_by(Completion.created_at, Completion.run_id, Completion.index, Completion.id)
    )
    return (await session.execute(query)).all()


async def stream_completions(
    session: AsyncSession,
    project_id: uuid.UUID,
    *,
    version_id: uuid.UUID | None = None,
    split: str | None = None,
) -> AsyncIterator[dict[str, Any]]:
    """A project's completions with their prompts, in the order of the prompts."""
    query = (
        select(
            Completion.id,
            Completion.prompt_id,
            Prompt.messages,
            Prompt.language,
            Prompt.split,
            Completion.text,
            Completion.version_id,
            Version.number.label("version"),
            Completion.run_id,
            Completion.index,
            Completion.model_name.label("model"),
            Completion.sampling,
            Completion.seed,
            Completion.finish_reason,
            Completion.num_tokens,
            Completion.created_at,
        )
        .join(Prompt, Prompt.id == Completion.prompt_id)
        .outerjoin(Version, Version.id == Completion.version_id)
        .where(Prompt.project_id == project_id)
        .order_by(Prompt.number, Completion.created_at, Completion.run_id, Completion.index, Completion.id)
    )
    if version_id is not None:
        query = query.where(Completion.version_id == version_id)
    if split is not None:
        query = query.where(Prompt.split == split)
    async for row in stream_mappings(session, query):
        yield row
