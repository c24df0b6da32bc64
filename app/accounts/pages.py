"""Getting in and out: passwords, one-time links, invitations; and the language and colours of a browser."""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

from fastapi import APIRouter, BackgroundTasks, Form, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from app import mail
from app.accounts import browsers, invitations, sessions, signing_in
from app.accounts.devices import device_name
from app.accounts.guards import SESSION_COOKIE, MaybePerson
from app.config import Settings
from app.db import SessionMaker
from app.errors import FieldError, RankloopError
from app.i18n import LANGUAGES
from app.web import LANGUAGE_COOKIE, SessionDep, SettingsDep, local_path, render, see_other, words

router = APIRouter()
THEME_COOKIE = "rl_theme"
THEMES = ("auto", "light", "dark")
YEAR = 365 * 24 * 3600
Email = Annotated[str, Form(max_length=254)]
# Longer ones are refused with words by the service, not by the form.
Secret = Annotated[str, Form(max_length=2000)]


class BrowserOf(TypedDict):
    """What a new session keeps of the browser: its name, and which session it replaces."""

    device: str
    replaces: str | None


def browser_of(request: Request) -> BrowserOf:
    """The browser that sent this request."""
    device = device_name(request.headers.get("user-agent"))
    return {"device": device, "replaces": request.cookies.get(SESSION_COOKIE)}


def host_of(request: Request) -> str | None:
    """The network address that a request comes from; behind a proxy the one that it names."""
    return request.client.host if request.client else None


def enter(settings: Settings, token: str, way: str = "/") -> RedirectResponse:
    """Go on signed in, with the secret of a new session."""
    answer = see_other(local_path(way))
    answer.set_cookie(
        SESSION_COOKIE,
        token,
        max_age=int(sessions.SESSION_LIFE.total_seconds()),
        httponly=True,
        samesite="lax",
        secure=settings.has_secure_cookies,
    )
    return answer


def remember(answer: Response, settings: Settings, mark: str) -> None:
    """Have this browser known when somebody signs in with it again; who signs out leaves that."""
    answer.set_cookie(
        browsers.COOKIE,
        mark,
        max_age=YEAR,
        path=browsers.PATH,
        httponly=True,
        samesite="strict",
        secure=settings.has_secure_cookies,
    )


def errors_of(request: Request, error: RankloopError | None) -> list[Any]:
    """What is wrong, in the reader's language: with fields where there are any, else a sentence."""
    translate = words(request)["_"]
    if error is None:
        return []
    return [FieldError(item.field, translate(item.rule)) for item in error.errors] or [translate(str(error))]


# Signing in


@router.get("/sign-in")
async def show_sign_in(
    request: Request, person: MaybePerson, settings: SettingsDep, way_back: Annotated[str, Query(alias="next")] = "/"
) -> HTMLResponse:
    """Public: how to get in."""
    return render_sign_in(request, settings, way_back=way_back)


def render_sign_in(
    request: Request, settings: Settings, *, way_back: str = "/", email: str = "", error: RankloopError | None = None
) -> HTMLResponse:
    """The page with what was typed, but for the password."""
    return render(
        request,
        "accounts/sign_in.html",
        status_code=error.status if error else 200,
        way=local_path(way_back),
        email=email,
        error=words(request)["_"](str(error)) if error else None,
        provider=settings.oidc_name if settings.oidc_issuer else None,
    )


@router.post("/sign-in", response_model=None)
async def sign_in(
    request: Request,
    settings: SettingsDep,
    email: Email = "",
    password: Secret = "",
    way_back: Annotated[str, Form(alias="next")] = "/",
) -> RedirectResponse | HTMLResponse:
    """Public: with a password."""
    sessionmaker: SessionMaker = request.app.state.sessionmaker
    try:
        entered = await signing_in.sign_in(
            sessionmaker,
            email=email,
            password=password,
            host=host_of(request),
            mark=request.cookies.get(browsers.COOKIE),
            **browser_of(request),
        )
    except RankloopError as error:
        return render_sign_in(request, settings, way_back=way_back, email=email, error=error)
    answer = enter(settings, entered.token, way_back)
    remember(answer, settings, entered.mark)
    return answer


