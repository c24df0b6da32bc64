"""The loop through the API: sample, train, evaluate, promote."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy.ext.asyncio import AsyncSession
from starlette import status

from app.accounts.guards import AdminCaller, ReadCaller, WriteCaller
from app.datasets import service as datasets
from app.examples import example_id, shown
from app.idempotency import idempotent
from app.loop import (
    alternatives,
    arrivals,
    choosing,
    comparisons,
    ending,
    external,
    forecast,
    judging,
    sampling,
    service,
    training,
)
from app.loop.schemas import ComparisonOut, PlanOut, RoundOut
from app.ndjson import write_lines
from app.projects.guards import ApiProject
from app.projects.models import PolicyStart, RewardStart
from app.projects.service import get_project
from app.registry import service as registry
from app.registry.schemas import VersionOut
from app.runs.api import PeekedRun
from app.runs.schemas import ClaimOut, RunOut
from app.web import SessionDep, SettingsDep, stream

router = APIRouter(tags=["loop"])


class EvaluateIn(BaseModel):
    """Which version answers the held-out prompts; left out: the live policy."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=shown(version_id=example_id("version")))

    version_id: uuid.UUID | None = None


class StartIn(BaseModel):
    """Where this training begins; what is left out is as the project's settings say."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=shown(reward_start="live", policy_start="sft"))

    reward_start: RewardStart | None = None
    policy_start: PolicyStart | None = None


class TrainIn(BaseModel):
    """Another way of training than the loop's own."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=shown(kind="dpo", training={"beta": 0.1}))

    kind: Literal["sft", "dpo", "best_of_n", "star"]
    version_id: uuid.UUID | None = None
    """Where to begin; left out: version 1 for `sft` and `dpo`, the live policy for `best_of_n` and `star`."""
    training: dict[str, Any] = {}
    """Overrides of the trainer's defaults."""


class ExternalIn(BaseModel):
    """A version that was trained elsewhere."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra=shown(
            kind="policy", dataset_id=example_id("dataset"), training={"framework": "TRL", "learning_rate": 1e-6}
        ),
    )

    kind: Literal["policy", "reward"]
    parent_id: uuid.UUID | None = None
    """The version that training began with; left out: version 1."""
    dataset_id: uuid.UUID | None = None
    """What it learned from."""
    training: dict[str, Any] = Field({}, description="How it was trained, for its page", examples=[{"lr": 1e-6}])


class CompareIn(BaseModel):
    """Which two policies people will compare, without knowing it."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra=shown(version_id=example_id("newer version"), num_prompts=100)
    )

    version_id: uuid.UUID
    against_id: uuid.UUID | None = None
    """Left out: version 1."""
    num_prompts: int = Field(comparisons.DEFAULT_PROMPTS, ge=1, le=comparisons.MAX_PROMPTS)
    """At most so many held-out prompts, each ranked once; it stops earlier when it is decided."""


class PromoteIn(BaseModel):
    """Why this version goes live."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=shown(reason="Wins 58 % of our own comparisons."))

    reason: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]


@router.post("/projects/{project_id}/sample", status_code=status.HTTP_201_CREATED)
@idempotent()
async def sample(project: ApiProject, caller: WriteCaller, session: SessionDep, settings: SettingsDep) -> RunOut:
    """Draw answers of the round's policy to every prompt that has none in this round."""
    run = await sampling.start_sampling(
        session, project=project, actor_id=caller.user.id, max_queued=settings.max_queued_runs
    )
    return RunOut.model_validate(run)


@router.post("/projects/{project_id}/train", status_code=status.HTTP_201_CREATED)
@idempotent()
async def train(
    project: ApiProject,
    caller: WriteCaller,
    session: SessionDep,
    settings: SettingsDep,
    body: StartIn | None = None,
) -> RunOut:
    """Freeze the rankings, train a reward model on them, then improve the policy against it.

    The reward model is fresh, or goes on from the live one; PPO goes on from the round's policy, or from version 1.
    """
    start = body or StartIn()
    run = await training.start_training(
        session,
        project=project,
        reward_start=start.reward_start,
        policy_start=start.policy_start,
        actor_id=caller.user.id,
        max_queued=settings.max_queued_runs,
    )
    return RunOut.model_validate(run)


@router.post("/projects/{project_id}/runs", status_code=status.HTTP_201_CREATED)
@idempotent()
async def start_run(
    project: ApiProject, body: TrainIn, caller: WriteCaller, session: SessionDep, settings: SettingsDep
) -> RunOut:
    """Train in another way: SFT, DPO, best of n, STaR. The version that comes of it waits to be promoted."""
    run = await alternatives.start(
        session,
        project=project,
        kind=body.kind,
        version=await registry.get_version(session, body.version_id) if body.version_id else None,
        training=body.training,
        actor_id=caller.user.id,
        max_queued=settings.max_queued_runs,
    )
    return RunOut.model_validate(run)


