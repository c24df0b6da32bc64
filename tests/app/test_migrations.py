"""Migrations: they lead to the tables that the models name, and every step back leads to where it came from."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.script import ScriptDirectory

from app.migrate import alembic_config, upgrade

ROOT = Path(__file__).resolve().parents[2]
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


# Until the first release, tables are small and nobody serves while they change. After it, each of these stops writers
# (or readers) of a table for as long as it is large; docs/operate.md promises that the old processes serve on.
LAST_BEFORE_THE_FIRST_RELEASE = "0039"
LOCKING = {
    r"create_index\((?![^)]*postgresql_concurrently)": "an index on a table that is there: build it concurrently",
    r"create_(foreign_key|check_constraint)\((?![^)]*postgresql_not_valid)": "a constraint: add it not valid",
    r"create_unique_constraint\(": "a unique constraint: build the index concurrently, then attach it",
    r"alter_column\([^)]*(type_|nullable=False|new_column_name)": "a changed column: add another, fill it",
    r"(drop_column|drop_table|rename_table)\(": "the old processes may still ask for it: drop it in a later release",
    r"alter table[^;]*(alter column[^;]*type|set not null|rename)": "a changed column, in SQL",
    r"lock table|vacuum full|cluster ": "a lock, in SQL",
    r"drop function": "the old processes may still call it: drop it in a later release",
}


def locks(source: str) -> list[str]:
    """What a migration's way up does that stops others; nothing where it says `# lock:` and why it is short."""
    up = source.partition("def downgrade")[0]
    new_tables = set(re.findall(r"create_table\(\s*\"(\w+)\"", up))
    found = []
    for pattern, advice in LOCKING.items():
        for match in re.finditer(pattern, up, re.IGNORECASE):
            before, here = up[: match.start()].splitlines()[-2:], up[match.start() : match.start() + 200]
            if "# lock:" not in "\n".join(before) and not any(f'"{table}"' in here for table in new_tables):
                found.append(f"{match[0][:40]!r}: {advice}; or say above it `# lock:` and why it is short")
    return found


def test_no_migration_stops_those_who_work() -> None:
    files = sorted((ROOT / "migrations/versions").glob("*.py"))
    assert len(files) > 18
    later = [path for path in files if path.name[:4] > LAST_BEFORE_THE_FIRST_RELEASE]
    assert {path.name: locks(path.read_text()) for path in later if locks(path.read_text())} == {}


@pytest.mark.parametrize(
    ("line", "num"),
    [
        ('op.add_column("tasks", sa.Column("x", sa.Integer()))', 0),
        ('op.create_index("ix", "tasks", ["x"])', 1),
        ('op.execute("drop function sheet_of(uuid)")', 1),
        ('op.create_index("ix", "tasks", ["x"], postgresql_concurrently=True)', 0),
        ('# lock: the table holds a row a project\nop.create_index("ix", "tasks", ["x"])', 0),
        ('op.create_table("new", sa.Column("x"))\nop.create_index("ix", "new", ["x"])', 0),
        ('op.alter_column("tasks", "x", nullable=False)', 1),
        ('op.drop_column("tasks", "x")', 1),
        ('op.execute("alter table tasks alter column x type bigint")', 1),
        ('pass\ndef downgrade() -> None:\n    op.drop_column("tasks", "x")', 0),
    ],
)
def test_a_locking_step_is_seen(line: str, num: int) -> None:
    assert len(locks(line)) == num
