"""Each new policy is put before people by itself, where the project says so, and what they say stops its round."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select, update

from app.loop import asking, comparisons, ending, service, training
from app.loop.comparisons import ComparisonView
from app.projects.models import CompareNew, PolicyGate
from app.prompts.models import Prompt, RunPrompt
from app.registry import service as registry
from app.runs import service as runs
from app.runs.models import RunKind
from tests.app.loop.conftest import Loop
from tests.app.loop.test_comparisons import answer_both, likes, rank_by, two_each
from tests.app.loop.test_service import PPO_RESULT, REWARD_RESULT, whole_round
from tests.factories import make_prompt


async def begun(turned: Loop) -> list[ComparisonView]:
    """The comparisons of a project, the oldest first."""
    return sorted(
        await comparisons.list_comparisons(turned.session, turned.project.id), key=lambda view: view.comparison.number
    )


async def answer_all(turned: Loop) -> None:
    """Play the worker of all that waits: runs that were queued together come in any order."""
    while await service.open_run(turned.session, turned.project.id, kinds=tuple(RunKind)) is not None:
        run = await turned.claim()
        ids = (await turned.session.scalars(select(RunPrompt.prompt_id).where(RunPrompt.run_id == run.id))).all()
        for prompt_id in ids:
            await turned.answer(run, prompt_id, two_each(run, prompt_id))
        await turned.finish(run, {"tokens_per_second": 50.0})


async def test_people_stop_a_round_though_nobody_asked_them_to_compare(turned: Loop) -> None:
    for _ in range(30):
        await make_prompt(turned.session, turned.project, split="test")
    turned.project.compare_new, turned.project.compare_prompts = CompareNew.BOTH, 25
    await whole_round(turned)
    (view,) = await begun(turned)
    assert (view.version.number, view.against.number, view.judge, view.comparison.created_by) == (3, 1, None, None)
    await answer_all(turned)
    (view,) = await begun(turned)
    assert view.figures.num_prompts == 25
    await rank_by(turned, likes(1))
    now = await service.current_round(turned.session, turned.project)
    assert (now.number, now.stopped["why"], now.stopped["best"]) == (2, "worse", 1)


@pytest.mark.parametrize(
    ("wish", "pairs"),
    [(CompareNew.OFF, []), (CompareNew.BASE, [(3, 1), (5, 1)]), (CompareNew.BOTH, [(3, 1), (5, 1), (5, 3)])],
)
async def test_a_policy_is_compared_with_what_the_project_names(
    turned: Loop, wish: CompareNew, pairs: list[tuple[int, int]]
) -> None:
    turned.project.compare_new = wish
    await whole_round(turned)
    await answer_all(turned)
    await turned.rank_all()
    await training.start_training(turned.session, project=turned.project)
    await turned.finish(await turned.claim(), REWARD_RESULT)
    await turned.score(new=3, live=2)
    await turned.finish(await turned.claim(), PPO_RESULT)
    assert [(view.version.number, view.against.number) for view in await begun(turned)] == pairs


async def test_people_are_asked_again_where_somebody_broke_it_off(turned: Loop) -> None:
    turned.project.compare_new = CompareNew.BASE
    await whole_round(turned)
    (view,) = await begun(turned)
    assert await asking.were_compared(turned.session, view.version, view.against)
    await ending.stop(turned.session, view.comparison)
    assert not await asking.were_compared(turned.session, view.version, view.against)


async def test_people_are_not_asked_twice_where_the_gate_has_asked_them(turned: Loop) -> None:
    for _ in range(30):
        await make_prompt(turned.session, turned.project, split="test")
    turned.project.compare_new, turned.project.policy_gate = CompareNew.BOTH, PolicyGate.PEOPLE
    await whole_round(turned)
    await answer_both(turned, two_each)
    await rank_by(turned, likes(3))
    policy = await registry.get_version_by_number(turned.session, project_id=turned.project.id, number=3)
    assert (policy.gate["reason"], policy.is_live) == ("preferred", True)
    assert len(await begun(turned)) == 1


async def test_what_cannot_be_compared_is_said_and_holds_nothing_up(turned: Loop) -> None:
    turned.project.compare_new = CompareNew.BASE
    await turned.sample()
    await turned.rank_all()
    await training.start_training(turned.session, project=turned.project)
    await turned.finish(await turned.claim(), REWARD_RESULT)
    held_out = update(Prompt).where(Prompt.split.in_(comparisons.HELD_OUT))
    await turned.session.execute(held_out.values(withdrawn_at=func.now()))
    run = await turned.claim()
    assert run.kind == RunKind.PPO
    await turned.finish(run, PPO_RESULT)
    assert await begun(turned) == []
    assert (await service.current_round(turned.session, turned.project)).number == 2
    said = [line.text for line in await runs.list_log(turned.session, run.id)]
    assert any(
        "People are not asked to compare it with version 1: This project has no held-out" in line for line in said
    )
