"""Rankloop below a path of another site: `RANKLOOP_PUBLIC_URL=https://example.org/rankloop`.

Everything inside writes and reads addresses from the root. Here the path comes off what arrives and goes before what
leaves: redirects and cookies (`SubPath`), and the addresses in pages (`in_page`). A request without the path is
answered as well: a proxy may have taken it off, and programs on this machine ask by another address.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Whatever people wrote is escaped where a page shows it, so that a quotation mark is always one of a template.
ADDRESSES = re.compile(r'(\s(?:href|src|action|formaction|data-[a-z-]*url)=")(/(?!/))')
BASE = re.compile(r"(/[\w.~-]+)+", re.ASCII)
COOKIE_PATH = re.compile(r"(;\s*path=)(/)", re.IGNORECASE)


def require_free(base: str, routes: Iterable[str]) -> None:
    """The site can lie below this path.

    Raises:
        ValueError: it is no plain path, or begins as one of our own addresses does: nobody could tell them apart.
    """
    own = {path.split("/")[1] for path in routes}
    if not BASE.fullmatch(base) or base.split("/")[1] in own:
        raise ValueError(
            f"RANKLOOP_PUBLIC_URL ends in {base!r}: use a path of letters, digits, '-', '_', '.', '~' and '/' that "
            f"does not begin with one of {', '.join(sorted(filter(None, own)))}."
        )


def in_page(html: str, base: str) -> str:
    """A page whose addresses on this site begin with the path."""
    return ADDRESSES.sub(rf"\1{base}\2", html) if base else html


class SubPath:
    """Takes the path off a request, and puts it before where an answer leads and where its cookies hold."""

    def __init__(self, app: ASGIApp, *, base: str) -> None:
        self.app = app
        self._base = base

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as if the site were its own."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        origin = f"{scope['scheme']}://{Headers(scope=scope).get('host', '')}"

        async def send_below(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._complete(MutableHeaders(scope=message), origin)
            await send(message)

        await self.app(self._inside(scope), receive, send_below)

    def _inside(self, scope: Scope) -> Scope:
        path: str = scope["path"]
        if path != self._base and not path.startswith(f"{self._base}/"):
            return scope
        raw = scope.get("raw_path", path.encode()).removeprefix(self._base.encode()) or b"/"
        return {**scope, "path": path.removeprefix(self._base) or "/", "raw_path": raw}

    def _complete(self, headers: MutableHeaders, origin: str) -> None:
        # A redirect to the same address without its last slash names the host, and our own path alone below it.
        target = headers.get("location", "").removeprefix(origin)
        if target.startswith("/") and not target.startswith("//"):
            headers["location"] = self._base + target
        cookies = [COOKIE_PATH.sub(rf"\1{self._base}\2", cookie) for cookie in headers.getlist("set-cookie")]
        del headers["set-cookie"]
        for cookie in cookies:
            headers.append("set-cookie", cookie)
