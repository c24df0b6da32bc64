"""A second reward model compares two policies in people's place, where an admin says so: it trained neither of them.

Both answer held-out prompts as for a blind comparison; then a `judge` run scores all answers, and the figures are those
that people's rankings would give.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

from sqlalchemy import String, cast, func, select
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import Invalid
from app.loop import ending
from app.loop.choosing import answer_object
from app.loop.comparisons import BothAnswered
from app.loop.gates import Reason
from app.loop.models import ComparedPrompt, Comparison, ComparisonState
from app.loop.outcomes import Outcome, figures_of, outcome
from app.projects.models import Project
from app.projects.service import NO_REWARD_VERSION, ProjectChanging
from app.prompts.models import Completion, Prompt
from app.registry import service as registry
from app.registry.models import Version, VersionKind
from app.runs import service as runs
from app.runs.models import Run, RunKind
from app.runs.service import RunFinished

# In the settings of such a run: what it judges.
COMPARISON = "comparison_id"


def names_a_judge(event: ProjectChanging) -> bool:
    """Whether a project's settings are to name a judge."""
    return event.changes.get("policy_judge") is not None


async def require_named(session: AsyncSession, event: ProjectChanging) -> None:
    """Refuse a judge that doesn't exist: without one, policies go live unjudged.

    Raises:
        Invalid: the project has no reward version of this number.
    """
    versions = await registry.list_versions(session, event.project.id)
    numbers = {item.number for item in versions if item.kind == VersionKind.REWARD}
    if event.changes["policy_judge"] not in numbers:
        raise Invalid.field("policy_judge", NO_REWARD_VERSION)


async def find_judge(session: AsyncSession, project: Project, version: Version) -> Version | Reason:
    """The reward model that the project names, but for the one that this policy was trained against; or the newest that
    is no kin of that one either: of warm starts, one goes on from the other, and what fools one may fool both. Or why
    there is none.
    """
    versions = await registry.list_versions(session, project.id)
    rewards = {item.id: item for item in versions if item.kind == VersionKind.REWARD}
    own = rewards.get(version.reward_version_id) if version.reward_version_id else None
    others = [item for item in rewards.values() if item is not own]
    if project.policy_judge is not None:
        named = next((item for item in others if item.number == project.policy_judge), None)
        return named or (Reason.OWN_JUDGE if own and own.number == project.policy_judge else Reason.NO_JUDGE)
    strangers = [item for item in others if own is None or began(item, rewards) is not began(own, rewards)]
    return next(iter(strangers), Reason.ONLY_KIN if others else Reason.NO_JUDGE)


def began(reward: Version, rewards: Mapping[uuid.UUID, Version]) -> Version:
    """The reward model that began fresh, from which this one came by warm starts; itself where it began fresh."""
    while reward.parent_id is not None and reward.parent_id in rewards:
        reward = rewards[reward.parent_id]
    return reward


async def both_answered(session: AsyncSession, event: BothAnswered) -> None:
    """Let a worker ask the judge, where there is one."""
    comparison = event.comparison
    if comparison.judge_version_id is None:
        return
    judge = await registry.get_version(session, comparison.judge_version_id)
    config = {
        "reward": await registry.reference(session, judge),
        "dataset": None,
        "rank_next": None,
        COMPARISON: str(comparison.id),
    }
    await runs.enqueue(session, project_id=comparison.project_id, kind=RunKind.JUDGE, config=config, max_queued=None)


async def answers_to_judge(session: AsyncSession, run: Run) -> AsyncIterator[dict[str, Any]]:
    """Each compared prompt with the answers of both policies; equal texts once."""
    is_shown = Completion.id == func.any(ComparedPrompt.of_version + ComparedPrompt.of_against)
    rows = await session.stream(
        select(
            cast(ComparedPrompt.prompt_id, String).label("key"),
            Prompt.messages,
            func.jsonb_agg(aggregate_order_by(answer_object(), Completion.id)).label("answers"),
        )
        .join(Prompt, Prompt.id == ComparedPrompt.prompt_id)
        .join(Completion, is_shown)
        .where(ComparedPrompt.comparison_id == uuid.UUID(run.config[COMPARISON]))
        .group_by(ComparedPrompt.prompt_id, Prompt.id)
        .order_by(ComparedPrompt.prompt_id)
    )
    async for row in rows.mappings():
        yield dict(row)


async def run_finished(session: AsyncSession, event: RunFinished) -> None:
    """Scores of both policies' answers -> a decision."""
    if event.run.kind != RunKind.JUDGE or COMPARISON not in event.run.config:
        return
    comparison = await session.get_one(
        Comparison, uuid.UUID(event.run.config[COMPARISON]), with_for_update=True, populate_existing=True
    )
    if comparison.state == ComparisonState.SAMPLING:
        await decide(session, comparison, (event.run.result or {}).get("judged", []))


async def decide(session: AsyncSession, comparison: Comparison, judged: list[Mapping[str, Any]]) -> None:
    """Close a comparison by what the judge said."""
    query = select(ComparedPrompt).where(ComparedPrompt.comparison_id == comparison.id)
    compared = {item.prompt_id: item for item in await session.scalars(query.order_by(ComparedPrompt.prompt_id))}
    said = [
        found
        for row in judged
        if (item := compared.get(uuid.UUID(row["key"]))) and (found := judged_outcome(item, row["scores"]))
    ]
    figures = figures_of(said, num_prompts=len(compared))
    state = ComparisonState.UNDECIDED
    if figures.low > 0.5:
        state = ComparisonState.BETTER
    elif figures.high < 0.5:
        state = ComparisonState.WORSE
    await ending.close(session, comparison, state, figures)


def judged_outcome(item: ComparedPrompt, scores: Mapping[str, float]) -> Outcome | None:
    """One prompt as the judge ranks its answers, the highest score first; equal scores tie."""
    ranks = sorted(set(scores.values()), reverse=True)
    places = {uuid.UUID(key): ranks.index(value) + 1 for key, value in scores.items()}
    return outcome(places, {}, of_version=item.of_version, of_against=item.of_against)
