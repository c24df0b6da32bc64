"""The database: the base of all tables, kinds of columns, engine and sessions. It knows no domain."""

from __future__ import annotations

import asyncio
import select
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

from sqlalchemy import ColumnElement, DateTime, ForeignKey, Integer, MetaData, Text, Uuid, event, func, literal, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.exc import DisconnectionError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, mapped_column

NAMING_CONVENTION = {
    "ix": "ix_%(column_0_N_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}

SessionMaker = async_sessionmaker[AsyncSession]


class Base(DeclarativeBase):
    """The base of all tables."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text,
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        list[Any]: JSONB,
        list[str]: ARRAY(Text),
        list[uuid.UUID]: ARRAY(Uuid),
    }


UuidKey = Annotated[
    uuid.UUID, mapped_column(primary_key=True, default=uuid.uuid4, server_default=text("gen_random_uuid()"))
]
Created = Annotated[datetime, mapped_column(server_default=func.now())]
TrueByDefault = Annotated[bool, mapped_column(server_default=text("true"), default=True)]
FalseByDefault = Annotated[bool, mapped_column(server_default=text("false"), default=False)]
ZeroByDefault = Annotated[int, mapped_column(server_default=text("0"), default=0)]
EmptyObject = Annotated[dict[str, Any], mapped_column(JSONB, server_default=text("'{}'"), default=dict)]
UserId = Annotated[uuid.UUID, mapped_column(ForeignKey("users.id", ondelete="SET NULL"))]
ProjectId = Annotated[uuid.UUID, mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))]


DURABILITY_QUERY = text(
    "select name, setting from pg_settings where name in ('fsync', 'full_page_writes', 'synchronous_commit')"
)


def at_most(num: int) -> ColumnElement[int]:
    """A limit as it stands in the statement. Of a parameter a kept plan knows nothing: it takes a tenth of all rows for
    likely, and reads a large table from end to end for the first few."""
    return literal(num, Integer, literal_execute=True)


def stamp(moment: datetime | None) -> str:
    """A moment as text whose order is that of time, to the microsecond as it is stored; empty for none."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds") if moment else ""


class DatabaseUnreachable(Exception):
    """The database cannot be reached."""


# How many connections a web process has: for all requests but those that begin late, and for these. They are kept: one
# that is closed after its use, as SQLAlchemy's overflow is, takes its server process with it, and all plans and tables
# that it had at hand. At 150 rankings a second, to open them anew was half of PostgreSQL's work.
CONNECTIONS = 10
LATE_CONNECTIONS = 6
# Statements that wait for a lock for long fail rather than hold a page.
SETTINGS = {"lock_timeout": "10s", "statement_timeout": "120s"}
# Who ranks is asked for by keys alone. As if a page beside were much nearer than another one, as on a turning disk,
# PostgreSQL reads a table of hundred people from end to end instead, eight times a ranking: a tenth of its work for it.
SETTINGS_BY_KEY = SETTINGS | {"random_page_cost": "1.1"}


def make_engine(url: str, *, settings: Mapping[str, str] = SETTINGS, **options: Any) -> AsyncEngine:
    """An engine on psycopg 3; `settings` are PostgreSQL's, for its connections."""
    options.setdefault("pool_size", CONNECTIONS)
    options.setdefault("max_overflow", 0)
    # The connection that was given back last: its server process has its plans and tables at hand, and few are in use.
    options.setdefault("pool_use_lifo", True)
    engine = create_async_engine(
        url.replace("postgres://", "postgresql://", 1).replace("postgresql://", "postgresql+psycopg://", 1),
        hide_parameters=True,  # what people wrote is in no message of an error
        connect_args={
            "connect_timeout": 5,
            "keepalives_idle": 60,
            "options": " ".join(f"-c {name}={value}" for name, value in settings.items()),
        },
        **options,
    )
    event.listen(engine.sync_engine, "checkout", replace_if_ended)
    return engine


