"""Invitations: into a project or all, for a while, for so many; whoever opens the link may have an account or not."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from httpx2 import AsyncClient
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import invitations, roles, service, sessions
from app.accounts.guards import SESSION_COOKIE
from app.accounts.models import Invitation, Membership, Role, User
from app.db import make_engine, make_sessionmaker
from app.projects.models import Project
from tests.factories import make_project, make_user, sign_in

FORM = {"sec-fetch-site": "same-origin", "accept": "text/html"}
ME = {"name": "Ada", "email": "ada@example.org", "password": "four words are enough"}


@pytest.fixture
async def project(session: AsyncSession) -> Project:
    return await make_project(session, slug="tone")


async def invite(session: AsyncSession, project: Project | None, *, role: str = "annotator", uses: int = 1) -> str:
    """The whole link."""
    _, link = await invitations.create(
        session,
        project_id=project.id if project else None,
        role=role,
        days=7,
        max_uses=uses,
        public_url="http://127.0.0.1:8000",
        actor_id=None,
    )
    await session.commit()
    return link


async def test_whoever_is_invited_makes_an_account_and_works(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    link = await invite(session, project)
    page = await client.get("/join")
    assert "data-from-fragment" in page.text
    answer = await client.post("/join", data={"secret": link} | ME, headers=FORM)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert (await client.get("/projects/tone/rank")).status_code == 200
    assert (await client.get("/projects/tone")).status_code == 403
    user = await service.get_user_by_email(session, ME["email"])
    assert user.role is None
    client.cookies.clear()
    again = await client.post("/join", data={"secret": link} | ME | {"email": "eve@example.org"}, headers=FORM)
    assert again.status_code == 410


async def test_what_is_refused_leaves_nothing_behind(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    link = await invite(session, project)
    for wrong in ({"password": "short"}, {"name": " "}, {"email": "no address"}):
        answer = await client.post("/join", data={"secret": link} | ME | wrong, headers=FORM)
        assert answer.status_code == 422
        assert next(iter(wrong)) in answer.text
        assert "four words" not in answer.text, "a password is never sent back"
    assert await session.scalar(select(func.count()).select_from(User)) == 0
    assert await session.scalar(select(Invitation.num_used)) == 0


async def test_strangers_learn_nothing_of_who_is_here(client: AsyncClient, session: AsyncSession) -> None:
    await make_user(session, email=ME["email"])
    await session.commit()
    for email in (ME["email"], "new@example.org"):
        answer = await client.post("/join", data={"secret": "guessed"} | ME | {"email": email}, headers=FORM)
        assert answer.status_code == 410


async def test_who_is_signed_in_joins_as_themselves(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    user = await sign_in(client, session, role=None)
    answer = await client.post("/join", data={"secret": await invite(session, project)}, headers=FORM)
    assert answer.status_code == 303
    assert await session.get(Membership, (user.id, project.id))


@pytest.mark.parametrize(
    ("before", "offered", "after"), [("admin", "annotator", "admin"), ("annotator", "trainer", "trainer")]
)
async def test_an_invitation_gives_and_never_takes(
    session: AsyncSession, project: Project, before: str, offered: str, after: str
) -> None:
    user = await make_user(session, role=None)
    await roles.set_member(session, user_id=user.id, project_id=project.id, role=before)
    link = await invite(session, project, role=offered)
    await invitations.accept(session, secret=link.rpartition("#")[2], user=user)
    members = {person.id: member.role for person, member in await roles.list_members(session, project.id)}
    assert members == {user.id: after}


async def test_an_ended_or_revoked_one_lets_nobody_in(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    link = await invite(session, project, uses=5)
    await session.execute(update(Invitation).values(expires_at=func.now() - timedelta(seconds=1)))
    await session.commit()
    assert (await client.post("/join", data={"secret": link} | ME, headers=FORM)).status_code == 410
    link = await invite(session, project, uses=5)
    newest = (await invitations.list_open(session, project.id))[0]
    await sign_in(client, session, role=Role.ADMIN)
    await client.post(f"/projects/tone/people/invitations/{newest.id}/revoke", headers=FORM)
    client.cookies.clear()
    assert (await client.post("/join", data={"secret": link} | ME, headers=FORM)).status_code == 410


async def test_a_projects_admin_invites_into_it_and_nowhere_else(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    other = await make_project(session, slug="other")
    into_other = await invite(session, other)
    theirs = (await invitations.list_open(session, other.id))[0]
    boss = await make_user(session, role=None)
    await roles.set_member(session, user_id=boss.id, project_id=project.id, role="admin")
    client.cookies.set(SESSION_COOKIE, await sessions.start_session(session, user_id=boss.id, method="link"))
    await session.commit()
    form = {"invited_role": "reviewer", "max_uses": "3", "days": "2"}
    page = await client.post("/projects/tone/people/invitations", data=form, headers=FORM)
    assert "/join#" in page.text
    assert "/join#" not in (await client.get("/projects/tone/people")).text
    refused = await client.post("/projects/tone/people/invitations", data=form | {"max_uses": "0"}, headers=FORM)
    assert refused.status_code == 422
    assert (await client.post("/people/invitations", data=form, headers=FORM)).status_code == 403
    by_id = f"/projects/tone/people/invitations/{theirs.id}/revoke"
    assert (await client.post(by_id, headers=FORM)).status_code == 404
    assert into_other


async def test_members_change_roles_and_go(client: AsyncClient, session: AsyncSession, project: Project) -> None:
    await sign_in(client, session, role=Role.ADMIN)
    user, stranger = await make_user(session, role=None), await make_user(session, role=None)
    await roles.set_member(session, user_id=user.id, project_id=project.id, role="annotator")
    await session.commit()
    place = f"/projects/tone/people/{user.id}"
    assert (await client.post(place, data={"role": "reviewer"}, headers=FORM)).status_code == 303
    assert [member.role for _, member in await roles.list_members(session, project.id)] == ["reviewer"]
    assert (await client.post(place, data={"role": "king"}, headers=FORM)).status_code == 422
    assert (await client.post(place, data={"role": ""}, headers=FORM)).status_code == 303
    assert await roles.list_members(session, project.id) == []
    beyond = await client.post(f"/projects/tone/people/{stranger.id}", data={"role": "annotator"}, headers=FORM)
    assert beyond.status_code == 404, "an admin of a project learns of nobody else"


@pytest.mark.real_commits
async def test_no_two_take_the_last_place(fresh_database_url: str) -> None:
    engine = make_engine(fresh_database_url)
    sessionmaker = make_sessionmaker(engine)
    async with sessionmaker.begin() as session:
        users = [await make_user(session, role=None) for _ in range(6)]
        link = await invite(session, None, uses=3)

    async def accept(user: User) -> bool:
        try:
            async with sessionmaker.begin() as session:
                await invitations.accept(session, secret=link.rpartition("#")[2], user=await session.merge(user))
        except invitations.InvitationEnded:
            return False
        return True

    try:
        assert sum(await asyncio.gather(*map(accept, users))) == 3
        async with sessionmaker() as session:
            assert await session.scalar(select(func.count()).where(User.role == "annotator")) == 3
    finally:
        await engine.dispose()
