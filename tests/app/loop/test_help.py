"""Cards in a reward model's order: only where the project allows it, never all of them, and always marked."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from app.datasets import service as datasets
from app.loop import watch
from app.loop.arrivals import held_out_rankings
from app.projects.models import Help, RankNext
from app.prompts.models import Prompt, Split
from app.quality import service as quality
from app.rankings import service as rankings
from app.rankings.answers import RankingAnswer
from app.rankings.schemas import RankingOut
from app.registry.models import Version
from app.tasks import service as tasks
from app.tasks.models import Lease, LeaseState, Task
from app.tasks.schemas import LeaseOut
from tests.app.datasets.test_datasets import rows_of
from tests.app.loop.conftest import Loop
from tests.app.loop.test_choosing import judge, tasks_of, to_the_second_round
from tests.factories import make_prompt, make_ranking, make_user


async def take(turned: Loop) -> Lease | None:
    return await tasks.next_lease(
        turned.session, project=turned.project, annotator=turned.annotator, now=datetime.now(UTC)
    )


async def rank_with_help(turned: Loop, *, share: float = 0.5) -> list[Lease]:
    """Everything of a second round is ranked, the first card first."""
    turned.project.help, turned.project.unassisted_share = Help.PRESORT, share
    await judge(turned, await to_the_second_round(turned, RankNext.RANDOM))
    leases = []
    while lease := await take(turned):
        places = {key: place for place, key in enumerate(lease.display_order, start=1)}
        await rankings.submit(
            turned.session,
            lease_id=lease.id,
            annotator=turned.annotator,
            answer=RankingAnswer(places=places),
            source="api",
        )
        leases.append(lease)
    return leases


async def test_a_share_has_no_help_and_the_rest_has_the_model_s_order(turned: Loop) -> None:
    leases = await rank_with_help(turned)
    judged = {task.id: task.judged_order for task in await tasks_of(turned, 2)}
    helped = [lease for lease in leases if lease.is_assisted]
    assert len(leases) == 26
    assert 5 <= len(helped) <= 21
    assert all(lease.display_order == judged[lease.task_id] for lease in helped)
    # One in six of the others has that order by chance.
    others = [lease for lease in leases if not lease.is_assisted]
    assert sum(lease.display_order == judged[lease.task_id] for lease in others) < len(others)
    assert {task.chosen_by for task in await tasks_of(turned, 2)} == {"random"}


async def test_what_was_ranked_with_help_is_marked_everywhere(turned: Loop) -> None:
    leases = await rank_with_help(turned)
    helped = {lease.task_id for lease in leases if lease.is_assisted}
    views = await rankings.list_rankings(turned.session, project_id=turned.project.id)
    told = {view.ranking.task_id for view in views if RankingOut.of(view).provenance.is_assisted}
    assert told == helped
    dataset = await datasets.freeze(turned.session, project=turned.project)
    rows = await rows_of(turned.session, dataset)
    assert sum(row["provenance"]["is_assisted"] for row in rows) == len(helped) == dataset.card["num_assisted"]
    without, assisted = (await quality.bias_report(turned.session, turned.project)).sides
    # Two of the 26 are held out for validation: no lot is drawn for them.
    assert (without.num_rankings, assisted.num_rankings) == (24 - len(helped), len(helped))
    assert assisted.as_judged is not None
    assert assisted.as_judged.value == 1.0


async def test_who_saw_the_model_s_order_does_not_say_how_good_the_model_is(turned: Loop) -> None:
    leases = await rank_with_help(turned)
    (choice,) = await watch.choices(turned.session, turned.project)
    assert choice.num_rankings == sum(not lease.is_assisted for lease in leases) < 26


async def test_nobody_is_told_a_score_but_everybody_that_there_is_help(turned: Loop) -> None:
    turned.project.help, turned.project.unassisted_share = Help.PRESORT, 0.1
    await judge(turned, await to_the_second_round(turned, RankNext.RANDOM))
    while (lease := await take(turned)) is not None and not lease.is_assisted:
        await tasks.release_lease(turned.session, lease_id=lease.id, annotator=turned.annotator)
    assert lease is not None
    sheet = LeaseOut.of(await tasks.get_sheet(turned.session, lease)).model_dump()
    assert sheet["is_assisted"] is True
    assert set(sheet["completions"][0]) == {"id", "text"}


async def test_gold_has_no_help(turned: Loop) -> None:
    turned.project.help, turned.project.unassisted_share = Help.PRESORT, 0.1
    await judge(turned, await to_the_second_round(turned, RankNext.RANDOM))
    await turned.session.execute(update(Task).values(is_gold=True))
    await turned.session.execute(update(Task).where(Task.number % 2 == 0).values(is_gold=False))
    gold = set(await turned.session.scalars(select(Task.id).where(Task.is_gold)))
    turned.project.gold_share = 0.5
    seen = []
    while (lease := await take(turned)) is not None:
        await tasks.release_lease(turned.session, lease_id=lease.id, annotator=turned.annotator)
        seen.append(lease)
    assert {lease.is_assisted for lease in seen if lease.task_id in gold} == {False}
    assert True in {lease.is_assisted for lease in seen}


async def test_what_measures_reward_models_is_ranked_without_help(turned: Loop) -> None:
    held_out = await ids_of_held_out(turned)
    leases = await rank_with_help(turned, share=0.1)
    tasks_held_out = {task.id for task in await tasks_of(turned, 2) if task.prompt_id in held_out}
    helped = {lease.task_id for lease in leases if lease.is_assisted}
    assert len(tasks_held_out) == 6
    assert not helped & tasks_held_out
    assert len(helped) >= 15, "the others have it but for a tenth"


async def ids_of_held_out(turned: Loop) -> set[uuid.UUID]:
    """The prompts for validation, six of them."""
    for _ in range(4):
        await make_prompt(turned.session, turned.project, split=Split.VALIDATION)
    query = select(Prompt.id).where(Prompt.project_id == turned.project.id, Prompt.split == Split.VALIDATION)
    return set(await turned.session.scalars(query))


async def test_held_out_rankings_that_were_once_made_with_help_judge_no_reward_model(turned: Loop) -> None:
    """As they were made before migration 0042."""
    await turned.sample()
    await turned.rank_all()
    held_out = await ids_of_held_out(turned)
    task = (await turned.session.scalars(select(Task).where(Task.prompt_id.in_(held_out)).limit(1))).one()
    task.overlap = 2
    other = await make_user(turned.session)
    lease = Lease(
        task_id=task.id,
        annotator_id=other.id,
        state=LeaseState.ANSWERED,
        display_order=await tasks.completion_ids(turned.session, task.id),
        is_assisted=True,
        seed=17,
        expires_at=datetime.now(UTC),
    )
    turned.session.add(lease)
    await turned.session.flush()
    helped = await make_ranking(turned.session, task, annotator=other, lease_id=lease.id)
    dataset = await datasets.freeze(turned.session, project=turned.project)
    found = (await turned.session.execute(held_out_rankings(Version(dataset_id=dataset.id)))).all()
    assert dataset.num_rows == 7
    assert len(found) == 2
    assert helped.id not in {row.id for row in found}


async def test_a_mark_is_never_taken_away(turned: Loop) -> None:
    leases = await rank_with_help(turned)
    helped = next(lease for lease in leases if lease.is_assisted)
    with pytest.raises(IntegrityError, match="never changed"):
        await turned.session.execute(update(Lease).where(Lease.id == helped.id).values(is_assisted=False))
