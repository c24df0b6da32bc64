"""Projects of any size, written by the database itself: `insert … select generate_series`, past triggers and keys.

Of `num` tasks each holds four answers, waits for two people, and was ranked by one of them: so there are as many leases
and rankings, and four times as many answers and places. Ids are hashes of numbers: random to an index, known to us.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from app.accounts import service as accounts
from app.accounts import sessions, tokens
from app.accounts.models import Role, Scope, SignInMethod
from app.db import standalone_session
from app.loop import subscriptions
from app.projects.service import create_project

K = 4
NUM_PEOPLE = 100
SLUG = "bench"
WORDS = "a reader would say that this answer is to the point and says what was asked for in as few words as it can"

TABLES = {
    "audiences": """
        insert into audiences (project_id, language, skills) values (%(project)s, '', '{}') on conflict do nothing""",
    "prompts": """
        insert into prompts (id, project_id, messages, split, root_hash, content_hash)
        select md5('p' || i)::uuid, %(project)s,
            jsonb_build_array(jsonb_build_object('role', 'user', 'content', 'Question ' || i || ': ' || %(words)s)),
            'train', sha256(('p' || i)::bytea), sha256(('p' || i)::bytea)
        from generate_series(%(first)s, %(last)s) i""",
    "completions": """
        insert into completions (id, prompt_id, text, content_hash)
        select md5('c' || i || '-' || k)::uuid, md5('p' || i)::uuid,
            'Answer ' || k || ' to ' || i || ': **' || %(words)s || '** and ' || %(words)s,
            sha256(('c' || i || k)::bytea)
        from generate_series(%(first)s, %(last)s) i, generate_series(0, 3) k""",
    "tasks": """
        insert into tasks (id, project_id, prompt_id, overlap, num_taken, audience_id)
        select md5('t' || i)::uuid, %(project)s, md5('p' || i)::uuid, 2, 1,
            (select id from audiences where project_id = %(project)s)
        from generate_series(%(first)s, %(last)s) i""",
    "task_completions": """
        insert into task_completions (task_id, completion_id, position)
        select md5('t' || i)::uuid, md5('c' || i || '-' || k)::uuid, k
        from generate_series(%(first)s, %(last)s) i, generate_series(0, 3) k""",
    "leases": """
        insert into leases (id, task_id, annotator_id, state, display_order, seed, created_at, expires_at)
        select md5('l' || i)::uuid, md5('t' || i)::uuid, (%(people)s::uuid[])[1 + i %% cardinality(%(people)s::uuid[])],
            'answered', array(select md5('c' || i || '-' || k)::uuid from generate_series(0, 3) k), i,
            now() - interval '1 day', now() - interval '23 hours'
        from generate_series(%(first)s, %(last)s) i""",
    "rankings": """
        insert into rankings (id, project_id, task_id, lease_id, annotator_id, source, body_hash, created_at)
        select md5('r' || i)::uuid, %(project)s, md5('t' || i)::uuid, md5('l' || i)::uuid,
            (%(people)s::uuid[])[1 + i %% cardinality(%(people)s::uuid[])], 'api', sha256(('r' || i)::bytea),
            now() - interval '1 day'
        from generate_series(%(first)s, %(last)s) i""",
    "ranking_places": """
        insert into ranking_places (ranking_id, completion_id, task_id, place)
        select md5('r' || i)::uuid, md5('c' || i || '-' || k)::uuid, md5('t' || i)::uuid, k + 1
        from generate_series(%(first)s, %(last)s) i, generate_series(0, 3) k""",
    "ranking_changes": """
        insert into ranking_changes (project_id, ranking_id, kind)
        select %(project)s, md5('r' || i)::uuid, 'stored' from generate_series(%(first)s, %(last)s) i""",
}


# From so many rows on, an index is built faster than it grows.
MANY = 100_000


@contextmanager
def built_afterwards(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """The block writes into tables without their indexes, but for keys, which are built at its end."""
    found = connection.execute(
        "select indexname, indexdef from pg_indexes where tablename = any(%s) and schemaname = 'public'"
        " and indexname not in (select conname from pg_constraint)",
        [list(TABLES)],
    ).fetchall()
    for name, _ in found:
        connection.execute(sql.SQL("drop index {}").format(sql.Identifier(name)))
    yield
    connection.execute("set maintenance_work_mem = '512MB'")
    for _, definition in found:
        connection.execute(definition)


@dataclass
class Site:
    """One database with its project, and the file with what its people sign in with."""

    url: str
    project_id: uuid.UUID
    people: list[uuid.UUID]
    credentials: Path
    num_tasks: int = 0

    def add_tasks(self, num: int) -> None:
        """So many more tasks, each with one ranking."""
        values = {
            "project": self.project_id,
            "first": self.num_tasks,
            "last": self.num_tasks + num - 1,
            "words": WORDS,
            "people": self.people,
        }
        with psycopg.connect(self.url, autocommit=True, cursor_factory=psycopg.ClientCursor) as connection:
            connection.execute("set session_replication_role = replica")
            # Nothing of it was acknowledged to anybody, and the checkpoint below makes all of it durable.
            connection.execute("set synchronous_commit = off")
            with built_afterwards(connection) if num >= MANY else nullcontext():
                for statement in TABLES.values():
                    connection.execute(statement, values)
            connection.execute("vacuum analyze" if num > self.num_tasks else "analyze")
            connection.execute("checkpoint")
        self.num_tasks += num


def save_site(site: Site, folder: Path) -> None:
    """Note what `load_site` reads, for a later run on the same database."""
    told = {"project_id": str(site.project_id), "people": [str(one) for one in site.people], "num": site.num_tasks}
    (folder / "site.json").write_text(json.dumps(told), encoding="utf-8")


def load_site(url: str, folder: Path) -> Site | None:
    """The site that `save_site` noted; None: nothing is there."""
    file = folder / "site.json"
    if not file.exists():
        return None
    told = json.loads(file.read_text(encoding="utf-8"))
    people = [uuid.UUID(one) for one in told["people"]]
    return Site(url, uuid.UUID(told["project_id"]), people, folder / "people.json", told["num"])


def make_site(url: str, folder: Path) -> Site:
    """The project and its people in a database that is migrated and empty. Each has a token and a session."""
    return asyncio.run(_make_site(url, folder))


async def _make_site(url: str, folder: Path) -> Site:
    subscriptions.subscribe()
    async with standalone_session(url) as session:
        project = await create_project(session, name="Bench", slug=SLUG, model_alias="pocket", overlap=2)
        people, credentials = [], []
        for number in range(2 * NUM_PEOPLE):
            person = await accounts.create_user(
                session, name=f"P{number}", email=f"p{number}@example.org", role=Role.ANNOTATOR
            )
            people.append(person.id)
            if number < NUM_PEOPLE:
                _, token = await tokens.create_token(session, user_id=person.id, name="bench", scopes=[Scope.ANNOTATE])
                cookie = await sessions.start_session(session, user_id=person.id, method=SignInMethod.LINK)
                credentials.append({"id": str(person.id), "token": token, "cookie": cookie})
    file = folder / "people.json"
    file.write_text(json.dumps(credentials), encoding="utf-8")
    return Site(url, project.id, people, file)
