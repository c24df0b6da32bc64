"""Rankings through the API: answers go in, and all of them come out as a list or as a stream of lines."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.sse import format_sse_event
from starlette import status

from app.accounts.guards import AnnotateCaller, Ranker, ReadCaller
from app.accounts.quick import QuickRoute
from app.bodies import StreamedBody
from app.db import SessionMaker
from app.errors import BadRequest
from app.projects.guards import ApiProject, find_project
from app.prompts.api import SentFile, json_lines
from app.prompts.lines import ImportReport
from app.rankings import changes, service
from app.rankings.changes import Change
from app.rankings.importing import import_rankings
from app.rankings.schemas import ChangeOut, ChangePage, RankingIn, RankingOut, RankingPage
from app.rankings.service import RankingView
from app.tasks import service as tasks
from app.web import SessionDep, begins_late

router = APIRouter(tags=["rankings"], route_class=QuickRoute)
NDJSON = "application/x-ndjson"
EVENTS = "text/event-stream"
STREAM_PAGE = 500


@router.post(
    "/leases/{lease_id}/ranking",
    status_code=status.HTTP_201_CREATED,
    responses={
        200: {"description": "The same answer was stored before."},
        409: {"description": "Another answer was stored before, or the task was skipped."},
    },
)
@begins_late
async def submit_ranking(
    lease_id: uuid.UUID, body: RankingIn, caller: Ranker, session: SessionDep, response: Response
) -> RankingOut:
    """Answer a lease. The lease is the idempotency key: send the same again for as long as no answer comes back."""
    lease, task = await tasks.known_task(session, lease_id=lease_id, annotator=caller.user)
    provenance = body.provenance(leased_at=lease.created_at, now=datetime.now(UTC))
    answered = await service.answer_lease(
        session,
        lease=lease,
        task=task,
        annotator=caller.user,
        answer=body.answer(),
        source="api",
        provenance=provenance,
    )
    if answered.places is None:
        response.status_code = status.HTTP_200_OK
        return RankingOut.of(await service.get_ranking(session, answered.ranking.id))
    name = caller.user.name
    return RankingOut.of(RankingView(answered.ranking, answered.places, lease.display_order, None, annotator=name))


@router.post("/rankings/{ranking_id}:revise", status_code=status.HTTP_201_CREATED)
async def revise_ranking(
    ranking_id: uuid.UUID, body: RankingIn, caller: AnnotateCaller, session: SessionDep
) -> RankingOut:
    """A change of mind: a new ranking that supersedes this one. The same again gives the one that was stored."""
    old = (await service.get_ranking(session, ranking_id)).ranking
    caller.require_project(old.project_id)
    provenance = body.provenance(leased_at=old.created_at, now=datetime.now(UTC))
    ranking = await service.revise(
        session, ranking_id=ranking_id, annotator=caller.user, answer=body.answer(), source="api", provenance=provenance
    )
    return RankingOut.of(await service.get_ranking(session, ranking.id))


@router.get(
    "/rankings",
    response_model=RankingPage,
    responses={200: {"content": {NDJSON: {"schema": {"type": "string"}}}}},
)
async def list_rankings(
    project_id: str,
    caller: ReadCaller,
    session: SessionDep,
    request: Request,
    cursor: Annotated[str | None, Query(max_length=60)] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> RankingPage | Response:
    """A project's rankings in the order in which they were stored, superseded ones too.

    With `Accept: application/x-ndjson`, all of them, one a line. The cursor of the last one read, sent later as
    `cursor`, gives what came after it, and skips nothing that was committed late.
    """
    project = await find_project(session, project_id)
    caller.require_project(project.id)
    after = read_cursor(cursor)
    if NDJSON in request.headers.get("accept", ""):
        lines = stream_rankings(request.app.state.sessionmaker, project.id, after)
        return StreamedBody(lines, media_type=NDJSON)
    views = await service.follow_rankings(session, project_id=project.id, after=after, limit=limit)
    following = views[-1].cursor if views else cursor
    return RankingPage(items=[RankingOut.of(view) for view in views], next_cursor=following)


def read_cursor(cursor: str | None) -> tuple[int, int] | None:
    """The transaction and the number that a cursor stands for.

    Raises:
        BadRequest: it is none of ours.
    """
    if not cursor:
        return None
    try:
        transaction_id, number = (int(part) for part in cursor.split("."))
    except ValueError as error:
        raise BadRequest("cursor: take it from the answer before, unchanged") from error
    return transaction_id, number


async def stream_rankings(
    sessionmaker: SessionMaker, project_id: uuid.UUID, after: tuple[int, int] | None
) -> AsyncIterator[str]:
    """All rankings as lines, page by page: a slow reader holds no transaction open."""
    while True:
        async with sessionmaker() as session:
            views = await service.follow_rankings(session, project_id=project_id, after=after, limit=STREAM_PAGE)
        for view in views:
            yield RankingOut.of(view).model_dump_json() + "\n"
        if len(views) < STREAM_PAGE:
            return
        after = (views[-1].ranking.transaction_id, views[-1].ranking.number)


@router.get(
    "/projects/{project_id}/changes",
    response_model=ChangePage,
    responses={
        200: {"content": {NDJSON: {"schema": {"type": "string"}}, EVENTS: {"schema": {"type": "string"}}}},
    },
)
async def list_changes(
    project: ApiProject,
    caller: ReadCaller,
    session: SessionDep,
    request: Request,
    since: Annotated[str | None, Query(max_length=60, description="The cursor of the last change you know")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    last_event_id: Annotated[str | None, Header(max_length=60)] = None,
) -> ChangePage | Response:
    """What happened to a project's rankings: stored, superseded, withdrawn and restored, rejected and approved.

    A page of JSON; all of it as lines with `Accept: application/x-ndjson`; all of it and then each change as it
    happens with `Accept: text/event-stream`, where `Last-Event-ID` goes on after a lost connection. A change that is
    committed late comes late, and is never skipped.
    """
    after = read_cursor(last_event_id or since)
    accepted = request.headers.get("accept", "")
    sessionmaker: SessionMaker = request.app.state.sessionmaker
    if EVENTS in accepted:
        return StreamedBody(change_events(changes.follow(sessionmaker, project.id, after)), media_type=EVENTS)
    if NDJSON in accepted:
        return StreamedBody(change_lines(changes.all_changes(sessionmaker, project.id, after)), media_type=NDJSON)
    found = await changes.list_changes(session, project_id=project.id, after=after, limit=limit)
    following = found[-1].cursor if found else since
    return ChangePage(items=[ChangeOut.of(change) for change in found], next_cursor=following)


async def change_lines(pages: AsyncIterator[Sequence[Change]]) -> AsyncIterator[str]:
    """Changes as JSON lines."""
    async for page in pages:
        yield "".join(ChangeOut.of(change).model_dump_json() + "\n" for change in page)


async def change_events(pages: AsyncIterator[Sequence[Change]]) -> AsyncIterator[bytes]:
    """Changes as server-sent events; a comment where nothing happened, so that nobody takes the silence for death."""
    async for page in pages:
        if not page:
            yield format_sse_event(comment="still here")
        for change in page:
            data = ChangeOut.of(change).model_dump_json()
            yield format_sse_event(event=change.kind, id=change.cursor, data_str=data)


@router.get("/rankings/{ranking_id}")
async def get_ranking(ranking_id: uuid.UUID, caller: ReadCaller, session: SessionDep) -> RankingOut:
    """One ranking."""
    view = await service.get_ranking(session, ranking_id)
    caller.require_project(view.ranking.project_id)
    return RankingOut.of(view)


@router.post(
    "/projects/{project_id}/rankings:import",
    openapi_extra=json_lines(
        {
            "prompt": "What is 2 + 2?",
            "completions": [{"id": "a", "text": "4"}, {"id": "b", "text": "22"}],
            "annotations": [{"annotator": "ann", "ranks": {"a": 1, "b": 2}}],
        },
        {
            "prompt": "3 + 3?",
            "completions": ["33", "6"],
            "order": [["1"], ["0"]],
            "gold": True,
            "why": "A sum.",
        },
    ),
)
async def import_made_elsewhere(file: SentFile) -> ImportReport:
    """Take rankings that were made elsewhere: JSON lines of a prompt with answers and orders of them, or any format of
    docs/data.md. With `gold` true the order is known to be right, and measures who ranks (admins only).
    """
    return await file.take("rankings", import_rankings, by_admin=file.by_admin)
