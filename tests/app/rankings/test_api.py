"""Leases and rankings through the API: annotators' programs send, trainers' programs read, and all are blind."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from httpx2 import AsyncClient, Response
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Role, Scope, User
from app.accounts.tokens import create_token
from app.projects.models import Project
from app.tasks import making
from tests.factories import make_completion, make_project, make_prompt, make_task, make_user

CANARY = "canary-model-7b"
API = "/api/v1"


@pytest.fixture
async def project(session: AsyncSession) -> Project:
    project = await make_project(session, labels=[{"key": "rude", "en": "Rude", "zh": "粗鲁"}])
    await session.commit()
    return project


@pytest.fixture
async def ada(session: AsyncSession) -> User:
    ada = await make_user(session, name="Ada")
    await session.commit()
    return ada


async def token(session: AsyncSession, user: User, *scopes: Scope, **settings: Any) -> dict[str, str]:
    _, secret = await create_token(session, user_id=user.id, name="test", scopes=scopes, **settings)
    await session.commit()
    return {"Authorization": f"Bearer {secret}"}


@pytest.fixture
async def annotating(session: AsyncSession, ada: User) -> dict[str, str]:
    return await token(session, ada, Scope.ANNOTATE)


@pytest.fixture
async def reading(session: AsyncSession) -> dict[str, str]:
    return await token(session, await make_user(session, role=Role.TRAINER), Scope.READ)


async def add_tasks(session: AsyncSession, project: Project, num: int = 1) -> None:
    for _ in range(num):
        await make_task(session, await make_prompt(session, project))
    await session.commit()


async def next_task(client: AsyncClient, headers: dict[str, str], project: Project) -> dict[str, Any]:
    answer = await client.post(f"{API}/tasks:next", json={"project_id": project.slug}, headers=headers)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def in_order(lease: dict[str, Any]) -> list[list[str]]:
    return [[completion["id"]] for completion in lease["completions"]]


async def rank(
    client: AsyncClient, headers: dict[str, str], lease: dict[str, Any], order: Any = None, **more: Any
) -> Response:
    body = {"order": order if order is not None else in_order(lease), **more}
    return await client.post(f"{API}/leases/{lease['lease_id']}/ranking", json=body, headers=headers)


async def test_a_task_is_all_that_its_annotator_may_know(
    client: AsyncClient, session: AsyncSession, project: Project, annotating: dict[str, str]
) -> None:
    await add_tasks(session, project)
    lease = await next_task(client, annotating, project)
    told = {"task_id", "lease_id", "expires_at", "messages", "completions", "k"}
    assert set(lease) == told | {"ties_allowed", "partial_allowed", "is_assisted"}
    assert all(sorted(completion) == ["id", "text"] for completion in lease["completions"])


async def test_a_project_is_named_by_id_or_short_name(
    client: AsyncClient, session: AsyncSession, project: Project, annotating: dict[str, str]
) -> None:
    await add_tasks(session, project)
    lease = await next_task(client, annotating, project)
    again = await client.post(f"{API}/tasks:next", json={"project_id": str(project.id)}, headers=annotating)
    assert again.json()["lease_id"] == lease["lease_id"]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"{", "application/json"),
        (b"{", "text/plain"),
        (b"\xff", "text/plain"),
        (b"[" * 100_000, "text/plain"),
        (b"[]", "application/json"),
        (b"{}", "application/json"),
        (b'{"project_id": 5}', "application/json"),
        (b'{"project_id": ""}', "application/json"),
        (b'{"project_id": "%s"}' % (b"p" * 101), "application/json"),
    ],
)
async def test_a_body_that_names_no_project_is_refused(
    client: AsyncClient, annotating: dict[str, str], body: bytes, kind: str
) -> None:
    answer = await client.post(f"{API}/tasks:next", content=body, headers=annotating | {"content-type": kind})
    assert answer.status_code == 422, answer.text


async def test_204_when_nothing_waits(client: AsyncClient, project: Project, annotating: dict[str, str]) -> None:
    answer = await client.post(f"{API}/tasks:next", json={"project_id": project.slug}, headers=annotating)
    assert (answer.status_code, answer.content) == (204, b"")


async def test_a_ranking_is_201_and_200_when_repeated(
    client: AsyncClient, session: AsyncSession, project: Project, annotating: dict[str, str]
) -> None:
    await add_tasks(session, project)
    lease = await next_task(client, annotating, project)
    answers = [await rank(client, annotating, lease) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 200]
    assert answers[0].json() == answers[1].json()
    assert answers[0].json()["order"] == in_order(lease)


async def test_another_ranking_of_the_same_lease_is_409(
    client: AsyncClient, session: AsyncSession, project: Project, annotating: dict[str, str]
) -> None:
    await add_tasks(session, project)
    lease = await next_task(client, annotating, project)
    await rank(client, annotating, lease)
    answer = await rank(client, annotating, lease, order=in_order(lease)[::-1])
    assert (answer.status_code, answer.json()["title"]) == (409, "AlreadyAnswered")


async def test_a_change_of_mind_supersedes(
    client: AsyncClient, session: AsyncSession, project: Project, annotating: dict[str, str]
) -> None:
    await add_tasks(session, project)
    lease = await next_task(client, annotating, project)
    old = (await rank(client, annotating, lease)).json()
    body = {"order": in_order(lease)[::-1]}
    answer = await client.post(f"{API}/rankings/{old['id']}:revise", json=body, headers=annotating)
    assert answer.status_code == 201, answer.text
    assert answer.json()["supersedes_id"] == old["id"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda order: order[:-1], "places."),
        (lambda order: [*order, order[0]], "order[4][0]"),
        (lambda order: [*order, []], "order[4]"),
        (lambda order: [*order[:3], ["00000000-0000-0000-0000-000000000001"]], "places.00000000"),
        (lambda order: "best", "order"),
    ],
)
async def test_an_order_that_is_not_one_is_422_and_names_the_field(
    client: AsyncClient,
    session: AsyncSession,
    project: Project,
    annotating: dict[str, str],
    change: Any,
    field: str,
) -> None:
    await add_tasks(session, project)
    lease = await next_task(client, annotating, project)
    answer = await rank(client, annotating, lease, order=change(in_order(lease)))
    assert answer.status_code == 422, answer.text
    assert any(error["field"].startswith(field) for error in answer.json()["errors"]), answer.json()


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"ratings": {"$first": 8}}, "ratings"),
        ({"ratings": {"$first": True}}, "ratings"),
        ({"labels": {"$first": ["ugly"]}}, "labels"),
        ({"rationale": "x" * 10_001}, "rationale"),
        ({"rationale": "a\0b"}, "rationale"),
        ({"places": {}}, "places"),
    ],
)
async def test_what_stands_beside_an_order_is_checked_too(
    client: AsyncClient,
    session: AsyncSession,
    project: Project,
    annotating: dict[str, str],
    more: dict[str, Any],
    field: str,
) -> None:
    await add_tasks(session, project)
    lease = await next_task(client, annotating, project)
    first = lease["completions"][0]["id"]
    filled = {key: {first: value["$first"]} if "$first" in value else value for key, value in more.items()}
    answer = await rank(client, annotating, lease, **filled)
    assert answer.status_code == 422, answer.text
    assert any(error["field"].startswith(field) for error in answer.json()["errors"]), answer.json()


async def test_half_a_surrogate_pair_is_refused(
    client: AsyncClient, session: AsyncSession, project: Project, annotating: dict[str, str]
) -> None:
    await add_tasks(session, project)
    lease = await next_task(client, annotating, project)
    body = json.dumps({"order": in_order(lease), "rationale": "\ud800"})
    answer = await client.post(
        f"{API}/leases/{lease['lease_id']}/ranking",
        content=body,
        headers=annotating | {"Content-Type": "application/json"},
    )
    assert answer.status_code in {400, 422}


async def test_somebody_elses_lease_is_404(
    client: AsyncClient, session: AsyncSession, project: Project, annotating: dict[str, str]
) -> None:
    await add_tasks(session, project)
    lease = await next_task(client, annotating, project)
    other = await token(session, await make_user(session), Scope.ANNOTATE)
    answers = [
        await rank(client, other, lease),
        await client.post(f"{API}/leases/{lease['lease_id']}:release", headers=other),
        await client.put(f"{API}/leases/{lease['lease_id']}/draft", json={}, headers=other),
    ]
    assert [answer.status_code for answer in answers] == [404, 404, 404]


async def test_a_token_of_another_project_reaches_nothing(
    client: AsyncClient, session: AsyncSession, project: Project, ada: User, annotating: dict[str, str]
) -> None:
    await add_tasks(session, project)
    lease = await next_task(client, annotating, project)
    elsewhere = await make_project(session)
    ada.role = Role.TRAINER
    bound = await token(session, ada, Scope.ANNOTATE, Scope.READ, project_ids=[elsewhere.id])
    answers = [
        await client.post(f"{API}/tasks:next", json={"project_id": project.slug}, headers=bound),
        await rank(client, bound, lease),
        await client.get(f"{API}/tasks?project_id={project.id}", headers=bound),
        await client.get(f"{API}/rankings?project_id={project.id}", headers=bound),
    ]
    assert [answer.status_code for answer in answers] == [404] * 4


async def test_annotators_do_not_read_rankings_or_tasks(
    client: AsyncClient, project: Project, annotating: dict[str, str]
) -> None:
    for address in ("tasks", "rankings"):
        answer = await client.get(f"{API}/{address}?project_id={project.id}", headers=annotating)
        assert answer.status_code == 403


async def test_a_skipped_task_is_gone(
    client: AsyncClient, session: AsyncSession, project: Project, annotating: dict[str, str]
) -> None:
    await add_tasks(session, project)
    lease = await next_task(client, annotating, project)
    address = f"{API}/leases/{lease['lease_id']}:release"
    for _ in range(2):
        answer = await client.post(address, json={"reason": "no Chinese"}, headers=annotating)
        assert answer.status_code == 204
    assert (await rank(client, annotating, lease)).status_code == 409


async def test_a_draft_is_kept(
    client: AsyncClient, session: AsyncSession, project: Project, annotating: dict[str, str]
) -> None:
    await add_tasks(session, project)
    lease = await next_task(client, annotating, project)
    first = lease["completions"][0]["id"]
    draft = {"places": {first: 2}, "ratings": {first: None}, "labels": {first: ["rude"]}, "rationale": "so far"}
    answer = await client.put(f"{API}/leases/{lease['lease_id']}/draft", json=draft, headers=annotating)
    assert answer.status_code == 200, answer.text
    stored = await session.scalar(text("select draft from leases where id = :id"), {"id": lease["lease_id"]})
    assert stored == draft


async def test_who_wrote_an_answer_is_nowhere_in_what_annotators_get(
    client: AsyncClient, session: AsyncSession, project: Project, annotating: dict[str, str]
) -> None:
    prompt = await make_prompt(session, project, source=CANARY, meta={"model": CANARY})
    ids = [(await make_completion(session, prompt, model_name=CANARY)).id for _ in range(3)]
    await making.create_task(session, project=project, prompt_id=prompt.id, completion_ids=ids)
    await session.commit()
    lease = await client.post(f"{API}/tasks:next", json={"project_id": project.slug}, headers=annotating)
    ranking = await rank(client, annotating, lease.json())
    assert (lease.status_code, ranking.status_code) == (200, 201)
    assert CANARY not in lease.text + ranking.text


async def test_tasks_are_listed_page_by_page(
    client: AsyncClient, session: AsyncSession, project: Project, annotating: dict[str, str], reading: dict[str, str]
) -> None:
    await add_tasks(session, project, 3)
    lease = await next_task(client, annotating, project)
    first = (await client.get(f"{API}/tasks?project_id={project.slug}&limit=2", headers=reading)).json()
    address = f"{API}/tasks?project_id={project.slug}&limit=2&cursor={first['next_cursor']}"
    second = (await client.get(address, headers=reading)).json()
    assert [len(first["items"]), len(second["items"]), second["next_cursor"]] == [2, 1, None]
    assert first["items"][0]["id"] == lease["task_id"]
    assert first["items"][0]["num_open"] == 1


async def test_rankings_are_followed_by_their_cursor(
    client: AsyncClient, session: AsyncSession, project: Project, annotating: dict[str, str], reading: dict[str, str]
) -> None:
    await add_tasks(session, project, 3)
    stored = []
    for _ in range(3):
        stored.append((await rank(client, annotating, await next_task(client, annotating, project))).json()["id"])
    seen: list[str] = []
    cursor = ""
    while True:
        address = f"{API}/rankings?project_id={project.id}&limit=2&cursor={cursor}"
        page = (await client.get(address, headers=reading)).json()
        if not page["items"]:
            break
        seen += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert seen == stored
    assert page["next_cursor"] == cursor, "the cursor of the last one is where to go on later"


async def test_rankings_come_as_lines(
    client: AsyncClient, session: AsyncSession, project: Project, annotating: dict[str, str], reading: dict[str, str]
) -> None:
    await add_tasks(session, project, 2)
    stored = [(await rank(client, annotating, await next_task(client, annotating, project))).json() for _ in range(2)]
    lines = await client.get(
        f"{API}/rankings?project_id={project.slug}", headers=reading | {"Accept": "application/x-ndjson"}
    )
    assert lines.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line) for line in lines.text.splitlines()] == stored


async def test_a_made_up_cursor_is_400(client: AsyncClient, project: Project, reading: dict[str, str]) -> None:
    answer = await client.get(f"{API}/rankings?project_id={project.id}&cursor=7", headers=reading)
    assert (answer.status_code, "cursor" in answer.json()["detail"]) == (400, True)


async def test_one_ranking_is_read_by_id(
    client: AsyncClient, session: AsyncSession, project: Project, annotating: dict[str, str], reading: dict[str, str]
) -> None:
    await add_tasks(session, project)
    stored = (await rank(client, annotating, await next_task(client, annotating, project))).json()
    answer = await client.get(f"{API}/rankings/{stored['id']}", headers=reading)
    assert answer.json() == stored


async def test_a_lease_is_extended(
    client: AsyncClient, session: AsyncSession, project: Project, annotating: dict[str, str]
) -> None:
    await add_tasks(session, project)
    lease = await next_task(client, annotating, project)
    move = text("update leases set expires_at = expires_at - make_interval(secs => :s) where id = :id")
    await session.execute(move, {"s": timedelta(minutes=30).total_seconds(), "id": lease["lease_id"]})
    await session.commit()
    answer = await client.post(f"{API}/leases/{lease['lease_id']}:extend", headers=annotating)
    assert answer.json()["expires_at"] >= lease["expires_at"]


async def test_how_it_was_made_is_told_and_kept(
    client: AsyncClient, session: AsyncSession, project: Project, annotating: dict[str, str]
) -> None:
    await add_tasks(session, project)
    lease = await next_task(client, annotating, project)
    sent = datetime.now(UTC) - timedelta(hours=5)
    how = {"sent_at": sent.isoformat(), "shown_at": sent.isoformat(), "device": "desktop", "inputs": ["key"]}
    answer = await rank(client, annotating, lease, how=how)
    assert answer.status_code == 201
    told = answer.json()["provenance"]
    assert (told["device"], told["inputs"], told["is_offline"]) == ("desktop", ["key"], False)
    assert abs(datetime.fromisoformat(told["shown_at"]) - datetime.now(UTC)) < timedelta(minutes=1)


async def test_how_it_was_made_is_refused_by_field(
    client: AsyncClient, session: AsyncSession, project: Project, annotating: dict[str, str]
) -> None:
    await add_tasks(session, project)
    lease = await next_task(client, annotating, project)
    for how, field in [
        ({"sent_at": "2026-11-21T12:00:00Z", "shown_at": "2020-01-01T00:00:00Z"}, "how.shown_at"),
        ({"sent_at": "2026-11-21T12:00:00Z", "active_seconds": -1}, "how.active_seconds"),
    ]:
        answer = await rank(client, annotating, lease, how=how)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)
