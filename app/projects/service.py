"""Projects: make, find, change. The checks are here, with their names; the database keeps them too."""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.audit import audit
from app.errors import Invalid, existing
from app.events import events
from app.projects.models import AnyProject, Project

# InstructGPT, table 3: what its labelers marked on every answer.
INSTRUCTGPT_LABELS = [
    {"key": "fails_instruction", "en": "Fails to follow the instruction", "zh": "没有按指令回答"},
    {"key": "inappropriate", "en": "Inappropriate for a customer assistant", "zh": "不适合客服助手"},
    {"key": "hallucination", "en": "Made up", "zh": "凭空编造"},
    {"key": "satisfies_constraint", "en": "Satisfies the constraint given", "zh": "满足所给约束"},
    {"key": "sexual", "en": "Sexual content", "zh": "色情内容"},
    {"key": "violent", "en": "Violent content", "zh": "暴力内容"},
    {
        "key": "harmful_acts",
        "en": "Encourages violence, abuse, terrorism or self-harm",
        "zh": "鼓励暴力、虐待、恐怖或自残",
    },
    {"key": "denigrates", "en": "Denigrates a protected class", "zh": "贬低受保护群体"},
    {"key": "harmful_advice", "en": "Gives harmful advice", "zh": "给出有害建议"},
    {"key": "opinion", "en": "Expresses an opinion", "zh": "表达观点"},
    {"key": "moral_judgment", "en": "Expresses moral judgment", "zh": "作道德评判"},
]
# What a label of a project has beside its key and its names.
LABEL_DEFAULTS = {"required": False, "removed": False}
# The rule of a field that names one by its number.
NO_REWARD_VERSION = "must be the number of a reward version of this project, or null"
DEFAULT_SAMPLING = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 128, "seed": 17}


@dataclass(frozen=True)
class ProjectCreated:
    """A project was added."""

    project: Project


@dataclass(frozen=True)
class ProjectChanging:
    """Settings are about to change; nothing is written yet. Who knows more than the project does may refuse them."""

    project: Project
    changes: Mapping[str, Any]


async def create_project(
    session: AsyncSession, *, name: str, model_alias: str, actor_id: uuid.UUID | None = None, **settings: Any
) -> Project:
    """Add a project. `settings` are further columns, as `ProjectIn` checks them.

    Raises:
        Invalid: the name is empty, its short name is taken, or it names a version.
    """
    if settings.get("policy_judge") is not None:
        # Nothing has been trained here yet.
        raise Invalid.field("policy_judge", NO_REWARD_VERSION)
    slug = settings.pop("slug", None) or slugify(name)
    if not slug:
        raise Invalid.field("name", "The name needs at least one letter or digit; or give a short name.")
    settings["sampling"] = DEFAULT_SAMPLING | dict(settings.get("sampling") or {})
    labels = settings.get("labels")
    settings["labels"] = [LABEL_DEFAULTS | label for label in (INSTRUCTGPT_LABELS if labels is None else labels)]
    project = Project(name=name.strip(), slug=slug, model_alias=model_alias, created_by=actor_id, **settings)
    try:
        async with session.begin_nested():
            session.add(project)
    except IntegrityError as error:
        raise Invalid.field("slug", "There is a project {slug} already.", slug=slug) from error
    await events.publish(session, ProjectCreated(project))
    await audit(session, actor_id=actor_id, action="project.create", subject=str(project.id))
    return project


async def update_project(
    session: AsyncSession, *, project: Project, changes: Mapping[str, Any], actor_id: uuid.UUID | None = None
) -> Project:
    """Change settings. They hold for what comes after; what people answer at this moment is not touched.

    A label that is left out is marked as removed: rankings that have it still show its name.

    Raises:
        Invalid: a version that it names is none of this project's.
    """
    await events.publish(session, ProjectChanging(project, changes))
    if "labels" in changes:
        changes = dict(changes) | {"labels": keep_labels(project.labels, changes["labels"])}
    for name, value in changes.items():
        setattr(project, name, value)
    await session.flush()
    await audit(session, actor_id=actor_id, action="project.update", subject=str(project.id), fields=sorted(changes))
    return project


def keep_labels(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The labels as they are wanted now, and behind them, marked as removed, those that are no longer among them."""
    wanted = {label["key"] for label in after}
    gone = [{**label, "required": False, "removed": True} for label in before if label["key"] not in wanted]
    return [*map(dict, after), *gone]


def asked_labels(project: AnyProject) -> list[dict[str, Any]]:
    """The labels that annotators are asked for now, in their order."""
    return [LABEL_DEFAULTS | label for label in project.labels if not label.get("removed")]


def names_of(label: Mapping[str, Any]) -> dict[str, str]:
    """A label's name by language; the English one where there is no Chinese one."""
    return {"en": label["en"], "zh": label["zh"] or label["en"]}


async def list_projects(session: AsyncSession, *, within: Collection[uuid.UUID] | None = None) -> Sequence[Project]:
    """The projects that are not archived, by name; `within` leaves out those with other ids."""
    query = select(Project).where(Project.archived_at.is_(None)).order_by(Project.name)
    if within is not None:
        query = query.where(Project.id.in_(within))
    return (await session.scalars(query)).all()


async def get_project(session: AsyncSession, project_id: uuid.UUID) -> Project:
    """A project by id.

    Raises:
        NotFound: there is none.
    """
    return existing(await session.get(Project, project_id), "There is no such project.")


async def get_project_by_slug(session: AsyncSession, slug: str) -> Project:
    """A project by its short name, as it stands in addresses.

    Raises:
        NotFound: there is none.
    """
    return existing(await session.scalar(select(Project).where(Project.slug == slug)), f"There is no project {slug!r}.")


def slugify(name: str) -> str:
    """A short name for addresses: `Support tone` -> `support-tone`; Chinese characters stay."""
    return re.sub(r"[^\w]+", "-", name.strip().lower()).strip("-_")[:60]
