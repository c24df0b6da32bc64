"""The project that an address names, as a dependency: by id or short name on the API, by short name on pages."""

from __future__ import annotations

import uuid
from typing import Annotated

from fastapi import Depends
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.guards import AccessDep, ApiCaller, find_caller
from app.projects import service
from app.projects.models import AnyProject, Project, ProjectFacts


async def find_project(session: AsyncSession, key: str) -> Project:
    """A project by id or short name.

    Raises:
        NotFound: there is none.
    """
    try:
        return await service.get_project(session, uuid.UUID(key))
    except ValueError:
        return await service.get_project_by_slug(session, key)


async def project_of_path(caller: Annotated[ApiCaller, Depends(find_caller)]) -> Project:
    """The project of an API address or body, which the guards found and asked about already."""
    assert isinstance(caller.project, Project), "this request names no project"
    return caller.project


def known_project(caller: ApiCaller) -> AnyProject:
    """The same, or only its facts."""
    assert isinstance(caller.project, Project | ProjectFacts), "this request names no project"
    return caller.project


async def project_of_slug(access: AccessDep) -> Project:
    """The project of a page's address. Whoever has no role in it was sent away by the guards."""
    assert isinstance(access.project, Project), "this address names no project"
    return access.project


ApiProject = Annotated[Project, Depends(project_of_path)]
PageProject = Annotated[Project, Depends(project_of_slug)]
