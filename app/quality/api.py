"""Quality through the API: the figures of the pages, as JSON."""

from __future__ import annotations

import uuid
from typing import Annotated

from fastapi import APIRouter, Query

from app.accounts.guards import AdminCaller, AnnotateCaller, ReadCaller
from app.accounts.models import Scope
from app.projects.guards import ApiProject
from app.quality import qualification, service, watch
from app.quality.schemas import (
    AnnotatorOut,
    AnnotatorPage,
    BiasOut,
    DecisionIn,
    QualificationOut,
    QualityOut,
    StandingOut,
)
from app.web import SessionDep

router = APIRouter(tags=["quality"])


@router.get("/projects/{project_id}/quality")
async def get_quality(project: ApiProject, caller: ReadCaller, session: SessionDep) -> QualityOut:
    """How well people agree, over the newest rankings of tasks that more than one person ranked."""
    return QualityOut.of(await service.overview(session, project))


@router.get("/projects/{project_id}/quality/annotators")
async def list_annotators(
    project: ApiProject,
    caller: AdminCaller,
    session: SessionDep,
    cursor: Annotated[str | None, Query(pattern=r"^\d{1,7}$")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> AnnotatorPage:
    """What was measured of each annotator, those with flags first: in a large project once a minute, else now."""
    await watch.look_on_the_way(session, project)
    start = int(cursor or 0)
    rows = await service.list_people(session, project, limit=limit + 1, offset=start)
    following = str(start + limit) if len(rows) > limit else None
    return AnnotatorPage(items=[AnnotatorOut.of(row) for row in rows[:limit]], next_cursor=following)


@router.get("/projects/{project_id}/quality/bias")
async def get_bias(project: ApiProject, caller: ReadCaller, session: SessionDep) -> BiasOut:
    """What the newest rankings lean on besides the answers: position, length, version, annotator (whose name only an
    admin's token reads).
    """
    tells_names = Scope.ADMIN in caller.scopes_in(project.id)
    return BiasOut.of(await service.bias_report(session, project, tells_names=tells_names))


@router.put("/projects/{project_id}/quality/annotators/{user_id}/standing")
async def decide_standing(
    user_id: uuid.UUID, body: DecisionIn, project: ApiProject, caller: AdminCaller, session: SessionDep
) -> StandingOut:
    """Let an annotator in, give them all their tries again, or leave them out."""
    standing = await qualification.decide(session, project, user_id, body.decision, actor_id=caller.user.id)
    return StandingOut.model_validate(standing)


@router.get("/projects/{project_id}/qualification")
async def get_qualification(project: ApiProject, caller: AnnotateCaller, session: SessionDep) -> QualificationOut:
    """Where the caller stands before real work; after a try, their orders beside the known ones."""
    return QualificationOut.of(await qualification.report_of(session, project, caller.user))


@router.post("/projects/{project_id}/qualification:begin")
async def begin_qualification(project: ApiProject, caller: AnnotateCaller, session: SessionDep) -> StandingOut:
    """Begin a try; `POST /tasks:next` then gives its tasks. Twice is harmless."""
    return StandingOut.model_validate(await qualification.begin(session, project, caller.user))
