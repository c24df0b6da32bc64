"""First drafts by a model: only where the project allows it, never for all, always marked, and compared."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import pytest
from httpx2 import AsyncClient
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Role, User
from app.projects.models import Project
from app.prompts.models import Completion, Prompt
from app.quality import drafts as leanings
from app.quality import service as quality
from app.quality.agreement import Estimate
from app.quality.bias import rows_of
from app.quality.drafts import likeness
from app.tasks import service as tasks
from app.tasks.models import Purpose, Task
from app.writing import service
from app.writing.drafts import is_helped
from app.writing.models import Writing
from tests.factories import completion_ids_of, make_project, make_prompt, make_ranking, make_task, make_user, sign_in


@pytest.fixture
async def project(session: AsyncSession) -> Project:
    allowed = {"writes_demonstrations": True, "drafts_demonstrations": True}
    return await make_project(session, slug="tone", unassisted_share=0.1, **allowed)


async def judged(session: AsyncSession, project: Project, *, is_ranked: bool = True, **fields: Any) -> Task:
    """A task whose answers the reward model has put in the order opposite to theirs; ranked by somebody."""
    task = await make_task(session, await make_prompt(session, project), **fields)
    task.judged_order = list(reversed(await completion_ids_of(session, task)))
    await session.flush()
    if is_ranked:
        await make_ranking(session, task)
        await session.refresh(task)
    return task


async def written(session: AsyncSession, project: Project, *, people: int = 1) -> list[Writing]:
    """What so many people begin, one after another."""
    found = []
    for _ in range(people):
        writing = await service.begin_demonstration(session, project=project, author=await make_user(session))
        assert writing is not None
        found.append(writing)
    return found


async def judged_for(session: AsyncSession, project: Project, author: User) -> Task:
    """A task of the only prompt that is left, for which the lot gives this person a draft."""
    while True:
        task = await judged(session, project)
        prompt = await session.get_one(Prompt, task.prompt_id)
        if is_helped(project, prompt, author):
            return task
        prompt.withdrawn_at = datetime.now(UTC)
        await session.flush()


async def draft_text(session: AsyncSession, task: Task) -> str:
    assert task.judged_order is not None
    return (await session.get_one(Completion, task.judged_order[0])).text


async def test_an_ideal_answer_begins_as_the_model_s_best_and_says_so(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    author = await sign_in(client, session, role=Role.ANNOTATOR)
    task = await judged_for(session, project, author)
    writing = await service.begin_demonstration(session, project=project, author=author)
    assert writing is not None
    assert task.judged_order is not None
    assert writing.body == {"text": await draft_text(session, task)}
    assert (writing.is_assisted, writing.draft_id, writing.began_from_id) == (True, *task.judged_order[:1] * 2)
    page = (await client.get(f"/writings/{writing.id}")).text
    assert "A model wrote this first draft." in page
    await service.submit(session, writing=writing, author=author, body={"text": "My own."})
    assert "This began as a model’s draft." in (await client.get(f"/writings/{writing.id}")).text


async def test_a_share_by_lot_begins_empty_and_its_draft_is_known(session: AsyncSession, project: Project) -> None:
    project.unassisted_share = 0.5
    for _ in range(40):
        await judged(session, project)
    found = await written(session, project, people=40)
    helped = [item for item in found if item.is_assisted]
    assert 8 <= len(helped) <= 32
    assert all(item.draft_id is not None for item in found)
    assert all(item.body == {} and item.began_from_id is None for item in found if not item.is_assisted)


NOT_RANKED = ["not ranked", "in hand", "in another's hand", "comparison"]


@pytest.mark.parametrize("why", [*NOT_RANKED, "not allowed", "not judged", "gold"])
async def test_where_there_is_no_draft_nothing_is_marked(session: AsyncSession, project: Project, why: str) -> None:
    """Nobody ranks an answer that they were told is a model's best; gold and comparisons give none."""
    project.drafts_demonstrations = why != "not allowed"
    special: dict[str, dict[str, Any]] = {"gold": {"is_gold": True}, "comparison": {"purpose": Purpose.COMPARE}}
    fields = special.get(why, {})
    task = await judged(session, project, is_ranked=why not in NOT_RANKED, **fields)
    if why == "not judged":
        task.judged_order = None
        await session.flush()
    author = await make_user(session)
    if why in ("in hand", "in another's hand"):
        holder = author if why == "in hand" else await make_user(session)
        assert await tasks.next_lease(session, project=project, annotator=holder, now=project.created_at) is not None
    writing = await service.begin_demonstration(session, project=project, author=author)
    assert writing is not None
    assert (writing.is_assisted, writing.draft_id, writing.body) == (False, None, {})


