"""Links, sessions and tokens: used once, in time, and never stored in clear."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import service, sessions, tokens
from app.accounts.models import ApiToken, AuditEntry, Role, SignInLink, User, UserSession
from app.errors import Invalid

URL = "https://rank.example.org"


@pytest.fixture
async def user(session: AsyncSession) -> User:
    return await service.create_user(session, name="Ada", email="Ada@Example.org", role=Role.ADMIN)


async def make_secret(session: AsyncSession, user: User) -> str:
    link = await sessions.create_sign_in_link(session, user=user, public_url=URL)
    return link.rpartition("#")[2]


async def test_a_links_secret_is_in_the_fragment(session: AsyncSession, user: User) -> None:
    link = await sessions.create_sign_in_link(session, user=user, public_url=URL + "/")
    address, _, secret = link.partition("#")
    assert address == f"{URL}/sign-in/link"
    assert len(secret) >= 43


async def test_a_link_signs_in_once(session: AsyncSession, user: User) -> None:
    secret = await make_secret(session, user)
    token = await sessions.sign_in(session, secret=secret)
    person = await sessions.person_of_session(session, token)
    assert person
    assert person.user is user
    with pytest.raises(sessions.LinkSpent, match="rankloop user link"):
        await sessions.sign_in(session, secret=secret)


async def test_a_link_lives_for_15_minutes(session: AsyncSession, user: User) -> None:
    await make_secret(session, user)
    link = (await session.scalars(select(SignInLink))).one()
    left = link.expires_at - datetime.now(UTC)
    assert timedelta(minutes=14) < left <= timedelta(minutes=15)


async def test_an_old_link_is_spent(session: AsyncSession, user: User) -> None:
    secret = await make_secret(session, user)
    await session.execute(update(SignInLink).values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    with pytest.raises(sessions.LinkSpent):
        await sessions.sign_in(session, secret=secret)


async def test_an_idle_or_old_session_is_nobody(session: AsyncSession, user: User) -> None:
    token = await sessions.sign_in(session, secret=await make_secret(session, user))
    await session.execute(update(UserSession).values(last_seen_at=datetime.now(UTC) - timedelta(days=8)))
    assert await sessions.person_of_session(session, token) is None
    await session.execute(
        update(UserSession).values(last_seen_at=datetime.now(UTC), expires_at=datetime.now(UTC) - timedelta(seconds=1))
    )
    assert await sessions.person_of_session(session, token) is None


async def test_signing_out_ends_the_session(session: AsyncSession, user: User) -> None:
    token = await sessions.sign_in(session, secret=await make_secret(session, user))
    await sessions.sign_out(session, token)
    await session.flush()
    assert await sessions.person_of_session(session, token) is None


async def test_a_person_who_is_switched_off_is_nobody(session: AsyncSession, user: User) -> None:
    other = await service.create_user(session, name="Bob", email="bob@example.org", role=Role.ANNOTATOR)
    token = await sessions.sign_in(session, secret=await make_secret(session, other))
    _, secret = await tokens.create_token(session, user_id=other.id, name="t", scopes=["annotate"])
    await service.set_disabled(session, user_id=other.id, is_disabled=True)
    assert await sessions.person_of_session(session, token) is None
    assert await tokens.person_of_token(session, secret) is None


async def test_the_last_admin_stays(session: AsyncSession, user: User) -> None:
    with pytest.raises(Invalid, match="last owner"):
        await service.set_disabled(session, user_id=user.id, is_disabled=True)


async def test_an_address_belongs_to_one_person_whatever_its_case(session: AsyncSession, user: User) -> None:
    with pytest.raises(Invalid, match="email"):
        await service.create_user(session, name="Eve", email="ADA@example.ORG", role=Role.ANNOTATOR)


async def test_a_token_works_until_it_is_revoked_or_too_old(session: AsyncSession, user: User) -> None:
    token, secret = await tokens.create_token(session, user_id=user.id, name="t", scopes=["read"])
    assert secret.startswith("rl_")
    found = await tokens.person_of_token(session, secret)
    assert found
    assert (found[0], found[1].user) == (token, user)
    await tokens.revoke_token(session, token_id=token.id)
    await session.flush()
    assert await tokens.person_of_token(session, secret) is None
    old, secret = await tokens.create_token(session, user_id=user.id, name="old", scopes=["read"])
    old.expires_at = datetime.now(UTC) - timedelta(seconds=1)
    await session.flush()
    assert await tokens.person_of_token(session, secret) is None


async def test_an_unknown_scope_is_named(session: AsyncSession, user: User) -> None:
    with pytest.raises(Invalid, match="root"):
        await tokens.create_token(session, user_id=user.id, name="t", scopes=["read", "root"])


async def test_no_secret_is_stored_in_clear(session: AsyncSession, user: User) -> None:
    secret = await make_secret(session, user)
    cookie = await sessions.sign_in(session, secret=secret)
    _, token = await tokens.create_token(session, user_id=user.id, name="t", scopes=["read"])
    await session.flush()
    for table in (SignInLink, UserSession, ApiToken, AuditEntry):
        dump = str((await session.execute(text(f"select t::text from {table.__tablename__} t"))).all())
        for value in (secret, cookie, token):
            assert value not in dump
            assert value.encode().hex() not in dump


async def test_the_audit_log_names_no_person_and_is_append_only(session: AsyncSession, user: User) -> None:
    entries = (await session.scalars(select(AuditEntry))).all()
    assert [entry.action for entry in entries] == ["user.create"]
    assert "Ada" not in str([(entry.subject, entry.detail) for entry in entries])
    with pytest.raises(DBAPIError, match="never changed"):
        await session.execute(update(AuditEntry).values(action="other"))


async def test_a_token_may_no_more_than_its_owners_role(session: AsyncSession) -> None:
    bob = await service.create_user(session, name="Bob", email="bob@example.org", role=Role.ANNOTATOR)
    with pytest.raises(Invalid, match="admin: is more than the roles of its owner allow"):
        await tokens.create_token(session, user_id=bob.id, name="t", scopes=["annotate", "admin"])
