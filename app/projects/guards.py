"""The project that an address names, as a dependency: by id or short name on the API, by short name on pages."""

from __future__ import annotations

import uuid
from typing import Annotated

from fastapi import Depends
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.guards import ApiCaller, find_caller
from app.projects import service
from app.projects.models import Project
from app.web import SessionDep


async def find_project(session: AsyncSession, key: str) -> Project:
    """A project by id or short name.

    Raises:
        NotFound: there is none.
    """
    try:
        return await service.get_project(session, uuid.UUID(key))
    except ValueError:
        return await service.get_project_by_slug(session, key)


async def project_of_path(
    project_id: str, session: SessionDep, caller: Annotated[ApiCaller, Depends(find_caller)]
) -> Project:
    """The project of an API address, if the caller's token reaches it."""
    project = await find_project(session, project_id)
    caller.require_project(project.id)
    return project


async def project_of_slug(slug: str, session: SessionDep) -> Project:
    """The project of a page's address."""
    return await service.get_project_by_slug(session, slug)


ApiProject = Annotated[Project, Depends(project_of_path)]
PageProject = Annotated[Project, Depends(project_of_slug)]
