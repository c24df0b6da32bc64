"""*Try it*: the ranking page as annotators of the project see it, for those who design the task. Nothing is stored."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from sqlalchemy import ScalarSelect, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.guards import Admin
from app.errors import FieldError
from app.projects.guards import PageProject
from app.projects.models import Project
from app.prompts.models import Prompt
from app.rankings.answers import RankingAnswer, errors_of, order_of, tidy
from app.rankings.forms import FormAnswer, read_form
from app.rankings.pages import show_sheet
from app.rankings.service import rules_of
from app.tasks.models import Lease, Task, TaskCompletion
from app.tasks.service import LETTERS, Card, Sheet, cards_of
from app.web import SessionDep, render

router = APIRouter()
MINUTES = 60
QUESTION = "Explain to a child of six why the sky is blue."
ANSWERS = [
    (
        "Sunlight is made of all the colours of the rainbow. The air bounces the **blue** part around the most, so "
        "blue light reaches your eyes from everywhere."
    ),
    "Because of Rayleigh scattering, whose strength goes with $\\lambda^{-4}$.",
    "The sky is blue because the sea is blue, and the sky is its mirror.",
    "I can't help with that.",
    "1. Light comes from the sun.\n2. It meets the air.\n3. Blue goes everywhere.",
    "It isn't really blue! At sunset it is red.",
    "Great question! The sky, which has fascinated poets for ages, is something that we all love to look at.",
    "天空是蓝色的，因为空气把蓝光散射得最多。",
    "Blue.",
]


@router.get("/projects/{slug}/try")
async def show_sample(request: Request, project: PageProject, user: Admin, session: SessionDep) -> HTMLResponse:
    """The page with a task of the project, or with a sample while it has none."""
    sheet = await sample_sheet(session, project)
    return await show_sheet(request, session, sheet, user, answer=RankingAnswer({}), is_trial=True)


@router.post("/projects/{slug}/try")
async def check(request: Request, project: PageProject, user: Admin, session: SessionDep) -> HTMLResponse:
    """Say whether it would have been taken, and as what. Nothing is stored."""
    form = await request.form()
    sheet = await sample_sheet(session, project)
    fields = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
    sent = read_form(fields, shown=sheet.lease.display_order)
    errors = refusals(project, sheet, sent)
    if errors:
        return await show_sheet(request, session, sheet, user, answer=sent.answer, errors=errors, is_trial=True)
    return render(request, "rankings/tried.html", here="settings", project=project, **as_letters(sheet, sent.answer))


def refusals(project: Project, sheet: Sheet, sent: FormAnswer) -> Sequence[FieldError]:
    """What keeps an answer from being taken, by the rules of a real one."""
    return sent.errors or errors_of(tidy(sent.answer), rules_of(project, sheet.lease.display_order))


def as_letters(sheet: Sheet, answer: RankingAnswer) -> dict[str, Any]:
    """An answer as the page of a ranking shows it."""
    letters = dict(zip(sheet.lease.display_order, LETTERS, strict=False))
    order = [[letters[completion_id] for completion_id in cell] for cell in order_of(tidy(answer).places)]
    return {"order": order, "answer": answer, "letters": letters}


async def sample_sheet(session: AsyncSession, project: Project) -> Sheet:
    """The project's newest task with its K answers, else the built-in sample. Its lease is in no table."""
    task = await session.scalar(
        select(Task)
        .where(Task.project_id == project.id, Task.withdrawn_at.is_(None), num_completions() == project.k)
        .order_by(Task.number.desc())
        .limit(1)
    )
    if task is None:
        cards = [
            Card(uuid.uuid5(project.id, text), letter, text) for letter, text in zip(LETTERS, ANSWERS, strict=True)
        ]
        messages = [{"role": "user", "content": QUESTION}]
        return Sheet(trial_lease(cards[: project.k]), project, messages, cards[: project.k])
    ids = await session.scalars(
        select(TaskCompletion.completion_id)
        .where(TaskCompletion.task_id == task.id)
        .order_by(TaskCompletion.completion_id)
    )
    cards = await cards_of(session, ids.all())
    prompt = await session.get_one(Prompt, task.prompt_id)
    return Sheet(trial_lease(cards), project, prompt.messages, cards)


def num_completions() -> ScalarSelect[int]:
    """How many answers a task compares, as a column."""
    counted = select(func.count()).where(TaskCompletion.task_id == Task.id).correlate(Task)
    return counted.scalar_subquery()


def trial_lease(cards: Sequence[Card]) -> Lease:
    """A lease that nobody holds: it is never added to a session."""
    now = datetime.now(UTC)
    return Lease(
        id=uuid.UUID(int=0),
        display_order=[card.id for card in cards],
        created_at=now,
        expires_at=now + timedelta(minutes=MINUTES),
    )
