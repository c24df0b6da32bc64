"""The app for one test, with its routes worked out by an earlier one: a new app takes a third of a second of CPU
for that at its first request, and a thousand tests make a request.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import FastAPI

from app.accounts.provider_pages import make_provider
from app.config import Settings
from app.db import SessionMaker
from app.main import create_app

_idle: list[FastAPI] = []
# Written into the app when it is made, so that another value needs an app of its own.
_FIXED = ("max_body_bytes", "api_requests_per_minute")


@contextmanager
def borrowed_app(settings: Settings, sessionmaker: SessionMaker | None = None) -> Iterator[FastAPI]:
    """What `create_app` makes from the same arguments, for as long as the block lasts; nobody else has it meanwhile."""
    usual = Settings.model_fields
    if settings.base_path or any(getattr(settings, name) != usual[name].default for name in _FIXED):
        yield create_app(settings, sessionmaker)
        return
    app = _idle.pop() if _idle else create_app(settings)
    app.state.settings, app.state.sessionmaker = settings, sessionmaker
    app.state.late_sessionmaker = sessionmaker
    app.state.provider = make_provider(settings)
    app.middleware_stack = None  # built anew at the next request: a limit of rates remembers who came before
    yield app
    _idle.append(app)
