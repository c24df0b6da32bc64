"""People are asked about every new policy, where the project says so: is it better than version 1, and than the one
before? What they say stops a round that they do not like (app/loop/halts.py).
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import Invalid
from app.loop import comparisons
from app.loop.ending import BROKEN_OFF
from app.loop.models import Comparison
from app.projects.models import CompareNew, Project
from app.registry import service as registry
from app.registry.models import Version
from app.runs import service as runs


async def ask_about(session: AsyncSession, project: Project, version: Version, *, previous: Version) -> None:
    """Begin the blind comparisons that a project wants of a policy that has just begun to answer."""
    if project.compare_new == CompareNew.OFF:
        return
    others = [await registry.base_version(session, project.id)]
    if project.compare_new == CompareNew.BOTH:
        others.append(previous)
    for against in {other.id: other for other in others if other.id != version.id}.values():
        if not await were_compared(session, version, against):
            await begin(session, project, version, against)


async def were_compared(session: AsyncSession, version: Version, against: Version) -> bool:
    """Whether people were asked about these two already, as at a gate, and that was not broken off."""
    query = select(Comparison.id).where(
        Comparison.version_id == version.id,
        Comparison.against_id == against.id,
        Comparison.judge_version_id.is_(None),
        Comparison.state.not_in(BROKEN_OFF),
    )
    return await session.scalar(query.limit(1)) is not None


async def begin(session: AsyncSession, project: Project, version: Version, against: Version) -> None:
    """One comparison. Where it can't begin, the log of the run that made the version says why; nothing is refused."""
    try:
        async with session.begin_nested():
            await comparisons.start(
                session, project=project, version=version, against=against, num_prompts=project.compare_prompts
            )
    except (Invalid, comparisons.ComparisonOpen) as refusal:
        if version.run_id is not None:
            line = f"People are not asked to compare it with version {against.number}: {refusal}"
            await runs.add_log(session, run_id=version.run_id, lines=[("warning", line)])
