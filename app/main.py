"""The app: routers, middleware, error pages, static files. `create_app` puts it together; nothing happens at import."""

from __future__ import annotations

import asyncio
import errno
import logging
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import quote

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from sqlalchemy.exc import DataError, IntegrityError
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import DEFAULT_EXCLUDED_CONTENT_TYPES, GZipMiddleware

from app import assets, openapi
from app.accounts import api as accounts_api
from app.accounts import own_pages, people_pages, provider_pages
from app.accounts import pages as accounts_pages
from app.accounts.guards import SignInFirst, is_known
from app.accounts.refusals import note_refusal
from app.background import Job, repeat
from app.bodies import DATABASE_TROUBLE, WholeBodies, require_few_fields
from app.config import Settings
from app.corpora import api as corpora_api
from app.datasets import api as datasets_api
from app.datasets import pages as datasets_pages
from app.db import SessionMaker, make_engine, make_late_engine, make_late_sessionmaker, make_sessionmaker
from app.errors import Conflict, FieldError, Forbidden, Invalid, NotFound, RankloopError, Unavailable, refusal
from app.etags import ETags
from app.logs import RequestIds, request_id
from app.loop import api as loop_api
from app.loop import clock, comparison_pages, cost_pages, subscriptions, watch_pages
from app.loop import pages as loop_pages
from app.operations import pages as operations_pages
from app.operations.metrics import Metrics, Observed
from app.projects import api as projects_api
from app.projects import pages as projects_pages
from app.projects import tallies
from app.prompts import api as prompts_api
from app.prompts import pages as prompts_pages
from app.quality import api as quality_api
from app.quality import gold_pages, qualification, qualification_pages, review_pages
from app.quality import pages as quality_pages
from app.quality import watch as quality_watch
from app.rankings import ahead_pages, import_pages, mine_pages, try_pages
from app.rankings import api as rankings_api
from app.rankings import pages as rankings_pages
from app.rates import RateLimits
from app.reach import PROJECT_FINDERS, is_held
from app.registry import api as registry_api
from app.runs import api as runs_api
from app.runs import pages as runs_pages
from app.security import Bugs, SameOrigin, SecurityHeaders
from app.subpath import SubPath, require_free
from app.tasks import api as tasks_api
from app.tasks import pages as tasks_pages
from app.validation import NO_NUL, PATTERNS, SENTENCES, explain
from app.web import render, see_other, words
from app.webhooks import api as webhooks_api
from app.webhooks import delivery
from app.webhooks import pages as webhooks_pages
from app.webhooks import service as webhooks
from app.writing import pages as writing_pages
from rankloop import __version__
from rankloop.logs import named

log = logging.getLogger(__name__)
API = "/api/v1"
MAX_FIELD_ERRORS = 100  # a body of 50,000 unknown keys would cost seconds to explain, and nobody reads on
# Pages, scripts and styles are compressed. Sizes of compressed answers can betray a secret that stands beside a text of
# the attacker's choice (BREACH), again and again at the same place; no page of ours has one: forms are guarded by where
# they come from and hold no token, the session is in a cookie alone, which no other site's request brings along
# (SameSite), and a link or token is shown once, in the answer to a POST. JSON may hold anything: it stays as it is.
NOT_COMPRESSED = (*DEFAULT_EXCLUDED_CONTENT_TYPES, "application/*", "text/csv")
# An address is looked for in one after the other: those that are asked for all day come first.
DOMAINS = [
    tasks_api,
    rankings_api,
    accounts_api,
    registry_api,
    runs_api,
    projects_api,
    prompts_api,
    corpora_api,
    quality_api,
    datasets_api,
    loop_api,
    webhooks_api,
]
PAGES = [
    ahead_pages,
    rankings_pages,
    tasks_pages,
    accounts_pages,
    own_pages,
    people_pages,
    provider_pages,
    runs_pages,
    projects_pages,
    prompts_pages,
    mine_pages,
    import_pages,
    try_pages,
    writing_pages,
    quality_pages,
    gold_pages,
    review_pages,
    qualification_pages,
    datasets_pages,
    loop_pages,
    comparison_pages,
    watch_pages,
    cost_pages,
    webhooks_pages,
    operations_pages,
]


