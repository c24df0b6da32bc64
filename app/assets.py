"""The static files: served below a hash of them all, so that browsers keep them for ever and never mix two releases.

A script imports another one by its relative address (`./state.js`), and so finds it below the same hash: no build step,
no import map, which the content security policy would refuse as an inline script.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).resolve().parent.parent / "static"
FOR_EVER = "public, max-age=31536000, immutable"


@cache
def version() -> str:
    """A short hash of the names and contents of all static files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in FOLDER.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(FOLDER).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def url(name: str) -> str:
    """The address of a static file, new whenever any of them is.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not (FOLDER / name).is_file():
        raise FileNotFoundError(FOLDER / name)
    return f"/static/{version()}/{name}"


@cache
def modules(folder: str) -> list[str]:
    """The addresses of a folder's scripts: a page names them all at once, so that none waits for who imports it."""
    return [url(path.relative_to(FOLDER).as_posix()) for path in sorted((FOLDER / folder).glob("*.js"))]


class Assets(StaticFiles):
    """`/static/<hash>/<name>`. A page of an older release still finds its files, which then are not kept."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The file behind the hash, or 404."""
        asked, _, name = path.partition("/")
        response = await super().get_response(name, scope)
        response.headers["cache-control"] = FOR_EVER if asked == version() else "no-cache"
        return response
