"""API tokens: made by oneself within one's roles, for some projects, shown once, ended at once by whom they concern."""

from __future__ import annotations

import re

import pytest
from httpx2 import AsyncClient
from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import invitations, roles, sessions, tokens
from app.accounts.guards import SESSION_COOKIE
from app.accounts.models import ApiToken, Role, User
from app.main import API
from app.projects.models import Project
from app.registry.service import get_version_by_number
from app.runs.models import Run
from app.tables import metadata
from tests.factories import make_project, make_run, make_user, set_password, sign_in

FORM = {"sec-fetch-site": "same-origin", "accept": "text/html"}
PASSWORD = "four words are enough"
HOLD_SECRETS = ("api_tokens", "sign_in_links", "sessions", "invitations", "passwords", "idempotent_answers")


@pytest.fixture
async def project(session: AsyncSession) -> Project:
    return await make_project(session, slug="tone")


@pytest.fixture
async def trainer(client: AsyncClient, session: AsyncSession, project: Project) -> User:
    """A trainer of `project`, signed in."""
    user = await sign_in(client, session, role=None)
    await roles.set_member(session, user_id=user.id, project_id=project.id, role="trainer")
    await session.commit()
    return user


async def make(client: AsyncClient, **form: object) -> str:
    page = await client.post("/account/tokens", data={"token_name": "t", "scopes": ["read"]} | form, headers=FORM)
    assert page.status_code == 200, page.text
    found = re.search(r"rl_[\w-]{40,}", page.text)
    assert found
    return found[0]


async def ask(client: AsyncClient, secret: str, path: str = "/projects/tone") -> int:
    cookie = client.cookies.get(SESSION_COOKIE)
    client.cookies.clear()
    status = (await client.get(API + path, headers={"authorization": f"Bearer {secret}"})).status_code
    if cookie:
        client.cookies.set(SESSION_COOKIE, cookie)
    return status


async def test_a_token_is_shown_once_and_works(client: AsyncClient, trainer: User, session: AsyncSession) -> None:
    secret = await make(client)
    assert secret not in (await client.get("/account/tokens")).text
    assert await ask(client, secret) == 200
    token = (await session.scalars(select(ApiToken))).one()
    assert token.prefix == secret[:8]
    assert token.last_used_at
    assert token.expires_at


async def test_a_token_for_one_project_does_not_reach_another(
    client: AsyncClient, trainer: User, session: AsyncSession, project: Project
) -> None:
    other = await make_project(session, slug="other")
    await roles.set_member(session, user_id=trainer.id, project_id=other.id, role="trainer")
    await session.commit()
    bound, free = await make(client, projects=[str(project.id)]), await make(client)
    assert [await ask(client, bound, f"/projects/{slug}") for slug in ("tone", "other")] == [200, 404]
    assert [await ask(client, free, f"/projects/{slug}") for slug in ("tone", "other")] == [200, 200]


async def test_nobody_gives_away_more_than_they_have(client: AsyncClient, trainer: User, session: AsyncSession) -> None:
    stranger = await make_project(session, slug="strange")
    await session.commit()
    refused: list[dict[str, object]] = [
        {"scopes": ["admin"]},
        {"scopes": ["review"]},
        {"projects": [str(stranger.id)]},
        {"scopes": []},
    ]
    for form in refused:
        answer = await client.post("/account/tokens", data={"token_name": "t", "scopes": ["read"]} | form, headers=FORM)
        assert answer.status_code == 422
        assert "rl_" not in answer.text
    assert "scope-admin" not in (await client.get("/account/tokens")).text


async def test_a_token_ends_with_its_owners_role(
    client: AsyncClient, trainer: User, session: AsyncSession, project: Project
) -> None:
    secret = await make(client)
    await roles.set_member(session, user_id=trainer.id, project_id=project.id, role="annotator")
    await session.commit()
    assert await ask(client, secret) == 404, "none of its scopes is left here, so nothing is"
    await roles.remove_member(session, user_id=trainer.id, project_id=project.id)
    await session.commit()
    assert await ask(client, secret) == 404


