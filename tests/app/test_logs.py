"""Logs: each line bears its request, and none holds what people wrote, whatever goes wrong on the way."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from fastapi import Request
from httpx2 import ASGITransport, AsyncClient
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app import logs
from app.config import Settings
from app.db import SessionMaker
from app.main import create_app
from app.security import HEADERS

CANARY = "Zebedee-Quillfeather"
ID = {"x-request-id": "from-the-proxy.1"}
SENT = {"accept": "text/html", "user-agent": CANARY, "authorization": f"Bearer rl_{CANARY}", "referer": f"/{CANARY}"}


@pytest.fixture
def restored() -> Iterator[None]:
    """What `configure` does to the root logger is undone."""
    root, own = logging.getLogger(), logging.getLogger("app")
    handlers, levels = root.handlers[:], (root.level, own.level)
    root.handlers.clear()  # `force` closes those that are there
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    own.setLevel(levels[1])


def breaking_app(sessions: SessionMaker, folder: Path, log_format: str, level: str = "info") -> Any:
    """The app with three more addresses, each of which fails in its own way over a visitor's text."""
    settings = Settings.model_validate({"data_dir": folder, "log_format": log_format, "log_level": level})
    logs.configure(settings)
    app = create_app(settings, sessions)

    async def bug(request: Request) -> None:
        int(request.query_params["q"])

    async def rule(request: Request) -> None:
        async with sessions.begin() as session:
            query = text("insert into projects (id, slug, name, model_alias) values (null, :q, :q, :q)")
            await session.execute(query, dict(request.query_params))

    async def lost(request: Request) -> None:
        async def fails() -> None:
            raise ValueError(request.query_params["q"])

        task = asyncio.ensure_future(fails())
        await asyncio.wait([task])
        del task
        gc.collect()

    for handler in (bug, rule, lost):
        app.add_api_route(f"/{handler.__name__}", handler)
    return app


async def ask(app: Any, path: str) -> Any:
    transport = ASGITransport(app, raise_app_exceptions=False)
    async with AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
        return await client.get(path, headers={**ID, **SENT})


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("log_format", ["json", "text"])
async def test_no_line_holds_what_a_visitor_sent(
    sessionmaker: SessionMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str], log_format: Literal["json", "text"]
) -> None:
    app = breaking_app(sessionmaker, tmp_path, log_format)
    for path in ("bug", "rule", "lost", "nowhere", "projects"):
        await ask(app, f"/{path}?q={CANARY}")
    # What uvicorn does with an exception that reaches it.
    try:
        raise ValueError(CANARY)
    except ValueError:
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application\n")
    told = capsys.readouterr().err
    assert CANARY not in told
    for expected in ("the database refused: psycopg.errors.NotNullViolation 23502 projects", "never retrieved"):
        assert expected in told
    assert "builtins.ValueError" in told
    assert "test_logs.py" in told
    if log_format == "json":
        lines = [json.loads(line) for line in told.splitlines()]
        assert all({"time", "level", "logger", "message", "request_id"} <= line.keys() for line in lines)
        [line] = [line for line in lines if line.get("route") == "/rule"]
        assert (line["request_id"], line["status"], line["method"]) == (ID["x-request-id"], 409, "GET")


@pytest.mark.usefixtures("restored")
async def test_words_are_there_for_who_looks_for_a_bug(
    sessionmaker: SessionMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    breaking_app(sessionmaker, tmp_path, "text", "debug")
    try:
        int(CANARY)
    except ValueError:
        logging.getLogger("app").exception("a bug")
    assert CANARY in capsys.readouterr().err


@pytest.mark.usefixtures("restored")
async def test_a_bug_is_answered_with_all_headers_and_the_number_of_the_request(
    sessionmaker: SessionMaker, tmp_path: Path
) -> None:
    answer = await ask(breaking_app(sessionmaker, tmp_path, "text"), f"/bug?q={CANARY}")
    assert answer.status_code == 500
    assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
    assert answer.headers["x-request-id"] == ID["x-request-id"]
    assert ID["x-request-id"] in answer.text


@pytest.mark.parametrize("given", ["", "a" * 65, "two words", "<b>", "é"])
async def test_an_id_that_could_forge_a_line_is_replaced(client: AsyncClient, given: str) -> None:
    answer = await client.get("/health", headers={b"x-request-id": given.encode()})
    assert len(answer.headers["x-request-id"]) == 32


async def test_a_program_learns_the_number_too(client: AsyncClient, session: AsyncSession) -> None:
    answer = await client.get("/api/v1/runs", headers=ID)
    assert answer.json()["request_id"] == answer.headers["x-request-id"] == ID["x-request-id"]
