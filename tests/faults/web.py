"""A web process that can be killed with -9 and started again at the same address, as a fork that has imported all."""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
from datetime import datetime, timedelta
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import AnyUser
from app.config import Settings
from app.projects.models import AnyProject
from app.serve import bind, serve
from app.tasks import service as tasks
from app.tasks.models import Lease, Task
from app.tasks.service import Shown

PRELOADED = ["app.main", "tests.faults.web"]


def forks() -> ForkServerContext:
    """Processes that begin as forks of one that has imported what is preloaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def answer_requests(listener: socket.socket, settings: Settings, *, is_careless: bool) -> None:
    """What the process does: serve; careless: as one would write it without a second thought."""
    if is_careless:
        tasks.claim, tasks.claim_sheet = count_then_insert, count_then_insert_sheet
    serve(settings, listener)


async def count_then_insert(
    session: AsyncSession, *, project: AnyProject, annotator: AnyUser, now: datetime, **_: object
) -> Lease | None:
    """The planted bug: look for a task with a free place, and take it, with nothing held in between."""
    query = select(Task.id).where(Task.project_id == project.id, tasks.has_place(), ~tasks._had_by(annotator))
    task_id = await session.scalar(query.order_by(Task.priority.desc(), Task.number).limit(1))
    await asyncio.sleep(0.02)
    if task_id is None:
        return None
    order = await tasks.completion_ids(session, task_id)
    until = now + timedelta(minutes=project.lease_minutes)
    lease = Lease(task_id=task_id, annotator_id=annotator.id, display_order=order, seed=0, expires_at=until)
    session.add(lease)
    await session.flush()
    return lease


async def count_then_insert_sheet(
    session: AsyncSession, *, project: AnyProject, annotator: AnyUser, now: datetime
) -> Shown | None:
    """The same, with what the lease shows."""
    lease = await count_then_insert(session, project=project, annotator=annotator, now=now)
    return await tasks.get_sheet(session, lease) if lease else None


class Web:
    """The process and its address. The listening socket is ours: whoever calls while it is down waits in the queue."""

    def __init__(
        self, database_url: str, folder: Path, *, is_careless: bool = False, public_url: str = "http://127.0.0.1:8000"
    ) -> None:
        self.database_url = database_url
        self._settings = Settings(data_dir=folder, database_url=database_url, public_url=public_url)
        self._is_careless = is_careless
        self._listener = bind("127.0.0.1", 0)
        self._process: BaseProcess | None = None

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        """The port of that address."""
        return int(self._listener.getsockname()[1])

    def start(self) -> None:
        """Begin to answer."""
        self._process = forks().Process(
            target=answer_requests,
            args=(self._listener, self._settings),
            kwargs={"is_careless": self._is_careless},
            daemon=True,
        )
        self._process.start()

    def kill(self) -> None:
        """kill -9: nothing is finished, nothing is said."""
        assert self._process is not None
        self._process.kill()
        self._process.join()

    def close(self) -> None:
        """The end."""
        self.kill()
        self._listener.close()
