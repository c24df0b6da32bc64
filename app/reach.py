"""Which project an address names. The guards ask before any handler runs, so that no page and no operation can forget
that a thing of another project does not exist: `/runs/{run_id}` leads to the run's project, and to the role there.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, Text, bindparam, cast, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.wanted import ProjectFinder, ProjectQuery
from app.corpora.models import Corpus
from app.datasets.models import Dataset
from app.projects.models import Project
from app.prompts.models import Prompt
from app.quality.models import Review
from app.rankings.models import Ranking
from app.registry.models import Version
from app.runs.models import Run, RunState
from app.tasks.models import Lease, Task
from app.webhooks.models import Webhook
from app.writing.models import Writing

# Nearly every request finds a project: what it asks is put together once.
IS_THING = Project.id == bindparam("thing")
BY_ID = ProjectQuery(Project, select(Project.id).where(IS_THING), joined=IS_THING)
BY_SLUG = ProjectQuery(Project, select(Project.id).where(Project.slug == bindparam("thing")))


def by_slug(slug: str) -> tuple[ProjectQuery, str]:
    """The project of a short name."""
    return BY_SLUG, slug


def by_key(key: str) -> tuple[ProjectQuery, uuid.UUID | str]:
    """The project of an id or a short name."""
    try:
        return BY_ID, uuid.UUID(key)
    except ValueError:
        return BY_SLUG, key


def holding(table: Any) -> ProjectFinder:
    """Finds the project that a row of `table` belongs to, by the row's id."""
    return by_row(select(table.project_id), table)


def by_row(
    project_ids: Select[uuid.UUID],
    table: Any,
    along: Sequence[tuple[Any, ColumnElement[bool]]] = (),
    joined: ColumnElement[bool] | None = None,
) -> ProjectFinder:
    """Finds the project of a row by the row's id; `project_ids` says where the row names it."""
    query = ProjectQuery(Project, project_ids.where(table.id == bindparam("thing")), along, joined)

    def find(key: str) -> tuple[ProjectQuery, uuid.UUID] | None:
        try:
            return query, uuid.UUID(key)
        except ValueError:
            return None

    return find


WITH_TASK = ((Lease, Lease.id == bindparam("thing")), (Task, Task.id == Lease.task_id))
# By the name of the gap in a route's path. A gap that is not here must be in NOT_A_PROJECTS_OWN, or a test fails.
PROJECT_FINDERS: dict[str, ProjectFinder] = {
    "slug": by_slug,
    "project_id": by_key,
    "corpus_id": holding(Corpus),
    "dataset_id": holding(Dataset),
    "lease_id": by_row(select(Task.project_id).join(Lease), Lease, WITH_TASK, Project.id == Task.project_id),
    "prompt_id": holding(Prompt),
    "ranking_id": holding(Ranking),
    "review_id": holding(Review),
    "run_id": holding(Run),
    "task_id": holding(Task),
    "version_id": holding(Version),
    "webhook_id": holding(Webhook),
    "writing_id": holding(Writing),
}
# Numbers and names within a project that stands before them, people and what is theirs, and invitations, which may be
# into every project: their service compares.
NOT_A_PROJECTS_OWN = {"delivery_id", "invitation_id", "name", "number", "session_id", "token_id", "user_id"}


async def is_held(session: AsyncSession, token_id: uuid.UUID, gaps: Mapping[str, Any]) -> bool:
    """Whether the thing of an address is a run that this worker's token holds, or one that such a run's settings name:
    its dataset, its corpora, its versions.
    """
    ids = [str(value) for name, value in gaps.items() if name in PROJECT_FINDERS]
    settings = cast(Run.config, Text)
    query = select(Run.id).where(Run.claimed_token_id == token_id, Run.state == RunState.RUNNING)
    for thing in ids:
        query = query.where(or_(cast(Run.id, Text) == thing, func.strpos(settings, thing) > 0))
    return bool(ids) and await session.scalar(query.limit(1)) is not None
