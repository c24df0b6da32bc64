"""The ranking page, and the admins' pages of one task, of rankings and of one ranking."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.guards import Annotator, Trainer
from app.accounts.models import User
from app.db import stamp
from app.errors import Conflict, NotFound
from app.projects.guards import PageProject
from app.projects.models import Project
from app.projects.service import asked_labels
from app.prompts.models import Prompt, Split
from app.rankings import own, service
from app.rankings.answers import RankingAnswer, preference_of
from app.rankings.forms import read_form
from app.rankings.provenance import read_how
from app.rankings.service import AnswerRefused, RankingView
from app.runs.models import RunKind
from app.runs.service import OPEN_STATES, list_runs
from app.tasks import ahead, audiences, lists, standings, waiting
from app.tasks import service as tasks
from app.tasks.guards import SamePerson
from app.tasks.models import Lease, Task
from app.tasks.service import LETTERS, Sheet, TasksPacked
from app.tasks.standings import Unqualified
from app.web import Page, SessionDep, begins_late, render, see_other, words

router = APIRouter()
PAGE_SIZE = 50
NEVER = 10**9
# Which pack this device took along.
PACK_COOKIE = "rl_pack"


# Ranking


@router.get("/projects/{slug}/rank", response_model=None)
@begins_late
async def show_next_task(
    request: Request, project: PageProject, annotator: Annotator, session: SessionDep
) -> HTMLResponse | RedirectResponse:
    """The task in hand, or the next one. Loading the page again gives the same task."""
    try:
        lease = await tasks.next_lease(
            session, project=project, annotator=annotator, now=datetime.now(UTC), pack_id=pack_id_of(request)
        )
    except Unqualified as gate:
        return see_other(str(gate.onward))
    except TasksPacked as packed:
        where = await ahead.find_pack(session, annotator=annotator)
        return render(request, "rankings/packed.html", status_code=packed.status, project=project, pack=where)
    if lease is not None:
        sheet = await tasks.get_sheet(session, lease)
        return await show_sheet(request, session, sheet, annotator, answer=read_draft(lease))
    today = own.start_of_day(datetime.now(UTC))
    work = await own.work_since(session, project_id=project.id, annotator_id=annotator.id, since=today)
    newest = await list_runs(session, project_id=project.id, kind=RunKind.SAMPLE, limit=1)
    is_sampling = any(run.state in OPEN_STATES for run in newest)
    elsewhere = await audiences.waiting_elsewhere(session, project, annotator)
    return render(
        request,
        "rankings/done.html",
        project=project,
        work=work,
        is_sampling=is_sampling,
        elsewhere=elsewhere,
        reads=annotator.languages,
    )


@router.post("/leases/{lease_id}", response_model=None)
@begins_late
async def submit_ranking(
    lease_id: uuid.UUID, request: Request, annotator: SamePerson, session: SessionDep
) -> RedirectResponse | HTMLResponse | JSONResponse:
    """Store the answer and go on to the next task. What can't be taken comes back as filled in, with the reasons.

    A script, which asks for JSON, is told only whether it was stored.
    """
    form = await request.form()
    lease, task = await tasks.leased_task(session, lease_id=lease_id, annotator=annotator)
    next_page = f"/projects/{(await session.get_one(Project, task.project_id)).slug}/rank"
    fields = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
    sent = read_form(fields, shown=lease.display_order)
    try:
        if sent.errors:
            raise AnswerRefused(sent.errors)
        how = read_how(str(form.get("how", "")), lease_id=lease.id, leased_at=lease.created_at, now=datetime.now(UTC))
        answered = await service.answer_lease(
            session, lease=lease, task=task, annotator=annotator, answer=sent.answer, source="page", provenance=how
        )
    except AnswerRefused as refused:
        if asks_for_json(request):
            raise
        sheet = await tasks.get_sheet(session, lease)
        return await show_sheet(request, session, sheet, annotator, answer=sent.answer, errors=refused.errors)
    except Conflict as conflict:
        conflict.onward = next_page
        raise
    if asks_for_json(request):
        return JSONResponse({"ranking_id": str(answered.ranking.id), "is_surplus": answered.ranking.is_surplus})
    return see_other(next_page)


def asks_for_json(request: Request) -> bool:
    """A script asks, which needs no page."""
    return "application/json" in request.headers.get("accept", "")


def pack_id_of(request: Request) -> uuid.UUID | None:
    """The pack that this device took along, if any."""
    try:
        return uuid.UUID(request.cookies.get(PACK_COOKIE, ""))
    except ValueError:
        return None


async def show_sheet(
    request: Request,
    session: AsyncSession,
    sheet: Sheet,
    annotator: User,
    *,
    answer: RankingAnswer,
    errors: Sequence[Any] = (),
    num_before: int = 0,
    is_ahead: bool = False,
    is_trial: bool = False,
    changes: uuid.UUID | None = None,
) -> Page:
    """The ranking page with what was placed so far. With errors it is a 422 that names each card.

    `num_before`: so many tasks will be done when this page is seen. `is_ahead`: only what differs from task to task,
    for the script of a page that is open. `is_trial`: the task is only tried. `changes`: the ranking that a new one
    supersedes.
    """
    lease, project = sheet.lease, sheet.project
    now = datetime.now(UTC)
    told = [{"field": anchor(error), "rule": sentence(request, error)} for error in errors]
    test = None if is_trial or changes else await standings.test_of(session, project, lease)
    progress = await progress_after(session, project, annotator, now, num_before=num_before)
    return render(
        request,
        "rankings/ahead.html" if is_ahead else "rankings/rank.html",
        status_code=422 if errors else 200,
        project=asked(project),
        # A change has no end and no draft on the server; on the device it is kept by the ranking that it changes.
        lease={
            "id": changes or lease.id,
            "is_assisted": lease.is_assisted,
            "expires_in_seconds": NEVER if changes else max(0.0, (lease.expires_at - now).total_seconds()),
        },
        turns=sheet.messages,
        k=len(sheet.cards),
        cards=cards_of(sheet, answer, {error["field"]: error["rule"] for error in told}),
        said={"rationale": answer.rationale, "confidence": answer.confidence, "all_bad": answer.all_bad},
        pairwise=is_pairwise(sheet),
        preference=preference_of(answer, lease.display_order),
        can_write=not is_trial and await can_write(session, sheet),
        progress=progress | ({"num_open": test.num_asked - test.num_done} if test else {}),
        errors=told,
        draft_saved_at="" if changes else stamp(lease.draft_saved_at),
        is_trial=is_trial,
        test=test,
        **sent_to(lease, project, is_trial=is_trial, changes=changes) | (ALONE if test else {}),
    )


def sent_to(lease: Lease, project: Project, *, is_trial: bool, changes: uuid.UUID | None) -> dict[str, Any]:
    """Where the page sends what."""
    if is_trial:
        return trial_addresses(project)
    return change_addresses(project, changes) if changes else addresses(lease, project)


def addresses(lease: Lease, project: Project) -> dict[str, Any]:
    """Where the page of a task sends what."""
    return {
        "submit_url": f"/leases/{lease.id}",
        "skip_url": f"/leases/{lease.id}/skip",
        "draft_url": f"/leases/{lease.id}/draft",
        "next_url": f"/projects/{project.slug}/rank",
        "ahead_url": f"/projects/{project.slug}/rank/ahead",
        "pack_url": f"/projects/{project.slug}/rank/pack",
    }


# A task of the qualification is ranked by itself: nothing is fetched ahead or taken along.
ALONE = {"ahead_url": "", "pack_url": ""}


def trial_addresses(project: Project) -> dict[str, Any]:
    """The same where the task is only tried: nothing is saved, and nothing is fetched ahead."""
    here = f"/projects/{project.slug}/try"
    nothing = dict.fromkeys(("skip_url", "draft_url", "ahead_url", "pack_url"), "")
    return {"submit_url": here, "next_url": here, **nothing}


def change_addresses(project: Project, changes: uuid.UUID) -> dict[str, Any]:
    """The same for a change of mind, which has but one address, and leads back to the list."""
    nothing = dict.fromkeys(("skip_url", "draft_url", "ahead_url", "pack_url"), "")
    return {"submit_url": f"/rankings/{changes}/change", "next_url": f"/projects/{project.slug}/mine", **nothing}


def asked(project: Project) -> dict[str, Any]:
    """What an annotator may know of a project."""
    names = ("slug", "name", "guidelines", "ties_allowed", "partial_allowed", "layout", "has_review_step", "examples")
    questions = ("rationale", "min_rationale", "confidence", "asks_all_bad")
    return {
        **{name: getattr(project, name) for name in (*names, *questions)},
        "labels": asked_labels(project),
    }


async def can_write(session: AsyncSession, sheet: Sheet) -> bool:
    """Whether the project asks for an ideal answer to this prompt: to training prompts only."""
    if not sheet.project.writes_demonstrations:
        return False
    query = select(Prompt.split).join(Task, Task.prompt_id == Prompt.id).where(Task.id == sheet.lease.task_id)
    return await session.scalar(query) == Split.TRAIN


def is_pairwise(sheet: Sheet) -> bool:
    """A project of two answers asks how much better one is, in place of an order."""
    return sheet.project.k == len(sheet.cards) == 2


def cards_of(sheet: Sheet, answer: RankingAnswer, errors: Mapping[str, str]) -> list[dict[str, Any]]:
    """The answers as the template draws them. Nothing here tells who wrote them."""
    return [
        {
            "letter": card.letter,
            "completion_id": card.id,
            "text": card.text,
            "marks": {
                "place": answer.places.get(card.id),
                "rating": answer.ratings.get(card.id),
                "flags": sorted(answer.labels.get(card.id, ())),
                "denied": sorted(answer.denied.get(card.id, ())),
                "error": errors.get(f"card-{card.id}"),
            },
        }
        for card in sheet.cards
    ]


def anchor(error: Any) -> str:
    """Where on the page a refused field is: its card, or the reasons."""
    _, _, completion_id = error.field.partition(".")
    return f"card-{completion_id}" if completion_id else str(error.field)


def sentence(request: Request, error: Any) -> str:
    """A rule in the reader's language."""
    return str(error.in_words(words(request)))


