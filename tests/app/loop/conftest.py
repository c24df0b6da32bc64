"""A project with prompts in each split, and hands that play the worker and the annotators."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import ApiToken, Role, User
from app.accounts.tokens import create_token
from app.datasets.models import DatasetRow
from app.loop import gates, sampling, subscriptions
from app.projects.models import Project
from app.prompts import service as prompts
from app.prompts.lines import CompletionIn
from app.prompts.models import RunPrompt, Split
from app.rankings import service as rankings
from app.rankings.answers import RankingAnswer
from app.runs import service as runs
from app.runs.models import Run, RunKind
from app.tasks import service as tasks
from tests.factories import make_project, make_prompt, make_user


@dataclass
class Loop:
    """One project's loop, turned by hand."""

    session: AsyncSession
    project: Project
    annotator: User
    token: ApiToken

    async def claim(self) -> Run:
        """What a worker would get next."""
        run = await runs.claim(
            self.session,
            worker="w",
            kinds=list(RunKind),
            project_ids=None,
            token_id=self.token.id,
            lease=timedelta(minutes=1),
        )
        assert run is not None, "nothing waits"
        return run

    async def finish(self, run: Run, result: dict[str, Any]) -> None:
        """What a worker says at the end of a run that delivered one file."""
        await runs.record_artifact(self.session, run, name="manifest.json", size=2, sha256="0" * 64)
        await runs.finish(
            self.session,
            run.id,
            fence=run.fence,
            token_id=self.token.id,
            state="finished",
            result=result,
            error=None,
            artifacts=["manifest.json"],
        )

    async def answer(self, run: Run, prompt_id: uuid.UUID, texts: Sequence[str]) -> None:
        """Deliver answers to one prompt."""
        items = [
            CompletionIn(prompt_id=prompt_id, index=index, text=text, finish_reason="stop")
            for index, text in enumerate(texts)
        ]
        await prompts.store_completions(self.session, run=run, version_id=None, items=items)

    async def sample(self) -> Run:
        """Start sampling, and play the worker to its end."""
        await sampling.start_sampling(self.session, project=self.project)
        return await self.work_off_sampling()

    async def work_off_sampling(self) -> Run:
        """Answer every prompt of the run that waits with K different texts."""
        run = await self.claim()
        assert run.kind == RunKind.SAMPLE
        ids = await self.session.scalars(select(RunPrompt.prompt_id).where(RunPrompt.run_id == run.id))
        for prompt_id in ids.all():
            await self.answer(run, prompt_id, [f"answer {index} of {run.id}" for index in range(self.project.k)])
        await self.finish(run, {"tokens_per_second": 50.0})
        return run

    async def score(self, *, new: float, live: float) -> Run:
        """Play the worker of a `score` run: of three pairs, the two models are right on so many."""
        run = await self.claim()
        assert run.kind == RunKind.SCORE
        query = select(DatasetRow.ranking_id).where(DatasetRow.dataset_id == uuid.UUID(run.config["dataset"]["id"]))
        ids = (await self.session.scalars(query)).all()
        said = [{"ranking_id": str(key), "num_pairs": 3, "num_right": [new, live]} for key in ids]
        await self.finish(run, {"rankings": said, "refused": []})
        return run

    async def rank_all(self) -> int:
        """Rank every task that waits, in the order shown."""
        count = 0
        while lease := await tasks.next_lease(
            self.session, project=self.project, annotator=self.annotator, now=datetime.now(UTC)
        ):
            places = {key: place for place, key in enumerate(lease.display_order, start=1)}
            answer = RankingAnswer(places=places)
            await rankings.submit(
                self.session, lease_id=lease.id, annotator=self.annotator, answer=answer, source="api"
            )
            count += 1
        return count


@pytest.fixture
async def turned(session: AsyncSession, monkeypatch: pytest.MonkeyPatch) -> Loop:
    """A project with four training prompts, two for validation and one for testing: here they are enough for a gate."""
    monkeypatch.setattr(gates, "FEWEST_PROMPTS", 2)
    subscriptions.subscribe()
    project = await make_project(session, k=3)
    for split, count in ((Split.TRAIN, 4), (Split.VALIDATION, 2), (Split.TEST, 1)):
        for _ in range(count):
            await make_prompt(session, project, split=split)
    annotator = await make_user(session)
    admin = await make_user(session, role=Role.ADMIN)
    token, _ = await create_token(session, user_id=admin.id, name="w", scopes=["worker"])
    return Loop(session, project, annotator, token)
