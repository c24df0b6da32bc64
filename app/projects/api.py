"""Projects through the API."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Response
from pydantic import BaseModel
from starlette import status

from app.accounts.guards import AdminCaller, ReadCaller
from app.etags import require_unchanged, tag_of
from app.idempotency import idempotent
from app.projects import service
from app.projects.guards import ApiProject
from app.projects.models import Project
from app.projects.schemas import ProjectIn, ProjectOut, checked_changes
from app.web import SessionDep

router = APIRouter(tags=["projects"])


class ProjectPage(BaseModel):
    """All projects."""

    items: list[ProjectOut]
    next_cursor: str | None = None


@router.get("/projects")
async def list_projects(caller: ReadCaller, session: SessionDep) -> ProjectPage:
    """The projects that the token reaches."""
    projects = await service.list_projects(session, within=caller.project_ids)
    return ProjectPage(items=[ProjectOut.model_validate(project) for project in projects])


@router.post("/projects", status_code=status.HTTP_201_CREATED)
@idempotent()
async def create_project(body: ProjectIn, caller: AdminCaller, session: SessionDep) -> ProjectOut:
    """Add a project with its version 1, the SFT policy."""
    project = await service.create_project(session, **body.model_dump(), actor_id=caller.user.id)
    return ProjectOut.model_validate(project)


@router.get("/projects/{project_id}")
async def get_project(project: ApiProject, caller: ReadCaller, response: Response) -> ProjectOut:
    """One project, by id or short name. Its `ETag`, sent in `If-Match` with a change, keeps others' changes safe."""
    return with_tag(project, response)


@router.patch("/projects/{project_id}", responses={412: {"description": "It was changed since it was read."}})
async def update_project(
    project: ApiProject,
    body: Annotated[dict[str, Any], Body(examples=[{"guidelines": "Rank what is true first.", "overlap": 2}])],
    caller: AdminCaller,
    session: SessionDep,
    response: Response,
    if_match: Annotated[str | None, Header(max_length=200, description="The `ETag` of what you read")] = None,
) -> ProjectOut:
    """Change settings. They hold for what comes after."""
    await session.refresh(project, with_for_update={"key_share": True})
    require_unchanged(if_match, ProjectOut.model_validate(project))
    changes = checked_changes(project, body)
    await service.update_project(session, project=project, changes=changes, actor_id=caller.user.id)
    return with_tag(project, response)


def with_tag(project: Project, response: Response) -> ProjectOut:
    """A project, whose tag is in the headers of the answer."""
    shown = ProjectOut.model_validate(project)
    response.headers["ETag"] = tag_of(shown)
    return shown
