"""Versions that were trained elsewhere: a team with a cluster of its own keeps collection, gates and lineage here.

The trainer opens a run of kind `external`, which it holds from the first moment as a worker would, delivers the files
under its fence, and finishes it: then the version is registered, with its run, its dataset and its parent (design,
rule 6), and waits to be promoted.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.audit import audit
from app.datasets import service as datasets
from app.datasets.models import Dataset
from app.errors import Invalid
from app.loop.delivered import Figures
from app.projects.models import Project
from app.projects.schemas import checked
from app.registry import service as registry
from app.registry.models import Version, VersionKind
from app.runs import service as runs
from app.runs.models import Run, RunKind
from app.runs.service import RunFinished

# Between two signs of life: chunks and heartbeats. Weights of many gigabytes come over a slow line.
LEASE = timedelta(hours=1)


async def begin(
    session: AsyncSession,
    *,
    project: Project,
    kind: str,
    parent: Version | None = None,
    dataset: Dataset | None = None,
    trained_with: Mapping[str, Any] | None = None,
    actor_id: uuid.UUID | None = None,
    token_id: uuid.UUID | None = None,
) -> Run:
    """Open a run that the caller holds, to deliver a version that it trained elsewhere.

    Args:
        kind: `policy` or `reward`.
        parent: the version that training began with; left out: the project's version 1.
        dataset: what it learned from; left out: nothing of this project.
        trained_with: what its page shows of how it was trained.

    Raises:
        Invalid: the parent or the dataset is another project's.
        QueueFull: too many runs wait already.
    """
    parent = parent or await registry.base_version(session, project.id)
    for name, row in (("parent_id", parent), ("dataset_id", dataset)):
        if row is not None and row.project_id != project.id:
            raise Invalid.field(name, "belongs to another project")
    config: dict[str, Any] = {
        "makes": VersionKind(kind),
        "parent": await registry.reference(session, parent),
        "training": dict(trained_with or {}),
    }
    if dataset is not None:
        config["dataset"] = datasets.reference(dataset)
    run = await runs.enqueue(
        session, project_id=project.id, kind=RunKind.EXTERNAL, config=config, created_by=actor_id, max_queued=None
    )
    # No worker of ours may take it over: who falls silent has failed.
    run.attempt = runs.MAX_ATTEMPTS - 1
    await runs.hold(session, run, worker="a trainer elsewhere", token_id=token_id, lease=LEASE)
    await audit(session, actor_id=actor_id, action="external.start", subject=str(run.id))
    return run


async def run_finished(session: AsyncSession, event: RunFinished) -> None:
    """What was delivered is a version now.

    Raises:
        Invalid: a figure has a name of ours and another shape: pages would read what is not there.
    """
    run = event.run
    if run.kind != RunKind.EXTERNAL:
        return
    checked(Figures, run.result or {})
    config = run.config
    version = await registry.register(
        session,
        project_id=run.project_id,
        kind=VersionKind(config["makes"]),
        parent=await registry.get_version(session, uuid.UUID(config["parent"]["version_id"])),
        run_id=run.id,
        dataset_id=uuid.UUID(config["dataset"]["id"]) if "dataset" in config else None,
        metrics=run.result or {},
    )
    run.result = {**(run.result or {}), "version": {"number": version.number, "kind": version.kind}}
    await session.flush()
