"""What workers and trainers do with runs (docs/protocol.md)."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import Field
from starlette import status

from app.accounts.guards import ReadCaller, ReadOrWorkerCaller, WorkerCaller, WriteCaller
from app.errors import NotFound
from app.examples import FILE
from app.projects.guards import find_project
from app.runs import service
from app.runs.artifacts import Upload, artifact_path, receive_chunk
from app.runs.models import Run
from app.runs.schemas import (
    ArtifactList,
    ArtifactOut,
    ClaimIn,
    ClaimOut,
    FinishIn,
    HeartbeatIn,
    HeartbeatOut,
    LogIn,
    MetricsIn,
    RunOut,
    RunPage,
    UploadOut,
)
from app.web import SessionDep, SettingsDep

# Not a tuple: its schema has `prefixItems`, which many readers of OpenAPI 3.1 still stumble over.
PointOut = Annotated[list[int | float], Field(min_length=2, max_length=2)]
OCTETS = "application/octet-stream"
router = APIRouter(tags=["runs"])
Fence = Annotated[int, Header(alias="Rankloop-Fence", description="The lease number that came with the claim.")]


async def held_run(run_id: uuid.UUID, fence: Fence, caller: WorkerCaller, session: SessionDep) -> Run:
    """The run that this worker holds."""
    return await service.fenced_run(session, run_id=run_id, fence=fence, token_id=caller.token_id)


async def peeked_run(run_id: uuid.UUID, fence: Fence, caller: WorkerCaller, session: SessionDep) -> Run:
    """The same, not locked: a slow upload must not keep the heartbeat waiting."""
    return await service.fenced_run(session, run_id=run_id, fence=fence, token_id=caller.token_id, for_update=False)


HeldRun = Annotated[Run, Depends(held_run)]
PeekedRun = Annotated[Run, Depends(peeked_run)]


@router.post("/runs:claim", response_model=ClaimOut, responses={204: {"description": "Nothing waits."}})
async def claim_run(
    body: ClaimIn, caller: WorkerCaller, session: SessionDep, settings: SettingsDep
) -> ClaimOut | Response:
    """Take the oldest waiting run."""
    run = await service.claim(
        session,
        worker=body.worker,
        kinds=body.kinds,
        project_ids=list(caller.project_ids) if caller.project_ids is not None else None,
        token_id=caller.token_id,
        lease=timedelta(seconds=settings.run_lease_seconds),
    )
    if run is None:
        return Response(status_code=status.HTTP_204_NO_CONTENT)
    return ClaimOut.of(run, lease_seconds=settings.run_lease_seconds)


@router.post("/runs/{run_id}/heartbeat")
async def heartbeat(run: HeldRun, body: HeartbeatIn, session: SessionDep, settings: SettingsDep) -> HeartbeatOut:
    """Keep the lease; learn whether to stop."""
    progress = body.progress.model_dump() if body.progress else None
    lease = timedelta(seconds=settings.run_lease_seconds)
    cancel_requested = await service.heartbeat(session, run, lease=lease, progress=progress)
    return HeartbeatOut(cancel_requested=cancel_requested, lease_seconds=settings.run_lease_seconds)


@router.post("/runs/{run_id}/metrics", status_code=status.HTTP_204_NO_CONTENT)
async def add_metrics(run: HeldRun, body: MetricsIn, session: SessionDep) -> None:
    """Add points to curves."""
    await service.add_metrics(session, run, points=[(item.step, item.name, item.value) for item in body.points])


@router.post("/runs/{run_id}/log", status_code=status.HTTP_204_NO_CONTENT)
async def add_log(run: HeldRun, body: LogIn, session: SessionDep) -> None:
    """Add lines to the log."""
    await service.add_log(session, run_id=run.id, lines=[(line.level, line.text) for line in body.lines])


@router.put(
    "/runs/{run_id}/artifacts/{name:path}",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {OCTETS: {"schema": {"type": "string", "format": "binary"}, "example": FILE.decode()}},
        }
    },
)
async def put_artifact(
    run: PeekedRun,
    name: str,
    caller: WorkerCaller,
    request: Request,
    session: SessionDep,
    settings: SettingsDep,
    size: Annotated[int, Query(ge=0)],
    sha256: Annotated[str, Query(pattern="^[0-9a-f]{64}$")],
    offset: Annotated[int, Query(ge=0)] = 0,
) -> UploadOut:
    """Deliver a file, chunk by chunk."""
    upload = Upload(settings.artifacts_dir, run.id, run.fence, name, size, sha256)
    received, complete = await receive_chunk(upload, offset=offset, chunks=request.stream())
    if complete:
        await service.fenced_run(session, run_id=run.id, fence=upload.fence, token_id=caller.token_id)
        await service.record_artifact(session, run, name=name, size=size, sha256=sha256)
    return UploadOut(name=name, size=size, sha256=sha256, received=received, complete=complete)


@router.get("/runs/{run_id}/artifacts")
async def list_artifacts(run_id: uuid.UUID, caller: ReadOrWorkerCaller, session: SessionDep) -> ArtifactList:
    """What the run delivered."""
    run = await service.get_run(session, run_id)
    caller.require_project(run.project_id)
    items = await service.list_artifacts(session, run_id)
    return ArtifactList(items=[ArtifactOut.model_validate(item) for item in items])


@router.get("/runs/{run_id}/artifacts/{name:path}", response_class=FileResponse)
async def get_artifact(
    run_id: uuid.UUID, name: str, caller: ReadOrWorkerCaller, session: SessionDep, settings: SettingsDep
) -> FileResponse:
    """One delivered file."""
    run = await service.get_run(session, run_id)
    caller.require_project(run.project_id)
    for item in await service.list_artifacts(session, run_id):
        if item.name == name:
            path = artifact_path(settings.artifacts_dir, run_id, item.fence, name)
            return FileResponse(path, media_type=OCTETS)
    raise NotFound(f"The run has not delivered {name}.")


@router.post("/runs/{run_id}/finish")
async def finish_run(
    run_id: uuid.UUID, fence: Fence, body: FinishIn, caller: WorkerCaller, session: SessionDep
) -> RunOut:
    """End the run; what follows from it is queued in the same transaction."""
    run = await service.finish(
        session,
        run_id,
        fence=fence,
        token_id=caller.token_id,
        state=body.state,
        result=body.result,
        error=body.error,
        artifacts=body.artifacts,
    )
    return RunOut.model_validate(run)


@router.post("/runs/{run_id}/release", status_code=status.HTTP_204_NO_CONTENT)
async def release_run(run: HeldRun, session: SessionDep) -> None:
    """Hand the run back to the queue."""
    await service.release(session, run)


@router.get("/runs")
async def list_runs(
    project_id: str,
    caller: ReadCaller,
    session: SessionDep,
    cursor: uuid.UUID | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> RunPage:
    """A project's runs, newest first."""
    project = await find_project(session, project_id)
    caller.require_project(project.id)
    runs = await service.list_runs(session, project_id=project.id, before=cursor, limit=limit)
    following = str(runs[-1].id) if len(runs) == limit else None
    return RunPage(items=[RunOut.model_validate(run) for run in runs], next_cursor=following)


