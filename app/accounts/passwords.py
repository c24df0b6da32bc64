"""Passwords: argon2id, hashed beside the request loop, a few at a time, and what makes a password acceptable."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import cache
from typing import TypeVar

from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Password
from app.errors import Invalid, Unavailable
from app.turns import NoRoom, Turns

Result = TypeVar("Result")
# OWASP's second choice of parameters for argon2id: 19 MiB, two passes, one lane; about 25 ms.
HASHER = PasswordHash((Argon2Hasher(time_cost=2, memory_cost=19 * 1024, parallelism=1),))
MIN_LENGTH = 12
# Beyond this nobody types; hashing takes as long as it must, and no longer.
MAX_LENGTH = 256
MIN_LETTERS = 5
# Half of the cores hash, half of the time. Others come in while a thread rests, and in either line some ten seconds'
# work of one core may wait.
NUM_THREADS = max(1, (os.cpu_count() or 1) // 2)
MOST_WAITING = 100
STRANGERS, KNOWN = 0, 1


class Crowded(Unavailable):
    """Too many people sign in at this moment. Try again in a few seconds, or use a one-time link, which waits for
    nobody.
    """


class Hashing:
    """Threads that hash, and who waits for them: a flood of sign-ins takes neither the machine from those who work nor
    the turn of whoever waits beside it.

    After each hash a thread rests for as long as the hash took, which is longer where others want the core. A lower
    priority does not do: between two hashes a thread waits for Python's lock, and where it gets that and no core, all
    of the process stands still.
    """

    def __init__(self, num_threads: int = NUM_THREADS, rest: Callable[[float], None] = time.sleep) -> None:
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="hashing")
        self._rest = rest
        self.turns = Turns(2 * num_threads, MOST_WAITING, lines=2)

    @asynccontextmanager
    async def turn(self, whose: Hashable, line: int = STRANGERS) -> AsyncIterator[None]:
        """Wait for a turn, and have it from before a try is counted until it is judged. KNOWN is the line of people
        whom we know already: strangers leave them every second turn.

        Raises:
            Crowded: too many wait.
        """
        try:
            async with self.turns.turn(whose, line):
                yield
        except NoRoom as error:
            raise Crowded from error

    async def do(self, work: Callable[..., Result], *values: str | None) -> Result:
        """Do a piece of hashing beside the request loop: for who has a turn."""
        hashing = self._threads.submit(timed, work, *values)
        self._threads.submit(self._rest_after, hashing)
        result, _ = await asyncio.wrap_future(hashing)
        return result

    def _rest_after(self, hashing: Future[tuple[Result, float]]) -> None:
        """In a thread, which takes this up before the next hash."""
        _, seconds = hashing.result()
        self._rest(seconds)


def timed(work: Callable[..., Result], *values: str | None) -> tuple[Result, float]:
    """What this work leads to, and the seconds it took."""
    begun = time.perf_counter()
    return work(*values), time.perf_counter() - begun


HASHING = Hashing()


@cache
def hash_of_nobody() -> str:
    """What is checked where there is no such account, so that it takes as long as where there is one."""
    return HASHER.hash("nobody's password")


async def verify(password: str, stored: str | None) -> bool:
    """Whether this is the password, for who has a turn. Without a stored hash it is not, after the same time."""
    return len(password) <= MAX_LENGTH and await HASHING.do(is_password, password, stored)


def is_password(password: str, stored: str | None) -> bool:
    """The work of `verify`."""
    return HASHER.verify(password, stored or hash_of_nobody()) and stored is not None


def check(password: str, *, name: str, email: str | None) -> None:
    """Refuse a password that is guessed soon. No rules about kinds of letters: length is what counts (NIST 800-63B).

    Raises:
        Invalid: it is too short or long, of too few different letters, or holds the person's own name or address.
    """
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        raise Invalid.field("password", "takes 12 to 256 characters")
    if len(set(password)) < MIN_LETTERS:
        raise Invalid.field("password", "repeats too few characters; a few words do well")
    own = [part.lower() for part in (name, (email or "").partition("@")[0], "rankloop", "password") if len(part) > 3]
    rest = password.lower()
    for part in own:
        rest = rest.replace(part, "")
    if len(rest) < MIN_LENGTH - 4:
        raise Invalid.field("password", "is mostly a name, an address or a word that is tried first")


async def stored_hash(session: AsyncSession, user_id: uuid.UUID) -> str | None:
    """The hash of a person's password; None: they have none."""
    return await session.scalar(select(Password.hash).where(Password.user_id == user_id))


async def make_hash(password: str, *, name: str, email: str | None) -> str:
    """What is stored of the new password of somebody whom we know, or who was invited. It takes its time: hold no
    connection meanwhile (`db.let_go`).

    Raises:
        Invalid: it is guessed soon.
        Crowded: too many are hashed at this moment.
    """
    check(password, name=name, email=email)
    async with HASHING.turn(email or name, KNOWN):
        return await HASHING.do(HASHER.hash, password)


async def store(session: AsyncSession, user_id: uuid.UUID, made: str) -> None:
    """Give a person the password that `make_hash` made this of."""
    row = insert(Password).values(user_id=user_id, hash=made)
    await session.execute(
        row.on_conflict_do_update(index_elements=["user_id"], set_={"hash": made, "changed_at": func.now()})
    )
