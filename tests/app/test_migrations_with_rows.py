"""Migrations on a database that is full: down to the first tables and up again, nothing of what they hold is lost."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from alembic import command
from psycopg import sql
from sqlalchemy.ext.asyncio import AsyncSession

from app.datasets.service import freeze
from app.db import make_engine, make_sessionmaker
from app.loop import subscriptions
from app.migrate import alembic_config, upgrade
from app.projects.models import Project
from app.prompts.models import RunPrompt
from app.runs import service as runs
from benchmarks.load.fill import Site
from tests.app.test_matrix import build
from tests.factories import make_project, make_prompt, make_ranking, make_run, make_task, make_user

pytestmark = [pytest.mark.slow]
NUM_ROWS = 10_000
NUM_PEOPLE = 50
FIRST = "0001"
# What a way down has to change: roles that there were none of, tasks on their way to people, labels that are required.
MAY_CHANGE = {("users", "role"), ("leases", "state"), ("projects", "labels")}
Columns = dict[str, list[str]]


def fill(url: str, folder: Path, num: int) -> None:
    """Something in every table, and so many tasks, each with four answers, a lease and a ranking of them."""
    project_id, people = asyncio.run(add_one_of_everything(url))
    Site(url, project_id, people, folder).add_tasks(num)


async def add_one_of_everything(url: str) -> tuple[uuid.UUID, list[uuid.UUID]]:
    """The project of the matrix of routes, and another one with people for the tasks."""
    subscriptions.subscribe()
    engine = make_engine(url, pool_size=1)
    async with make_sessionmaker(engine).begin() as session:
        await build(session, await session.connection())
        await add_a_run(session, await make_project(session))
        project = await make_project(session)
        people = [(await make_user(session)).id for _ in range(NUM_PEOPLE)]
    await engine.dispose()
    return project.id, people


async def add_a_run(session: AsyncSession, project: Project) -> None:
    """A run with all that runs have, and a frozen data set."""
    prompt, run = await make_prompt(session, project), await make_run(session, project)
    session.add(RunPrompt(run_id=run.id, position=0, prompt_id=prompt.id))
    await runs.add_metrics(session, run, points=[(1, "loss", 0.5)])
    await runs.add_log(session, run_id=run.id, lines=[("info", "began")])
    await runs.record_artifact(session, run, name="model.safetensors", size=1, sha256="0" * 64)
    await make_ranking(session, await make_task(session, prompt))
    await freeze(session, project=project)


def columns_of(url: str) -> Columns:
    """The columns of every table but alembic's."""
    query = """
        select table_name, array_agg(column_name::text order by column_name) from information_schema.columns
        join pg_tables on schemaname = table_schema and tablename = table_name
        where table_schema = 'public' and table_name <> 'alembic_version' group by table_name"""
    with psycopg.connect(url) as connection:
        return dict(connection.execute(query).fetchall())


def contents(url: str, columns: Columns) -> dict[str, tuple[int, int]]:
    """How many rows each table has, and a sum of the hashes of what is in these columns."""
    statement = "select count(*), coalesce(sum(hashtext(row({})::text)), 0) from {}"
    found = {}
    with psycopg.connect(url) as connection:
        for table, names in columns.items():
            kept = sql.SQL(", ").join(sql.Identifier(name) for name in names if (table, name) not in MAY_CHANGE)
            row = connection.execute(sql.SQL(statement).format(kept, sql.Identifier(table))).fetchone()
            assert row is not None
            found[table] = (row[0], row[1])
    return found


def check_round_trip(url: str, folder: Path, num: int, climb: Callable[[str], object] = upgrade) -> None:
    """Up, filled, down to the first tables, up by `climb`, down to nothing, up."""
    upgrade(url, FIRST)
    first = columns_of(url)
    upgrade(url)
    now = columns_of(url)
    columns = {table: [name for name in first[table] if name in now[table]] for table in first if table in now}
    fill(url, folder, num)
    before = contents(url, columns)
    assert [table for table, (num_rows, _) in before.items() if not num_rows] == []
    command.downgrade(alembic_config(url), FIRST)
    assert contents(url, columns) == before
    climb(url)
    assert contents(url, columns) == before
    command.check(alembic_config(url))
    command.downgrade(alembic_config(url), "base")
    upgrade(url)
    assert {num_rows for num_rows, _ in contents(url, columns_of(url)).values()} == {0}


def test_nothing_of_a_full_database_is_lost_on_the_way_down_and_up(empty_database_url: str, tmp_path: Path) -> None:
    check_round_trip(empty_database_url, tmp_path, NUM_ROWS)
