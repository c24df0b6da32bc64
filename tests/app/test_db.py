"""Connections that the server has ended are replaced before anybody uses them; a server that may forget is not used."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.db import (
    CONNECTIONS,
    DatabaseUnreachable,
    SessionMaker,
    check_connection,
    committed,
    make_engine,
    make_late_engine,
    make_sessionmaker,
)


async def test_a_connection_that_the_server_ended_is_replaced_unseen(empty_database_url: str) -> None:
    engine = make_engine(empty_database_url, pool_size=1)
    try:
        async with engine.connect() as connection:
            before = await connection.scalar(text("select pg_backend_pid()"))
        async with engine.connect() as connection:
            assert await connection.scalar(text("select pg_backend_pid()")) == before
        with psycopg.connect(empty_database_url) as other:
            # With a limit in milliseconds it returns when the backend has ended.
            assert other.execute("select pg_terminate_backend(%s, 10000)", [before]).fetchone() == (True,)
        async with engine.connect() as connection:
            assert await connection.scalar(text("select pg_backend_pid()")) != before
    finally:
        await engine.dispose()


async def test_a_crowd_opens_no_connections_that_are_closed_again(empty_database_url: str) -> None:
    engine = make_engine(empty_database_url)

    async def ask() -> int:
        async with engine.connect() as connection:
            (process,) = (await connection.execute(text("select pg_backend_pid()"))).one()
            return int(process)

    try:
        asked = [await asyncio.gather(*[ask() for _ in range(3 * CONNECTIONS)]) for _ in range(3)]
    finally:
        await engine.dispose()
    assert len({process for crowd in asked for process in crowd}) <= CONNECTIONS


async def test_a_session_that_was_not_committed_gives_its_connection_back(empty_database_url: str) -> None:
    engine = make_engine(empty_database_url, pool_size=1, pool_timeout=1)
    sessions = make_sessionmaker(engine)
    try:
        async with committed(sessions) as session:
            await session.execute(text("create table kept ()"))
        with pytest.raises(KeyError):
            await fail_within(sessions)
        with pytest.raises(DBAPIError):
            await fail_at_the_end(sessions)
        started = asyncio.Event()
        waiting = asyncio.create_task(wait_for_ever(sessions, started))
        await started.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        async with committed(sessions) as session:
            tables = await session.scalars(text("select relname from pg_class where relname in ('kept', 'told')"))
            assert tables.all() == ["kept"]
    finally:
        await engine.dispose()


async def fail_within(sessions: SessionMaker) -> None:
    async with committed(sessions) as session:
        await session.execute(text("drop table kept"))
        raise KeyError


async def fail_at_the_end(sessions: SessionMaker) -> None:
    async with committed(sessions) as session:
        await session.execute(text("create table told (n int unique deferrable initially deferred)"))
        await session.execute(text("insert into told values (1), (1)"))


async def wait_for_ever(sessions: SessionMaker, started: asyncio.Event) -> None:
    async with committed(sessions) as session:
        await session.execute(text("drop table kept"))
        started.set()
        await asyncio.Event().wait()


async def test_a_database_that_may_forget_what_it_took_is_not_used(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute(f'alter database "{connection.info.dbname}" set synchronous_commit = off')
    engine = make_engine(empty_database_url, pool_size=1)
    try:
        with pytest.raises(DatabaseUnreachable, match="synchronous_commit off"):
            await check_connection(engine)
    finally:
        await engine.dispose()


async def test_who_ranks_is_looked_up_by_key(empty_database_url: str) -> None:
    engine = make_late_engine(empty_database_url, pool_size=1)
    try:
        async with engine.connect() as connection:
            await connection.execute(text("create table people as select n from generate_series(1, 150) n"))
            await connection.execute(text("create unique index on people (n)"))
            await connection.execute(text("analyze people"))
            plan = (await connection.execute(text("explain select from people where n = 7"))).scalars().all()
            assert "Index" in plan[0]
            assert await connection.scalar(text("show statement_timeout")) == "2min"
    finally:
        await engine.dispose()
