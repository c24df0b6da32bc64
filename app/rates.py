"""How often a program may call the API: a window of a minute for each token, and a wider one for each network address.

Counted in the memory of each web process, before the database is asked anything: a flood must not reach it. With
several processes a caller gets the limit once in each, which is what a limit against accidents may cost.
"""

from __future__ import annotations

import hashlib
import math
import time

from limits import RateLimitItem, RateLimitItemPerMinute, WindowStats
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Many people and programs share one address: an office, a cluster, a reverse proxy.
ADDRESS_FACTOR = 10


class RateLimits:
    """Refuses with 429 what comes too often below `path`, and tells every caller where it stands
    (draft-ietf-httpapi-ratelimit-headers-10).
    """

    def __init__(self, app: ASGIApp, *, path: str, per_minute: int) -> None:
        self.app = app
        self._path = path
        self._own = RateLimitItemPerMinute(per_minute)
        self._address = RateLimitItemPerMinute(per_minute * ADDRESS_FACTOR)
        self._limiter = FixedWindowRateLimiter(MemoryStorage())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse."""
        if scope["type"] != "http" or not scope["path"].startswith(self._path):
            await self.app(scope, receive, send)
            return
        limit, key = self._own, caller_key(scope)
        is_allowed = await self._limiter.hit(limit, key)
        if is_allowed and scope.get("client"):
            is_allowed = await self._limiter.hit(self._address, address := f"address {scope['client'][0]}")
            limit, key = (limit, key) if is_allowed else (self._address, address)
        headers = told(limit, await self._limiter.get_window_stats(limit, key))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(headers)
            await send(message)

        answer = self.app if is_allowed else refusal(headers)
        await answer(scope, receive, send_with_headers)


def caller_key(scope: Scope) -> str:
    """Who calls: by what the request is signed with, hashed, so that no token lies in memory; else by its address."""
    headers = Headers(scope=scope)
    proof = headers.get("authorization") or headers.get("cookie")
    if proof is None:
        return f"nobody {scope['client'][0] if scope.get('client') else ''}"
    return hashlib.sha256(proof.encode()).hexdigest()[:32]


def told(limit: RateLimitItem, stats: WindowStats) -> dict[str, str]:
    """The headers: what is allowed in how many seconds, what is left, and when it starts anew."""
    seconds = max(0, math.ceil(stats.reset_time - time.time()))
    return {
        "ratelimit-policy": f'"minute";q={limit.amount};w={limit.get_expiry()}',
        "ratelimit": f'"minute";r={max(0, stats.remaining)};t={seconds}',
    }


def refusal(headers: dict[str, str]) -> JSONResponse:
    """429 as problem+json. It says when to come back."""
    seconds = headers["ratelimit"].rpartition("t=")[2]
    headers["retry-after"] = seconds
    detail = f"Too many requests in this minute. Wait {seconds} s; `Retry-After` and `RateLimit` say how long."
    body = {"type": "about:blank", "title": "TooManyRequests", "status": 429, "detail": detail, "errors": []}
    return JSONResponse(body, 429, media_type="application/problem+json")
