"""The history of 64 people who rank while web and database are killed with -9, again and again: nothing is broken."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy.exc import DBAPIError

from app.embedded import EmbeddedPostgres
from app.migrate import upgrade
from tests.faults.history import History, let_time_jump, play, violations
from tests.faults.house import House, open_house

NUM_PEOPLE = 64
NUM_TASKS = 1200
OVERLAP = 3
KILLS = 20

pytestmark = pytest.mark.soak


@pytest.fixture
def database() -> Iterator[EmbeddedPostgres]:
    """A durable server of the test's own, to be killed."""
    folder = Path(tempfile.mkdtemp(prefix="rankloop-soak-"))
    folder.chmod(0o755)
    server = EmbeddedPostgres(folder)
    try:
        server.start().create_database("rankloop")
        upgrade(server.url())
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


async def test_64_people_and_40_kills_break_no_promise(
    database: EmbeddedPostgres, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    seed = time.time_ns() % 2**32
    record_property("seed", seed)
    sizes = {"num_tasks": NUM_TASKS, "num_people": NUM_PEOPLE, "overlap": OVERLAP}
    async with open_house(database.url(), tmp_path, seed=seed, **sizes) as house:
        trouble = Trouble(house, database, random.Random(seed))
        history = await play(house.people, house.project_id, disturb=trouble.make)
        facts = await house.facts()
    found = violations(history, facts)
    record_property("kills", dict(trouble.kills))
    record_property("requests", history.num_sent)
    record_property("requests that got no answer and were sent again", history.num_unanswered)
    record_property("answers, by status", dict(Counter(answer.status for answer in history.answers)))
    record_property("rankings", len(facts.rankings))
    record_property("violations", found[:20])
    assert found == []
    assert trouble.kills == {"web": KILLS, "database": KILLS}
    assert history.num_sent >= 10_000


class Trouble:
    """Kills, spread over the work by how much of it is done, and leases whose time is over."""

    def __init__(self, house: House, database: EmbeddedPostgres, chance: random.Random) -> None:
        self.kills: Counter[str] = Counter()
        self._house, self._database, self._chance = house, database, chance

    async def make(self, history: History) -> None:
        """Until all is done."""
        whole = NUM_TASKS * OVERLAP
        victims = ["web", "database"] * KILLS
        moments = sorted(self._chance.sample(range(20, int(whole * 1.2)), len(victims)))
        for moment, victim in zip(moments, victims, strict=True):
            await history.reach(moment)
            await asyncio.to_thread(self.kill, victim)
            self.kills[victim] += 1
            await self.jump()

    def kill(self, victim: str) -> None:
        """kill -9, and up again."""
        if victim == "web":
            self._house.web.kill()
            self._house.web.start()
            return
        process = self._database._process
        assert process is not None
        process.kill()
        process.wait()
        self._database.stop()
        self._database.start()

    async def jump(self) -> None:
        """Our own connections were killed as well."""
        with suppress(DBAPIError):
            await let_time_jump(self._house.sessions, share=0.2)