async def test_tokens_are_seen_and_ended_by_their_owner_and_by_the_sites(
    client: AsyncClient, trainer: User, session: AsyncSession
) -> None:
    secret = await make(client, token_name="night run")
    token = (await session.scalars(select(ApiToken))).one()
    await sign_in(client, session, role=Role.TRAINER)
    assert "night run" not in (await client.get("/account/tokens")).text
    assert (await client.post(f"/account/tokens/{token.id}/revoke", headers=FORM)).status_code == 404
    assert await ask(client, secret) == 200
    await sign_in(client, session, role=Role.ADMIN)
    assert "night run" in (await client.get("/account/tokens")).text
    assert (await client.post(f"/account/tokens/{token.id}/revoke", headers=FORM)).status_code == 303
    assert await ask(client, secret) == 401


async def test_a_projects_admin_is_no_admin_of_the_site(client: AsyncClient, session: AsyncSession) -> None:
    project = await make_project(session, slug="tone")
    boss = await make_user(session, role=None)
    await roles.set_member(session, user_id=boss.id, project_id=project.id, role="admin")
    _, secret = await tokens.create_token(session, user_id=boss.id, name="t", scopes=["admin", "read"])
    owner = await make_user(session, role=Role.ADMIN)
    _, bound = await tokens.create_token(
        session, user_id=owner.id, name="t", scopes=["admin", "read"], project_ids=[project.id]
    )
    await session.commit()
    for token in (secret, bound):
        assert await ask(client, token, "/users") == 403
        assert await ask(client, token, "/projects/tone/members") == 200


async def test_no_secret_of_any_kind_is_stored_in_clear(client: AsyncClient, session: AsyncSession) -> None:
    """In no column of any table, whatever way it came."""
    user = await make_user(session, role=Role.ADMIN)
    await set_password(session, user, PASSWORD)
    _, token = await tokens.create_token(session, user_id=user.id, name="t", scopes=["admin"])
    link = (await sessions.create_sign_in_link(session, user=user, public_url="http://x")).rpartition("#")[2]
    cookie = await sessions.start_session(session, user_id=user.id, method="link")
    _, invitation = await invitations.create(
        session, project_id=None, role="annotator", days=1, max_uses=1, public_url="http://x", actor_id=user.id
    )
    await session.commit()
    headers = {"authorization": f"Bearer {token}", "idempotency-key": "one"}
    made = await client.post(f"{API}/tokens", json={"name": "by the API", "scopes": ["read"]}, headers=headers)
    signed = await client.post("/sign-in", data={"email": user.email, "password": PASSWORD}, headers=FORM)
    secrets = [token, link, cookie, invitation.rpartition("#")[2], "12345678" + PASSWORD]
    secrets += [made.json()["token"], signed.cookies[SESSION_COOKIE]]
    stored = {
        table.name: [str(row) for row in await session.scalars(text(f"select t::text from {table.name} t"))]
        for table in metadata.sorted_tables
    }
    assert all(stored[table] for table in HOLD_SECRETS)
    for secret in secrets:
        rest = secret[8:]
        # PostgreSQL writes bytes in hexadecimal.
        told = [name for name, rows in stored.items() if any(rest in row or rest.encode().hex() in row for row in rows)]
        assert told == [], "beyond the first eight letters, which are shown"


async def test_an_expired_token_is_refused(client: AsyncClient, trainer: User, session: AsyncSession) -> None:
    secret = await make(client, days="1")
    await session.execute(update(ApiToken).values(expires_at=ApiToken.created_at))
    await session.commit()
    assert await ask(client, secret) == 401
    assert "ended" in (await client.get("/account/tokens")).text


async def test_a_worker_s_token_reads_what_its_run_needs_and_only_while_it_runs(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    boss = await make_user(session, role=Role.ADMIN)
    token, secret = await tokens.create_token(session, user_id=boss.id, name="w", scopes=["worker"])
    needed, other = (
        await get_version_by_number(session, project_id=project.id, number=1),
        await make_run(session, project),
    )
    run = await make_run(session, project, kind="ppo", config={"policy": {"version_id": str(needed.id)}})
    await session.commit()
    paths = [f"/versions/{needed.id}", f"/runs/{run.id}/artifacts", f"/runs/{other.id}/artifacts"]
    assert [await ask(client, secret, path) for path in paths] == [404, 404, 404]
    headers = {"authorization": f"Bearer {secret}"}
    claimed = await client.post(f"{API}/runs:claim", json={"worker": "w", "kinds": ["ppo"]}, headers=headers)
    assert claimed.json()["id"] == str(run.id)
    assert [await ask(client, secret, path) for path in paths] == [200, 200, 404]
    await session.execute(update(Run).values(claimed_token_id=None).where(Run.claimed_token_id == token.id))
    assert [await ask(client, secret, path) for path in paths] == [404, 404, 404]
