"""Does a first draft lead? Ideal answers that began as a model's, beside those of the control share.

Whether somebody is shown the draft that there is, is drawn by lot, so what differs is the help.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from statistics import fmean
from typing import Any

from sqlalchemy import exists, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from app.db import at_most
from app.projects.models import Project
from app.prompts.models import Completion
from app.quality.agreement import Estimate
from app.quality.sequences import mean_over_prompts
from app.writing.models import Step, Writing, WritingState, WritingStep

MOST_WRITINGS = 500
"""The newest so many are looked at."""
MOST_MINUTES = 60.0
"""Who comes back the next day has not written all night."""


@dataclass(frozen=True)
class Written:
    """One ideal answer as it was first sent, and the draft that there was."""

    is_assisted: bool
    text: str
    draft: str
    minutes: float
    is_settled: bool
    as_sent: bool
    """Whether it was approved as it was first sent."""


@dataclass(frozen=True)
class DraftSide:
    """What people write with a draft, or without."""

    is_assisted: bool
    num_written: int
    likeness: Estimate | None
    """How much of what was sent and of the draft is the same, word by word and in order: 0 to 1 (difflib's ratio)."""
    num_words: Estimate | None
    minutes: Estimate | None
    """From beginning it to sending it, at most an hour each."""
    as_sent: Estimate | None
    """Of those that a reviewer has settled, how many were approved as they were sent."""


async def report(session: AsyncSession, project: Project) -> list[DraftSide]:
    """Without and with a draft; nothing where nobody was shown one."""
    written = await written_of(session, project)
    return await asyncio.to_thread(sides_of, written)


async def written_of(session: AsyncSession, project: Project) -> list[Written]:
    """The newest ideal answers to prompts for which there was a draft."""
    steps_of = WritingStep.writing_id == Writing.id
    sent = select(func.min(WritingStep.id)).where(steps_of, WritingStep.step == Step.SUBMITTED)
    changed = exists().where(steps_of, WritingStep.step.in_((Step.CORRECTED, Step.REJECTED)))
    first = aliased(WritingStep)
    query = (
        select(Writing, first, Completion.text, changed.correlate(Writing))
        .select_from(Writing)
        .join(first, first.id == sent.correlate(Writing).scalar_subquery())
        .join(Completion, Completion.id == Writing.draft_id)
        .where(Writing.project_id == project.id, Writing.draft_id.is_not(None))
        .order_by(Writing.number.desc())
        .limit(at_most(MOST_WRITINGS))
    )
    return [
        Written(
            is_assisted=writing.is_assisted,
            text=step.body.get("text", ""),
            draft=draft,
            minutes=min(MOST_MINUTES, (step.created_at - writing.created_at).total_seconds() / 60),
            is_settled=writing.state == WritingState.APPROVED or is_changed,
            as_sent=writing.state == WritingState.APPROVED and not is_changed,
        )
        for writing, step, draft, is_changed in await session.execute(query)
    ]


def sides_of(written: Sequence[Written]) -> list[DraftSide]:
    """Without and with a draft; nothing where nobody was shown one."""
    if not any(item.is_assisted for item in written):
        return []
    return [side([item for item in written if item.is_assisted == helped], helped) for helped in (False, True)]


def side(written: Sequence[Written], is_assisted: bool) -> DraftSide:
    """One of the two."""
    return DraftSide(
        is_assisted,
        len(written),
        likeness=mean_over_prompts([likeness(item.text, item.draft) for item in written]),
        num_words=mean_over_prompts([float(len(words_of(item.text))) for item in written]),
        minutes=mean_over_prompts([item.minutes for item in written]),
        as_sent=mean_over_prompts([float(item.as_sent) for item in written if item.is_settled]),
    )


def likeness(text: str, draft: str) -> float:
    """1 for the same words in the same order, 0 for none in common."""
    return SequenceMatcher(None, words_of(text), words_of(draft), autojunk=False).ratio()


def words_of(text: str) -> list[str]:
    """Words; in a script without spaces between them, characters."""
    parts = text.split()
    is_spaced = not parts or fmean(map(len, parts)) < 15
    return parts if is_spaced else [character for character in text if not character.isspace()]


def rows_of(sides: Sequence[DraftSide]) -> list[dict[str, Any]]:
    """All figures as flat rows, for CSV and JSON."""
    names = ("likeness", "num_words", "minutes", "as_sent")
    return [
        {"by": f"draft_{name}", "group": "assisted" if item.is_assisted else "unassisted", "expected": None}
        | asdict(figure)
        for item in sides
        for name in names
        if (figure := getattr(item, name)) is not None
    ]
