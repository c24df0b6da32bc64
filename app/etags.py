"""`ETag`: what a reader has already is not sent again, and what somebody else changed is not overwritten
(RFC 9110, section 13).
"""

from __future__ import annotations

import hashlib

from pydantic import BaseModel
from starlette import status
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import RankloopError


class ChangedMeanwhile(RankloopError):
    """Somebody has changed this since you read it. Read it again, and send your change with the new `ETag`."""

    status = status.HTTP_412_PRECONDITION_FAILED


class ETags:
    """Names every JSON answer to a GET below `path` by its bytes, or by the tag that its route gave it; answers 304 to
    whoever sends that name in `If-None-Match`. Streams pass.
    """

    def __init__(self, app: ASGIApp, *, path: str) -> None:
        self.app = app
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or say that nothing is new."""
        if scope["type"] != "http" or scope["method"] != "GET" or not scope["path"].startswith(self._path):
            await self.app(scope, receive, send)
            return
        known = Headers(scope=scope).get("if-none-match", "")
        held: list[Message] = []

        async def send_tagged(message: Message) -> None:
            if message["type"] == "http.response.start" and is_json(message):
                held.append(message)
            elif held:
                held.append(message)
                if not message.get("more_body", False):
                    for part in tagged(held, known):
                        await send(part)
            else:
                await send(message)

        await self.app(scope, receive, send_tagged)


def is_json(start: Message) -> bool:
    """Whether an answer is one JSON document."""
    kind = Headers(raw=start["headers"]).get("content-type", "")
    return bool(start["status"] == status.HTTP_200_OK) and kind == "application/json"


def tagged(answer: list[Message], known: str) -> list[Message]:
    """An answer with its tag, or 304 where the reader knows it."""
    start, *parts = answer
    body = b"".join(part.get("body", b"") for part in parts)
    headers = MutableHeaders(scope=start)
    tag = headers.setdefault("etag", tag_of(body))
    if is_among(tag, known):
        start["status"] = status.HTTP_304_NOT_MODIFIED
        del headers["content-length"], headers["content-type"]
        body = b""
    return [start, {"type": "http.response.body", "body": body}]


def tag_of(content: bytes | BaseModel) -> str:
    """The tag of an answer."""
    content = content.model_dump_json().encode() if isinstance(content, BaseModel) else content
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def is_among(tag: str, tags: str) -> bool:
    """Whether a header with tags names this one. A weak tag names the same bytes here: a proxy may have weakened it."""
    return tags.strip() == "*" or tag in (part.strip().removeprefix("W/") for part in tags.split(","))


def require_unchanged(if_match: str | None, now: BaseModel) -> None:
    """Go on where what was read is what there is now; without `If-Match`, in any case.

    Raises:
        ChangedMeanwhile: it is not.
    """
    if if_match is not None and not is_among(tag_of(now), if_match):
        raise ChangedMeanwhile
