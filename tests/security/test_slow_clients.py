"""Hundreds of sockets that send a request slowly, or never: others are answered meanwhile, and these are sent away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from app.serve import bind
from app.slow_clients import HEAD_BYTES, Impatient, allow_many_connections

NUM_SOCKETS = 500
BEGUN = b"POST / HTTP/1.1\r\nHost: here\r\n"
SECONDS = 60
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Hasty(Impatient):
    """The same in a test's time."""

    head_seconds = body_seconds = 0.5


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """It says how long a body is, after it has let others wait as long as they are told to."""
    request = Request(scope, receive)
    await asyncio.sleep(float(request.query_params.get("seconds", 0)))
    body = await request.body()
    await PlainTextResponse(str(len(body)))(scope, receive, send)


@asynccontextmanager
async def listening(protocol: type[Impatient]) -> AsyncIterator[int]:
    """A server with this patience; its port."""
    listener = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, http=protocol, lifespan="off", log_config=None))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await serving


async def open_with(port: int, begun: bytes) -> Streams:
    """A connection on which this was said."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(begun)
    return reader, writer


async def heard(streams: Streams) -> bytes:
    """All that the server says until it hangs up."""
    reader, writer = streams
    said = b""
    async with asyncio.timeout(SECONDS):
        with suppress(ConnectionError):
            said = await reader.read()
    writer.close()
    return said


async def ask(port: int, target: str = "/", body: bytes = b"") -> bytes:
    """A whole request, and its answer."""
    head = f"POST {target} HTTP/1.1\r\nHost: here\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    return await heard(await open_with(port, head.encode() + body))


@pytest.mark.parametrize("begun", [b"", BEGUN, BEGUN + b"Content-Length: 9\r\n\r\nabc"], ids=["silent", "head", "body"])
async def test_500_slow_sockets_keep_nobody_waiting_and_are_sent_away(begun: bytes) -> None:
    allow_many_connections()
    async with listening(Hasty) as port:
        slow = [await open_with(port, begun) for _ in range(NUM_SOCKETS)]
        assert (await ask(port, body=b"1234")).endswith(b"\r\n\r\n4")
        assert await asyncio.gather(*(heard(streams) for streams in slow)) == [b""] * NUM_SOCKETS


async def test_a_drop_now_and_then_is_no_request() -> None:
    async with listening(Hasty) as port:
        reader, writer = await open_with(port, BEGUN)

        async def drip() -> None:
            with suppress(ConnectionError):
                while True:
                    writer.write(b"X: y\r\n")
                    await writer.drain()
                    await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        assert await heard((reader, writer)) == b""
        dripping.cancel()


async def test_headers_have_an_end() -> None:
    async with listening(Impatient) as port:
        said = await heard(await open_with(port, BEGUN + b"X: " + b"y" * 4 * HEAD_BYTES))
    assert said.startswith(b"HTTP/1.1 400 ") or said == b""


async def test_who_says_nothing_more_after_an_answer_is_sent_away() -> None:
    async with listening(Hasty) as port:
        reader, writer = await open_with(port, BEGUN + b"\r\n")
        assert (await reader.readuntil(b"\r\n\r\n0")).startswith(b"HTTP/1.1 200 ")
        writer.write(b"\r\n")
        assert await heard((reader, writer)) == b""


async def test_who_waits_for_the_app_is_not_sent_away() -> None:
    """A body larger than what is read ahead, and an app that takes longer than anybody is waited for."""
    async with listening(Hasty) as port:
        assert (await ask(port, "/?seconds=1.2", b"x" * 2_000_000)).endswith(b"\r\n\r\n2000000")
        assert (await ask(port, "/?seconds=1.2")).endswith(b"\r\n\r\n0")
