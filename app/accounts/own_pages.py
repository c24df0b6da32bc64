"""One's own account: password, the browsers in which one is signed in, API tokens."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import abilities, sessions, signing_in, tokens
from app.accounts.credentials import hash_secret
from app.accounts.guards import SESSION_COOKIE, Access, AccessDep
from app.accounts.models import Scope
from app.accounts.pages import Secret, errors_of, remember
from app.accounts.roles import list_memberships, list_own_projects
from app.errors import RankloopError
from app.web import SessionDep, SettingsDep, render, see_other

router = APIRouter()
SCOPES_IN_ORDER = [scope.value for scope in Scope]


def cookie_of(request: Request) -> str:
    """The secret of the session that this browser is in."""
    return request.cookies.get(SESSION_COOKIE, "")


@router.get("/account")
async def show_account(request: Request, access: AccessDep, session: SessionDep, done: str = "") -> HTMLResponse:
    """Who I am here, my password, and where I am signed in."""
    return await render_account(request, session, access, done=done)


async def render_account(
    request: Request, session: AsyncSession, access: Access, *, done: str = "", error: RankloopError | None = None
) -> HTMLResponse:
    """The page; `done` says what was changed just now."""
    user, token = access.user, cookie_of(request)
    return render(
        request,
        "accounts/account.html",
        status_code=error.status if error else 200,
        person=user,
        memberships=await list_memberships(session, user.id),
        sessions=await sessions.list_sessions(session, user.id),
        this_session=hash_secret(token),
        needs_current=await signing_in.needs_current(session, user=user, token=token),
        done=done,
        errors=errors_of(request, error),
    )


@router.post("/account/password", response_model=None)
async def change_password(
    request: Request,
    access: AccessDep,
    session: SessionDep,
    settings: SettingsDep,
    current: Secret = "",
    password: Secret = "",
) -> RedirectResponse | HTMLResponse:
    """A new password; every other browser is signed out."""
    token = cookie_of(request)
    try:
        mark = await signing_in.change_password(
            request.app.state.sessionmaker, session, user=access.user, token=token, current=current, new=password
        )
    except RankloopError as error:
        return await render_account(request, session, access, error=error)
    answer = see_other("/account?done=password")
    remember(answer, settings, mark)
    return answer


@router.post("/account/languages", response_model=None)
async def change_languages(
    request: Request, access: AccessDep, session: SessionDep, languages: Annotated[str, Form(max_length=500)] = ""
) -> RedirectResponse | HTMLResponse:
    """The languages that one reads: tasks in others go to others."""
    user_id = access.user.id
    try:
        await abilities.set_languages(session, user_id=user_id, languages=languages, actor_id=user_id)
    except RankloopError as error:
        return await render_account(request, session, access, error=error)
    return see_other("/account?done=languages")


@router.post("/account/sessions/{session_id}/end")
async def end_session(session_id: uuid.UUID, access: AccessDep, session: SessionDep) -> RedirectResponse:
    """Sign out of one browser."""
    await sessions.end_session(session, user_id=access.user.id, session_id=session_id)
    return see_other("/account")


@router.post("/account/sessions/end")
async def end_other_sessions(request: Request, access: AccessDep, session: SessionDep) -> RedirectResponse:
    """Sign out everywhere but here."""
    await sessions.end_sessions(session, user_id=access.user.id, but=cookie_of(request), actor_id=access.user.id)
    return see_other("/account?done=sessions")


# API tokens


@router.get("/account/tokens")
async def show_tokens(request: Request, access: AccessDep, session: SessionDep) -> HTMLResponse:
    """My API tokens; owners of the site see everybody's."""
    return await render_tokens(request, session, access)


async def render_tokens(
    request: Request,
    session: AsyncSession,
    access: Access,
    *,
    new_token: str | None = None,
    values: dict[str, Any] | None = None,
    error: RankloopError | None = None,
) -> HTMLResponse:
    """The page: with a new token's secret this one time, or with what was typed and what is wrong with it."""
    roles = access.roles
    allowed = roles.scopes_in(None).union(*map(roles.scopes_in, roles.by_project))
    return render(
        request,
        "accounts/tokens.html",
        status_code=error.status if error else 200,
        rows=await tokens.list_tokens(session, owner_id=None if roles.is_owner else access.user.id),
        scopes=[scope for scope in SCOPES_IN_ORDER if scope in allowed],
        projects=await list_own_projects(session, roles),
        new_token=new_token,
        values=values or {},
        errors=errors_of(request, error),
    )


@router.post("/account/tokens")
async def make_token(
    request: Request,
    access: AccessDep,
    session: SessionDep,
    token_name: Annotated[str, Form(max_length=200)] = "",
    scopes: Annotated[list[str] | None, Form()] = None,
    projects: Annotated[list[uuid.UUID] | None, Form()] = None,
    days: Annotated[int, Form(ge=1, le=3650)] = 90,
) -> HTMLResponse:
    """A token in one's own name; its secret is shown on this page and never again."""
    try:
        _, secret = await tokens.create_token(
            session,
            user_id=access.user.id,
            name=token_name.strip() or "token",
            scopes=scopes or [],
            project_ids=projects or None,
            days=days,
            actor_id=access.user.id,
        )
    except RankloopError as error:
        typed = {"token_name": token_name, "scopes": scopes or [], "projects": projects or [], "days": days}
        return await render_tokens(request, session, access, values=typed, error=error)
    return await render_tokens(request, session, access, new_token=secret)


@router.post("/account/tokens/{token_id}/revoke")
async def revoke_token(token_id: uuid.UUID, access: AccessDep, session: SessionDep) -> RedirectResponse:
    """End a token at once: one's own, or as an owner of the site anybody's."""
    owner_id = None if access.roles.is_owner else access.user.id
    await tokens.revoke_token(session, token_id=token_id, owner_id=owner_id, actor_id=access.user.id)
    return see_other("/account/tokens")