async def test_what_was_helped_is_so_for_ever(session: AsyncSession, project: Project) -> None:
    await judged(session, project)
    (writing,) = await written(session, project)
    writing.is_assisted = not writing.is_assisted
    with pytest.raises(IntegrityError, match="refuse_change"):
        await session.flush()


# What people do with it


async def settle(session: AsyncSession, project: Project, writing: Writing, text: str, *, better: str = "") -> None:
    """It is sent, and approved as it is or corrected."""
    author = await session.get_one(User, writing.author_id)
    await service.submit(session, writing=writing, author=author, body={"text": text})
    reviewer = await make_user(session, role=Role.REVIEWER)
    await service.approve(session, project=project, writing=writing, reviewer=reviewer, body={"text": better or text})


def value(found: Estimate | None) -> float:
    assert found is not None
    return found.value


async def test_leanings_compares_what_is_written_with_a_draft_and_without(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    project.unassisted_share = 0.5
    for _ in range(24):
        await judged(session, project)
    for writing in await written(session, project, people=24):
        draft = (await session.get_one(Completion, writing.draft_id)).text
        # Who got it sends it unread, who did not writes six other words.
        if writing.is_assisted:
            await settle(session, project, writing, draft, better=f"{draft} Really.")
        else:
            await settle(session, project, writing, "quite unlike all that models say")
    without, with_draft = await leanings.report(session, project)
    assert (without.is_assisted, with_draft.is_assisted) == (False, True)
    assert without.num_written + with_draft.num_written == 24
    assert value(with_draft.likeness) == 1.0
    assert value(without.likeness) < 0.3
    assert value(without.num_words) == 6
    assert (value(without.as_sent), value(with_draft.as_sent)) == (1.0, 0.0)
    await sign_in(client, session, role=Role.ADMIN)
    page = (await client.get("/projects/tone/quality/bias")).text
    assert re.search("Ideal answers with and without a first draft", page)
    kinds = {row["by"] for row in rows_of(await quality.bias_report(session, project))}
    assert {"draft_likeness", "draft_num_words", "draft_minutes", "draft_as_sent"} <= kinds


async def test_where_nobody_was_helped_nothing_is_compared(session: AsyncSession, project: Project) -> None:
    project.unassisted_share = 1.0
    await judged(session, project)
    (writing,) = await written(session, project)
    await settle(session, project, writing, "My own.")
    assert (writing.draft_id is not None, await leanings.report(session, project)) == (True, [])


def test_likeness_by_hand() -> None:
    """a b c of a b x: two words of three and three, 2 * 2 / 6; Chinese has no spaces, so that characters count."""
    assert likeness("a b c", "a b x") == pytest.approx(2 / 3)
    assert (likeness("a b", "a b"), likeness("a", "b"), likeness("", "b")) == (1.0, 0.0, 0.0)
    one, other = "今天天气很好我们一起去公园散步然后喝茶", "今天天气很好我们一起去公园跑步然后喝茶"
    assert 0.9 < likeness(one, other) < 1.0


async def test_prompts_without_any_answer_are_written_for_as_before(session: AsyncSession, project: Project) -> None:
    prompt = await make_prompt(session, project)
    (writing,) = await written(session, project)
    assert (writing.prompt_id, writing.draft_id) == (prompt.id, None)
    assert len((await session.scalars(select(Prompt))).all()) == 1
