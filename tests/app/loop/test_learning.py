"""Are more rankings worth it: points that are comparable, and what is said of them."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from httpx import AsyncClient

from app.i18n import template_words
from app.loop import learning
from app.quality import curves
from app.quality import service as quality
from app.registry import service as registry
from app.registry.models import Version, VersionKind
from tests.app.loop.conftest import Loop
from tests.app.loop.test_service import REWARD_RESULT, whole_round
from tests.factories import make_user, sign_in

WORDS = template_words("en")


def share(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.02, "high": value + 0.02}


def version(number: int, kind: VersionKind, metrics: dict[str, Any] | None = None) -> Version:
    return Version(id=uuid.UUID(int=number), number=number, kind=kind, metrics=metrics or {})


def reward(number: int, num_rankings: int, whole: float, by_policy: dict[int, float]) -> Version:
    """A reward model: how often it is right on all held-out pairs, and on those of each policy's answers."""
    mixed = {"policies": [str(uuid.UUID(int=1)), str(uuid.UUID(int=3))], **share(0.9)}
    by = [{"policies": [str(uuid.UUID(int=policy))] * 2, **share(value)} for policy, value in by_policy.items()]
    report = {"by_policies": [*by, mixed]} if by_policy else {}
    metrics = {"num_rankings": num_rankings, "accuracy": share(whole), "report": report}
    return version(number, VersionKind.REWARD, metrics)


# Each round's rankings are harder: of all that are held out, the reward models are right ever less often, though they
# gain two points with each doubling on the answers of version 1.
ROUNDS = [
    version(1, VersionKind.POLICY),
    reward(2, 100, 0.71, {1: 0.71}),
    version(3, VersionKind.POLICY),
    reward(4, 200, 0.62, {1: 0.73, 3: 0.52}),
    version(5, VersionKind.POLICY),
    reward(6, 400, 0.58, {1: 0.75, 3: 0.55, 5: 0.51}),
]


def test_points_are_compared_on_the_answers_of_one_policy() -> None:
    first, second, third = learning.grounds_of(ROUNDS[::-1])
    assert (first.name, second.name, third.name) == ("policy v1", "policy v3", "policy v5")
    assert [(point.num_rankings, point.accuracy) for point in first.points] == [(100, 0.71), (200, 0.73), (400, 0.75)]
    assert [(point.num_rankings, point.accuracy) for point in second.points] == [(200, 0.52), (400, 0.55)]
    curve = curves.fit(first.points)
    assert curve is not None
    assert curve.gain == pytest.approx(0.02), "by all that was held out, a doubling would cost six points"


def test_where_nobody_knows_who_wrote_the_answers_all_that_is_held_out_counts() -> None:
    (whole,) = learning.grounds_of([reward(3, 200, 0.62, {}), reward(2, 100, 0.6, {}), ROUNDS[0]])
    assert (whole.name, whole.policy) == ("all", None)
    assert [(point.num_rankings, point.accuracy) for point in whole.points] == [(100, 0.6), (200, 0.62)]
    assert learning.grounds_of([version(2, VersionKind.REWARD, {"num_rankings": 6, "accuracy": None})]) == []


def test_the_drawing_has_the_policy_that_most_tell_of_and_intervals() -> None:
    first, second, third = learning.grounds_of(ROUNDS[::-1])
    assert learning.beside(first, [first, second, third]) == [second]
    plot = learning.curve_plot(first, [second, third], None, curves.fit(first.points), WORDS)
    assert plot is not None
    assert [line.name for line in plot.lines] == ["policy v1", "fitted", "policy v3", "policy v5"]
    assert all(line.band for line in plot.lines)
    assert plot.lines[0].last == "0.75 (0.73–0.77)"


async def test_people_agree_about_the_answers_of_the_same_policy(turned: Loop) -> None:
    session, project = turned.session, turned.project
    project.overlap = 2
    await turned.sample()
    for _ in range(2):
        assert await turned.rank_all() == 6
        turned.annotator = await make_user(session)
    base = await registry.base_version(session, project.id)
    found = await quality.usual_overview(session, project)
    assert found.by_round[0][0] == 1
    assert found.everything.without_ties is not None
    assert await learning.agreement_on(session, project, learning.Ground(base, ())) == found.everything.without_ties
    assert await learning.agreement_on(session, project, learning.Ground(None, ())) == found.everything.without_ties
    assert await learning.agreement_on(session, project, learning.Ground(ROUNDS[2], ())) is None, "it never answered"


async def test_the_page_says_whose_answers_its_forecast_is_about(turned: Loop, client: AsyncClient) -> None:
    session, project = turned.session, turned.project
    await whole_round(turned)
    assert (await learning.learning_curve(session, project, WORDS)).grounds == ()
    base = await registry.base_version(session, project.id)
    only = await registry.get_version_by_number(session, project_id=project.id, number=2)
    by = [{"policies": [str(base.id)] * 2, **share(0.7)}]
    only.metrics = {**REWARD_RESULT, "accuracy": share(0.6), "report": {"by_policies": by}}
    await session.flush()
    found = await learning.learning_curve(session, project, WORDS)
    assert found.fitted is not None
    assert [(point.num_rankings, point.accuracy) for point in found.fitted.points] == [(6, 0.7)]
    assert found.curve is None
    await sign_in(client, session)
    page = await client.get(f"/projects/{project.slug}/watch")
    assert "What a doubling brings is fitted to the answers of policy v1" in page.text
    said = (await client.get(f"/projects/{project.slug}/watch.json")).json()
    assert said["learning"] == {"policy v1": [[6, 0.7, pytest.approx(0.68), pytest.approx(0.72)]]}
