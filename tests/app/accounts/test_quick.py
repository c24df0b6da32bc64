"""A quick route answers as FastAPI would have: a charset in the type of the body sends the same request that way."""

from __future__ import annotations

import uuid
from typing import Any

import fastapi.routing
import pytest
from fastapi import APIRouter
from httpx2 import AsyncClient, Response
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.guards import Ranker
from app.accounts.models import Scope
from app.accounts.quick import QuickRoute
from app.accounts.tokens import create_token
from app.web import SessionDep, begins_late
from tests.factories import make_project, make_prompt, make_task, make_user

API = "/api/v1"
QUICK, USUAL = "application/json", "application/json; charset=utf-8"
NEXT = f"{API}/tasks:next"


@pytest.fixture
async def annotating(session: AsyncSession) -> dict[str, str]:
    project = await make_project(session, slug="quick")
    for _ in range(2):
        await make_task(session, await make_prompt(session, project))
    ada = await make_user(session)
    _, secret = await create_token(session, user_id=ada.id, name="test", scopes=[Scope.ANNOTATE])
    await session.commit()
    return {"Authorization": f"Bearer {secret}"}


async def send(client: AsyncClient, address: str, body: bytes, kind: str, headers: dict[str, str]) -> Response:
    return await client.post(address, content=body, headers={**headers, "Content-Type": kind})


def told(answer: Response) -> tuple[int, Any, set[str]]:
    """All of an answer but what differs between any two."""
    own = {"x-request-id", "ratelimit"}
    body = answer.json() if answer.content else {}
    body.pop("request_id", None)
    return answer.status_code, body, {f"{k}: {v}" for k, v in answer.headers.items() if k not in own}


ODD = {
    "no body": (NEXT, b""),
    "no json": (NEXT, b"{"),
    "no text": (NEXT, b"\xff\xfe"),
    "too deep": (NEXT, b"[" * 100_000),
    "a list": (NEXT, b"[]"),
    "a field is missing": (NEXT, b"{}"),
    "a field too many": (NEXT, b'{"project_id": "quick", "more": 1}'),
    "a field of another type": (NEXT, b'{"project_id": 5}'),
    "no such project": (NEXT, b'{"project_id": "slow"}'),
    "no such lease": (f"{API}/leases/{uuid.UUID(int=7)}/ranking", b'{"order": []}'),
    "no id": (f"{API}/leases/seven/ranking", b'{"order": []}'),
    "an id that python reads": (f"{API}/leases/{{{uuid.UUID(int=7)}}}/ranking", b'{"order": []}'),
    "an order of words": (f"{API}/leases/{uuid.UUID(int=7)}/ranking", b'{"order": "best"}'),
}


@pytest.mark.parametrize(("address", "body"), ODD.values(), ids=ODD)
async def test_the_odd_is_refused_as_everywhere(
    client: AsyncClient, annotating: dict[str, str], address: str, body: bytes
) -> None:
    for headers in (annotating, {}, {"Authorization": "Bearer rl_unknown"}, {"Authorization": "Basic eDp5"}):
        quick, usual = [told(await send(client, address, body, kind, headers)) for kind in (QUICK, USUAL)]
        assert quick == usual
        assert quick[0] >= 400


async def test_a_task_and_its_ranking_are_answered_as_everywhere(
    client: AsyncClient, annotating: dict[str, str]
) -> None:
    asked = b'{"project_id": "quick"}'
    quick, usual = [told(await send(client, NEXT, asked, kind, annotating)) for kind in (QUICK, USUAL)]
    assert quick == usual
    lease = quick[1]
    order = [[card["id"]] for card in lease["completions"]]
    answer = f"{API}/leases/{lease['lease_id']}/ranking"
    first = await client.post(answer, json={"order": order}, headers=annotating)
    assert first.status_code == 201
    again = [told(await send(client, answer, first.request.content, kind, annotating)) for kind in (QUICK, USUAL)]
    assert again[0] == again[1]
    assert (again[0][0], again[0][1]["id"]) == (200, first.json()["id"])
    other = b'{"order": []}'
    refused = [told(await send(client, answer, other, kind, annotating)) for kind in (QUICK, USUAL)]
    assert refused[0] == refused[1]
    assert refused[0][0] in {409, 422}


async def test_where_nothing_waits_both_say_so(client: AsyncClient, session: AsyncSession) -> None:
    await make_project(session, slug="done")
    _, secret = await create_token(session, user_id=(await make_user(session)).id, name="test", scopes=[Scope.ANNOTATE])
    await session.commit()
    headers = {"Authorization": f"Bearer {secret}"}
    answers = [told(await send(client, NEXT, b'{"project_id": "done"}', kind, headers)) for kind in (QUICK, USUAL)]
    assert answers[0] == answers[1]
    assert answers[0][0] == 204


async def test_in_the_usual_case_fastapi_looks_for_nothing(
    client: AsyncClient, annotating: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> None:
        raise AssertionError("a quick route found its dependencies the slow way")

    monkeypatch.setattr(fastapi.routing, "solve_dependencies", fail)
    lease = (await client.post(NEXT, json={"project_id": "quick"}, headers=annotating)).json()
    order = [[card["id"]] for card in lease["completions"]]
    stored = await client.post(f"{API}/leases/{lease['lease_id']}/ranking", json={"order": order}, headers=annotating)
    assert stored.status_code == 201
    with pytest.raises(AssertionError, match="slow way"):
        await send(client, NEXT, b'{"project_id": "quick"}', USUAL, annotating)


def test_an_endpoint_that_wants_more_is_no_quick_one() -> None:
    router = APIRouter(route_class=QuickRoute)

    async def endpoint(caller: Ranker, session: SessionDep, page: int) -> None: ...

    with pytest.raises(TypeError, match="a quick route gives"):
        router.add_api_route("/more", begins_late(endpoint))
