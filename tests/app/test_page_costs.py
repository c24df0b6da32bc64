"""What a page reads does not grow with the project: rows are counted by PostgreSQL itself, so no clock is asked."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from httpx2 import AsyncClient
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.loop.clock import is_due
from app.projects.models import Project
from tests.factories import make_project, sign_in

PAGES = ["/", *[f"/projects/large{page}" for page in ("", "/rounds", "/rankings", "/prompts", "/tasks", "/datasets")]]
FILL = [
    """insert into prompts (project_id, messages, split, root_hash, content_hash)
    select :project, '[{"role": "user", "content": "Why?"}]', 'train', sha256(i::text::bytea), sha256(i::text::bytea)
    from generate_series(cast(:first as int), cast(:last as int)) i""",
    """insert into tasks (project_id, prompt_id, overlap, round)
    select project_id, id, 2, 1 from prompts p
    where project_id = :project and not exists (select from tasks where prompt_id = p.id)""",
    """insert into completions (prompt_id, text, content_hash)
    select prompt_id, letter, sha256(letter::bytea) from tasks, unnest(array['a', 'b']) letter
    where project_id = :project and num_taken = 0""",
    """insert into task_completions (task_id, completion_id, position)
    select t.id, c.id, ascii(c.text) - ascii('a') from tasks t join completions c on c.prompt_id = t.prompt_id
    where t.project_id = :project and t.num_taken = 0""",
    """insert into rankings (project_id, task_id, source, annotator_name, body_hash)
    select project_id, id, 'import', 'Eve', 'x' from tasks where project_id = :project and num_taken = 0""",
    """insert into ranking_places (ranking_id, task_id, completion_id, place)
    select r.id, c.task_id, c.completion_id, c.position + 1
    from rankings r join task_completions c on c.task_id = r.task_id
    where r.project_id = :project and not exists (select from ranking_places p where p.ranking_id = r.id)""",
]
READ = "select sum(seq_tup_read + idx_tup_fetch) from pg_stat_xact_user_tables"


async def grow(session: AsyncSession, project: Project, first: int, last: int) -> None:
    """Prompts with a task and a ranking each."""
    for statement in FILL:
        values = {"project": project.id, "first": first, "last": last}
        used = {name: value for name, value in values.items() if f":{name}" in statement}
        await session.execute(text(statement), used)
    await session.execute(text("analyze prompts, tasks, rankings"))
    await session.commit()


@pytest.fixture
async def project(session: AsyncSession) -> Project:
    project = await make_project(session, slug="large", train_threshold=10_000)
    # A table of some pages is read from one end to the other, whatever index there is: not so one of a million rows.
    await session.execute(text("set local enable_seqscan = off"))
    await session.execute(text("set local enable_bitmapscan = off"))
    return project


async def test_pages_read_as_much_of_a_large_project_as_of_a_small_one(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    await sign_in(client, session)

    async def rows_read(page: str) -> int:
        before = int(await session.scalar(text(READ)) or 0)
        assert (await client.get(page, headers={"accept": "text/html"})).status_code == 200
        return int(await session.scalar(text(READ)) or 0) - before

    await grow(session, project, 1, 200)
    small = {page: await rows_read(page) for page in PAGES}
    await grow(session, project, 201, 2000)
    large = {page: await rows_read(page) for page in PAGES}
    # 2,000 waiting tasks are counted: that stops at `lists.MOST_WAITING`.
    tasks = "/projects/large/tasks"
    assert large[tasks] - small.pop(tasks) == pytest.approx(1800, abs=200)
    assert {page: large[page] for page in small if large[page] > small[page] + 100} == {}


async def test_the_clock_asks_as_little(session: AsyncSession, project: Project) -> None:
    read = []
    for first, last in ((1, 200), (201, 2000)):
        await grow(session, project, first, last)
        before = await session.scalar(text(READ))
        assert not await is_due(session, project, now=datetime.now(UTC))
        read.append(int(await session.scalar(text(READ)) - before))
    assert read[1] == pytest.approx(read[0], abs=10)
