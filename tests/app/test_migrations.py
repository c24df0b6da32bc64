"""Migrations: they lead to the tables that the models name, and every step back leads to where it came from."""

from __future__ import annotations

import psycopg
from alembic import command
from alembic.script import ScriptDirectory

from app.migrate import alembic_config, upgrade

EVERYTHING = """
select 'column ' || table_name || '.' || column_name || ' ' || data_type || ' ' || coalesce(column_default, '')
       || ' ' || is_nullable from information_schema.columns where table_schema = 'public'
union all select 'index ' || indexdef from pg_indexes where schemaname = 'public'
union all select 'constraint ' || conname || ' ' || pg_get_constraintdef(oid) from pg_constraint
          where connamespace = 'public'::regnamespace
union all select 'function ' || proname || ' ' || prosrc from pg_proc where pronamespace = 'public'::regnamespace
union all select 'trigger ' || tgname || ' ' || pg_get_triggerdef(oid) from pg_trigger where not tgisinternal
order by 1
"""


def everything(url: str) -> list[str]:
    """Each column, index, constraint, function and trigger of a database, in words."""
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute(EVERYTHING)]


def test_the_models_and_the_migrations_name_the_same_tables(empty_database_url: str) -> None:
    upgrade(empty_database_url)
    command.check(alembic_config(empty_database_url))


def test_every_migration_can_be_taken_back(empty_database_url: str) -> None:
    url = empty_database_url
    revisions = [script.revision for script in ScriptDirectory.from_config(alembic_config(url)).walk_revisions()]
    seen = []
    for revision in reversed(revisions):
        seen.append(everything(url))
        upgrade(url, revision)
    for before in reversed(seen):
        command.downgrade(alembic_config(url), "-1")
        assert [line for line in everything(url) if "alembic_version" not in line] == [
            line for line in before if "alembic_version" not in line
        ]


def test_migrations_are_one_chain() -> None:
    script = ScriptDirectory.from_config(alembic_config("postgresql://nowhere"))
    assert len(script.get_heads()) == 1
    assert [step.revision for step in script.walk_revisions()] == sorted(
        (step.revision for step in script.walk_revisions()), reverse=True
    )
