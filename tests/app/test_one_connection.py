"""No request needs two connections at once: where twenty requests hold twenty, and each waits for one more, all of them
wait for ever. Here the app has one connection, and everything is asked of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from httpx2 import ASGITransport, AsyncClient
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import passwords, tokens
from app.accounts.guards import SESSION_COOKIE
from app.accounts.models import AuditEntry, SignInMethod
from app.accounts.sessions import start_session
from app.config import Settings
from app.datasets.service import freeze
from app.db import SessionMaker, make_engine, make_sessionmaker
from app.main import API
from tests.app.accounts.test_invitations import invite
from tests.app.matrix import API_ROUTES, PAGE_ROUTES
from tests.app.test_matrix import World, ask_api, build
from tests.borrowed import borrowed_app
from tests.factories import make_project, make_prompt, make_ranking, make_task, make_user, set_password

pytestmark = pytest.mark.real_commits
PASSWORD = "four words are enough"
# Who signs out asks for nothing more.
LAST = {"POST /sign-out"}


@pytest.fixture
async def sessions(fresh_database_url: str) -> AsyncIterator[SessionMaker]:
    """The only connection; whoever wants another is refused after a moment."""
    engine = make_engine(fresh_database_url, pool_size=1, max_overflow=0, pool_timeout=0.2)
    yield make_sessionmaker(engine)
    await engine.dispose()


@pytest.fixture
async def client(sessions: SessionMaker, tmp_path: Path) -> AsyncIterator[AsyncClient]:
    headers = {"sec-fetch-site": "same-origin", "rankloop-fence": "1"}
    with borrowed_app(Settings(data_dir=tmp_path), sessions) as app:
        transport = ASGITransport(app)
        async with AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", headers=headers) as client:
            yield client


async def make_world(sessions: SessionMaker) -> World:
    """The matrix's project, with something of everything."""
    async with sessions.begin() as session:
        return await build(session, await session.connection())


async def test_no_route_asks_for_a_second(sessions: SessionMaker, client: AsyncClient) -> None:
    world = await make_world(sessions)
    troubled = []
    for route in sorted(API_ROUTES, key=lambda route: not route.startswith("GET")):
        method, path = route.split()
        headers = {"authorization": f"Bearer {world.tokens['owner']}"}
        answer = await ask_api(client, method, world.address(path, "owner"), headers)
        assert answer.status_code != 401, route
        troubled += [route] if answer.status_code == 503 else []
    client.cookies.set(SESSION_COOKIE, world.cookies["owner"])
    for route in sorted({*PAGE_ROUTES} - LAST, key=lambda route: not route.startswith("GET")):
        method, path = route.split()
        body = {"data": {"project_id": "access"}} if method == "POST" else {}
        answer = await client.request(method, world.address(path, "owner"), **body)
        troubled += [route] if answer.status_code == 503 else []
    assert troubled == []


async def test_to_note_a_refusal_asks_for_no_second(sessions: SessionMaker, client: AsyncClient) -> None:
    world = await make_world(sessions)
    client.cookies.set(SESSION_COOKIE, world.cookies["annotator"])
    assert (await client.get("/people")).status_code == 403
    async with sessions() as session:
        assert await session.scalar(select(AuditEntry.action).where(AuditEntry.action == "refused")) is not None


async def make_dataset(session: AsyncSession) -> tuple[str, str]:
    """The address of a dataset, and the token of who may read it."""
    project = await make_project(session)
    await make_ranking(session, await make_task(session, await make_prompt(session, project)))
    dataset = await freeze(session, project=project)
    reader = await make_user(session, role="admin")
    _, token = await tokens.create_token(session, user_id=reader.id, name="r", scopes=["read"])
    return f"{API}/datasets/{dataset.id}", token


@pytest.mark.parametrize("query", ["", "?format=pairs", "?file=csv", "?file=parquet", "?compression=zstd"])
@pytest.mark.parametrize("wanted", ["", "bytes=2-9"])
async def test_no_form_of_an_export_asks_for_a_second(
    sessions: SessionMaker, client: AsyncClient, query: str, wanted: str
) -> None:
    async with sessions.begin() as session:
        address, token = await make_dataset(session)
    headers = {"authorization": f"Bearer {token}", "range": wanted}
    answer = await client.get(f"{address}/export{query}", headers=headers)
    assert answer.status_code in ({206} if wanted else {200}), answer.text


@pytest.mark.parametrize("current", [PASSWORD, "not mine at all"])
async def test_a_new_password_asks_for_no_second(sessions: SessionMaker, client: AsyncClient, current: str) -> None:
    async with sessions.begin() as session:
        user = await make_user(session, name="Ada", email="ada@example.org")
        await set_password(session, user, PASSWORD)
        cookie = await start_session(session, user_id=user.id, method=SignInMethod.PASSWORD)
    client.cookies.set(SESSION_COOKIE, cookie)
    answer = await client.post("/account/password", data={"current": current, "password": "other words than before"})
    assert answer.status_code == (303 if current == PASSWORD else 422)


async def test_no_connection_waits_while_a_password_is_hashed(
    sessions: SessionMaker, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    cookies = {}
    async with sessions() as session:
        for name, method in (("ada", SignInMethod.LINK), ("eve", SignInMethod.PASSWORD)):
            user = await make_user(session, name="", email=f"{name}@example.org")
            await set_password(session, user, PASSWORD)
            cookies[name] = await start_session(session, user_id=user.id, method=method)
        link = await invite(session, None)
    pool, do, held = sessions.kw["bind"].pool, passwords.HASHING.do, []

    async def noted(*work: Any) -> Any:
        held.append(pool.checkedout())
        return await do(*work)

    monkeypatch.setattr(passwords.HASHING, "do", noted)
    them = {"name": "Bo", "email": "bo@example.org", "password": PASSWORD, "secret": link}
    assert (await client.post("/join", data=them)).status_code == 303
    assert (await client.post("/sign-in", data={"email": "ada@example.org", "password": PASSWORD})).status_code == 303
    for name, current in (("ada", ""), ("eve", PASSWORD)):
        client.cookies.clear()
        client.cookies.set(SESSION_COOKIE, cookies[name])
        fields = {"current": current, "password": "other words than before"}
        assert (await client.post("/account/password", data=fields)).status_code == 303
    assert held == [0] * 5
