"""Bodies are read whole before the app answers; long ones only from who is known."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from httpx2 import ASGITransport, AsyncClient
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.types import Message

from app.accounts.models import Role, Scope
from app.accounts.tokens import create_token
from app.bodies import KEPT_BYTES, StreamedBody, announced, read_ahead
from app.config import Settings
from app.db import SessionMaker, make_engine, make_sessionmaker
from app.prompts.models import Prompt
from tests.borrowed import borrowed_app
from tests.factories import make_project, make_user
from tests.faults.test_full_disk import fill, small_disk

__all__ = ["small_disk"]
LINE = b'{"prompt": "%d %s"}\n'


async def trainer(session: AsyncSession) -> tuple[str, dict[str, str]]:
    """The address of an import, and who may send there."""
    user, project = await make_user(session, role=Role.ADMIN), await make_project(session)
    _, secret = await create_token(session, user_id=user.id, name="t", scopes=[Scope.WRITE])
    await session.commit()
    return f"/api/v1/projects/{project.id}/prompts:import", {"authorization": f"Bearer {secret}"}


async def pieces(num: int) -> AsyncIterator[bytes]:
    """Lines of 50 kB, one at a time."""
    for number in range(num):
        yield LINE % (number, b"word " * 10_000)


async def test_a_long_body_arrives_as_it_was_sent(client: AsyncClient, session: AsyncSession) -> None:
    address, who = await trainer(session)
    num = 2 * KEPT_BYTES // 50_000
    answer = await client.post(address, content=pieces(num), headers=who)
    assert (answer.status_code, answer.json()["num_lines"]) == (200, num)
    stored = await session.scalar(select(func.sum(func.length(Prompt.messages[0]["content"].astext))))
    assert stored == sum(len(b"%d " % number) + 50_000 for number in range(num))


async def test_a_short_body_needs_no_file(
    client: AsyncClient, session: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, who = await trainer(session)
    body = LINE % (1, b"word") + LINE % (2, b"word")

    async def in_three() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 20):
            yield body[start : start + 20]

    monkeypatch.delattr("app.bodies.SpooledTemporaryFile")
    for content in (body, in_three()):
        assert (await client.post(address, content=content, headers=who)).json()["num_lines"] == 2
    with pytest.raises(NameError):
        await client.post(address, content=pieces(2 * KEPT_BYTES // 50_000), headers=who)


@pytest.mark.parametrize("path", ["/sign-in", "/api/v1/tasks:next", "/api/v1/projects/x/prompts:import", "/nowhere"])
@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer rl_nobody"}, {"cookie": "rl_session=nobody"}])
async def test_a_stranger_fills_neither_memory_nor_disk(
    client: AsyncClient, path: str, headers: dict[str, str]
) -> None:
    num_read = 0

    async def without_end() -> AsyncIterator[bytes]:
        nonlocal num_read
        while True:
            num_read += KEPT_BYTES // 4
            yield b"x" * (KEPT_BYTES // 4)

    own = {"origin": "http://127.0.0.1:8000", "accept": "application/json"}
    answer = await client.post(path, content=without_end(), headers=own | headers)
    assert (answer.status_code, answer.json()["title"]) == (401, "TooLargeForStrangers")
    assert num_read <= 2 * KEPT_BYTES


@pytest.mark.parametrize("is_announced", [True, False])
async def test_a_body_over_the_limit_is_refused_with_the_rule(
    sessionmaker: SessionMaker, session: AsyncSession, is_announced: bool
) -> None:
    address, who = await trainer(session)
    body = LINE % (1, b"word " * 50)

    async def sent() -> AsyncIterator[bytes]:
        yield body

    content = body if is_announced else sent()
    with borrowed_app(Settings(max_body_bytes=200), sessionmaker) as app:
        async with AsyncClient(transport=ASGITransport(app), base_url="http://127.0.0.1:8000", headers=who) as client:
            refused = await client.post(address, content=content)
            assert (await client.post(address, content=LINE % (2, b"short"))).status_code == 200
            own = {"origin": "http://127.0.0.1:8000", "accept": "text/html", "cookie": "rl_language=zh"}
            page = await client.post("/sign-in", content=body, headers=own)
    rule = {"field": "body", "rule": "This takes at most 200 bytes. Send it in parts."}
    assert (refused.status_code, refused.headers["content-type"]) == (413, "application/problem+json")
    assert (refused.json()["title"], refused.json()["errors"]) == ("TooLarge", [rule])
    assert (page.status_code, "最多接受 200 字节" in page.text) == (413, True)
    assert await session.scalar(select(func.count()).select_from(Prompt)) == 1


async def test_no_room_for_a_body_is_503_until_there_is(
    small_disk: Path, sessionmaker: SessionMaker, session: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, who = await trainer(session)
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    with borrowed_app(Settings(data_dir=small_disk), sessionmaker) as app:
        async with AsyncClient(transport=ASGITransport(app), base_url="http://127.0.0.1:8000", headers=who) as client:
            filler = fill(small_disk)
            assert (await client.post(address, content=pieces(60))).status_code == 503
            filler.unlink()
            assert (await client.post(address, content=pieces(60))).status_code == 200


@pytest.mark.real_commits
async def test_a_reader_who_leaves_while_the_database_works_costs_no_connection(
    fresh_database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(fresh_database_url, pool_size=1)
    sessions = make_sessionmaker(engine)
    works = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        async with sessions.begin() as session:
            # As exports ask. SQLAlchemy gives up a connection whose question was cancelled, whatever became of it.
            connection = (await (await session.connection()).get_raw_connection()).driver_connection
            assert connection is not None
            works.set()
            await connection.execute("select pg_sleep(60)")
            yield b"never"

    async def receive() -> Message:
        await works.wait()
        await asyncio.sleep(0.2)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        assert not message.get("body")

    async def server_process() -> int:
        async with sessions() as session:
            return int(await session.scalar(text("select pg_backend_pid()")) or 0)

    before = await server_process()
    async with asyncio.timeout(20):
        await StreamedBody(source())({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send)
    assert await server_process() == before
    assert not [record.getMessage() for record in caplog.records if record.name.startswith("psycopg")]
    await engine.dispose()


async def test_a_source_that_fails_fails_its_streamed_answer() -> None:
    async def source() -> AsyncIterator[bytes]:
        yield b"as far as this"
        raise ConnectionError

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))

    sent: list[bytes] = []
    with pytest.raises(ConnectionError):
        await StreamedBody(source())({"type": "http"}, receive, send)
    assert sent == [b"", b"as far as this"]


async def test_what_is_to_be_done_after_a_streamed_answer_is_done() -> None:
    async def source() -> AsyncIterator[bytes]:
        yield b"all"

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        done.append(message["type"])

    async def afterwards() -> None:
        done.append("afterwards")

    done: list[str] = []
    await StreamedBody(source(), background=BackgroundTask(afterwards))({"type": "http"}, receive, send)
    assert done[-1] == "afterwards"


async def test_a_source_does_not_wait_for_its_reader() -> None:
    given: list[bytes] = []

    async def source() -> AsyncIterator[bytes]:
        for number in range(30):
            given.append(bytes([number]) * 100_000)
            yield given[-1]

    answer = read_ahead(source())
    read = await anext(answer)
    await asyncio.sleep(0)
    assert len(given) == 30, "one piece was read"
    async for piece in answer:
        read += piece
    assert read == b"".join(given)


async def test_a_source_that_fails_fails_its_reader_behind_what_it_gave() -> None:
    async def source() -> AsyncIterator[bytes]:
        yield b"as far as this"
        raise ConnectionError

    answer = read_ahead(source())
    assert await anext(answer) == b"as far as this"
    with pytest.raises(ConnectionError):
        await anext(answer)


async def test_a_reader_who_leaves_ends_its_source() -> None:
    has_ended = False

    async def source() -> AsyncIterator[bytes]:
        nonlocal has_ended
        try:
            yield b"first"
            await asyncio.Event().wait()
        finally:
            has_ended = True

    answer = read_ahead(source())
    assert await anext(answer) == b"first"
    await answer.aclose()
    assert has_ended


async def test_a_source_waits_for_its_reader_where_much_is_ahead() -> None:
    given = 0

    async def source() -> AsyncIterator[bytes]:
        nonlocal given
        for number in range(100):
            given += 1
            yield bytes([number]) * 1000

    answer = read_ahead(source(), most=10_000)
    whole = await anext(answer)
    for _ in range(1000):
        await asyncio.sleep(0)
    assert given <= 25, "the file grew without an end"
    async for piece in answer:
        whole += piece
    assert whole == b"".join(bytes([number]) * 1000 for number in range(100))


async def test_a_long_body_while_the_database_is_away_is_503() -> None:
    engine = make_engine("postgresql://127.0.0.1:1/none")
    try:
        with borrowed_app(Settings(), make_sessionmaker(engine)) as app:
            own = {"authorization": "Bearer rl_somebody"}
            async with AsyncClient(
                transport=ASGITransport(app), base_url="http://127.0.0.1:8000", headers=own
            ) as client:
                assert (await client.post("/api/v1/projects/x/prompts:import", content=pieces(40))).status_code == 503
    finally:
        await engine.dispose()


@pytest.mark.parametrize(
    ("length", "num"),
    [(b"5", 5), (b"9" * 19, 10**19 - 1), (b"9" * 5_000, float("inf")), (b"-5", 0), ("٥".encode(), 0), (b"", 0)],
)
def test_any_length_can_be_announced(length: bytes, num: float) -> None:
    assert announced(Request({"type": "http", "headers": [(b"content-length", length)]})) == num
