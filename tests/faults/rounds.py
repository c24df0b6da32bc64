"""Rounds of the loop that turn while web, worker and database are killed, and what must be true of them in the end."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.accounts.models import Role, Scope
from app.accounts.tokens import create_token
from app.db import SessionMaker, make_engine, make_sessionmaker
from app.embedded import EmbeddedPostgres
from tests.factories import make_user
from tests.faults.history import History, Person, read_facts, violations, work_off
from tests.faults.house import kill, let_in
from tests.faults.web import Web, forks
from tests.faults.worker import WorkerProcess, train_undisturbed
from trainer.client import Client, Retries
from trainer.settings import WorkerSettings

OVERLAP = 2
K = 3
SECONDS_TO_WAIT = 600
MOST_ATTEMPTS = 3
"""After so many claims of a run its worker is spared: the fifth silence would end the run, and rightly so."""

WORK_DONE = """
    select (select count(*) from rankings) + (select count(*) from completions) + (select count(*) from run_metrics)
         + (select count(*) from run_log) + (select coalesce(sum(size), 0) from artifacts) / 100000
"""
COPIES = """
    insert into runs (project_id, kind, config)
    select project_id, kind, config || jsonb_build_object('copy_of', id) from runs
    where state = 'finished' and kind in ('reward', 'ppo') order by created_at
"""
COPIES_OF_PROMPTS = """
    insert into run_prompts (run_id, position, prompt_id)
    select c.id, p.position, p.prompt_id from runs c join run_prompts p on p.run_id = (c.config->>'copy_of')::uuid
"""
UNEQUAL = """
    select a.run_id, r.kind, a.name from artifacts a join runs r on r.id = a.run_id join runs c
    on (c.config->>'copy_of')::uuid = r.id left join artifacts b on b.run_id = c.id and b.name = a.name
    where b.sha256 is distinct from a.sha256 and a.name like '%.safetensors'
