"""A dataset that is frozen while people rank is what was committed at one instant."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Iterator

import pytest
from sqlalchemy import select

from app.datasets import pieces, service
from app.datasets.models import DatasetRow
from app.db import SessionMaker, make_engine, make_sessionmaker
from app.projects.models import Project
from tests.factories import make_project, make_prompt, make_ranking, make_task, make_user

WRITERS = 4
# So many stand before the freeze begins, and so many come after it has begun.
BEFORE, AFTER = 40, 40


class Writer:
    """Ranks without a pause, and notes on one clock when each ranking was begun and when it was acknowledged."""

    def __init__(self, sessions: SessionMaker, clock: Iterator[int]) -> None:
        self.begun: dict[uuid.UUID, int] = {}
        self.acknowledged: dict[uuid.UUID, int] = {}
        self._sessions = sessions
        self._clock = clock

    async def write(self, project: Project, stop: asyncio.Event) -> None:
        async with self._sessions.begin() as session:
            person = await make_user(session)
        while not stop.is_set():
            begun = next(self._clock)
            async with self._sessions.begin() as session:
                task = await make_task(session, await make_prompt(session, project), k=2)
                ranking = await make_ranking(session, task, annotator=person)
            self.begun[ranking.id], self.acknowledged[ranking.id] = begun, next(self._clock)


async def wait_for(writers: list[Writer], num: int) -> None:
    """Until so many rankings were acknowledged."""
    while sum(len(writer.acknowledged) for writer in writers) < num:  # noqa: ASYNC110 - the writers wait for nobody
        await asyncio.sleep(0.01)


@pytest.mark.real_commits
async def test_a_dataset_frozen_under_writes_is_one_instant(fresh_database_url: str) -> None:
    engine = make_engine(fresh_database_url)
    sessions = make_sessionmaker(engine)
    async with sessions.begin() as session:
        project = await make_project(session)
    clock, stop = itertools.count(), asyncio.Event()
    writers = [Writer(sessions, clock) for _ in range(WRITERS)]
    async with asyncio.TaskGroup() as tasks:
        for writer in writers:
            tasks.create_task(writer.write(project, stop))
        await wait_for(writers, BEFORE)
        asked = next(clock)
        async with sessions.begin() as session:
            dataset = await service.freeze(session, project=project)
        answered = next(clock)
        export = [chunk async for chunk in pieces.read_file(sessions, dataset)]
        await wait_for(writers, dataset.num_rows + AFTER)
        stop.set()
    async with sessions() as session:
        rows = select(DatasetRow.ranking_id).where(DatasetRow.dataset_id == dataset.id)
        frozen = set(await session.scalars(rows))
    begun = {key: at for writer in writers for key, at in writer.begun.items()}
    acknowledged = {key: at for writer in writers for key, at in writer.acknowledged.items()}
    assert {key for key, at in acknowledged.items() if at < asked} <= frozen
    assert all(begun[key] < answered for key in frozen)
    # No ranking that was left out was there already when one was begun that is in it.
    left_out = min(at for key, at in acknowledged.items() if key not in frozen)
    assert max(begun[key] for key in frozen) < left_out
    # What came in the meantime changes nothing: the same bytes, and only these rankings.
    assert b"".join([chunk async for chunk in pieces.read_file(sessions, dataset)]) == b"".join(export)
    assert b"".join(export).count(b"\n") == dataset.num_rows == len(frozen)
    await engine.dispose()
