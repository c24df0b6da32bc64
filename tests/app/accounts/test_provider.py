"""OpenID Connect, with a real provider on this machine: state, nonce, PKCE, who is let in, and what a replay gets."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from httpx2 import ASGITransport, AsyncClient, Response
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import identities, sessions, tokens
from app.accounts.guards import SESSION_COOKIE
from app.accounts.models import ApiToken, Identity, Password, ProviderVisit, User
from app.config import Settings
from app.db import SessionMaker
from app.main import create_app
from tests.borrowed import borrowed_app
from tests.factories import make_user, set_password

PAGE = {"accept": "text/html"}
SUBJECTS = [
    {"sub": "ada", "email": "Ada@example.org", "email_verified": True},
    {"sub": "other", "email": "ada@example.org", "email_verified": True},
    {"sub": "unverified", "email": "ada@example.org", "email_verified": False},
    {"sub": "silent", "email": "ada@example.org"},
    {"sub": "stranger", "email": "eve@example.org", "email_verified": True},
]


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    """The address of a provider in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    claims = [word for subject in SUBJECTS for word in ("--user-claims", json.dumps(subject))]
    command = [sys.executable, "-m", "oidc_provider_mock", "--port", str(port), "--require-nonce", *claims]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as provider:
        try:
            wait_for(port, provider)
            yield f"http://127.0.0.1:{port}"
        finally:
            provider.terminate()


