"""People, for who answers for them: everybody and the log for owners of the site, members for a project's admins."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import abilities, audit, erasing, invitations, roles, service, sessions
from app.accounts.guards import Access, AccessDep, Admin, Owner
from app.accounts.models import Role
from app.accounts.pages import errors_of
from app.accounts.wanted import NamedProject
from app.errors import Invalid, NotFound, RankloopError
from app.web import SessionDep, SettingsDep, render, see_other

router = APIRouter()
PAGE_SIZE = 100
Days = Annotated[int, Form()]


# Everybody


@router.get("/people")
async def show_people(request: Request, user: Owner, session: SessionDep) -> HTMLResponse:
    """Everybody, and the invitations into all projects."""
    return await render_people(request, session)


async def render_people(request: Request, session: AsyncSession, **more: Any) -> HTMLResponse:
    """The page: with a new link this one time, or with what was typed and what is wrong with it."""
    error: RankloopError | None = more.pop("error", None)
    context = {"new_link": None, "values": {}} | more
    return render(
        request,
        "accounts/people.html",
        status_code=error.status if error else 200,
        people=await service.list_users(session),
        invitations=await invitations.list_open(session, None),
        errors=errors_of(request, error),
        **context,
    )


@router.post("/people", response_model=None)
async def add_person(
    request: Request,
    user: Owner,
    session: SessionDep,
    name: Annotated[str, Form(max_length=200)] = "",
    email: Annotated[str, Form(max_length=254)] = "",
    role: Annotated[str, Form()] = "",
) -> RedirectResponse | HTMLResponse:
    """Add a person; their page makes the one-time link that lets them in."""
    try:
        made = await service.create_user(session, name=name, email=email or None, role=role or None, actor_id=user.id)
    except RankloopError as error:
        typed = {"name": name, "email": email, "role": role}
        return await render_people(request, session, values=typed, error=error)
    return see_other(f"/people/{made.id}")


@router.post("/people/invitations")
async def invite_everywhere(
    request: Request,
    user: Owner,
    session: SessionDep,
    settings: SettingsDep,
    invited_role: Annotated[str, Form()] = Role.ANNOTATOR,
    days: Days = 7,
    max_uses: Annotated[int, Form()] = 1,
) -> HTMLResponse:
    """An invitation whose role holds in every project; its link is shown on this page and never again."""
    asked = {"invited_role": invited_role, "days": days, "max_uses": max_uses}
    more = await try_to_invite(session, None, asked, public_url=settings.public_url, actor_id=user.id)
    return await render_people(request, session, **more)


async def try_to_invite(
    session: AsyncSession, project_id: uuid.UUID | None, asked: dict[str, Any], *, public_url: str, actor_id: uuid.UUID
) -> dict[str, Any]:
    """What the page shows after its form was sent: the new link, or what was typed and what is wrong with it."""
    try:
        _, link = await invitations.create(
            session,
            project_id=project_id,
            role=asked["invited_role"],
            days=asked["days"],
            max_uses=asked["max_uses"],
            public_url=public_url,
            actor_id=actor_id,
        )
    except RankloopError as error:
        return {"values": asked, "error": error}
    return {"new_link": link}


@router.post("/people/invitations/{invitation_id}/revoke")
async def revoke_everywhere(invitation_id: uuid.UUID, user: Owner, session: SessionDep) -> RedirectResponse:
    """End an invitation into all projects."""
    await invitations.revoke(session, invitation_id=invitation_id, project_id=None, actor_id=user.id)
    return see_other("/people")


@router.get("/people/{user_id}")
async def show_person(user_id: uuid.UUID, request: Request, user: Owner, session: SessionDep) -> HTMLResponse:
    """One person: their roles, and what an owner can do for them."""
    return await render_person(request, session, user_id)


async def render_person(
    request: Request,
    session: AsyncSession,
    user_id: uuid.UUID,
    *,
    new_link: str | None = None,
    error: RankloopError | None = None,
) -> HTMLResponse:
    """The page: with a one-time link this one time, or with what is wrong."""
    person = await service.get_user(session, user_id)
    return render(
        request,
        "accounts/person.html",
        status_code=error.status if error else 200,
        person=person,
        memberships=await roles.list_memberships(session, user_id),
        sessions=await sessions.list_sessions(session, user_id),
        new_link=new_link,
        errors=errors_of(request, error),
    )


@router.post("/people/{user_id}/role", response_model=None)
async def set_role(
    user_id: uuid.UUID, request: Request, user: Owner, session: SessionDep, role: Annotated[str, Form()] = ""
) -> RedirectResponse | HTMLResponse:
    """The role that holds in every project."""
    return await changed(request, session, user_id, roles.set_role, role=role or None, actor_id=user.id)


@router.post("/people/{user_id}/abilities", response_model=None)
async def set_abilities(
    user_id: uuid.UUID,
    request: Request,
    user: Owner,
    session: SessionDep,
    languages: Annotated[str, Form(max_length=500)] = "",
    skills: Annotated[str, Form(max_length=1000)] = "",
) -> RedirectResponse | HTMLResponse:
    """The languages that somebody reads, and what they know: tasks that ask for more go to others."""
    told = {"languages": languages, "skills": skills}
    return await changed(request, session, user_id, abilities.set_abilities, **told, actor_id=user.id)


@router.post("/people/{user_id}/disable", response_model=None)
async def disable_person(
    user_id: uuid.UUID, request: Request, user: Owner, session: SessionDep
) -> RedirectResponse | HTMLResponse:
    """Switch a person off: their sessions end and their tokens stop at once."""
    return await changed(request, session, user_id, service.set_disabled, is_disabled=True, actor_id=user.id)


@router.post("/people/{user_id}/enable", response_model=None)
async def enable_person(
    user_id: uuid.UUID, request: Request, user: Owner, session: SessionDep
) -> RedirectResponse | HTMLResponse:
    """Switch a person on again."""
    return await changed(request, session, user_id, service.set_disabled, is_disabled=False, actor_id=user.id)


@router.post("/people/{user_id}/sign-out", response_model=None)
async def sign_person_out(
    user_id: uuid.UUID, request: Request, user: Owner, session: SessionDep
) -> RedirectResponse | HTMLResponse:
    """Sign a person out everywhere."""
    return await changed(request, session, user_id, sessions.end_sessions, actor_id=user.id)


@router.post("/people/{user_id}/erase", response_model=None)
async def erase_person(
    user_id: uuid.UUID,
    request: Request,
    user: Owner,
    session: SessionDep,
    confirmation: Annotated[str, Form(max_length=300)] = "",
) -> RedirectResponse | HTMLResponse:
    """Erase a person for good; their name has to be typed first."""
    return await changed(request, session, user_id, erasing.erase, confirmation=confirmation, actor_id=user.id)


async def changed(
    request: Request, session: AsyncSession, user_id: uuid.UUID, change: Any, **values: Any
) -> RedirectResponse | HTMLResponse:
    """Change a person and show them; what can't be done is undone, and says why."""
    try:
        async with session.begin_nested():
            await change(session, user_id=user_id, **values)
    except Invalid as error:
        return await render_person(request, session, user_id, error=error)
    return see_other(f"/people/{user_id}")


