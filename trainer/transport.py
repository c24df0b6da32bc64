"""How a call to Rankloop is made: retries with back-off, streams that go on where they broke, downloads that are
checked, refusals as exceptions. Which calls there are is the business of `trainer.client`."""

from __future__ import annotations

import hashlib
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import httpx2

RETRIED_STATUSES = frozenset({429, 502, 503, 504})
NOT_CARRIED_OUT = frozenset({429, 503})
FENCE_LOST, OUT_OF_ORDER = "FenceLost", "ChunkOutOfOrder"
"""Titles of the two refusals (409) that are no failure."""
FIRST_PAUSE_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 5.0

Json = dict[str, Any]


class ProblemField(TypedDict):
    """Which field was refused, and by which rule."""

    field: str
    rule: str


class ClientError(Exception):
    """Rankloop could not be asked, or refused."""


class Unreachable(ClientError):
    """Nobody answers at the address; the message names it and says what to do."""


class DamagedDownload(ClientError):
    """What arrived is not what the hash says, twice in a row."""


class ApiError(ClientError):
    """A refusal, with the problem's title, detail and fields (RFC 9457)."""

    def __init__(self, status: int, title: str, detail: str, errors: Sequence[ProblemField], body: Json) -> None:
        fields = "; ".join(f"{error['field']}: {error['rule']}" for error in errors)
        told = all(error["rule"] in detail for error in errors)
        super().__init__((detail if told else f"{detail} {fields}".strip()) or title or f"HTTP status {status}")
        self.status = status
        self.title = title
        self.detail = detail
        self.errors = list(errors)
        self.body = body


class FenceLost(ApiError):
    """The run was given to another worker: this one must drop it."""


@dataclass(frozen=True)
class Retries:
    """How long a call is tried again. `pause` waits so many seconds; when it returns true, waiting is over at once."""

    patience_seconds: float = 30.0
    pause: Callable[[float], object] = time.sleep


class Transport:
    """HTTP to one Rankloop. Safe to share between threads."""

    def __init__(self, url: str, token: str, *, retries: Retries, timeout_seconds: float) -> None:
        self.url = url.rstrip("/")
        self.retries = retries
        self._http = httpx2.Client(
            base_url=f"{self.url}/api/v1",
            headers={"Authorization": f"Bearer {token.strip()}"} if token.strip() else {},
            timeout=httpx2.Timeout(timeout_seconds, connect=5.0),
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def send(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        content: bytes | Iterable[bytes] | None = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        is_idempotent: bool = True,
        patience: float | None = None,
    ) -> httpx2.Response:
        """One call, repeated while Rankloop is away or busy. A call that is not idempotent is repeated only when it
        surely was not carried out. Raises ApiError, FenceLost, Unreachable."""
        attempts = _Attempts(self, patience)
        while True:
            try:
                response = self._http.request(method, path, json=json, content=content, params=params, headers=headers)
            except httpx2.TransportError as error:
                if not is_idempotent and not isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
                    raise self.unreachable(error) from error
                attempts.failed(error)
                continue
            is_retried = response.status_code in (RETRIED_STATUSES if is_idempotent else NOT_CARRIED_OUT)
            if not is_retried or not attempts.refused(response):
                return self._checked(response)

    def ndjson(
        self,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        sha256: str | None = None,
    ) -> Iterator[Json]:
        """The objects of a stream whose order never changes: a broken one is read again, from where it broke."""
        num_read = 0
        digest = hashlib.sha256()
        attempts = _Attempts(self)
        while True:
            try:
                with self._open(path, params, headers, attempts) as response:
                    for number, line in enumerate(_lines(response)):
                        if number < num_read:
                            continue
                        digest.update(line + b"\n")
                        num_read = number + 1
                        attempts.succeeded()
                        yield json.loads(line)
                break
            except httpx2.TransportError as error:
                attempts.failed(error)
        if sha256 is not None and digest.hexdigest() != sha256:
            raise DamagedDownload(f"{path}: the rows have SHA-256 {digest.hexdigest()}, and {sha256} was promised.")

    def download(
        self,
        path: str,
        target: Path,
        *,
        sha256: str | None = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> None:
        """Fetch to a file beside `target`, check it, rename it. What broke goes on where it broke, as far as the server
        can. Twice the wrong hash: DamagedDownload. `progress` is told how many bytes came."""
        target.parent.mkdir(parents=True, exist_ok=True)
        attempts = _Attempts(self)
        for _ in range(2):
            with _file_beside(target) as temporary:
                self._fetch(path, temporary, params, dict(headers or {}), attempts, progress)
                if sha256 is None or sha256 == _sha256_of(temporary):
                    temporary.replace(target)
                    return
        raise DamagedDownload(f"{path}: the file that arrives does not have the SHA-256 that Rankloop names for it.")

    def _fetch(
        self,
        path: str,
        temporary: Path,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str],
        attempts: _Attempts,
        progress: Callable[[int], object] | None,
    ) -> None:
        etag = ""
        while True:
            size = temporary.stat().st_size
            resume = {"Range": f"bytes={size}-", "If-Range": etag} if etag and size else {}
            try:
                with self._open(path, params, {**headers, **resume}, attempts) as response:
                    etag = response.headers.get("ETag", "")
                    with temporary.open("ab" if response.status_code == 206 else "wb") as stream:
                        for part in response.iter_bytes():
                            stream.write(part)
                            attempts.succeeded()
                            if progress is not None:
                                progress(len(part))
                        stream.flush()
                        os.fsync(stream.fileno())
                return
            except httpx2.TransportError as error:
                attempts.failed(error)

    @contextmanager
    def _open(
        self,
        path: str,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str] | None,
        attempts: _Attempts,
    ) -> Iterator[httpx2.Response]:
        """A stream that has begun well."""
        while True:
            with self._http.stream("GET", path, params=params, headers=headers) as response:
                if response.status_code in (200, 206):
                    yield response
                    return
                response.read()
            if response.status_code not in RETRIED_STATUSES or not attempts.refused(response):
                self._checked(response)

    def _checked(self, response: httpx2.Response) -> httpx2.Response:
        if response.is_success:
            return response
        has_fence = "Rankloop-Fence" in response.request.headers
        raise _problem(response, has_fence=has_fence)

    def unreachable(self, error: Exception) -> Unreachable:
        """What to raise when nobody answers."""
        return Unreachable(
            f"Rankloop does not answer at {self.url} ({_describe(error)}). "
            "Start it there with `make run`, or set RANKLOOP_URL (or --url) to the address where it runs."
        )


