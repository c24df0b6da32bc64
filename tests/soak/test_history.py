"""The history of 64 people who rank while web and database are killed with -9, again and again: nothing is broken."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy.exc import DBAPIError

from app.embedded import EmbeddedPostgres
from tests.faults.conftest import durable_server, durable_url
from tests.faults.history import History, let_time_jump, play, violations
from tests.faults.house import House, kill, open_house

__all__ = ["durable_server", "durable_url"]

NUM_PEOPLE = 64
NUM_TASKS = 1200
OVERLAP = 3
KILLS = 20
NUM_TASKS_OF_THE_CANARY = 200
KILLS_OF_THE_CANARY = 3

pytestmark = pytest.mark.soak
Say = Callable[[str, object], None]


async def test_64_people_and_40_kills_break_no_promise(
    durable_server: EmbeddedPostgres, durable_url: str, tmp_path: Path, record_property: Say
) -> None:
    seed = time.time_ns() % 2**32
    record_property("seed", seed)
    house = open_house(durable_url, tmp_path, num_tasks=NUM_TASKS, num_people=NUM_PEOPLE, overlap=OVERLAP, seed=seed)
    async with house as opened:
        trouble = Trouble(opened, durable_server, random.Random(seed))
        history, found = await trouble.play(["web", "database"] * KILLS, num_rankings=NUM_TASKS * OVERLAP)
    record_property("kills", dict(trouble.kills))
    record_property("requests", history.num_sent)
    record_property("requests that got no answer and were sent again", history.num_unanswered)
    record_property("answers, by status", dict(Counter(answer.status for answer in history.answers)))
    record_property("rankings", len({answer.ranking for answer in history.answers if answer.is_taken}))
    record_property("violations", found[:20])
    assert found == []
    assert trouble.kills == {"web": KILLS, "database": KILLS}
    assert history.num_sent >= 10_000


async def test_the_same_people_notice_a_database_that_forgets(
    durable_server: EmbeddedPostgres, durable_url: str, tmp_path: Path, record_property: Say
) -> None:
    """The canary, with synchronous_commit off: if nothing were found here, nothing above would prove anything."""
    seed = time.time_ns() % 2**32
    record_property("seed", seed)
    sizes = {"num_tasks": NUM_TASKS_OF_THE_CANARY, "num_people": NUM_PEOPLE, "overlap": OVERLAP}
    async with open_house(durable_url, tmp_path, seed=seed, is_forgetful=True, **sizes) as house:
        trouble = Trouble(house, durable_server, random.Random(seed))
        victims = ["database"] * KILLS_OF_THE_CANARY
        _, found = await trouble.play(victims, num_rankings=NUM_TASKS_OF_THE_CANARY * OVERLAP)
    losses = [line for line in found if line.startswith("lost")]
    record_property("kills", dict(trouble.kills))
    record_property("acknowledged and lost", len(losses))
    assert losses


class Trouble:
    """Kills, spread over the work by how much of it is done, and leases whose time is over."""

    def __init__(self, house: House, server: EmbeddedPostgres, chance: random.Random) -> None:
        self.kills: Counter[str] = Counter()
        self._house, self._server, self._chance = house, server, chance

    async def play(self, victims: Sequence[str], *, num_rankings: int) -> tuple[History, list[str]]:
        """Let everybody work while these are killed; the history, and what it breaks."""
        moments = sorted(self._chance.sample(range(20, num_rankings), len(victims)))

        async def disturb(history: History) -> None:
            for moment, victim in zip(moments, victims, strict=True):
                await history.reach(moment)
                await asyncio.to_thread(self._kill, victim)
                self.kills[victim] += 1
                await self._jump(history)

        history = await play(self._house.people, self._house.project_id, disturb=disturb)
        return history, violations(history, await self._house.facts())

    def _kill(self, victim: str) -> None:
        if victim == "database":
            kill(self._server)
            return
        self._house.web.kill()
        self._house.web.start()

    async def _jump(self, history: History) -> None:
        """Our own connections were killed as well."""
        with suppress(DBAPIError):
            await let_time_jump(history, self._house.sessions, share=0.2)