def read_draft(lease: Lease) -> RankingAnswer:
    """What was placed before; nothing at first."""
    draft = lease.draft or {}
    return RankingAnswer(
        places={uuid.UUID(key): place for key, place in (draft.get("places") or {}).items()},
        ratings={uuid.UUID(key): rating for key, rating in (draft.get("ratings") or {}).items() if rating},
        labels={uuid.UUID(key): keys for key, keys in (draft.get("labels") or {}).items()},
        rationale=draft.get("rationale") or "",
        denied={uuid.UUID(key): keys for key, keys in (draft.get("denied") or {}).items()},
        **{name: draft.get(name) for name in ("confidence", "all_bad", "strength")},
    )


async def progress_after(
    session: AsyncSession, project: Project, annotator: User, now: datetime, *, num_before: int
) -> dict[str, int]:
    """How far this annotator will be after so many others; more than so many tasks that wait are many."""
    found = await own.progress_of(session, project=project, annotator=annotator, now=now)
    is_many = found.num_waiting > waiting.MOST_COUNTED
    num_open = found.num_waiting if is_many else max(0, found.num_waiting - num_before)
    return {"done_today": found.num_done + num_before, "num_open": num_open}


# For admins


@router.get("/projects/{slug}/tasks/{task_id}")
async def show_task(
    task_id: uuid.UUID, request: Request, project: PageProject, user: Trainer, session: SessionDep
) -> HTMLResponse:
    """One task: its answers with who wrote them, who had it, and what they said."""
    task = await tasks.get_task(session, project_id=project.id, task_id=task_id)
    completions = await lists.list_completions(session, task_id)
    letters = {completion.id: letter for letter, (completion, _) in zip(LETTERS, completions, strict=False)}
    views = await service.list_rankings(session, project_id=project.id, task_id=task_id, limit=500)
    return render(
        request,
        "tasks/show.html",
        here="tasks",
        project=project,
        task=task,
        prompt=await session.get_one(Prompt, task.prompt_id),
        completions=completions,
        leases=await lists.list_leases(session, task_id=task_id),
        rankings=[ranking_row(view) | {"order": view.order_in(letters)} for view in reversed(views)],
    )