class _Attempts:
    """How often and how long one call has been tried: full jitter below a bound that doubles."""

    def __init__(self, transport: Transport, patience: float | None = None) -> None:
        self._transport = transport
        self._patience = transport.retries.patience_seconds if patience is None else patience
        self.succeeded()

    def succeeded(self) -> None:
        """Something arrived: patience begins anew."""
        self._bound = FIRST_PAUSE_SECONDS
        self._deadline = time.monotonic() + self._patience

    def failed(self, error: Exception) -> None:
        """Nobody answered: wait, or raise Unreachable when patience is at its end."""
        if not self._wait(random.uniform(self._bound / 2, self._bound)):
            raise self._transport.unreachable(error) from error

    def refused(self, response: httpx2.Response) -> bool:
        """Rankloop is busy: wait as long as it asks. False when patience is at its end."""
        return self._wait(max(_retry_after(response), random.uniform(self._bound / 2, self._bound)))

    def _wait(self, seconds: float) -> bool:
        if time.monotonic() + seconds > self._deadline:
            return False
        self._bound = min(2 * self._bound, LONGEST_PAUSE_SECONDS)
        return not self._transport.retries.pause(seconds)


def _retry_after(response: httpx2.Response) -> float:
    try:
        return max(0.0, float(response.headers.get("Retry-After", "0")))
    except ValueError:
        return 0.0


def _problem(response: httpx2.Response, *, has_fence: bool) -> ApiError:
    try:
        body = response.json()
    except ValueError:
        body = {}
    body = body if isinstance(body, dict) else {}
    title = str(body.get("title") or response.reason_phrase)
    kind = FenceLost if has_fence and title == FENCE_LOST else ApiError
    return kind(response.status_code, title, str(body.get("detail") or ""), body.get("errors") or [], body)


def _describe(error: Exception) -> str:
    """The cause in words, but for what breaks the protocol, as that is quoted: a token with a line break, for one."""
    is_quoted = isinstance(error, httpx2.ProtocolError)
    return type(error).__name__ if is_quoted else str(error) or type(error).__name__


def _lines(response: httpx2.Response) -> Iterator[bytes]:
    """Lines by newline alone: JSON strings may hold U+2028, where `iter_lines` would break them."""
    rest = b""
    for part in response.iter_bytes():
        *complete, rest = (rest + part).split(b"\n")
        yield from (line for line in complete if line)
    if rest:
        yield rest


def _sha256_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _file_beside(target: Path) -> Iterator[Path]:
    """A temporary file in the folder of `target`, removed unless it was renamed."""
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
