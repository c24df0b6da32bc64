"""Erasing a person, and the log that outlives them: a dump of the database holds neither name nor address."""

from __future__ import annotations

import html
import subprocess
from pathlib import Path

import pytest
from httpx2 import AsyncClient
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import erasing, invitations, refusals, roles, service, signing_in, tokens
from app.accounts.audit import audit
from app.accounts.credentials import hash_secret
from app.accounts.models import AuditEntry, Identity, Membership, Role, User, UserSession
from app.accounts.sessions import list_sessions, person_of_session, start_session
from app.db import make_engine, make_sessionmaker
from app.embedded import _program_folders
from app.errors import Invalid
from app.rankings.models import Ranking
from tests.factories import make_ranking, make_task, make_user, set_password, sign_in

NAME, ADDRESS = "Zebedee Quillfeather", "zq@plover.example"
FORM = {"sec-fetch-site": "same-origin", "accept": "text/html"}


@pytest.mark.real_commits
async def test_a_dump_holds_neither_name_nor_address(fresh_database_url: str, tmp_path: Path) -> None:
    engine = make_engine(fresh_database_url)
    sessions = make_sessionmaker(engine)
    async with sessions.begin() as session:
        owner = await make_user(session, role=Role.ADMIN)
        user = await make_user(session, name=NAME, email=ADDRESS, role=None)
        await set_password(session, user, "four words are enough")
        session.add(Identity(issuer="https://id.example", subject="17", user_id=user.id))
        task = await make_task(session)
        ranking = await make_ranking(session, task, annotator=user)
        await roles.set_member(session, user_id=user.id, project_id=task.project_id, role="annotator")
        await tokens.create_token(session, user_id=user.id, name=f"{NAME}'s notebook", scopes=["annotate"])
        await session.execute(
            text("insert into idempotent_answers values (:id, 'k', '\\x00', 201, convert_to(:body, 'UTF8'))"),
            {"id": owner.id, "body": f'{{"id": "{user.id}", "name": "{NAME}"}}'},
        )
    for password in ("wrong", "four words are enough"):
        try:
            await signing_in.sign_in(sessions, email=ADDRESS, password=password, host="192.0.2.9")
        except signing_in.WrongPassword:
            continue
    before = dump(fresh_database_url)
    assert NAME in before, "the test is blind"
    assert ADDRESS in before
    assert NAME.encode().hex() in before
    async with sessions.begin() as session:
        await erasing.erase(session, user_id=user.id, confirmation=NAME, actor_id=owner.id)
    after = dump(fresh_database_url)
    # Bytes are in a dump by their hexadecimal digits.
    words = (*NAME.split(), ADDRESS, "plover", "192.0.2.9")
    for word in (*words, *(word.encode().hex() for word in words), hash_secret(ADDRESS).hex()):
        assert word not in after
    async with sessions.begin() as session:
        kept = await session.get_one(Ranking, ranking.id)
        assert kept.annotator_id == user.id, "who ranked what can still be counted"
        assert await session.scalar(select(func.count()).select_from(Membership)) == 0
    await engine.dispose()


def dump(url: str) -> str:
    """All of a database as text."""
    found = (folder / "pg_dump" for folder in _program_folders() if (folder / "pg_dump").exists())
    program = next(found, None) or pytest.skip("there is no pg_dump here")
    address = url.replace("postgresql+psycopg://", "postgresql://")
    return subprocess.run([program, address], check=True, capture_output=True, text=True, timeout=60).stdout


async def test_an_erased_person_is_nobody_for_good(client: AsyncClient, session: AsyncSession) -> None:
    user = await make_user(session, name=NAME, email=ADDRESS, role=None)
    token = await start_session(session, user_id=user.id, method="link")
    _, link = await invitations.create(
        session, project_id=None, role="annotator", days=1, max_uses=5, public_url="http://x", actor_id=user.id
    )
    await sign_in(client, session, role=Role.ADMIN)
    wrong = await client.post(f"/people/{user.id}/erase", data={"confirmation": "somebody"}, headers=FORM)
    assert wrong.status_code == 422
    assert NAME in wrong.text
    right = await client.post(f"/people/{user.id}/erase", data={"confirmation": NAME}, headers=FORM)
    assert right.status_code == 303
    assert await list_sessions(session, user.id) == []
    assert await person_of_session(session, token) is None
    refused = await client.post(f"/people/{user.id}/enable", headers=FORM)
    assert refused.status_code == 422
    with pytest.raises(invitations.InvitationEnded):
        await invitations.accept(session, secret=link.rpartition("#")[2], user=await make_user(session))
    shown = await client.get(f"/people/{user.id}")
    assert f"Erased {user.id.hex[:8]}" in shown.text


