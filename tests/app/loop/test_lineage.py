"""Lineage in both directions, the board of rounds, and what the watch page draws."""

from __future__ import annotations

import re

import pytest
from httpx import AsyncClient
from sqlalchemy import select

from app.i18n import template_words
from app.loop import lineage, overview, service, training, watch
from app.plots import Node
from app.rankings.models import Ranking
from app.registry import service as registry
from app.registry.models import Version, VersionKind
from app.runs import service as runs
from app.runs.models import Run, RunKind, RunState
from tests.app.loop.conftest import Loop
from tests.app.loop.test_service import PPO_RESULT, REWARD_RESULT, whole_round
from tests.factories import make_run, sign_in

WORDS = template_words("en")


def by_title(nodes: list[Node]) -> dict[str, Node]:
    return {node.title: node for node in nodes}


async def test_versions_and_their_rankings_are_one_drawing(turned: Loop) -> None:
    await whole_round(turned)
    versions = await registry.list_versions(turned.session, turned.project.id)
    drawing = await lineage.of_project(turned.session, project=turned.project, versions=versions, words=WORDS, here=3)
    nodes = by_title(drawing.nodes)
    assert set(nodes) == {"policy v1", "reward model v2", "policy v3", "6 rankings"}
    assert nodes["6 rankings"].href.endswith("/versions/2/rankings")
    columns = [nodes[name].x for name in ("policy v1", "6 rankings", "reward model v2", "policy v3")]
    assert columns == sorted(set(columns)), "each step stands right of the one before"
    assert (nodes["policy v3"].is_here, nodes["policy v3"].is_live) == (True, True)
    assert len(drawing.edges) == 5


async def test_a_ranking_leads_to_all_that_learned_from_it_and_back(turned: Loop) -> None:
    await whole_round(turned)
    policy = await registry.get_version_by_number(turned.session, project_id=turned.project.id, number=3)
    behind = await lineage.rankings_behind(turned.session, policy)
    assert len(behind) == 6
    first = behind[0][1].ranking
    drawing = await lineage.of_ranking(turned.session, project=turned.project, ranking=first, words=WORDS)
    assert drawing is not None
    assert set(by_title(drawing.nodes)) == {f"Ranking {first.number}", "6 rankings", "reward model v2", "policy v3"}
    assert [item[0] for item in await lineage.rankings_behind(turned.session, policy, after=3, limit=9)] == [4, 5]


async def test_what_went_on_from_a_version_learned_from_its_rankings_too(turned: Loop) -> None:
    """v3 learned from the first round; what an SFT makes of it did, and a policy that was trained against v2."""
    await whole_round(turned)
    policy, reward, base = await registry.list_versions(turned.session, turned.project.id)
    for parent, trained_against in ((policy, None), (base, reward.id), (base, None)):
        run = await make_run(turned.session, turned.project, kind=RunKind.SFT, state=RunState.FINISHED)
        await registry.register(
            turned.session,
            project_id=turned.project.id,
            kind=VersionKind.POLICY,
            parent=parent,
            run_id=run.id,
            dataset_id=None,
            reward_version_id=trained_against,
            metrics={},
        )
    ranking = (await turned.session.scalars(select(Ranking).limit(1))).one()
    learned = await service.versions_of_ranking(turned.session, ranking.id)
    assert [version.number for version in learned] == [2, 3, 4, 5]
    drawing = await lineage.of_ranking(turned.session, project=turned.project, ranking=ranking, words=WORDS)
    assert drawing is not None
    assert {"policy v4", "policy v5"} < set(by_title(drawing.nodes))


async def test_a_ranking_that_nothing_learned_from_has_no_drawing(turned: Loop) -> None:
    await turned.sample()
    await turned.rank_all()
    ranking = (await turned.session.scalars(select(Ranking).limit(1))).one()
    assert await lineage.of_ranking(turned.session, project=turned.project, ranking=ranking, words=WORDS) is None


