"""Who may open what: every page and every API operation, asked without a session, as an annotator, and as an admin.

The rows are read from the routers themselves, so a new route is asked as well; what is public says so in its docstring.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator

import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute
from httpx2 import AsyncClient
from sqlalchemy.ext.asyncio import AsyncSession

from app import assets
from app.accounts.models import Role
from app.accounts.service import create_sign_in_link, create_token, sign_in
from app.main import API, DOMAINS, PAGES
from app.security import HEADERS
from tests.factories import make_project, make_user

PUBLIC = {"/sign-in", "/sign-in/link", "/sign-out", "/preferences"}
ANNOTATORS_PAGES = {
    "/",
    "/projects/{slug}/rank",
    "/leases/{lease_id}",
    "/leases/{lease_id}/skip",
    "/leases/{lease_id}/draft",
}


def routes(routers: list[APIRouter]) -> Iterator[tuple[str, str]]:
    """Method and path of every route, those of routers within routers too."""
    for router in routers:
        for route in router.routes:
            if isinstance(route, APIRoute):
                yield from ((method, route.path) for method in sorted(route.methods or ()))
            else:
                yield from routes([route.original_router])  # type: ignore[attr-defined]


PAGE_ROUTES = list(routes([module.router for module in PAGES]))
API_ROUTES = list(routes([module.router for module in DOMAINS]))


def address(path: str) -> str:
    """A path with its gaps filled: the project exists, everything else does not."""
    filled = re.sub(r"\{(slug|project_id)\}", "access", path)
    filled = re.sub(r"\{number(:int)?\}", "1", filled)
    return re.sub(r"\{[^}]+\}", str(uuid.UUID(int=7)), filled)


@pytest.fixture(autouse=True)
async def access_project(client: AsyncClient, session: AsyncSession) -> None:
    """The one project that `address` names; requests come from our own pages."""
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


@pytest.mark.parametrize(("method", "path"), PAGE_ROUTES)
async def test_pages_without_a_session_send_to_the_sign_in(client: AsyncClient, method: str, path: str) -> None:
    answer = await client.request(method, address(path), headers={"accept": "text/html"})
    if path in PUBLIC:
        assert answer.status_code in {200, 303, 401, 422}
    elif method == "GET":
        assert (answer.status_code, answer.headers.get("location")) == (303, "/sign-in")
    else:
        assert answer.status_code == 401


@pytest.mark.parametrize(("method", "path"), [row for row in PAGE_ROUTES if row[1] not in PUBLIC])
async def test_admins_pages_are_not_for_annotators(
    client: AsyncClient, session: AsyncSession, method: str, path: str
) -> None:
    client.cookies.update(await cookie_of(session, Role.ANNOTATOR))
    answer = await client.request(method, address(path), headers={"accept": "text/html"})
    if path in ANNOTATORS_PAGES:
        assert answer.status_code in {200, 303, 404, 422}
    else:
        assert answer.status_code == 403, "an annotator got in"


@pytest.mark.parametrize("path", [path for method, path in PAGE_ROUTES if method == "GET"])
async def test_admins_open_every_page(client: AsyncClient, session: AsyncSession, path: str) -> None:
    client.cookies.update(await cookie_of(session, Role.ADMIN))
    answer = await client.get(address(path), headers={"accept": "text/html"})
    assert answer.status_code in {200, 404}
    assert "<html" in answer.text or "data-refresh" in answer.text


@pytest.mark.parametrize(("method", "path"), API_ROUTES)
async def test_the_api_asks_for_a_token(client: AsyncClient, method: str, path: str) -> None:
    answer = await client.request(method, API + address(path), json={})
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    refused = await client.request(
        method, API + address(path), json={}, headers={"authorization": "Bearer rl_nobody's"}
    )
    assert refused.status_code == 401


@pytest.mark.parametrize(("method", "path"), API_ROUTES)
async def test_no_operation_takes_every_scope(
    client: AsyncClient, session: AsyncSession, method: str, path: str
) -> None:
    """Each operation refuses an annotator's token or a worker's: nothing is open to whoever has any token."""
    answers = set()
    for scope in ("annotate", "worker"):
        headers = {**await token_of(session, scope), "rankloop-fence": "1"}
        answers.add((await client.request(method, API + address(path), json={}, headers=headers)).status_code)
    assert 403 in answers
    assert not {status for status in answers if status >= 500}


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


async def test_a_token_loses_what_its_owners_role_lost(client: AsyncClient, session: AsyncSession) -> None:
    user = await make_user(session, role=Role.ADMIN)
    _, secret = await create_token(session, user_id=user.id, name="t", scopes=["admin", "annotate"])
    headers = {"authorization": f"Bearer {secret}"}
    await session.commit()
    assert (await client.get(f"{API}/users", headers=headers)).status_code == 200
    user.role = Role.ANNOTATOR
    await session.commit()
    assert (await client.get(f"{API}/users", headers=headers)).status_code == 403