@router.post("/people/{user_id}/link")
async def make_link(
    user_id: uuid.UUID, request: Request, user: Owner, session: SessionDep, settings: SettingsDep
) -> HTMLResponse:
    """A one-time sign-in link for somebody who forgot their password; shown on this page and never again."""
    person = await service.get_user(session, user_id)
    link = await sessions.create_sign_in_link(session, user=person, public_url=settings.public_url, actor_id=user.id)
    return await render_person(request, session, user_id, new_link=link)


@router.get("/audit")
async def show_audit(
    request: Request,
    user: Owner,
    session: SessionDep,
    action: Annotated[str, Query(max_length=60)] = "",
    person: Annotated[str, Query(max_length=36)] = "",
    before: Annotated[int | None, Query(ge=0, lt=2**62)] = None,
) -> HTMLResponse:
    """Who did what, newest first; nothing in it is ever changed."""
    rows = await audit.list_audit(session, action=action, person_id=as_id(person), before=before, limit=PAGE_SIZE + 1)
    shown = rows[:PAGE_SIZE]
    more = {"before": shown[-1].entry.id if shown else "", "action": action, "person": person or ""}
    return render(
        request,
        "accounts/audit.html",
        rows=shown,
        actions=[(name, name) for name in await audit.list_actions(session)],
        action=action,
        person=person,
        next_url=f"?{urlencode(more)}" if len(rows) > PAGE_SIZE else None,
        is_first=before is None,
    )


def as_id(text: str) -> uuid.UUID | None:
    """An id from an address; None where it is left out.

    Raises:
        NotFound: it is none.
    """
    try:
        return uuid.UUID(text) if text else None
    except ValueError as error:
        raise NotFound("There is no such person.") from error


# Members of a project


def project_of(access: Access) -> NamedProject:
    """The project of the address."""
    assert access.project is not None
    return access.project


