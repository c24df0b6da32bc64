"""Signing in and out, preferences, and the admins' page of people and tokens."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from app.accounts import service
from app.accounts.guards import SESSION_COOKIE, MaybePerson, Owner
from app.accounts.models import Role, Scope
from app.errors import RankloopError
from app.i18n import LANGUAGES
from app.web import LANGUAGE_COOKIE, SessionDep, SettingsDep, local_path, render, see_other

router = APIRouter()
THEME_COOKIE = "rl_theme"
THEMES = ("auto", "light", "dark")
YEAR = 365 * 24 * 3600


@router.get("/sign-in")
async def show_sign_in(request: Request, person: MaybePerson) -> HTMLResponse:
    """Public: how to get in."""
    return render(request, "accounts/sign_in.html", error=None)


@router.get("/sign-in/link")
async def show_link(request: Request, person: MaybePerson) -> HTMLResponse:
    """Public: where a one-time link leads. Its secret is in the fragment; a button sends it."""
    return render(request, "accounts/link.html", error=None)


@router.post("/sign-in/link", response_model=None)
async def sign_in(
    request: Request, session: SessionDep, settings: SettingsDep, secret: Annotated[str, Form(max_length=500)] = ""
) -> RedirectResponse | HTMLResponse:
    """Public: spend the link. A whole pasted address does as well."""
    try:
        token = await service.sign_in(session, secret=secret.rpartition("#")[2])
    except service.LinkSpent as error:
        request.state.user = None
        return render(request, "accounts/link.html", status_code=error.status, error=str(error))
    answer = see_other("/")
    answer.set_cookie(
        SESSION_COOKIE,
        token,
        max_age=int(service.SESSION_LIFE.total_seconds()),
        httponly=True,
        samesite="lax",
        secure=settings.has_secure_cookies,
    )
    return answer


@router.post("/sign-out")
async def sign_out(request: Request, session: SessionDep) -> RedirectResponse:
    """Public: end this browser's session, if it has one."""
    token = request.cookies.get(SESSION_COOKIE)
    if token:
        await service.sign_out(session, token)
    answer = see_other("/sign-in")
    answer.delete_cookie(SESSION_COOKIE)
    return answer


@router.post("/preferences")
async def set_preferences(
    settings: SettingsDep,
    language: Annotated[str | None, Form()] = None,
    theme: Annotated[str | None, Form()] = None,
    way_back: Annotated[str, Form(alias="next")] = "/",
) -> RedirectResponse:
    """Public: the language and the colours of this browser."""
    answer = see_other(local_path(way_back))
    if language in LANGUAGES:
        answer.set_cookie(LANGUAGE_COOKIE, language, max_age=YEAR, samesite="lax", secure=settings.has_secure_cookies)
    if theme in THEMES:
        answer.set_cookie(THEME_COOKIE, theme, max_age=YEAR, samesite="lax", secure=settings.has_secure_cookies)
    return answer


@router.get("/people")
async def show_people(request: Request, user: Owner, session: SessionDep) -> HTMLResponse:
    """Everybody, and the tokens."""
    return await render_people(request, session)


async def render_people(
    request: Request,
    session: SessionDep,
    *,
    new_token: str | None = None,
    values: dict[str, Any] | None = None,
    error: RankloopError | None = None,
) -> HTMLResponse:
    """The page: with a new token's secret this one time, or with what was typed and what is wrong with it."""
    people = await service.list_users(session)
    return render(
        request,
        "accounts/people.html",
        status_code=error.status if error else 200,
        people=people,
        owners={person.id: person.name for person in people},
        tokens=await service.list_tokens(session),
        roles=list(Role),
        scopes=[scope.value for scope in Scope],
        new_token=new_token,
        values=values or {},
        errors=error.errors if error else [],
    )


@router.post("/people", response_model=None)
async def add_person(
    request: Request,
    user: Owner,
    session: SessionDep,
    name: Annotated[str, Form(max_length=200)] = "",
    email: Annotated[str, Form(max_length=254)] = "",
    role: Annotated[str, Form()] = Role.ANNOTATOR,
) -> RedirectResponse | HTMLResponse:
    """Add a person. Their way in is a one-time link, which the server prints to a terminal only."""
    try:
        await service.create_user(session, name=name, email=email or None, role=role, actor_id=user.id)
    except RankloopError as error:
        typed = {"name": name, "email": email, "role": role}
        return await render_people(request, session, values=typed, error=error)
    return see_other("/people")


@router.post("/people/{user_id}/disable")
async def disable_person(user_id: uuid.UUID, user: Owner, session: SessionDep) -> RedirectResponse:
    """Switch a person off: their sessions and tokens end at once."""
    await service.set_disabled(session, user_id=user_id, is_disabled=True, actor_id=user.id)
    return see_other("/people")


@router.post("/people/{user_id}/enable")
async def enable_person(user_id: uuid.UUID, user: Owner, session: SessionDep) -> RedirectResponse:
    """Switch a person on again."""
    await service.set_disabled(session, user_id=user_id, is_disabled=False, actor_id=user.id)
    return see_other("/people")


@router.post("/people/tokens")
async def make_token(
    request: Request,
    user: Owner,
    session: SessionDep,
    token_name: Annotated[str, Form(max_length=200)] = "",
    scopes: Annotated[list[str] | None, Form()] = None,
    days: Annotated[int, Form(ge=1, le=3650)] = 90,
) -> HTMLResponse:
    """A token in the admin's own name; its secret is shown on this page and never again."""
    try:
        _, secret = await service.create_token(
            session,
            user_id=user.id,
            name=token_name.strip() or "token",
            scopes=scopes or [],
            days=days,
            actor_id=user.id,
        )
    except RankloopError as error:
        typed = {"token_name": token_name, "scopes": scopes or [], "days": days}
        return await render_people(request, session, values=typed, error=error)
    return await render_people(request, session, new_token=secret)


@router.post("/people/tokens/{token_id}/revoke")
async def revoke_token(token_id: uuid.UUID, user: Owner, session: SessionDep) -> RedirectResponse:
    """End a token at once."""
    await service.revoke_token(session, token_id=token_id, actor_id=user.id)
    return see_other("/people")
