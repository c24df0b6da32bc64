"""What machines ask a web process: is it alive, may it get requests, how does it do."""

from __future__ import annotations

import asyncio
import hmac
import logging
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from app.config import Settings
from app.errors import NotFound, Unauthorized
from app.migrate import revisions
from app.operations import metrics
from app.web import SettingsDep

SECONDS_TO_ANSWER = 3
LOOPBACK = {"127.0.0.1", "::1", "localhost"}
router = APIRouter()
log = logging.getLogger(__name__)


@router.get("/health")
async def health() -> dict[str, str]:
    """The process is alive. It asks the database nothing: a full pool must not look like a dead process."""
    return {"status": "ok"}


@router.get("/ready")
async def ready(request: Request) -> JSONResponse:
    """The database answers, and its tables are those of this version or newer: requests may come."""
    revision = await asked_in_time(request, current_revision)
    if revision is None:
        return JSONResponse({"status": "the database does not answer"}, 503)
    known = revisions()
    if revision in known[1:]:
        return JSONResponse({"status": "the database waits for `rankloop migrate`"}, 503)
    return JSONResponse({"status": "ok"})


@router.get("/metrics")
async def prometheus(request: Request, settings: SettingsDep) -> Response:
    """The metrics, for who has RANKLOOP_METRICS_TOKEN; without one, for this machine while the site is on it alone."""
    require_permission(request, settings)
    counted: metrics.Metrics = request.app.state.metrics
    facts = await asked_in_time(request, metrics.ask) or {}
    return Response(counted.text(facts), media_type=CONTENT_TYPE_LATEST)


def require_permission(request: Request, settings: Settings) -> None:
    """Raises Unauthorized, or NotFound where there is no token and the question comes from elsewhere.

    An address alone is no proof behind a proxy on the same machine, so that a public site always wants the token.
    """
    if settings.metrics_token:
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {settings.metrics_token}".encode()):
            raise Unauthorized("Send RANKLOOP_METRICS_TOKEN as a bearer token.")
        return
    is_here = request.client is not None and request.client.host in LOOPBACK
    if not is_here or urlsplit(settings.public_url).hostname not in LOOPBACK:
        raise NotFound("There is nothing at this address.")


async def asked_in_time(request: Request, question: Any) -> Any:
    """The answer of `question(session)`; None when the database gives none within seconds."""
    try:
        async with asyncio.timeout(SECONDS_TO_ANSWER), request.app.state.sessionmaker() as session:
            return await question(session)
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        log.warning("the database does not answer: %s", type(error).__name__)
        return None


async def current_revision(session: Any) -> str:
    """The newest migration of the database; empty before the first."""
    return str(await session.scalar(text("select max(version_num) from alembic_version")) or "")
