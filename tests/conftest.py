"""The test database: one server and one migrated template a session, every test rolled back. `DATABASE_URL` is ignored.

`TEST_DATABASE_URL` may name a server, on which databases called `rankloop_test_*` are created and dropped, and no
others; without it the tests start an embedded PostgreSQL in a temporary folder.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import psycopg
import pytest
from httpx2 import ASGITransport, AsyncClient
from psycopg import sql
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from app.config import Settings
from app.db import SessionMaker, make_engine
from app.embedded import EmbeddedPostgres
from app.migrate import upgrade

# On a small busy machine the threads of OpenMP spin against each other. Set before anything loads torch.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
for name in [name for name in os.environ if name == "DATABASE_URL" or name.startswith("RANKLOOP_")]:
    del os.environ[name]

# No limit of time, which a busy machine breaks, and the same examples in every run.
hypothesis.settings.register_profile(
    "rankloop", deadline=None, suppress_health_check=list(hypothesis.HealthCheck), derandomize=True
)
hypothesis.settings.load_profile("rankloop")

# Their files take a minute each; those of tests/app, which take seconds, fill what is left at the end on every core.
LONG_FIRST = (
    *("tests/story/", "tests/contract/", "tests/browser/", "tests/faults/", "tests/trainer/"),
    *("tests/app/test_supervisor.py", "tests/app/test_embedded.py", "tests/app/test_serve.py", "tests/app/operations/"),
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with what takes longest, and leave the soak to `make soak`, whatever else -m asks for."""
    items.sort(key=lambda item: [not item.nodeid.startswith(folder) for folder in LONG_FIRST])
    if "soak" not in config.option.markexpr:
        soaking = [item for item in items if item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=soaking)
        items[:] = [item for item in items if item not in soaking]


@dataclass(frozen=True)
class DatabaseServer:
    """A PostgreSQL server for tests, by the address of any database on it."""

    address: str

    def url(self, name: str) -> str:
        """The address of a database on this server."""
        return make_url(self.address).set(database=name).render_as_string(hide_password=False)

    def create(self, *, template: str = "template1") -> str:
        """Make a database as a copy of another; its name begins with `rankloop_test_`."""
        name = f"rankloop_test_{secrets.token_hex(6)}"
        statement = "create database {} template {} strategy file_copy"
        self._execute(sql.SQL(statement).format(sql.Identifier(name), sql.Identifier(template)))
        return name

    def drop(self, name: str) -> None:
        """Drop a database that `create` made, together with the connections to it."""
        assert name.startswith("rankloop_test_"), "tests drop their own databases only"
        self._execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.address, autocommit=True) as connection:
            connection.execute(statement)


@pytest.fixture(scope="session")
def database_server() -> Iterator[DatabaseServer]:
    """The server of this session."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        yield DatabaseServer(given.replace("postgres://", "postgresql://", 1))
        return
    # Not pytest's tmp_path: its folders are closed to the user that the server runs as when the tests run as root.
    folder = Path(tempfile.mkdtemp(prefix="rankloop-test-"))
    folder.chmod(0o755)
    try:
        with EmbeddedPostgres(folder, durable=False) as server:
            yield DatabaseServer(server.url("postgres"))
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def template_database(database_server: DatabaseServer) -> Iterator[str]:
    """The name of a database that alembic has brought to head and nothing connects to."""
    name = database_server.create()
    upgrade(database_server.url(name))
    yield name
    database_server.drop(name)


@pytest.fixture
def empty_database_url(database_server: DatabaseServer) -> Iterator[str]:
    """The address of a database without any table, for one test."""
    name = database_server.create()
    yield database_server.url(name)
    database_server.drop(name)


@pytest.fixture
def fresh_database_url(
    request: pytest.FixtureRequest, database_server: DatabaseServer, template_database: str
) -> Iterator[str]:
    """The address of a migrated database of the test's own, for tests marked `real_commits`."""
    assert request.node.get_closest_marker("real_commits"), "mark this test with @pytest.mark.real_commits"
    name = database_server.create(template=template_database)
    yield database_server.url(name)
    database_server.drop(name)


@pytest.fixture(scope="session")
async def shared_engine(database_server: DatabaseServer, template_database: str) -> AsyncIterator[AsyncEngine]:
    """An engine on the database that all rolled-back tests share. Use `sessionmaker` or `session` instead."""
    name = database_server.create(template=template_database)
    engine = make_engine(database_server.url(name), pool_size=2)
    yield engine
    await engine.dispose()
    database_server.drop(name)


@pytest.fixture
async def sessionmaker(shared_engine: AsyncEngine) -> AsyncIterator[SessionMaker]:
    """Sessions on one connection, as the app makes them: a commit ends a savepoint; the test's end undoes all."""
    async with shared_engine.connect() as connection:
        transaction = await connection.begin()
        yield async_sessionmaker(connection, expire_on_commit=False, join_transaction_mode="create_savepoint")
        await transaction.rollback()


@pytest.fixture
async def session(sessionmaker: SessionMaker) -> AsyncIterator[AsyncSession]:
    """One session of `sessionmaker`."""
    async with sessionmaker() as session:
        yield session


@pytest.fixture
async def client(sessionmaker: SessionMaker, tmp_path: Path) -> AsyncIterator[AsyncClient]:
    """A browser without a window: the app itself, on the sessions of this test, with nobody signed in."""
    from tests.borrowed import borrowed_app

    with borrowed_app(Settings(data_dir=tmp_path), sessionmaker) as app:
        async with AsyncClient(transport=ASGITransport(app), base_url="http://127.0.0.1:8000") as client:
            yield client
