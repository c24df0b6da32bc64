"""Help that does not lead: an ideal answer may begin as a model's where a project allows it, but for a control share.

The draft is the answer that the reward model likes best of those that a task showed. Only tasks whose rankings are all
in give one, so that nobody ranks an answer that they were told is a model's best. Who gets no draft though there was
one is drawn by lot, and the draft is noted all the same: what people write by themselves is the measure of help.
"""

from __future__ import annotations

from sqlalchemy import exists, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import User
from app.draws import draw
from app.projects.models import Project
from app.prompts.models import Completion, Prompt
from app.tasks.models import Lease, LeaseState, Purpose, Task


async def find_draft(session: AsyncSession, *, project: Project, prompt: Prompt) -> Completion | None:
    """The model's best answer to a prompt, of its newest task that was judged and is ranked; None: there is none."""
    if not project.drafts_demonstrations:
        return None
    # In anybody's hand: who gives it back leaves its place to the author, who then would rank what they were shown.
    in_hand = exists().where(Lease.task_id == Task.id, Lease.state == LeaseState.OPEN)
    order = await session.scalar(
        select(Task.judged_order)
        .where(Task.prompt_id == prompt.id, Task.purpose == Purpose.LEARN, ~Task.is_gold)
        .where(Task.judged_order.is_not(None), Task.num_taken >= Task.overlap, Task.withdrawn_at.is_(None), ~in_hand)
        .order_by(Task.number.desc())
        .limit(1)
    )
    return await session.get(Completion, order[0]) if order else None


def is_helped(project: Project, prompt: Prompt, author: User) -> bool:
    """Whether this person is shown the draft: by lot, and the same however often one asks."""
    return draw(project.seed, "draft", prompt.id, author.id) >= project.unassisted_share
