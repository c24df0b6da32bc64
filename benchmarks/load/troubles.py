"""People who misbehave. Each trouble is a coroutine that goes on until it is cancelled; it runs in a process of its
own, and writes what it met with to a file.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NUM_SOCKETS = 500
NUM_STALLED = 25
"""Five more than the connections that a web process may have."""
TRIES_A_SECOND = 100
PAGES_A_SECOND = 2
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Place:
    """Where the trouble is made, and what its makers have: a token and a session of somebody known."""

    port: int
    export: str
    upload: str
    bombs: list[str]
    token: str
    cookie: str


async def speak(place: Place, said: str, *, host: str = "127.0.0.1") -> Streams:
    """A connection from this address of this machine on which this was said; it takes little in at once."""
    streams = await asyncio.open_connection("127.0.0.1", place.port, local_addr=(host, 0), limit=4096)
    streams[1].write(said.encode())
    return streams


async def ask(place: Place, said: str, *, host: str = "127.0.0.1") -> str:
    """The status of the answer, read to its end."""
    reader, writer = await speak(place, said, host=host)
    try:
        answer = await reader.read(12)
        while await reader.read(65536):
            pass
    finally:
        writer.close()
    return answer.decode().rpartition(" ")[2]


async def slow_sockets(place: Place, met: Counter[str]) -> None:
    """Hundreds of sockets that say nothing, half of a head or of a body, and come back when they are sent away."""
    begun = [
        "",
        "POST /sign-in HTTP/1.1\r\nHost: x\r\n",
        "POST /sign-in HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\na",
    ]

    async def hold(number: int) -> None:
        while True:
            reader, writer = await speak(place, begun[number % len(begun)])
            met["sockets"] += 1
            with suppress(ConnectionError):
                await reader.read()
            writer.close()

    await asyncio.gather(*(hold(number) for number in range(NUM_SOCKETS)))


async def stalled(place: Place, met: Counter[str]) -> None:
    """Readers that stop in the middle of an export, and senders that stop in the middle of an upload."""
    signed = f"Host: x\r\nAuthorization: Bearer {place.token}\r\n"
    reading = f"GET {place.export} HTTP/1.1\r\n{signed}\r\n"
    sending = f"POST {place.upload} HTTP/1.1\r\n{signed}Content-Length: 100000\r\n\r\n" + '{"prompt": "'

    async def read() -> None:
        reader, _ = await speak(place, reading)
        met[f"export {(await reader.read(12)).decode().rpartition(' ')[2]}"] += 1

    async def send() -> None:
        await speak(place, sending)
        met["upload begun"] += 1

    await asyncio.gather(*(act() for act in [read, send] * NUM_STALLED))
    await asyncio.Event().wait()


async def login_flood(place: Place, met: Counter[str]) -> None:
    """Wrong passwords of ever other people from ever other addresses."""

    async def guess(number: int) -> None:
        body = f"email=person{random.randrange(10**6)}%40example.org&password=guess{number}"
        head = "POST /sign-in HTTP/1.1\r\nHost: x\r\nSec-Fetch-Site: same-origin\r\nConnection: close\r\n"
        kind = "Content-Type: application/x-www-form-urlencoded\r\n"
        host = f"127.{random.randrange(1, 255)}.{random.randrange(256)}.{random.randrange(1, 255)}"
        met[await ask(place, f"{head}{kind}Content-Length: {len(body)}\r\n\r\n{body}", host=host)] += 1

    await for_ever(TRIES_A_SECOND, guess)


async def bombs(place: Place, met: Counter[str]) -> None:
    """Pages of Markdown that was written to make its reader slow; each is new to the cache."""

    async def look(number: int) -> None:
        path = place.bombs[number % len(place.bombs)]
        head = f"GET {path} HTTP/1.1\r\nHost: x\r\nAccept: text/html\r\nConnection: close\r\n"
        met[await ask(place, f"{head}Cookie: rl_session={place.cookie}\r\n\r\n")] += 1

    await for_ever(PAGES_A_SECOND, look)


async def for_ever(rate: float, act: Callable[[int], Coroutine[Any, Any, None]]) -> None:
    """Begin so many acts a second."""
    async with asyncio.TaskGroup() as acts:
        number = 0
        while True:
            acts.create_task(act(number))
            number += 1
            await asyncio.sleep(1 / rate)


TROUBLES = {
    "500 slow sockets": slow_sockets,
    "25 stalled exports, 25 stalled uploads": stalled,
    "100 guesses at passwords a second": login_flood,
    "2 pages of 100 kB Markdown bombs a second": bombs,
}


async def make(name: str, place: Place, seconds: float) -> Counter[str]:
    """Make this trouble for so long; what was met with."""
    met: Counter[str] = Counter()
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await TROUBLES[name](place, met)
    return met


if __name__ == "__main__":
    asked = json.loads(sys.stdin.read())
    found = asyncio.run(make(asked["name"], Place(**asked["place"]), asked["seconds"]))
    Path(asked["noted"]).write_text(json.dumps(found), encoding="utf-8")
