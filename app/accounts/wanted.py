"""The project that an address names, and its search together with who asks for it: nearly all requests need both."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Protocol

from sqlalchemy import ColumnElement, Select, select
from sqlalchemy.ext.asyncio import AsyncSession


class NamedProject(Protocol):
    """What is known of a project here."""

    id: uuid.UUID
    slug: str
    name: str


@dataclass(frozen=True, eq=False)
class ProjectQuery:
    """How a thing leads to its project: `ids` selects the project's id for the bound value `thing`.

    `along`: what else is looked up with who asks, each with the condition that joins it: the handler wants it next.
    `joined`: how the project is found beside these, where that is shorter than by `ids`.
    """

    table: Any
    ids: Select[Any]
    along: Sequence[tuple[Any, ColumnElement[bool]]] = ()
    joined: ColumnElement[bool] | None = None

    @cached_property
    def is_it(self) -> ColumnElement[bool]:
        """Whether a project is the one."""
        is_it: ColumnElement[bool] = self.table.id == self.ids.correlate(None).scalar_subquery()
        return is_it

    @cached_property
    def alone(self) -> Select[Any]:
        """The project."""
        return select(self.table).where(self.is_it)

    @cache  # noqa: B019 (a handful, which live as long as the process)
    def beside(self, query: Select[Any]) -> Select[Any]:
        """What another query finds, beside it what comes along, and, as the last column, the project; or nothing."""
        is_it = self.is_it if self.joined is None else self.joined
        for table, is_joined in (*self.along, (self.table, is_it)):
            query = query.add_columns(table).outerjoin(table, is_joined)
        return query


# How to look, and for what; None: there can be no such thing.
Wanted = tuple[ProjectQuery, Any]
ProjectFinder = Callable[[str], Wanted | None]


async def find_wanted(session: AsyncSession, wanted: Wanted | None) -> NamedProject | None:
    """The project by itself."""
    if wanted is None:
        return None
    query, thing = wanted
    project: NamedProject | None = await session.scalar(query.alone, {"thing": thing})
    return project