async def test_the_board_tells_what_each_round_made(turned: Loop) -> None:
    await whole_round(turned)
    now, first = await lineage.rounds_of(turned.session, turned.project, overview.num_ranked_places)
    assert (first.num_ranked, first.num_wanted) == (6, 6)
    assert (first.policy.number, first.reward and first.reward.number) == (1, 2)
    assert (first.outcome and first.outcome.number, first.dataset and first.dataset.num_rows) == (3, 6)
    assert (now.policy.number, now.reward, now.outcome, now.dataset) == (3, None, None, None)


async def test_curves_of_several_runs_are_one_line(turned: Loop) -> None:
    await whole_round(turned)
    run = (await turned.session.scalars(select(Run).where(Run.kind == RunKind.PPO))).one()
    policy = await registry.get_version_by_number(turned.session, project_id=turned.project.id, number=3)
    policy.metrics = {**PPO_RESULT, "win_rate": {"value": 0.7, "low": 0.6, "high": 0.8}}
    reported_now = {"objective/reward": 0.5, "objective/kl": 4.0, "tax/loss": 3.5, "tax/reference_loss": 3.0}
    points = [(step, name, value) for step in (4, 8) for name, value in reported_now.items()]
    await runs.add_metrics(turned.session, run, points=points)
    line = await watch.policy_line(turned.session, turned.project)
    assert [version.number for version in line.versions] == [3]
    assert set(line.plots) == {"wins", "scores", "kl", "tax"}
    assert line.series["tax"] == {"tax/loss": [(4, 3.5), (8, 3.5)], "tax/reference_loss": [(4, 3.0), (8, 3.0)]}
    assert line.series["gao v3"] == {"objective/reward": [(2.0, 0.5), (2.0, 0.5)], "guard/score": []}
    reported = {"objective/kl": [(4, 1.0), (8, 1.0)]}
    assert watch.one_after_another("objective/kl", [reported, reported]) == [(4, 1), (8, 1), (12, 1), (16, 1)]
    assert watch.over_root_kl([(4, 0.5), (5, 9.0)], [(4, 9.0)]) == [(3.0, 0.5)]
    [(root, *rate)] = watch.wins([policy])
    assert (round(root**2, 9), rate) == (0.5, [0.7, 0.6, 0.8])


@pytest.mark.parametrize(("asked", "note"), [({"num_prompts": 90}, "90 rankings"), ({}, "")])
def test_a_win_rate_says_of_how_many_rankings_where_that_is_known(asked: dict[str, int], note: str) -> None:
    """A version from elsewhere may come without."""
    policy = Version(number=3, metrics={"win_rate": {"value": 0.7, "low": 0.6, "high": 0.8, **asked}})
    assert overview.wins_figure(policy, WORDS)["note"] == note


async def test_each_ppo_run_has_a_drawing_of_its_scores_that_ends_with_its_last_step(turned: Loop) -> None:
    """Two runs have two reward models, whose scores have no scale in common."""
    await whole_round(turned)
    await turned.work_off_sampling()
    await turned.rank_all()
    await training.start_training(turned.session, project=turned.project)
    await turned.finish(await turned.claim(), REWARD_RESULT)
    await turned.score(new=3.0, live=1.0)
    await turned.finish(await turned.claim(), PPO_RESULT)
    ppo = select(Run).where(Run.kind == RunKind.PPO).order_by(Run.created_at)
    for number, run in enumerate((await turned.session.scalars(ppo)).all()):
        # The KL falls in the last step: the highest one is not the end.
        for step, kl, reward in ((1, 0.0, 0.0), (2, 9.0, 2.0), (3, 4.0, 1.0 + number)):
            reported = {"objective/kl": kl, "objective/reward": reward}
            points = [(step, name, value) for name, value in reported.items()]
            await runs.add_metrics(turned.session, run, points=points)
    line = await watch.policy_line(turned.session, turned.project)
    assert [version.number for version, _ in line.gao] == [5, 3]
    assert [plot.lines[0].last for _, plot in line.gao] == ["2", "1"]
    assert line.series["gao v3"]["objective/reward"] == [(0.0, 0.0), (3.0, 2.0), (2.0, 1.0)]
    assert line.series["gao v5"]["objective/reward"] == [(0.0, 0.0), (3.0, 2.0), (2.0, 2.0)]