def create_app(settings: Settings, sessionmaker: SessionMaker | None = None) -> FastAPI:
    """Put the app together. `sessionmaker` replaces the one made from the settings' database address."""
    app = FastAPI(
        title="Rankloop",
        version=__version__,
        description="People rank what a language model answers; a reward model learns from it; PPO improves the model.",
        openapi_url=f"{API}/openapi.json",
        docs_url=None,
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        lifespan=lifespan,
    )
    app.openapi = partial(openapi.document, app)  # type: ignore[method-assign]
    app.state.settings = settings
    app.state.sessionmaker = app.state.late_sessionmaker = sessionmaker
    app.state.project_finders = PROJECT_FINDERS
    app.state.is_held = is_held
    app.state.metrics = Metrics()
    app.state.provider = provider_pages.make_provider(settings)
    for module in DOMAINS:
        app.include_router(module.router, prefix=API, dependencies=[Depends(require_few_fields)])
    for module in PAGES:
        app.include_router(module.router, include_in_schema=False)
    app.add_api_route("/service-worker.js", service_worker, include_in_schema=False)
    app.mount("/static", assets.Assets(), name="static")
    app.add_exception_handler(RankloopError, handle_refusal)
    app.add_exception_handler(RequestValidationError, handle_invalid_request)
    app.add_exception_handler(HTTPException, handle_http_exception)
    app.add_exception_handler(IntegrityError, handle_integrity_error)
    app.add_exception_handler(DataError, handle_unstorable_text)
    for trouble in DATABASE_TROUBLE:
        app.add_exception_handler(trouble, handle_database_trouble)
    app.add_exception_handler(OSError, handle_full_disk)
    app.add_middleware(WholeBodies, most=settings.max_body_bytes, is_known=is_known, refuse=handle_unread_body)
    app.add_middleware(ETags, path=API)
    app.add_middleware(GZipMiddleware, compresslevel=6, exclude_content_types=NOT_COMPRESSED)
    if settings.api_requests_per_minute:
        app.add_middleware(RateLimits, path=API, per_minute=settings.api_requests_per_minute)
    app.add_middleware(SameOrigin, refuse=handle_refusal)
    app.add_middleware(Bugs, answer=handle_bug)
    app.add_middleware(SecurityHeaders, is_https=settings.has_secure_cookies)
    app.add_middleware(Observed, metrics=app.state.metrics, api=API)
    app.add_middleware(RequestIds)
    if settings.base_path:
        own = [API, "/static", *(route.path for module in PAGES for route in module.router.routes)]
        require_free(settings.base_path, own)
        app.add_middleware(SubPath, base=settings.base_path)
    qualification.subscribe()
    subscriptions.subscribe()
    webhooks.subscribe()
    return app


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Connect to the database, unless the sessions came from outside."""
    if app.state.sessionmaker is not None:
        yield
        return
    settings: Settings = app.state.settings
    url = settings.require_database_url()
    engine, late_engine = make_engine(url), make_late_engine(url)
    app.state.sessionmaker, app.state.late_sessionmaker = make_sessionmaker(engine), make_late_sessionmaker(late_engine)
    jobs = [asyncio.create_task(repeat(job)) for job in jobs_of(app.state.sessionmaker, settings)]
    yield
    for task in jobs:
        task.cancel()
    await asyncio.gather(*jobs, return_exceptions=True)
    await engine.dispose()
    await late_engine.dispose()


def jobs_of(sessions: SessionMaker, settings: Settings) -> list[Job]:
    """What is done beside requests. Any number of web processes do the same: each piece is done by one of them."""
    hosts = [host.strip() for host in settings.webhook_hosts.split(",") if host.strip()]
    return [
        Job(
            "sending to webhooks", delivery.EVERY_SECONDS, partial(delivery.deliver_due, sessions, allowed_hosts=hosts)
        ),
        Job("measuring quality", quality_watch.EVERY_SECONDS, partial(quality_watch.look, sessions)),
        Job("looking what is to be trained", clock.EVERY_SECONDS, partial(clock.look, sessions)),
        Job("putting tallies together", tallies.EVERY_SECONDS, partial(tallies.fold, sessions)),
    ]


async def service_worker() -> FileResponse:
    """What serves a pack of tasks without a connection. It lies at the root, as it answers for pages."""
    return FileResponse(assets.FOLDER / "service-worker.js", headers={"cache-control": "no-cache"})


def wants_json(request: Request) -> bool:
    """Programs get problem+json, people get a page."""
    return request.url.path.startswith(API) or "text/html" not in request.headers.get("accept", "text/html")


def answer(request: Request, error: RankloopError) -> Response:
    """A refusal as problem+json (RFC 9457), or as a page that says what to do."""
    if request.url.path.startswith(API):
        errors = [{"field": item.field, "rule": item.rule} for item in error.errors]
        return problem(error.status, type(error).__name__, str(error), errors)
    told = [FieldError(item.field, item.in_words(words(request))) for item in error.errors]
    if wants_json(request):
        # A script of a page shows this to its reader.
        errors = [{"field": item.field, "rule": item.rule} for item in told]
        return problem(error.status, type(error).__name__, str(words(request)["_"](str(error))), errors)
    message = str(Invalid()) if error.is_sum_of_errors else str(error)
    return render(
        request,
        "errors/error.html",
        status_code=error.status,
        status=error.status,
        message=message,
        errors=told,
        onward=error.onward,
        request_id=request_id.get(),
    )


def problem(status: int, title: str, detail: str, errors: list[dict[str, str]]) -> JSONResponse:
    """The JSON of RFC 9457."""
    body: dict[str, Any] = {"type": "about:blank", "title": title, "status": status, "detail": detail, "errors": errors}
    body["request_id"] = request_id.get()
    return JSONResponse(body, status, media_type="application/problem+json")


async def handle_refusal(request: Request, error: Exception) -> Response:
    """An expected refusal. Who is not signed in is sent to do so, and comes back."""
    assert isinstance(error, RankloopError)
    user, route = getattr(request.state, "user", None), request.scope.get("route")
    if isinstance(error, Forbidden) and user and route:
        sessionmaker: SessionMaker = request.app.state.sessionmaker
        place = (API if request.url.path.startswith(API) else "") + route.path
        await note_refusal(sessionmaker, user_id=user.id, method=request.method, route=place)
    if isinstance(error, SignInFirst) and not wants_json(request) and request.method == "GET":
        way_back = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return see_other("/sign-in" if way_back == "/" else f"/sign-in?next={quote(way_back, safe='/')}")
    return answer(request, error)


async def handle_invalid_request(request: Request, error: Exception) -> Response:
    """A body or parameter that doesn't fit its schema: 422 with each field's path."""
    assert isinstance(error, RequestValidationError)
    if not request.url.path.startswith(API) and any(item["loc"][0] == "path" for item in error.errors()):
        return answer(request, NotFound("There is nothing at this address."))
    invalid = RankloopError("Some fields can't be taken.", errors=field_errors(error.errors()))
    invalid.status = 422
    return answer(request, invalid)


def field_errors(items: Sequence[dict[str, Any]]) -> list[FieldError]:
    """Each field's error in our words; of many, the first MAX_FIELD_ERRORS, and how many are not shown."""
    errors = [field_error(item) for item in items[:MAX_FIELD_ERRORS]]
    left = len(items) - len(errors)
    return [*errors, refusal("body", SENTENCES["more_fields"], number=f"{left:,}")] if left else errors


