"""Other ways of training over HTTP: the API's operation and the form on the page of runs."""

from __future__ import annotations

from typing import Any

import pytest
from httpx2 import AsyncClient
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Role, Scope
from app.accounts.tokens import create_token
from app.registry import service as registry
from app.registry.models import VersionKind
from app.runs.models import Run
from tests.app.corpora.test_corpora import send
from tests.factories import make_project, make_run, make_user, sign_in


async def test_a_trainer_starts_a_run_and_is_told_what_is_missing(client: AsyncClient, session: AsyncSession) -> None:
    project = await make_project(session, test_share=0.0)
    user = await make_user(session, role=Role.ADMIN)
    _, secret = await create_token(session, user_id=user.id, name="t", scopes=[Scope.WRITE])
    await session.commit()
    headers = {"authorization": f"Bearer {secret}"}
    address = f"/api/v1/projects/{project.id}/runs"
    refused = await client.post(address, json={"kind": "sft"}, headers=headers)
    assert (refused.status_code, refused.headers["content-type"]) == (422, "application/problem+json")
    assert "Import a corpus" in refused.json()["detail"]
    await send(session, project, {"prompt": "Q?", "completion": "A."})
    await session.commit()
    started = await client.post(address, json={"kind": "sft", "training": {"epochs": 2}}, headers=headers)
    assert (started.status_code, started.json()["kind"], started.json()["state"]) == (201, "sft", "queued")
    unknown = await client.post(address, json={"kind": "ppo"}, headers=headers)
    assert (unknown.status_code, unknown.json()["errors"][0]["field"]) == (422, "kind")


async def test_the_form_starts_a_run_with_its_settings(client: AsyncClient, session: AsyncSession) -> None:
    project = await make_project(session, test_share=0.0)
    await send(session, project, {"prompt": "Q?", "completion": "A."})
    await sign_in(client, session)
    client.headers.update({"sec-fetch-site": "same-origin"})
    address = f"/projects/{project.slug}/runs"
    page = await client.get(address)
    assert "Train in another way" in page.text
    bad = await client.post(address, data={"kind": "sft", "training": "{oops"}, headers={"accept": "text/html"})
    assert bad.status_code == 422
    assert "is not JSON" in bad.text
    assert "{oops</textarea>" in bad.text
    assert 'aria-current="page">Runs' in bad.text
    empty = await client.post(address, data={"kind": "star"}, headers={"accept-language": "zh-CN"})
    assert empty.status_code == 422
    assert '<option value="star" selected>' in empty.text
    answer = await client.post(address, data={"kind": "sft", "training": '{"epochs": 2}'})
    run = await session.scalar(select(Run).where(Run.project_id == project.id))
    assert run is not None
    assert (answer.status_code, answer.headers["location"]) == (303, f"{address}/{run.id}")
    assert run.config["training"] == {"epochs": 2}


async def test_the_form_lets_choose_the_policy_to_begin_with(client: AsyncClient, session: AsyncSession) -> None:
    project = await make_project(session, test_share=0.0)
    await send(session, project, {"prompt": "Q?", "completion": "A."})
    base = await registry.base_version(session, project.id)
    for kind in (VersionKind.POLICY, VersionKind.REWARD):
        run = await make_run(session, project, kind="sft", state="finished")
        await registry.register(
            session, project_id=project.id, kind=kind, parent=base, run_id=run.id, dataset_id=None, metrics={}
        )
    await sign_in(client, session)
    client.headers.update({"sec-fetch-site": "same-origin"})
    address = f"/projects/{project.slug}/runs"
    page = (await client.get(address)).text
    assert '<option value="" selected>The usual one</option><option value="2">policy v2</option>' in page
    assert '<option value="1">policy v1</option></select>' in page
    for number in ("3", "99", "²", "2'--"):
        refused = await client.post(address, data={"kind": "sft", "version": number}, headers={"accept": "text/html"})
        assert refused.status_code == 422
        assert "must be the number of a policy of this project" in refused.text
    kept = await client.post(address, data={"kind": "star", "version": "2"}, headers={"accept": "text/html"})
    assert kept.status_code == 422
    assert '<option value="2" selected>' in kept.text
    answer = await client.post(address, data={"kind": "sft", "version": "2"})
    assert answer.status_code == 303
    started = await session.scalar(select(Run).where(Run.project_id == project.id, Run.state == "queued"))
    assert started is not None
    assert started.config["policy"]["number"] == 2


