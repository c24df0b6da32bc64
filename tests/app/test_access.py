"""That every route has a row in the matrix; requests from elsewhere, others' forms and tokens, where a form leads."""

from __future__ import annotations

import re

import pytest
from httpx2 import AsyncClient
from sqlalchemy.ext.asyncio import AsyncSession

from app import assets
from app.accounts.models import Role
from app.accounts.sessions import create_sign_in_link, sign_in
from app.accounts.tokens import create_token
from app.main import API
from app.reach import NOT_A_PROJECTS_OWN, PROJECT_FINDERS
from app.security import HEADERS
from tests.app.matrix import API_MATRIX, API_ROUTES, PAGE_MATRIX, PAGE_ROUTES
from tests.factories import make_project, make_prompt, make_run, make_task, make_user


@pytest.fixture(autouse=True)
async def access_project(client: AsyncClient, session: AsyncSession) -> None:
    """A project; requests come from our own pages."""
    client.headers.update({"sec-fetch-site": "same-origin"})
    await make_project(session, name="Access", slug="access")
    await session.commit()


async def cookie_of(session: AsyncSession, role: Role) -> dict[str, str]:
    user = await make_user(session, role=role)
    link = await create_sign_in_link(session, user=user, public_url="http://127.0.0.1:8000")
    token = await sign_in(session, secret=link.rpartition("#")[2])
    await session.commit()
    return {"rl_session": token}


async def token_of(session: AsyncSession, *scopes: str) -> dict[str, str]:
    user = await make_user(session, role=Role.ADMIN)
    _, secret = await create_token(session, user_id=user.id, name="t", scopes=scopes)
    await session.commit()
    return {"authorization": f"Bearer {secret}"}


def test_every_route_has_its_row() -> None:
    assert set(PAGE_ROUTES) == set(PAGE_MATRIX), "pages and PAGE_MATRIX differ"
    assert set(API_ROUTES) == set(API_MATRIX), "operations and API_MATRIX differ"


def test_every_gap_of_an_address_leads_to_its_project() -> None:
    gaps = {gap for route in PAGE_ROUTES + API_ROUTES for gap in re.findall(r"\{(\w+)", route)}
    assert gaps - set(PROJECT_FINDERS) - NOT_A_PROJECTS_OWN == set(), "say in app/reach.py whose these are"


@pytest.mark.parametrize(
    "path", ["/sign-in", "/nowhere", assets.url("app.css"), "/static/none.css", "/api/v1/runs", "/api/v1/openapi.json"]
)
async def test_every_answer_has_the_security_headers(client: AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "", "origin": "https://evil.example"},
        {"sec-fetch-site": "", "origin": "null"},
    ],
)
async def test_another_sites_form_changes_nothing(
    client: AsyncClient, session: AsyncSession, headers: dict[str, str]
) -> None:
    client.cookies.update(await cookie_of(session, Role.ADMIN))
    answer = await client.post("/people", data={"name": "Eve", "email": "eve@evil.example"}, headers=headers)
    assert answer.status_code == 403
    assert "eve@evil.example" not in (await client.get("/people")).text


@pytest.mark.parametrize(
    "target",
    [
        "//evil.example",
        "https://evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "javascript:alert(1)",
        "/\t/evil.example",
        "/%0d%0a",
    ],
)
async def test_next_always_lands_here(client: AsyncClient, target: str) -> None:
    answer = await client.post("/preferences", data={"language": "zh", "next": target})
    assert answer.status_code == 303
    location = answer.headers["location"]
    assert location.startswith("/")
    assert not location.startswith(("//", "/\\"))


async def test_a_token_of_one_project_does_not_see_another(client: AsyncClient, session: AsyncSession) -> None:
    mine = await make_project(session, name="Mine")
    user = await make_user(session, role=Role.ADMIN)
    _, secret = await create_token(session, user_id=user.id, name="t", scopes=["read"], project_ids=[mine.id])
    await session.commit()
    headers = {"authorization": f"Bearer {secret}"}
    assert (await client.get(f"{API}/projects/{mine.slug}", headers=headers)).status_code == 200
    assert (await client.get(f"{API}/projects/access", headers=headers)).status_code == 404
    listed = (await client.get(f"{API}/projects", headers=headers)).json()["items"]
    assert [item["slug"] for item in listed] == [mine.slug]


async def test_a_thing_of_one_project_is_not_found_below_another(client: AsyncClient, session: AsyncSession) -> None:
    """Also where whoever asks may see both."""
    mine = await make_project(session, slug="mine")
    task = await make_task(session, await make_prompt(session, mine))
    run = await make_run(session, mine)
    client.cookies.update(await cookie_of(session, Role.ADMIN))
    for path in (f"tasks/{task.id}", f"runs/{run.id}", f"runs/{run.id}/live"):
        assert (await client.get(f"/projects/mine/{path}")).status_code == 200
        assert (await client.get(f"/projects/access/{path}")).status_code == 404


async def test_a_token_loses_what_its_owners_role_lost(client: AsyncClient, session: AsyncSession) -> None:
    user = await make_user(session, role=Role.ADMIN)
    _, secret = await create_token(session, user_id=user.id, name="t", scopes=["admin", "annotate"])
    headers = {"authorization": f"Bearer {secret}"}
    await session.commit()
    assert (await client.get(f"{API}/users", headers=headers)).status_code == 200
    user.role = Role.ANNOTATOR
    await session.commit()
    assert (await client.get(f"{API}/users", headers=headers)).status_code == 403
