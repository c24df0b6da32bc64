"""Connections that the server has ended are replaced before anybody uses them."""

from __future__ import annotations

import psycopg
from sqlalchemy import text

from app.db import make_engine


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