@router.post("/projects/{project_id}/versions", status_code=status.HTTP_201_CREATED)
@idempotent()
async def begin_version(project: ApiProject, body: ExternalIn, caller: WriteCaller, session: SessionDep) -> ClaimOut:
    """Deliver a version that was trained elsewhere.

    The answer is a run that the caller holds for an hour (longer with heartbeats), as a worker would: put the files
    (what `save_pretrained` writes) to `/runs/{id}/artifacts/{name}`, then post to `/runs/{id}/finish` with the metrics
    as `result`. That registers the version. The token needs the scopes `write` and `worker`.
    """
    run = await external.begin(
        session,
        project=project,
        kind=body.kind,
        parent=await registry.get_version(session, body.parent_id) if body.parent_id else None,
        dataset=await datasets.get_dataset(session, body.dataset_id) if body.dataset_id else None,
        trained_with=body.training,
        actor_id=caller.user.id,
        token_id=caller.token_id,
    )
    return ClaimOut.of(run, lease_seconds=int(external.LEASE.total_seconds()))


@router.get("/runs/{run_id}/answers", response_class=StreamingResponse)
async def get_run_answers(run: PeekedRun, request: Request) -> StreamingResponse:
    """What the `judge` run that this worker holds is asked about: prompts with their answers, as JSON lines."""

    async def chunks(session: AsyncSession) -> AsyncIterator[bytes]:
        rows = judging if judging.COMPARISON in run.config else choosing
        async for chunk in write_lines(rows.answers_to_judge(session, run)):
            yield chunk

    return stream(request, chunks)


@router.get("/projects/{project_id}/plan")
async def plan(project: ApiProject, caller: ReadCaller, session: SessionDep) -> PlanOut:
    """What `train` would do now, and how long that will take."""
    return PlanOut.model_validate(await forecast.plan_training(session, project))


@router.get("/projects/{project_id}/rounds")
async def rounds(project: ApiProject, caller: ReadCaller, session: SessionDep) -> list[RoundOut]:
    """All rounds, newest first."""
    return [RoundOut.model_validate(item) for item in await service.list_rounds(session, project.id)]


@router.post("/projects/{project_id}/evaluate", status_code=status.HTTP_201_CREATED)
@idempotent()
async def evaluate(
    project: ApiProject, body: EvaluateIn, caller: WriteCaller, session: SessionDep, settings: SettingsDep
) -> RunOut:
    """Draw answers to the held-out test prompts, which nothing learns from."""
    now = await service.current_round(session, project)
    version = await registry.get_version(session, body.version_id or now.policy_version_id)
    caller.require_project(version.project_id)
    run = await sampling.start_evaluation(
        session, project=project, policy=version, actor_id=caller.user.id, max_queued=settings.max_queued_runs
    )
    return RunOut.model_validate(run)


@router.post("/projects/{project_id}/comparisons", status_code=status.HTTP_201_CREATED)
@idempotent()
async def compare(
    project: ApiProject, body: CompareIn, caller: WriteCaller, session: SessionDep, settings: SettingsDep
) -> ComparisonOut:
    """Let people compare two policies blindly: tasks like any other, on held-out prompts, until it is decided."""
    comparison = await comparisons.start(
        session,
        project=project,
        version=await registry.get_version(session, body.version_id),
        against=await registry.get_version(session, body.against_id)
        if body.against_id
        else await registry.base_version(session, project.id),
        num_prompts=body.num_prompts,
        actor_id=caller.user.id,
        max_queued=settings.max_queued_runs,
    )
    return ComparisonOut.of(await comparisons.view_of(session, comparison))


@router.get("/projects/{project_id}/comparisons")
async def list_comparisons(project: ApiProject, caller: ReadCaller, session: SessionDep) -> list[ComparisonOut]:
    """The newest comparisons with their figures at this moment, newest first."""
    return [ComparisonOut.of(view) for view in await comparisons.list_comparisons(session, project.id)]


@router.post("/projects/{project_id}/comparisons/{number}:stop")
async def stop_comparison(number: int, project: ApiProject, caller: WriteCaller, session: SessionDep) -> ComparisonOut:
    """End a comparison before it is decided. What was ranked stays."""
    comparison = await comparisons.get_comparison(session, project_id=project.id, number=number)
    await ending.stop(session, comparison, actor_id=caller.user.id)
    return ComparisonOut.of(await comparisons.view_of(session, comparison))


@router.post("/versions/{version_id}:promote")
async def promote(version_id: uuid.UUID, body: PromoteIn, caller: AdminCaller, session: SessionDep) -> VersionOut:
    """Make a version the live one of its kind; a policy answers from now on."""
    version = await registry.get_version(session, version_id)
    caller.require_project(version.project_id)
    project = await get_project(session, version.project_id)
    await arrivals.promote(session, project=project, version=version, actor_id=caller.user.id, reason=body.reason)
    return VersionOut.model_validate(version)