async def test_legends_are_in_the_readers_language(turned: Loop, client: AsyncClient) -> None:
    await whole_round(turned)
    run = (await turned.session.scalars(select(Run).where(Run.kind == RunKind.PPO))).one()
    points = [(step, name, 1.0) for step in (1, 2) for name in ("objective/reward", "objective/kl", "guard/score")]
    await runs.add_metrics(turned.session, run, points=points)
    await sign_in(client, turned.session)
    client.cookies.set("rl_language", "zh")
    page = (await client.get(f"/projects/{turned.project.slug}/watch")).text
    # Scores over the root of the KL, and over episodes.
    assert re.findall(r'<span class="swatch rank-\d"></span>(\S+) ', page) == ["奖励模型", "第二个奖励模型"] * 2


async def test_the_overview_says_what_people_say(turned: Loop, client: AsyncClient) -> None:
    session, project = turned.session, turned.project
    await whole_round(turned)
    shown = await overview.figures(session, project=project, words=WORDS)
    assert [(item["value"], item["note"]) for item in shown if "People prefer" in item["title"]] == [
        ("–", "nobody has compared the two yet")
    ]
    policy = await registry.get_version_by_number(session, project_id=project.id, number=3)
    reward = await registry.get_version_by_number(session, project_id=project.id, number=2)
    rate = {"value": 0.8, "low": 0.7, "high": 0.9, "num_prompts": 40}
    policy.metrics = {**PPO_RESULT, "win_rate": rate}
    reward.metrics = {**REWARD_RESULT, "report": {"people": {"agreement": {"value": 0.7, "low": 0.6, "high": 0.75}}}}
    shown = await overview.figures(session, project=project, words=WORDS)
    found = {item["title"]: (item["value"], item["after"], item["note"]) for item in shown}
    assert found["People prefer policy v3 to version 1"] == ("80.0 %", "70.0 % – 90.0 %", "40 rankings")
    assert found["People agree"][:2] == ("70.0 %", "60.0 % – 75.0 %")
    assert found["People agree"][2].endswith("labelers: 72.6 %")
    assert overview.wins_plot([policy]) == [], "one point says nothing of a way"
    later = Version(number=5, metrics={"kl": 4.0, "win_rate": {"value": 0.6, "low": 0.5, "high": 0.7}})
    (plot,) = overview.wins_plot([later, policy])
    assert plot.lines[0].last == "0.6 (0.5–0.7)"
    await sign_in(client, session)
    assert "People prefer policy v3 to version 1" in (await client.get(f"/projects/{project.slug}")).text


async def test_kl_and_reward_are_shown_with_their_intervals(turned: Loop, client: AsyncClient) -> None:
    session, project = turned.session, turned.project
    await whole_round(turned)
    policy = await registry.get_version_by_number(session, project_id=project.id, number=3)
    run = (await session.scalars(select(Run).where(Run.kind == RunKind.PPO))).one()
    await runs.add_metrics(session, run, points=[(4, "objective/kl", 0.5)])
    intervals = {"kl_interval": {"low": 0.44, "high": 0.56}}
    policy.metrics = (
        PPO_RESULT | intervals | {"reward": {"first": 0, "last": 1, "interval": {"low": -0.5, "high": 2.5}}}
    )
    shown = await overview.figures(session, project=project, words=WORDS)
    found = {item["title"]: (item["value"], item["after"], item["note"]) for item in shown}
    assert found["KL to the SFT model"] == ("0.50", "0.44 – 0.56", "nats an answer")
    assert found["Reward of the policy"] == ("1.00", "−0.50 – 2.50", "0.00 at the start of PPO")
    await sign_in(client, session)
    for page in ("watch", "rounds", "versions", "versions/3"):
        text = (await client.get(f"/projects/{project.slug}/{page}")).text
        assert "0.44 – 0.56" in text, page