@router.get("/sign-in/link")
async def show_link(request: Request, person: MaybePerson) -> HTMLResponse:
    """Public: where a one-time link leads. Its secret is in the fragment; a button sends it."""
    return render(request, "accounts/link.html", error=None)


@router.post("/sign-in/link", response_model=None)
async def sign_in_by_link(
    request: Request, session: SessionDep, settings: SettingsDep, secret: Annotated[str, Form(max_length=500)] = ""
) -> RedirectResponse | HTMLResponse:
    """Public: spend the link. A whole pasted address does as well."""
    try:
        token = await sessions.sign_in(session, secret=secret.rpartition("#")[2], **browser_of(request))
    except sessions.LinkSpent as error:
        request.state.user = None
        return render(request, "accounts/link.html", status_code=error.status, error=words(request)["_"](str(error)))
    return enter(settings, token)


@router.get("/sign-in/forgot")
async def show_forgot(request: Request, person: MaybePerson, settings: SettingsDep) -> HTMLResponse:
    """Public: for whoever forgot their password."""
    return render(request, "accounts/forgot.html", has_mail=bool(settings.smtp_host), sent=False, error=None)


@router.post("/sign-in/forgot", response_model=None)
async def send_link(
    request: Request, person: MaybePerson, settings: SettingsDep, later: BackgroundTasks, email: Email = ""
) -> HTMLResponse:
    """Public: mail a one-time link. The answer is the same, and as fast, where there is no such account."""
    error = None
    if settings.smtp_host:
        sessionmaker: SessionMaker = request.app.state.sessionmaker
        try:
            found = await signing_in.make_link_for(
                sessionmaker, email=email, host=host_of(request), public_url=settings.public_url
            )
        except RankloopError as refusal:
            error = refusal
        else:
            if found:
                later.add_task(mail.send, settings, **link_mail(request, *found))
    answer = render(
        request,
        "accounts/forgot.html",
        status_code=error.status if error else 200,
        has_mail=bool(settings.smtp_host),
        sent=error is None,
        error=words(request)["_"](str(error)) if error else None,
    )
    answer.background = later
    return answer


def link_mail(request: Request, link: str, address: str) -> dict[str, str]:
    """The mail with a one-time link, in the language of whoever asked for it."""
    _ = words(request)["_"]
    text = [_("Somebody, probably you, asked for a way into Rankloop. This link works once, for 15 minutes:"), link]
    text.append(_("It signs you in; then you can set a new password. If it was not you, do nothing."))
    return {"to": address, "subject": _("Your way into Rankloop"), "text": "\n\n".join(text) + "\n"}


@router.post("/sign-out")
async def sign_out(request: Request, session: SessionDep) -> RedirectResponse:
    """Public: end this browser's session, if it has one."""
    token = request.cookies.get(SESSION_COOKIE)
    if token:
        await sessions.sign_out(session, token)
    answer = see_other("/sign-in")
    answer.delete_cookie(SESSION_COOKIE)
    return answer


# Invitations


@router.get("/join")
async def show_invitation(request: Request, person: MaybePerson) -> HTMLResponse:
    """Public: where an invitation leads. Its secret is in the fragment; the form sends it."""
    return render_join(request)


def render_join(
    request: Request, *, values: dict[str, str] | None = None, error: RankloopError | None = None
) -> HTMLResponse:
    """The form with what was typed, but for the password."""
    return render(
        request,
        "accounts/join.html",
        status_code=error.status if error else 200,
        values=values or {},
        errors=errors_of(request, error),
    )


@router.post("/join", response_model=None)
async def join(
    request: Request,
    person: MaybePerson,
    session: SessionDep,
    settings: SettingsDep,
    secret: Annotated[str, Form(max_length=500)] = "",
    name: Annotated[str, Form(max_length=200)] = "",
    email: Email = "",
    password: Secret = "",
) -> Response:
    """Public: accept an invitation, as who is signed in or with a new account."""
    fragment = secret.rpartition("#")[2]
    try:
        if person is not None:
            async with session.begin_nested():
                await invitations.accept(session, secret=fragment, user=person.user)
            return see_other("/")
        token = await invitations.sign_up(
            session, secret=fragment, name=name, email=email, password=password, **browser_of(request)
        )
    except RankloopError as error:
        return render_join(request, values={"secret": secret, "name": name, "email": email}, error=error)
    return enter(settings, token)


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
