"""A few columns of a few rows, straight from the driver: for what is asked at every ranking, hundreds of times a
second.

A query is put together by SQLAlchemy, once; each time it runs, it goes past SQLAlchemy's results and objects, which
cost more than all else at such a request (a guard's query: 0.9 ms of CPU with whole rows, 0.4 without). Instead of rows
of tables there are facts: named tuples with those of a table's columns that this road needs; nothing writes them back.
"""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import psycopg
from sqlalchemy import Select
from sqlalchemy.dialects.postgresql.psycopg import PGDialectAsync_psycopg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

Table = TypeVar("Table")
Values = Mapping[str, Any]
Driver = psycopg.AsyncConnection[Any]


@dataclass(frozen=True)
class Question:
    """A query in the driver's words, and what its columns are: the facts of a table, each with the places of its
    columns, or a value of its own.
    """

    sql: str
    kinds: tuple[tuple[Any, int, int], ...]

    @classmethod
    def of(cls, sql: str, *kinds: Any) -> Question:
        """From SQL whose columns are those of these kinds of facts, or values (None), one after the other."""
        placed, end = [], 0
        for kind in kinds:
            start, end = end, end + (len(kind._fields) if kind else 1)
            placed.append((kind, start, end))
        return cls(sql, tuple(placed))

    def read(self, row: tuple[Any, ...]) -> list[Any]:
        """The facts and values of a row. Of a row that an outer join did not find there are none."""
        found: list[Any] = []
        for kind, start, end in self.kinds:
            value = row[start]
            found.append(kind._make(row[start:end]) if kind and value is not None else value)
        return found


@cache
def few_columns(query: Select[Any]) -> Question:
    """The same query, which says where it selects from, with only these columns of each table that has `Facts`."""
    kinds, columns = [], []
    for told in query.column_descriptions:
        kind = getattr(told["expr"], "Facts", None)
        kinds.append(kind)
        columns += [getattr(told["expr"], name) for name in kind._fields] if kind else [told["expr"]]
    narrow = query.with_only_columns(*columns)
    dialect = PGDialectAsync_psycopg()  # type: ignore[no-untyped-call]
    return Question.of(str(narrow.compile(dialect=dialect)), *kinds)


async def ask(session: AsyncSession, question: Question, values: Values) -> list[Any] | None:
    """The facts and values of the one row that is found, if one is.

    Raises:
        DBAPIError: as SQLAlchemy would raise it.
    """
    if session.new or session.dirty:
        await session.flush()
    driver = await driver_of(session)
    try:
        cursor = await driver.execute(question.sql, values)
        row = await cursor.fetchone()
    except psycopg.Error as error:
        if driver.closed:
            await (await session.connection()).invalidate(error)
        raise DBAPIError.instance(
            question.sql, None, error, psycopg.Error, hide_parameters=True, connection_invalidated=driver.closed
        ) from error
    return question.read(row) if row else None


async def driver_of(session: AsyncSession) -> Driver:
    """The driver's connection of a session's transaction, which SQLAlchemy is asked for once: each way there is a
    greenlet of its own.
    """
    transaction = session.sync_session.get_transaction()
    known: tuple[weakref.ref[Any], Driver] | None = session.info.get("driver")
    if known is not None and transaction is not None and known[0]() is transaction:
        return known[1]
    connection = await session.connection()
    driver = connection.sync_connection.connection.driver_connection  # type: ignore[union-attr]
    assert isinstance(driver, psycopg.AsyncConnection)
    # A weak reference: the session, which the transaction knows, is to go with its request.
    session.info["driver"] = weakref.ref(session.sync_session.get_transaction()), driver
    return driver


# What was found already


def remember(session: AsyncSession, found: list[Any]) -> None:
    """Facts that the guards found beside who asks: the handler wants them next."""
    session.info["facts"] = {(type(fact), fact.id): fact for fact in found if hasattr(fact, "_fields")}


async def get(session: AsyncSession, table: Any, key: uuid.UUID) -> Any:
    """The facts of a row where they are known, else the row itself; None: there is none."""
    known = session.info.get("facts", {}).get((table.Facts, key))
    return known or await session.get(table, key)