@router.get("/projects/{slug}/rankings")
async def list_rankings(
    request: Request,
    project: PageProject,
    user: Trainer,
    session: SessionDep,
    before: Annotated[int | None, Query(ge=0)] = None,
) -> HTMLResponse:
    """A project's rankings, newest first."""
    views = await service.list_rankings(session, project_id=project.id, before=before, limit=PAGE_SIZE + 1)
    shown = views[:PAGE_SIZE]
    prompts = await lists.prompts_of_tasks(session, [view.ranking.task_id for view in shown])
    return render(
        request,
        "rankings/list.html",
        here="rankings",
        project=project,
        rows=[ranking_row(view) | {"prompt": prompts[view.ranking.task_id]} for view in shown],
        num_all=await service.count_rankings(session, project.id),
        next_url=f"?before={shown[-1].ranking.number}" if len(views) > PAGE_SIZE else None,
        is_first=before is None,
    )


def ranking_row(view: RankingView) -> dict[str, Any]:
    """A ranking in a list, its order in the letters that its annotator saw."""
    return {"ranking": view.ranking, "name": view.annotator, "order": view.letter_order, "is_current": view.is_current}


async def ranking_context(session: AsyncSession, project: Project, ranking_id: uuid.UUID) -> dict[str, Any]:
    """All on the page of one ranking but `learned_by`, which `app.loop` knows.

    Raises:
        NotFound: the project has no such ranking.
    """
    view = await service.get_ranking(session, ranking_id)
    if view.ranking.project_id != project.id:
        raise NotFound("There is no such ranking in this project.")
    task = await tasks.get_task(session, project_id=project.id, task_id=view.ranking.task_id)
    chain = {other.ranking.id: other.ranking for other in await service.history_of(session, view.ranking)}
    return {
        "here": "rankings",
        "project": project,
        "ranking": view.ranking,
        "is_assisted": view.is_assisted,
        "name": view.annotator,
        "task": task,
        "prompt": await session.get_one(Prompt, task.prompt_id),
        "order": view.letter_order,
        "cards": await admin_cards(session, view),
        "supersedes": chain.get(view.ranking.supersedes_id) if view.ranking.supersedes_id else None,
        "superseded_by": chain.get(view.superseded_by) if view.superseded_by else None,
    }


async def admin_cards(session: AsyncSession, view: RankingView) -> list[dict[str, Any]]:
    """The answers in the order that the annotator saw, with who wrote them."""
    found = {pair[0].id: pair for pair in await lists.list_completions(session, view.ranking.task_id)}
    return [
        {
            "letter": view.letters[completion_id],
            "completion": found[completion_id][0],
            "version": found[completion_id][1],
            "place": view.places[completion_id].place,
            "rating": view.places[completion_id].rating,
            "labels": view.places[completion_id].labels,
        }
        for completion_id in view.display_order
    ]