async def test_corpora_stand_beside_the_datasets(client: AsyncClient, session: AsyncSession) -> None:
    project = await make_project(session)
    await sign_in(client, session)
    client.headers.update({"sec-fetch-site": "same-origin"})
    form = {"kind": "corpus", "text": '{"text": "One."}\n{"text": "Two."}'}
    taken = await client.post(f"/projects/{project.slug}/prompts/import", data=form)
    assert taken.status_code == 200
    page = await client.get(f"/projects/{project.slug}/datasets")
    assert "imported" in page.text
    assert '<td class="n">2</td>' in page.text


SHARE = {"value": 0.625, "low": 0.5, "high": 0.75, "num_pairs": 77, "num_prompts": 7}
REPORT = {
    "accuracy": SHARE,
    "by_agreement": [{"agreeing": 2, "of": 3} | SHARE],
    "by_margin": [{"from": 0.1, "to": 0.4} | SHARE],
    "by_doubt": [],
    "by_length_difference": [{"from": -12, "to": 3} | SHARE],
    "by_policies": [{"policies": ["a", "b"]} | SHARE],
    "calibration": {"error": 0.0625, "bins": []},
    "length": {"correlation": 0.25, "longer_is_better": SHARE},
    "people": {"agreement": None, "num_annotators": 1},
}


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        (
            {"num_conversations": 9, "validation_loss": {"first": 2.5, "best": 1.25}, "seconds": 3.0},
            ["1.25", "from 2.5"],
        ),
        ({"num_answers": 32, "num_kept": 4, "reward": {"mean": 0.25, "best": 1.5}}, ["1.5", "0.25", "32"]),
        ({"reward": {"first": -0.5, "last": 0.75}, "kl": 0.5, "num_episodes": 64}, ["0.75", "from -0.5", "64"]),
        ({"accuracy": SHARE, "report": REPORT}, ["2 of 3", "62.5 %", "0.10 – 0.40", "-12 – 3", "0.25", "77"]),
    ],
)
async def test_each_kinds_result_is_shown_on_its_run_and_its_version(
    client: AsyncClient, session: AsyncSession, result: dict[str, Any], shown: list[str]
) -> None:
    project = await make_project(session, slug="shown")
    base = await registry.base_version(session, project.id)
    run = await make_run(session, project, kind="sft", state="finished", result=result)
    await registry.register(
        session,
        project_id=project.id,
        kind=VersionKind.POLICY,
        parent=base,
        run_id=run.id,
        dataset_id=None,
        metrics=result,
    )
    await sign_in(client, session)
    for address in (f"/projects/shown/runs/{run.id}", "/projects/shown/versions/2"):
        page = (await client.get(address)).text.replace("\u2212", "-")
        assert [text for text in shown if text not in page] == [], address


GUARD = {"first_score": 0.1, "best_score": 0.4, "training_score": 0.5, "num_episodes": 96, "num_exploited": 3}


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        ({"stopped_by": "kl", "guard": None}, "passed its limit (kl_stop)"),
        ({"stopped_by": "guard", "guard": GUARD}, "The version holds the weights after 96 episodes"),
        ({"stopped_by": None, "guard": GUARD}, "A guard watched."),
        ({"stopped_by": None, "guard": None}, None),
    ],
)
async def test_a_run_that_stopped_early_says_why(
    client: AsyncClient, session: AsyncSession, result: dict[str, Any], shown: str | None
) -> None:
    project = await make_project(session, slug="stopped")
    run = await make_run(session, project, kind="ppo", state="finished", result=result)
    await sign_in(client, session)
    page = (await client.get(f"/projects/stopped/runs/{run.id}")).text
    assert ("stopped early" in page) == (result["stopped_by"] is not None)
    assert shown is None or shown in page


async def test_a_judge_is_called_after_what_it_judges(client: AsyncClient, session: AsyncSession) -> None:
    project = await make_project(session, slug="judged")
    compares = await make_run(session, project, kind="judge", config={"comparison_id": "c"})
    ranks = await make_run(session, project, kind="judge", config={"rank_next": "novelty"})
    await sign_in(client, session)
    for run, name in ((compares, "Comparison by a reward model"), (ranks, "What to rank next")):
        assert f"<h1>{name}</h1>" in (await client.get(f"/projects/judged/runs/{run.id}")).text
    for page in ("/runs", ""):
        text = (await client.get(f"/projects/judged{page}")).text
        assert f'runs/{compares.id}">Comparison by a reward model</a>' in text, page
        assert f'runs/{ranks.id}">What to rank next</a>' in text, page