@router.get("/projects/{slug}/people")
async def show_members(request: Request, access: AccessDep, user: Admin, session: SessionDep) -> HTMLResponse:
    """Who works in this project, and the invitations into it."""
    return await render_members(request, session, project_of(access))


async def render_members(request: Request, session: AsyncSession, project: NamedProject, **more: Any) -> HTMLResponse:
    """The page: with a new link this one time, or with what was typed and what is wrong with it."""
    error: RankloopError | None = more.pop("error", None)
    context = {"new_link": None, "values": {}} | more
    return render(
        request,
        "accounts/members.html",
        status_code=error.status if error else 200,
        here="people",
        project=project,
        members=await roles.list_members(session, project.id),
        others=await roles.list_everywhere(session),
        invitations=await invitations.list_open(session, project.id),
        errors=errors_of(request, error),
        **context,
    )


@router.post("/projects/{slug}/people/invitations")
async def invite(
    request: Request,
    access: AccessDep,
    user: Admin,
    session: SessionDep,
    settings: SettingsDep,
    invited_role: Annotated[str, Form()] = Role.ANNOTATOR,
    days: Days = 7,
    max_uses: Annotated[int, Form()] = 1,
) -> HTMLResponse:
    """An invitation into this project; its link is shown on this page and never again."""
    project = project_of(access)
    asked = {"invited_role": invited_role, "days": days, "max_uses": max_uses}
    more = await try_to_invite(session, project.id, asked, public_url=settings.public_url, actor_id=user.id)
    return await render_members(request, session, project, **more)


@router.post("/projects/{slug}/people/invitations/{invitation_id}/revoke")
async def revoke_invitation(
    invitation_id: uuid.UUID, access: AccessDep, user: Admin, session: SessionDep
) -> RedirectResponse:
    """End an invitation."""
    project = project_of(access)
    await invitations.revoke(session, invitation_id=invitation_id, project_id=project.id, actor_id=user.id)
    return see_other(f"/projects/{project.slug}/people")


@router.post("/projects/{slug}/people/{user_id}")
async def set_member(
    user_id: uuid.UUID, access: AccessDep, user: Admin, session: SessionDep, role: Annotated[str, Form()] = ""
) -> RedirectResponse:
    """Change a member's role; an empty one takes it away. Who is no member yet is invited instead."""
    project = project_of(access)
    await roles.get_membership(session, user_id=user_id, project_id=project.id)
    if role:
        await roles.set_member(session, user_id=user_id, project_id=project.id, role=role, actor_id=user.id)
    else:
        await roles.remove_member(session, user_id=user_id, project_id=project.id, actor_id=user.id)
    return see_other(f"/projects/{project.slug}/people")


@router.get("/projects/{slug}/people/{user_id}")
async def show_member(
    user_id: uuid.UUID, request: Request, access: AccessDep, user: Admin, session: SessionDep
) -> HTMLResponse:
    """One member: what they can be asked in this project."""
    return await render_member(request, session, project_of(access), user_id)


async def render_member(
    request: Request,
    session: AsyncSession,
    project: NamedProject,
    user_id: uuid.UUID,
    *,
    error: RankloopError | None = None,
    typed: Mapping[str, str] | None = None,
) -> HTMLResponse:
    """The page, perhaps with what was typed and what is wrong with it."""
    member = await roles.get_membership(session, user_id=user_id, project_id=project.id)
    return render(
        request,
        "accounts/member.html",
        status_code=error.status if error else 200,
        here="people",
        project=project,
        person=await service.get_user(session, user_id),
        member=member,
        values=typed or {"languages": ", ".join(member.languages), "skills": ", ".join(member.skills)},
        errors=errors_of(request, error),
    )


@router.post("/projects/{slug}/people/{user_id}/abilities", response_model=None)
async def set_member_abilities(
    user_id: uuid.UUID,
    request: Request,
    access: AccessDep,
    user: Admin,
    session: SessionDep,
    languages: Annotated[str, Form(max_length=500)] = "",
    skills: Annotated[str, Form(max_length=1000)] = "",
) -> RedirectResponse | HTMLResponse:
    """What a member can be asked here: tasks that ask for more go to others."""
    project, told = project_of(access), {"languages": languages, "skills": skills}
    try:
        await abilities.set_in_project(session, project_id=project.id, user_id=user_id, actor_id=user.id, **told)
    except Invalid as error:
        return await render_member(request, session, project, user_id, error=error, typed=told)
    return see_other(f"/projects/{project.slug}/people")