def wait_for(port: int, provider: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert provider.poll() is None, "the provider ended before it listened"
            assert time.monotonic() < deadline, "the provider does not listen"
            time.sleep(0.05)
        else:
            return


@pytest.fixture
async def browser(sessionmaker: SessionMaker, tmp_path: Path, issuer: str) -> AsyncIterator[AsyncClient]:
    settings = Settings(data_dir=tmp_path, oidc_issuer=issuer, oidc_client_id="rankloop", oidc_client_secret="s")
    with borrowed_app(settings, sessionmaker) as app:
        transport = ASGITransport(app)
        async with AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", headers=PAGE) as client:
            yield client


@pytest.fixture
async def ada(session: AsyncSession) -> User:
    user = await make_user(session, email="ada@example.org")
    await session.commit()
    return user


async def authorize(browser: AsyncClient, subject: str, **query: str) -> str:
    """Go to the provider and say who it is; returns the address that it sends back to."""
    away = await browser.get("/sign-in/provider", params=query)
    assert away.status_code == 302
    asked = parse_qs(urlsplit(away.headers["location"]).query)
    assert asked["code_challenge_method"] == ["S256"]
    assert {"state", "nonce", "code_challenge"} <= set(asked)
    async with AsyncClient() as provider:
        answer = await provider.post(away.headers["location"], data={"sub": subject})
    assert answer.status_code == 302, answer.text
    return str(answer.headers["location"])


async def visit(browser: AsyncClient, subject: str, **query: str) -> Response:
    back = urlsplit(await authorize(browser, subject, **query))
    return await browser.get(f"{back.path}?{back.query}")


async def test_a_verified_address_leads_to_its_account(browser: AsyncClient, session: AsyncSession, ada: User) -> None:
    answer = await visit(browser, "ada", next="/account")
    assert (answer.status_code, answer.headers["location"]) == (303, "/account")
    assert (await browser.get("/account")).status_code == 200
    identity = (await session.scalars(select(Identity))).one()
    assert (identity.subject, identity.user_id) == ("ada", ada.id)


async def test_afterwards_the_subject_counts_and_not_the_address(
    browser: AsyncClient, session: AsyncSession, ada: User
) -> None:
    await visit(browser, "ada")
    await session.execute(update(User).where(User.id == ada.id).values(email="lovelace@example.org"))
    await make_user(session, email="ada@example.org")
    await session.commit()
    assert (await visit(browser, "ada")).status_code == 303
    person = await sessions.person_of_session(session, browser.cookies[SESSION_COOKIE])
    assert person
    assert person.user.id == ada.id


@pytest.mark.parametrize("subject", ["unverified", "silent", "stranger"])
async def test_nobody_else_gets_in(browser: AsyncClient, session: AsyncSession, ada: User, subject: str) -> None:
    answer = await visit(browser, subject)
    assert answer.status_code == 403
    assert SESSION_COOKIE not in browser.cookies
    assert await session.scalar(select(func.count()).select_from(Identity)) == 0


async def test_an_address_that_changed_hands_at_the_provider_opens_nothing(browser: AsyncClient, ada: User) -> None:
    await visit(browser, "ada")
    browser.cookies.clear()
    assert (await visit(browser, "other")).status_code == 403


async def test_what_somebody_else_set_up_under_this_address_ends(
    browser: AsyncClient, session: AsyncSession, ada: User
) -> None:
    await set_password(session, ada, "set by an impostor")
    old = await sessions.start_session(session, user_id=ada.id, method="invitation")
    _, secret = await tokens.create_token(session, user_id=ada.id, name="t", scopes=["annotate"])
    await session.commit()
    await visit(browser, "ada")
    assert await sessions.person_of_session(session, old) is None
    assert await tokens.person_of_token(session, secret) is None
    assert await session.scalar(select(func.count()).select_from(Password)) == 0
    _, kept = await tokens.create_token(session, user_id=ada.id, name="own", scopes=["annotate"])
    await session.commit()
    await visit(browser, "ada")
    assert await tokens.person_of_token(session, kept), "once only, at the first visit"
    assert await session.scalar(select(func.count()).select_from(ApiToken)) == 2


async def test_a_replayed_answer_gets_400(browser: AsyncClient, session: AsyncSession, ada: User) -> None:
    back = urlsplit(await authorize(browser, "ada"))
    cookies = dict(browser.cookies)
    address = f"{back.path}?{back.query}"
    assert (await browser.get(address)).status_code == 303
    assert (await browser.get(address)).status_code == 400
    browser.cookies.clear()
    browser.cookies.update({name: value for name, value in cookies.items() if name != SESSION_COOKIE})
    assert (await browser.get(address)).status_code == 400
    assert await session.scalar(select(func.count()).select_from(ProviderVisit)) == 0


async def test_an_answer_to_somebody_elses_visit_gets_400(browser: AsyncClient, ada: User) -> None:
    """Sign-in CSRF: an attacker's answer in the victim's browser, which made a visit of its own."""
    theirs = urlsplit(await authorize(browser, "ada"))
    browser.cookies.clear()
    await authorize(browser, "ada")
    assert (await browser.get(f"{theirs.path}?{theirs.query}")).status_code == 400


@pytest.mark.parametrize("query", ["", "?code=x", "?state=x", "?error=access_denied&state=x", "?code=x&state=x"])
async def test_nonsense_gets_400(browser: AsyncClient, ada: User, query: str) -> None:
    await authorize(browser, "ada")
    assert (await browser.get(f"/sign-in/provider/back{query}")).status_code == 400


async def test_the_verifier_waits_here_for_the_way_back(browser: AsyncClient, session: AsyncSession, ada: User) -> None:
    await authorize(browser, "ada")
    data: dict[str, Any] = (await session.scalars(select(ProviderVisit.data))).one()
    (kept,) = data["session"].values()
    assert len(kept["data"]["code_verifier"]) >= 43


async def test_a_visit_ends_after_ten_minutes(browser: AsyncClient, session: AsyncSession, ada: User) -> None:
    back = urlsplit(await authorize(browser, "ada"))
    await session.execute(update(ProviderVisit).values(expires_at=func.now() - identities.VISIT_LIFE))
    await session.commit()
    assert (await browser.get(f"{back.path}?{back.query}")).status_code == 400


async def test_a_provider_that_is_away_is_503(sessionmaker: SessionMaker, tmp_path: Path) -> None:
    app = create_app(Settings(data_dir=tmp_path, oidc_issuer="http://localhost:9"), sessionmaker)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://127.0.0.1:8000", headers=PAGE) as client:
        assert (await client.get("/sign-in/provider")).status_code == 503
        assert "OpenID" in (await client.get("/sign-in")).text


async def test_without_a_provider_there_is_no_button(client: AsyncClient) -> None:
    assert "/sign-in/provider" not in (await client.get("/sign-in")).text
    assert (await client.get("/sign-in/provider")).status_code == 404