"""
DOUBLE = {
    "a version of one run": "select run_id from versions where run_id is not null group by run_id having count(*) > 1",
    "a task of one round": "select prompt_id from tasks group by prompt_id, round having count(*) > 1",
    "answers to one prompt": "select prompt_id from completions group by run_id, prompt_id having count(*) <> :k",
    "a training of one dataset": "select dataset_id from rounds group by dataset_id having count(*) > 1",
}


@dataclass
class Loop:
    """A project whose rounds turn, and all that can be killed."""

    server: EmbeddedPostgres
    web: Web
    worker: WorkerProcess
    admin: Client
    sessions: SessionMaker
    project_id: str
    people: Sequence[Person]
    folder: Path
    kills: Counter[str] = field(default_factory=Counter)

    @property
    def history(self) -> History:
        """What everybody was told."""
        return self.people[0].history

    async def turn(self, number: int) -> None:
        """One round: people rank while answers come in; then a reward model and a policy are trained."""
        await self.rank(number)
        await asyncio.to_thread(self.admin.start_training, self.project_id)
        await self.until(lambda: self.has_finished("ppo", number))

    async def rank(self, number: int) -> None:
        """All that is sampled in a round, as it comes in."""
        is_over = False
        while not is_over:
            is_over = await self.has_finished("sample", number)
            await work_off(self.people, self.project_id)

    # Kills

    async def kill(self, victim: str) -> None:
        """kill -9 of one part, and up again."""
        await {"web": self._kill_web, "database": self._kill_database, "worker": self._kill_worker}[victim]()
        self.kills[victim] += 1

    async def _kill_web(self) -> None:
        await asyncio.to_thread(self.web.kill)
        self.web.start()

    async def _kill_database(self) -> None:
        await asyncio.to_thread(kill, self.server)

    async def _kill_worker(self) -> None:
        """In the middle of a run, whose lease is over at once: nobody need wait until it is."""
        running = "select count(*) from runs where state = 'running' and attempt <= :most"
        await self.until(lambda: self.ask_number(running, most=MOST_ATTEMPTS))
        await asyncio.to_thread(self.worker.kill)
        await self.ask("update runs set lease_expires_at = now() where state = 'running' returning id")
        self.worker.start()

    # Looking

    async def has_finished(self, kind: str, number: int) -> bool:
        """Whether so many runs of this kind came to a good end; one that came to a bad end is told."""
        failed = await self.ask("select kind, error from runs where state in ('failed', 'cancelled')")
        assert not failed, failed
        finished = "select count(*) from runs where kind = :kind and state = 'finished'"
        return await self.ask_number(finished, kind=kind) >= number

    async def work_goes_on(self, num: int) -> None:
        """Wait until so much more is stored: rankings, answers, points of curves, lines of logs, weights."""
        begun = await self.ask_number(WORK_DONE)

        async def is_more() -> bool:
            return await self.ask_number(WORK_DONE) >= begun + num

        await self.until(is_more)

    async def until(self, condition: Callable[[], Awaitable[Any]]) -> None:
        """Look again and again."""
        async with asyncio.timeout(SECONDS_TO_WAIT):
            while True:
                if await condition():
                    return
                await asyncio.sleep(0.05)

    async def ask(self, statement: str, **values: Any) -> Sequence[Any]:
        """Rows of the database, once it is there."""
        async with asyncio.timeout(SECONDS_TO_WAIT):
            while True:
                try:
                    async with self.sessions.begin() as session:
                        return (await session.execute(text(statement), values)).all()
                except DBAPIError:
                    await asyncio.sleep(0.05)

    async def ask_number(self, query: str, **values: Any) -> int:
        """One number."""
        return int((await self.ask(query, **values))[0][0])

    # In the end

    async def violations(self) -> list[str]:
        """What was promised and not kept: lost rankings, and what there is twice."""
        facts = await read_facts(self.sessions, self.project_id, len(self.people))
        found = violations(self.history, facts)
        for what, query in DOUBLE.items():
            rows = await self.ask(query, **({"k": K} if ":k" in query else {}))
            found += [f"not one: {what}: {row}" for row in rows]
        return found

    async def differences(self) -> list[str]:
        """Each training done once more by a worker that nobody disturbs: which weights are not equal bit for bit."""
        self.worker.kill()
        async with self.sessions.begin() as session:
            await session.execute(text(COPIES))
            await session.execute(text(COPIES_OF_PROMPTS))
        again = forks().Process(target=train_undisturbed, args=[self.worker.settings, self.folder / "again"])
        again.start()
        await asyncio.to_thread(again.join)
        assert again.exitcode == 0
        return [str(row) for row in await self.ask(UNEQUAL)]


@asynccontextmanager
async def open_loop(
    server: EmbeddedPostgres,
    database_url: str,
    folder: Path,
    *,
    models: dict[str, str],
    prompts: Sequence[str],
    num_people: int,
    project: dict[str, Any],
    seed: int = 17,
) -> AsyncIterator[Loop]:
    """A project that samples, with everything at work."""
    engine = make_engine(database_url, pool_size=2)
    sessions = make_sessionmaker(engine)
    async with sessions.begin() as session:
        owner = await make_user(session, role=Role.ADMIN)
        users = [await make_user(session) for _ in range(num_people)]
        scopes = [scope for scope in Scope if scope != Scope.WORKER]
        _, secret = await create_token(session, user_id=owner.id, name="loop", scopes=scopes)
        _, workers = await create_token(session, user_id=owner.id, name="worker", scopes=[Scope.WORKER])
    web = Web(database_url, folder / "app")
    listed = folder / "models.json"
    listed.write_text(json.dumps(models), encoding="utf-8")
    settings = WorkerSettings(
        url=web.url, token=workers, data_dir=folder / "worker", models=listed, device="cpu", threads=1
    )
    worker = WorkerProcess(settings)
    try:
        web.start()
        async with let_in(sessions, users, web.url, History(OVERLAP), seed=seed) as people:
            with Client(web.url, secret, retries=Retries(SECONDS_TO_WAIT)) as admin:
                made = await asyncio.to_thread(begin, admin, prompts, project)
                worker.start()
                yield Loop(server, web, worker, admin, sessions, made, people, folder)
    finally:
        worker.kill()
        web.close()
        await engine.dispose()


def begin(admin: Client, prompts: Sequence[str], project: dict[str, Any]) -> str:
    """Make the project, and have answers drawn."""
    shares = {"validation_share": 0.0, "test_share": 0.0}
    made = admin.create_project(name="Rounds", k=K, overlap=OVERLAP, reward_gate="off", **shares, **project)
    admin.import_prompts(made["id"], [json.dumps({"prompt": prompt}) for prompt in prompts])
    admin.start_sampling(made["id"])
    return str(made["id"])
