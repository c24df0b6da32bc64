"""Versions for trainers and workers. Promotion is in `app.loop`, which holds the gates."""

from __future__ import annotations

import uuid

from fastapi import APIRouter
from fastapi.responses import FileResponse

from app.accounts.guards import ReadCaller, ReadOrWorkerCaller
from app.errors import NotFound
from app.projects.guards import find_project
from app.registry import service
from app.registry.schemas import VersionDetail, VersionOut, VersionPage
from app.runs.artifacts import artifact_path
from app.runs.schemas import ArtifactOut
from app.web import SessionDep, SettingsDep

router = APIRouter(tags=["versions"])


@router.get("/versions")
async def list_versions(project_id: str, caller: ReadCaller, session: SessionDep) -> VersionPage:
    """A project's versions, newest first."""
    project = await find_project(session, project_id)
    caller.require_project(project.id)
    versions = await service.list_versions(session, project.id)
    return VersionPage(items=[VersionOut.model_validate(version) for version in versions])


@router.get("/versions/{version_id}")
async def get_version(version_id: uuid.UUID, caller: ReadOrWorkerCaller, session: SessionDep) -> VersionDetail:
    """One version with its files."""
    version = await service.get_version(session, version_id)
    caller.require_project(version.project_id)
    files = [ArtifactOut.model_validate(item) for item in await service.artifacts_of(session, version.run_id)]
    return VersionDetail(**VersionOut.model_validate(version).model_dump(), files=files)


@router.get("/versions/{version_id}/artifacts/{name:path}", response_class=FileResponse)
async def get_version_artifact(
    version_id: uuid.UUID, name: str, caller: ReadOrWorkerCaller, session: SessionDep, settings: SettingsDep
) -> FileResponse:
    """One file of a version."""
    version = await service.get_version(session, version_id)
    caller.require_project(version.project_id)
    for item in await service.artifacts_of(session, version.run_id):
        if item.name == name:
            path = artifact_path(settings.artifacts_dir, item.run_id, item.fence, name)
            return FileResponse(path, media_type="application/octet-stream")
    raise NotFound(f"The version has no file {name}.")