@router.get("/runs/{run_id}")
async def get_run(run_id: uuid.UUID, caller: ReadCaller, session: SessionDep) -> RunOut:
    """One run."""
    run = await service.get_run(session, run_id)
    caller.require_project(run.project_id)
    return RunOut.model_validate(run)


@router.get("/runs/{run_id}/metrics")
async def get_metrics(run_id: uuid.UUID, caller: ReadCaller, session: SessionDep) -> dict[str, list[PointOut]]:
    """All curves of a run: name -> points (step, value)."""
    run = await service.get_run(session, run_id)
    caller.require_project(run.project_id)
    curves = await service.list_metrics(session, run_id)
    return {name: [list(point) for point in points] for name, points in curves.items()}


@router.post("/runs/{run_id}/cancel")
async def cancel_run(run_id: uuid.UUID, caller: WriteCaller, session: SessionDep) -> RunOut:
    """Cancel a run."""
    caller.require_project((await service.get_run(session, run_id)).project_id)
    return RunOut.model_validate(await service.cancel(session, run_id=run_id))


@router.post("/runs/{run_id}/retry")
async def retry_run(run_id: uuid.UUID, caller: WriteCaller, session: SessionDep) -> RunOut:
    """Put a failed or cancelled run into the queue again."""
    caller.require_project((await service.get_run(session, run_id)).project_id)
    return RunOut.model_validate(await service.retry(session, run_id=run_id))
