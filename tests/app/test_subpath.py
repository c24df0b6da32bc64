"""Rankloop below a path of another site: whatever leads somewhere leads below that path."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from httpx2 import ASGITransport, AsyncClient
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from app.accounts.guards import SESSION_COOKIE
from app.accounts.sessions import create_sign_in_link
from app.config import Settings
from app.db import SessionMaker
from app.main import create_app
from app.subpath import in_page
from tests.app.matrix import ALLOWED, PAGE_MATRIX
from tests.app.test_matrix import World, rolled_back, world
from tests.factories import make_user

__all__ = ["world"]

BASE = "/tools/rankloop"
SITE = f"https://example.org{BASE}"
LEADS = re.compile(r'\s(?:href|src|action|formaction|data-[a-z-]*url)="([^"]*)"')
HEADERS = {"sec-fetch-site": "same-origin", "accept": "text/html"}


def make_client(settings: Settings, sessions: SessionMaker, base_url: str = SITE) -> AsyncClient:
    return AsyncClient(transport=ASGITransport(create_app(settings, sessions)), base_url=base_url, headers=HEADERS)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, public_url=SITE)


@pytest.fixture
async def client(settings: Settings, sessionmaker: SessionMaker) -> AsyncIterator[AsyncClient]:
    async with make_client(settings, sessionmaker) as client:
        yield client


async def test_every_address_of_every_page_is_below_the_path(settings: Settings, world: World) -> None:
    await world.connection.begin_nested()
    sessions = async_sessionmaker(world.connection, expire_on_commit=False, join_transaction_mode="create_savepoint")
    routes = [route for route, word in PAGE_MATRIX.items() if route.startswith("GET ") and "owner" in ALLOWED[word]]
    num_addresses, outside = 0, []
    async with make_client(settings, sessions) as client:
        client.cookies.set(SESSION_COOKIE, world.cookies["owner"])
        for route in routes:
            answer = await client.get(world.address(route.removeprefix("GET "), "owner"))
            found = [answer.headers["location"]] if "location" in answer.headers else LEADS.findall(answer.text)
            leads = [address for address in found if address.startswith("/")]
            outside += [f"{route}: {address}" for address in leads if not address.startswith(f"{BASE}/")]
            num_addresses += len(leads)
    await rolled_back(world)
    assert outside == []
    assert num_addresses > 500


async def test_who_signs_in_stays_below_the_path(client: AsyncClient, session: AsyncSession) -> None:
    user = await make_user(session)
    link = await create_sign_in_link(session, user=user, public_url=SITE)
    await session.commit()
    assert link.startswith(f"{SITE}/sign-in/link#")
    first = await client.get("/people?q=1")
    assert first.headers["location"] == f"{BASE}/sign-in?next=/people%3Fq%3D1"
    taken = await client.post("/sign-in/link", data={"secret": link})
    assert (taken.status_code, taken.headers["location"]) == (303, f"{BASE}/")
    assert f"Path={BASE}/" in taken.headers["set-cookie"]
    assert (await client.get("/")).status_code == 200


@pytest.mark.parametrize("path", [BASE, f"{BASE}/", "/"])
async def test_the_same_page_with_the_path_and_without(
    settings: Settings, sessionmaker: SessionMaker, path: str
) -> None:
    async with make_client(settings, sessionmaker, "https://example.org") as client:
        answer = await client.get(path)
    assert (answer.status_code, answer.headers["location"]) == (303, f"{BASE}/sign-in")


@pytest.mark.parametrize("path", [f"{BASE}/sign-in/?next=/x", "/sign-in/?next=/x"])
async def test_a_slash_too_many_leads_to_the_same_page_below_the_path(
    settings: Settings, sessionmaker: SessionMaker, path: str
) -> None:
    async with make_client(settings, sessionmaker, "https://example.org") as client:
        answer = await client.get(path)
    assert (answer.status_code, answer.headers["location"]) == (307, f"{BASE}/sign-in?next=/x")


async def test_programs_are_told_where_the_api_lies(client: AsyncClient) -> None:
    answer = await client.get("/api/v1/openapi.json")
    assert answer.json()["servers"] == [{"url": BASE}]
    assert (await client.get("/api/v1/projects")).status_code == 401


async def test_a_neighbour_whose_name_begins_alike_is_not_ours(client: AsyncClient) -> None:
    assert (await client.get(f"https://example.org{BASE}2/sign-in")).status_code == 404


@pytest.mark.parametrize(
    ("html", "found"),
    [
        ('<a href="/x">', f'<a href="{BASE}/x">'),
        ('<form data-draft-url="/x" action="/y">', f'<form data-draft-url="{BASE}/x" action="{BASE}/y">'),
        ('<a href="//example.org/x"> <a href="https://a.b/"> <a href="#x"> <a href="?a=/x">', None),
        ('<textarea>href=&#34;/x&#34; href="</textarea>', None),
    ],
)
def test_addresses_on_this_site_are_completed(html: str, found: str | None) -> None:
    assert in_page(html, BASE) == (found or html)
    assert in_page(html, "") == html


@pytest.mark.parametrize("path", ["/api", "/projects/x", "/a b", '/"', "/a//b", "/static"])
def test_a_path_of_ours_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match="RANKLOOP_PUBLIC_URL"):
        create_app(Settings(data_dir=tmp_path, public_url=f"https://example.org{path}"))
