"""What all pages and API routes share: the session of a request, paging, rendering, and where the files of the package
lie.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from sqlalchemy.ext.asyncio import AsyncSession
from starlette import status
from starlette.types import Receive, Scope, Send

from app import assets, fragments, i18n
from app.bodies import StreamedBody, read_ahead
from app.config import Settings
from app.db import SessionMaker, committed
from app.errors import FieldError, RankloopError
from app.ndjson import MEDIA_TYPE
from app.rendering import Texts
from app.subpath import in_page

ROOT = Path(__file__).resolve().parent.parent
LANGUAGE_COOKIE = "rl_language"


Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


def begins_late(endpoint: Endpoint) -> Endpoint:
    """Mark an endpoint whose statements are transactions of their own until it calls `app.db.begin`.

    Who asks is looked up before it runs, and so by itself.
    """
    endpoint.begins_late = True  # type: ignore[attr-defined]
    return endpoint


def is_late(endpoint: Any) -> bool:
    """Whether an endpoint is marked so."""
    return getattr(endpoint, "begins_late", False)


def sessions_of(request: Request) -> SessionMaker:
    """Where the session of a request's endpoint comes from."""
    state = request.app.state
    sessions: SessionMaker = state.late_sessionmaker if is_late(request.scope.get("endpoint")) else state.sessionmaker
    return sessions


async def open_session(request: Request) -> AsyncIterator[AsyncSession]:
    """The transaction of a request. It is committed before the answer is sent: a failed commit is a 500, never a false
    success.
    """
    async with committed(sessions_of(request)) as session:
        yield session


async def get_settings(request: Request) -> Settings:
    """The settings that the app was created with."""
    settings: Settings = request.app.state.settings
    return settings


SessionDep = Annotated[AsyncSession, Depends(open_session, scope="function")]
SettingsDep = Annotated[Settings, Depends(get_settings)]


@lru_cache
def environment() -> Environment:
    """The templates. An undefined name is an error, and everything is escaped."""
    jinja = Environment(
        loader=FileSystemLoader(ROOT / "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.globals["static_url"] = assets.url
    jinja.globals["static_modules"] = assets.modules
    return jinja


def request_language(request: Request) -> str:
    """`en` or `zh`, from the cookie, else from what the browser prefers."""
    return i18n.pick_language(request.cookies.get(LANGUAGE_COOKIE), request.headers.get("accept-language"))


def words(request: Request) -> dict[str, Any]:
    """The reader's language as functions: `_`, `n_`, `number` and the other words of `app.i18n.template_words`."""
    return i18n.template_words(request_language(request))


class Page(HTMLResponse):
    """A page. Texts that are dear to render are filled in before it is sent, when the request's transaction is over."""

    def __init__(self, html: str, status_code: int, *, texts: Texts, base: str) -> None:
        self._texts, self._base = texts, base
        super().__init__(html if texts.are_missing else in_page(html, base), status_code)

    async def whole(self) -> str:
        """All of its HTML. It may take its time: hold no connection meanwhile (`db.let_go`)."""
        html = bytes(self.body).decode()
        if self._texts.are_missing:
            html = in_page(await self._texts.fill_in(html), self._base)
            self.body = self.render(html)
            self.headers["content-length"] = str(len(self.body))
        return html

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await self.whole()
        await super().__call__(scope, receive, send)


def render(request: Request, template: str, *, status_code: int = 200, **context: Any) -> Page:
    """A page in the reader's language. `user` is who is signed in, or None; `markdown` shows a text of any kind, and
    `filled(template, gaps, **told)` a piece that stands on many pages (`app.fragments`).
    """
    user, language = getattr(request.state, "user", None), words(request)
    reader = user.id if user else request.client and request.client.host
    texts = Texts(whose=reader, note=language["_"]("Shown as it is written: too long or too intricate to be set."))

    def filled(piece: str, gaps: Mapping[str, Any], **told: Any) -> Markup:
        return fragments.filled(environment(), language["language"], piece, gaps, told)

    common = {"request": request, "user": user, "now": datetime.now(UTC), "markdown": texts.show, "filled": filled}
    html = environment().get_template(template).render(**common, **language, **context)
    return Page(html, status_code, texts=texts, base=request.app.state.settings.base_path)


def told(request: Request, error: RankloopError) -> list[FieldError]:
    """What is wrong with each field, in the reader's language; a refusal without fields as one of the whole."""
    errors = error.errors or [FieldError("", str(error))]
    return [FieldError(item.field, item.in_words(words(request))) for item in errors]


def see_other(url: str) -> RedirectResponse:
    """The answer to a form that was taken: look there."""
    return RedirectResponse(url, status.HTTP_303_SEE_OTHER)


def stream(request: Request, chunks: Callable[[AsyncSession], AsyncIterator[bytes]], **headers: str) -> StreamedBody:
    """JSON lines, from a session of their own: that of the request ends before the first chunk is sent, and this one as
    soon as all was read, however slowly it is sent.
    """
    sessionmaker: SessionMaker = request.app.state.sessionmaker

    async def body() -> AsyncIterator[bytes]:
        async with sessionmaker.begin() as session:
            async for chunk in chunks(session):
                yield chunk

    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return StreamedBody(read_ahead(body()), media_type=MEDIA_TYPE, headers=names)


def local_path(url: str | None, default: str = "/") -> str:
    """An address on this origin, whatever was asked for: no scheme, no host, no backslash that a browser takes for a
    slash.
    """
    if not url or not url.startswith("/") or url.startswith("//") or "\\" in url or any(ord(c) < 0x20 for c in url):
        return default
    parts = urlsplit(url)
    return default if parts.scheme or parts.netloc else url
