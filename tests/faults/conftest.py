"""A durable PostgreSQL that may be killed with -9, beside the tests' own server, which keeps nothing."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from app.embedded import EmbeddedPostgres
from app.migrate import upgrade


@pytest.fixture(scope="module")
def durable_server() -> Iterator[EmbeddedPostgres]:
    """A server that keeps what it accepted, with a migrated database `rankloop` to copy."""
    folder = Path(tempfile.mkdtemp(prefix="rankloop-durable-"))
    folder.chmod(0o755)
    server = EmbeddedPostgres(folder)
    try:
        server.start().create_database("rankloop")
        upgrade(server.url())
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


@pytest.fixture
def durable_url(durable_server: EmbeddedPostgres) -> str:
    """A migrated database of one test; it goes with its server."""
    name = f"rankloop_test_{secrets.token_hex(6)}"
    with psycopg.connect(durable_server.url("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("create database {} template rankloop").format(sql.Identifier(name)))
    return durable_server.url(name)
