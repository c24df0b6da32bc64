"""Pages of the disagreements: for reviewers, who settle them."""

from __future__ import annotations

import uuid
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.datastructures import FormData

from app.accounts.guards import Reviewer
from app.accounts.models import User
from app.errors import Invalid
from app.projects.guards import PageProject
from app.projects.models import Project
from app.quality import reviews, watch
from app.quality.models import ReviewState
from app.rankings.forms import read_form
from app.rankings.service import AnswerRefused
from app.tasks.lists import list_completions
from app.web import SessionDep, render, see_other, told

router = APIRouter()
PAGE_SIZE = 50


@router.get("/projects/{slug}/quality/reviews")
async def list_reviews(
    request: Request,
    project: PageProject,
    user: Reviewer,
    session: SessionDep,
    state: ReviewState = ReviewState.OPEN,
    after: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> HTMLResponse:
    """The tasks whose rankings differ too much, the most divided first."""
    await watch.look_on_the_way(session, project)
    rows = await reviews.list_reviews(session, project, state=state, limit=PAGE_SIZE + 1, offset=after)
    return render(
        request,
        "quality/reviews.html",
        here="quality",
        project=project,
        rows=rows[:PAGE_SIZE],
        state=state,
        states=list(ReviewState),
        threshold=project.review_above,
        next_url=f"?state={state}&after={after + PAGE_SIZE}" if len(rows) > PAGE_SIZE else None,
        is_first=after == 0,
    )


@router.get("/projects/{slug}/quality/reviews/{review_id}")
async def show_review(
    review_id: uuid.UUID, request: Request, project: PageProject, user: Reviewer, session: SessionDep
) -> HTMLResponse:
    """One task with its rankings side by side."""
    return await render_review(request, session, project, review_id)


@router.post("/projects/{slug}/quality/reviews/{review_id}", response_model=None)
async def settle_review(
    review_id: uuid.UUID, request: Request, project: PageProject, user: Reviewer, session: SessionDep
) -> RedirectResponse | HTMLResponse:
    """Approve, reject or correct. `action` says which; fields of the others do not count."""
    form = await request.form()
    try:
        async with session.begin_nested():
            await settle(session, project, review_id, reviewer=user, form=form)
    except Invalid as error:
        return await render_review(request, session, project, review_id, form=form, error=error)
    return see_other(f"/projects/{project.slug}/quality/reviews")


async def settle(
    session: AsyncSession, project: Project, review_id: uuid.UUID, *, reviewer: User, form: FormData
) -> None:
    """Do as the form says.

    Raises:
        Invalid: it does not say what, or not all that is needed for it.
    """
    action = form.get("action")
    if action not in {"approve", "reject", "correct"}:
        raise Invalid.field("action", "Approve, reject, or correct.")
    reason = str(form.get("reason", "")).strip()
    if len(reason) > reviews.MAX_REASON_LENGTH:
        raise Invalid.field("reason", "At most {n} characters.", n=reviews.MAX_REASON_LENGTH)
    rejected = [] if action == "approve" else [read_id(str(value)) for value in form.getlist("rejected")]
    if action == "reject" and not rejected:
        raise Invalid.field("rejected", "Mark at least one order that you reject.")
    answer = None
    if action == "correct":
        review = await reviews.get_review(session, project, review_id)
        fields = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
        sent = read_form(fields, await reviews.answers_of(session, review.task_id))
        if sent.errors:
            raise AnswerRefused(sent.errors)
        answer = sent.answer
    await reviews.settle(
        session, project, review_id, reviewer=reviewer, rejected_ids=rejected, answer=answer, reason=reason
    )


async def render_review(
    request: Request,
    session: AsyncSession,
    project: Project,
    review_id: uuid.UUID,
    *,
    form: FormData | None = None,
    error: Invalid | None = None,
) -> HTMLResponse:
    """The page, with what was typed and what is wrong with it."""
    sheet = await reviews.get_sheet(session, project, review_id)
    completions = {completion.id: completion for completion, _ in await list_completions(session, sheet.task.id)}
    return render(
        request,
        "quality/review.html",
        status_code=error.status if error else 200,
        here="quality",
        project=project,
        sheet=sheet,
        cards=[(letter, completions[completion_id]) for completion_id, letter in sheet.letters.items()],
        typed=form or FormData(),
        errors=told(request, error) if error else [],
    )


def read_id(text: str) -> uuid.UUID:
    """The id of a ranking in a form.

    Raises:
        Invalid: it is none.
    """
    try:
        return uuid.UUID(text)
    except ValueError as error:
        raise Invalid.field("rejected", "This names no ranking.") from error