async def test_the_last_owner_is_not_erased(session: AsyncSession) -> None:
    owner = await make_user(session, role=Role.ADMIN)
    with pytest.raises(Invalid, match="last owner"):
        async with session.begin_nested():
            await erasing.erase(session, user_id=owner.id, confirmation=owner.name)
    await session.refresh(owner)
    assert owner.erased_at is None


# The log


@pytest.mark.parametrize("change", ["update audit_log set action = 'x'", "delete from audit_log", "truncate audit_log"])
async def test_nobody_changes_the_log(session: AsyncSession, change: str) -> None:
    await audit(session, actor_id=None, action="test", subject="x")
    await session.flush()
    with pytest.raises(DBAPIError, match="never changed or deleted"):
        await session.execute(text(change))


async def test_owners_read_who_did_what(client: AsyncClient, session: AsyncSession) -> None:
    owner = await sign_in(client, session, role=Role.ADMIN)
    user = await make_user(session, name="Ada", role=None)
    for number in range(150):
        await audit(session, actor_id=owner.id, action="token.create", subject=str(number), scopes=["read"])
    await roles.set_role(session, user_id=user.id, role="trainer", actor_id=owner.id)
    await session.commit()
    first = await client.get("/audit")
    assert "user.role" in first.text
    assert "Ada" in first.text
    pages = [first.text]
    while 'rel="next"' in pages[-1]:
        following = html.unescape(pages[-1].split('rel="next"')[0].rpartition("href=")[2].split('"')[1])
        pages.append((await client.get(f"/audit{following}")).text)
    assert sum(page.count("<code>token.create</code>") for page in pages) == 150
    assert len(pages) == 2
    only = (await client.get(f"/audit?person={user.id}")).text
    assert "<code>user.role</code>" in only
    assert "<code>token.create</code>" not in only
    assert "<code>user.role</code>" not in (await client.get("/audit?action=token.create")).text
    assert (await client.get("/audit?person=7")).status_code == 404


async def test_refused_sign_ins_are_in_the_log_without_an_address(client: AsyncClient, session: AsyncSession) -> None:
    user = await make_user(session, email=ADDRESS)
    await session.commit()
    for email in (ADDRESS, "nobody@plover.example"):
        await client.post("/sign-in", data={"email": email, "password": "no"}, headers=FORM)
    rows = (await session.scalars(select(AuditEntry).where(AuditEntry.action == "sign_in.refused"))).all()
    assert sorted(row.subject for row in rows) == sorted([str(user.id), "nobody"])
    assert "plover" not in str([row.detail for row in rows])


async def test_what_was_refused_is_in_the_log_and_does_not_fill_it(client: AsyncClient, session: AsyncSession) -> None:
    user = await sign_in(client, session, role=Role.ANNOTATOR)
    for _ in range(refusals.PER_PERSON + 5):
        assert (await client.get("/people", headers=FORM)).status_code == 403
    rows = (await session.scalars(select(AuditEntry).where(AuditEntry.action == "refused"))).all()
    assert len(rows) == refusals.PER_PERSON
    assert rows[0].actor_id == user.id
    assert rows[0].detail == {"method": "GET", "route": "/people"}
    _, secret = await tokens.create_token(session, user_id=(await make_user(session)).id, name="t", scopes=["annotate"])
    await session.commit()
    client.cookies.clear()
    headers = {"authorization": f"Bearer {secret}"}
    assert (await client.get("/api/v1/users", headers=headers)).status_code == 403
    newest = (await session.scalars(select(AuditEntry).order_by(AuditEntry.id.desc()))).first()
    assert newest
    assert (newest.action, newest.detail["route"]) == ("refused", "/api/v1/users")


async def test_switching_off_ends_sessions_for_good(session: AsyncSession) -> None:
    await make_user(session, role=Role.ADMIN)
    user = await make_user(session)
    token = await start_session(session, user_id=user.id, method="link")
    for is_disabled in (True, False):
        await service.set_disabled(session, user_id=user.id, is_disabled=is_disabled)
        assert await person_of_session(session, token) is None
    assert await session.scalar(select(func.count()).select_from(UserSession)) == 0
    assert await session.get(User, user.id)