def field_error(item: dict[str, Any]) -> FieldError:
    """Pydantic's words for one field, as ours."""
    path = ".".join(str(part) for part in item["loc"] if part not in {"body", "query", "path", "header"})
    return explain(item, path or "body")


async def handle_http_exception(request: Request, error: Exception) -> Response:
    """What the framework refuses: unknown addresses, wrong methods."""
    assert isinstance(error, HTTPException)
    refusal = (
        NotFound("There is nothing at this address.") if error.status_code == 404 else RankloopError(str(error.detail))
    )
    refusal.status = error.status_code
    return answer(request, refusal)


async def handle_integrity_error(request: Request, error: Exception) -> Response:
    """A rule that the database kept and no service had checked: refused, nothing is stored, and it goes to the log."""
    log.warning("the database refused: %s", named(error.__cause__ or error))
    return answer(
        request, Conflict("This breaks a rule of the database, and was not stored. Load the page again and retry.")
    )


async def handle_unstorable_text(request: Request, error: Exception) -> Response:
    """A NUL in a text, or a number beyond its column: nothing was stored."""
    assert isinstance(error, DataError)
    errors = [refusal(column, PATTERNS[NO_NUL]) for column in columns_with_nul(error.params)]
    told = "A value can't be stored: a text holds a NUL character, or a number is too large."
    return answer(request, Invalid(told, errors=errors))


def columns_with_nul(params: object) -> list[str]:
    """Of a statement's parameters, the columns that were to hold a NUL: fields are called as their columns are."""
    rows = params if isinstance(params, list) else [params]
    named = [item for row in rows if isinstance(row, Mapping) for item in row.items()]
    found = [name.partition("__")[0] for name, value in named if re.search(r"\x00|\\u0000", str(value))]
    return [name for name in dict.fromkeys(found) if not re.search(r"_\d+$", name)]


async def handle_database_trouble(request: Request, error: Exception) -> Response:
    """The database is away, full or overrun. Where it went away during a commit, nobody knows whether that was done."""
    log.error("database trouble: %s", named(error.__cause__ or error))
    return answer(
        request, Unavailable("The database can't be reached right now. Try again in a moment; nothing is stored twice.")
    )


async def handle_full_disk(request: Request, error: Exception) -> Response:
    """No room for a file: whoever sends it may try again until there is. Any other trouble with files is ours."""
    assert isinstance(error, OSError)
    if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
        raise error
    log.error("the disk is full: %s", named(error))
    return answer(request, Unavailable("The server's disk is full. Nothing was stored; try again when there is room."))


async def handle_unread_body(request: Request, error: Exception) -> Response:
    """A body that was not taken, before anything of the app has seen it."""
    if isinstance(error, RankloopError):
        return await handle_refusal(request, error)
    if isinstance(error, HTTPException):
        return await handle_http_exception(request, error)
    if isinstance(error, DATABASE_TROUBLE):
        return await handle_database_trouble(request, error)
    return await handle_full_disk(request, error)


async def handle_bug(request: Request, error: Exception) -> Response:
    """Our own mistake. The log has it; the page does not."""
    refusal = RankloopError("Something went wrong here, and nothing was stored. The server's log has the cause.")
    refusal.status = 500
    return answer(request, refusal)
