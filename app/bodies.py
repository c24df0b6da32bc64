"""Bodies take as long as somebody's line takes, or as somebody likes: those of requests are here as a whole before
anything else is done for them, and answers wait in a file for their reader.

Else whoever sends or reads slowly holds one of the few connections to the database for as long; ten of these, and
nobody else gets one.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, cast

from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionFree
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.background import end
from app.errors import RankloopError, TooLarge, Unauthorized, refusal
from app.security import SAFE_METHODS, Refuse
from app.validation import SENTENCES

# So much of a body is kept in memory; what is longer lies on the disk, in a file without a name.
KEPT_BYTES = 1024 * 1024
# Who is known stands in the database.
DATABASE_TROUBLE = (OperationalError, NoConnectionFree)
PIECE_BYTES = 256 * 1024
MOST_FIELDS = 50_000
"""Of a JSON body, with all that lies in it. A run reports up to 10,000 points of three fields at once."""
MOST_DIGITS = 20
"""Of a number of bytes: more than any disk has."""
MOST_AHEAD = 256 * 1024 * 1024
"""Of an answer that nobody reads: a disk has an end, too. Beyond it the source waits for its reader."""


class TooLargeForStrangers(Unauthorized):
    """Sign in, or send a token, before you send more than 1 MiB."""


class WholeBodies:
    """Reads a request's body, then lets the app answer. More than KEPT_BYTES only from who `is_known`: strangers fill
    neither the memory nor the disk. More than `most` bytes from nobody.
    """

    def __init__(
        self, app: ASGIApp, *, most: int, is_known: Callable[[Request], Awaitable[bool]], refuse: Refuse
    ) -> None:
        self.app = app
        self._most = most
        self._is_known = is_known
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wait for the body, and answer."""
        if scope["type"] != "http" or scope["method"] in SAFE_METHODS:
            await self.app(scope, receive, send)
            return
        most_at_once = min(KEPT_BYTES, self._most)
        if announced(Request(scope)) <= most_at_once:
            first = await beginning(receive, most_at_once)
            receive = first_again(first, receive)
            if is_whole(first, most_at_once):
                # As nearly all are: it needs no file.
                await self.app(scope, receive, send)
                return
        await self._gather(scope, receive, send)

    async def _gather(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read a body piece by piece into a file, and answer."""
        file = SpooledTemporaryFile(KEPT_BYTES)  # noqa: SIM115 (it is closed below)
        body = UploadFile(cast("BinaryIO", file), size=0)
        try:
            request = Request(scope)
            try:
                has_all = await self._fill(body, request, receive)
            except (RankloopError, HTTPException, OSError, *DATABASE_TROUBLE) as error:
                answer = await self._refuse(request, error)
                await answer(scope, receive, send)
                return
            if has_all:
                await self.app(scope, again(body, receive), send)
        finally:
            await body.close()

    async def _fill(self, body: UploadFile, request: Request, receive: Receive) -> bool:
        """Whether all of it came; whoever hangs up wants no answer.

        Raises:
            TooLarge: it has more bytes than are taken here; where it says so beforehand, none is read.
            TooLargeForStrangers: it is long, and its sender is nobody that we know.
        """
        self._require_fitting(announced(request))
        is_known = False
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            piece = message.get("body", b"")
            self._require_fitting((body.size or 0) + len(piece))
            await body.write(piece)
            if not is_known and (body.size or 0) > KEPT_BYTES:
                is_known = await self._is_known(request)
                if not is_known:
                    raise TooLargeForStrangers
            if not message.get("more_body", False):
                await body.seek(0)
                return True

    def _require_fitting(self, size: float) -> None:
        if size > self._most:
            raise TooLarge(errors=[refusal("body", SENTENCES["body_size"], number=f"{self._most:,}")])


async def require_few_fields(request: Request) -> None:
    """Refuse a JSON body of more than MOST_FIELDS fields before each wrong one is told of, which takes some 10 µs a
    field, in which nobody else is served.

    A dependency of the API's routes: FastAPI has read the body by then, and looks at its fields afterwards.

    Raises:
        TooLarge: it has more.
    """
    # Only FastAPI knows which routes take JSON; on any other, the body is not read yet.
    if hasattr(request, "_json") and has_more_fields(await request.json(), MOST_FIELDS):
        raise TooLarge(errors=[refusal("body", SENTENCES["body_fields"], number=f"{MOST_FIELDS:,}")])


def has_more_fields(value: object, most: int) -> bool:
    """Whether the objects of a JSON value, at any depth, have more than `most` fields together."""
    found = 0
    waiting = [value]
    while waiting and found <= most:
        one = waiting.pop()
        if isinstance(one, dict):
            found += len(one)
        inside = one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        waiting += [each for each in inside if isinstance(each, dict | list)]
    return found > most


def announced(request: Request) -> float:
    """The bytes that a body will have, by its own account; 0: it does not say."""
    length = request.headers.get("content-length", "")
    if not (length.isascii() and length.isdigit()):
        return 0
    # Python refuses to read numbers of thousands of digits, which no body needs.
    return int(length) if len(length) < MOST_DIGITS else math.inf


async def beginning(receive: Receive, most: int) -> Message:
    """A body's beginning as one message: all of it, or the first so many bytes and a piece."""
    message = await receive()
    held = bytearray(message.get("body", b""))
    while message.get("more_body", False) and len(held) <= most:
        message = await receive()
        held += message.get("body", b"")
    return {**message, "body": bytes(held)}


def is_whole(first: Message, most: int) -> bool:
    """Whether that is all of a body, and nobody hung up."""
    return first["type"] == "http.request" and not first.get("more_body", False) and len(first["body"]) <= most


def first_again(first: Message, receive: Receive) -> Receive:
    """What was received already, then what `receive` says."""
    waiting = [first]

    async def receive_again() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_again


def again(body: UploadFile, receive: Receive) -> Receive:
    """A body that was read, as the messages that it comes in; after its end, what `receive` says."""
    num_left = body.size or 0
    has_ended = False

    async def receive_again() -> Message:
        nonlocal num_left, has_ended
        if has_ended:
            return await receive()
        piece = await body.read(PIECE_BYTES)
        num_left -= len(piece)
        has_ended = num_left <= 0
        return {"type": "http.request", "body": piece, "more_body": not has_ended}

    return receive_again


class StreamedBody(StreamingResponse):
    """An answer piece by piece. When its reader goes away, what makes it is cancelled once, and ended in peace.

    Starlette leaves that to anyio, which cancels again at each turn of the loop: whatever waits for the database is
    interrupted while it takes back its question, and psycopg drops the connection.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, or as much of it as its reader waits for."""
        sending = asyncio.create_task(self.stream_response(send))
        listening = asyncio.create_task(self.listen_for_disconnect(receive))
        try:
            await asyncio.wait((sending, listening), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                await sending
        finally:
            await end(listening)
            await end(sending)
        if self.background is not None:
            await self.background()


async def read_ahead(source: AsyncIterable[bytes], most: int = MOST_AHEAD) -> AsyncGenerator[bytes]:
    """The same bytes. They are taken as fast as their source gives them; what nobody wants yet waits in a file, up to
    `most` bytes.
    """
    with SpooledTemporaryFile(KEPT_BYTES) as file:
        has_more, has_room = asyncio.Event(), asyncio.Event()
        num_read = num_written = 0

        async def fill() -> None:
            nonlocal num_written
            async for chunk in source:
                while num_written - num_read > most:
                    has_room.clear()
                    await has_room.wait()
                file.seek(num_written)
                num_written += file.write(chunk)
                has_more.set()

        filling = asyncio.create_task(fill())
        filling.add_done_callback(lambda _: has_more.set())
        try:
            while True:
                has_more.clear()
                is_last = filling.done()
                file.seek(num_read)
                if piece := file.read(PIECE_BYTES):
                    num_read += len(piece)
                    has_room.set()
                    yield piece
                elif is_last:
                    break
                else:
                    await has_more.wait()
            await filling
        finally:
            await end(filling)