def replace_if_ended(connection: Any, record: object, proxy: object) -> None:
    """Have the pool replace a connection that the server has ended. Unlike a ping, it asks the server nothing.

    A server that ends, `kill -9` included, closes its sockets, and a socket that was closed can be read at once. On a
    connection that nobody uses there is else nothing to read.
    """
    waiting = select.poll()
    raw = connection.driver_connection
    if not raw.closed:
        waiting.register(raw.fileno(), select.POLLIN)
    if raw.closed or waiting.poll(0):
        raise DisconnectionError


def make_sessionmaker(engine: AsyncEngine) -> SessionMaker:
    """Sessions whose objects stay readable after the commit, as the answer is made from them."""
    return async_sessionmaker(engine, expire_on_commit=False)


# A session with this in its `info` has no transaction yet.
BEGINS_LATE = "begins_late"


def make_late_engine(url: str, **options: Any) -> AsyncEngine:
    """An engine for `make_late_sessionmaker`. Few connections are faster than many: their server processes are in each
    other's way on few cores. And whoever ranks never waits behind exports and long pages, which have the others.
    """
    options.setdefault("pool_size", LATE_CONNECTIONS)
    return make_engine(url, settings=SETTINGS_BY_KEY, isolation_level="AUTOCOMMIT", **options)


def make_late_sessionmaker(engine: AsyncEngine) -> SessionMaker:
    """Sessions in which each statement is a transaction of its own, until `begin` is called.

    For requests that need only one statement which writes: to begin and to commit are two ways to the database more.
    """
    return async_sessionmaker(engine, expire_on_commit=False, info={BEGINS_LATE: True})


async def begin(session: AsyncSession) -> None:
    """Make what follows one transaction. In a session that began with its first statement there is nothing to do."""
    if session.info.pop(BEGINS_LATE, False):
        await session.execute(text("begin"))


async def let_go(session: AsyncSession) -> None:
    """Commit what was done so far, and give the connection back: before something is waited for that takes its time,
    or that needs a connection of its own. Where all of a process's connections wait for one more, they wait for ever.

    What was loaded can still be read; the next statement begins another transaction.
    """
    await session.commit()


@asynccontextmanager
async def committed(sessions: SessionMaker) -> AsyncIterator[AsyncSession]:
    """A session that is committed at the end. One that was holds nothing any more; one that was not is closed."""
    session = sessions()
    try:
        yield session
        await session.commit()
    except BaseException:
        # To the end, whoever is cancelled: the connection goes back to its pool.
        await asyncio.shield(session.close())
        raise


@asynccontextmanager
async def standalone_session(url: str) -> AsyncIterator[AsyncSession]:
    """One transaction with an engine of its own, for commands. Commits at the end.

    Raises:
        DatabaseUnreachable: nothing answers at the address.
    """
    engine = make_engine(url, pool_size=1)
    try:
        await check_connection(engine)
        async with make_sessionmaker(engine).begin() as session:
            yield session
    finally:
        await engine.dispose()


async def check_connection(engine: AsyncEngine) -> None:
    """Ask the database for a sign of life and for the settings that durability rests on (design, rule 4).

    Raises:
        DatabaseUnreachable: nothing answers, or a setting would lose acknowledged rankings.
    """
    try:
        async with engine.connect() as connection:
            rows = await connection.execute(DURABILITY_QUERY)
            settings: dict[str, str] = dict(rows.all())
    except OperationalError as error:
        where = engine.url.render_as_string(hide_password=True)
        raise DatabaseUnreachable(
            f"The database at {where} cannot be reached: {str(error.orig).strip()}. Start it, or correct DATABASE_URL; "
            "without DATABASE_URL, `rankloop up` starts a PostgreSQL of its own."
        ) from error
    unsafe = sorted(name for name, value in settings.items() if value == "off")
    if unsafe:
        raise DatabaseUnreachable(
            f"The database runs with {', '.join(unsafe)} off, so that an accepted ranking could be lost. "
            "Turn it on in postgresql.conf."
        )
