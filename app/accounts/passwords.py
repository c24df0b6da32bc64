"""Passwords: argon2id, hashed beside the request loop, a few at a time, and what makes a password acceptable."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Password, User
from app.errors import Invalid, Unavailable

Result = TypeVar("Result")
# OWASP's second choice of parameters for argon2id: 19 MiB, two passes, one lane; about 25 ms.
HASHER = PasswordHash((Argon2Hasher(time_cost=2, memory_cost=19 * 1024, parallelism=1),))
MIN_LENGTH = 12
# Beyond this nobody types; hashing takes as long as it must, and no longer.
MAX_LENGTH = 256
MIN_LETTERS = 5
# In one process, half of the cores hash; so many may be at it or wait, which is half a second's work of one core.
NUM_THREADS = max(1, (os.cpu_count() or 1) // 2)
MOST_AT_ONCE = 20


class Crowded(Unavailable):
    """Too many people sign in at this moment. Try again in a few seconds."""


class Hashing:
    """Threads that hash, and a queue with an end: a flood of sign-ins takes neither the machine from those who work nor
    the time of whoever waits behind it.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="hashing", initializer=step_back)
        self.num_taken = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue, from before a try is counted until it is judged.

        Raises:
            Crowded: there is none.
        """
        if self.num_taken >= MOST_AT_ONCE:
            raise Crowded
        self.num_taken += 1
        try:
            yield
        finally:
            self.num_taken -= 1

    async def do(self, work: Callable[..., Result], *values: str | None) -> Result:
        """Do a piece of hashing beside the request loop, when it is this one's turn: for who has a place."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *values)


def step_back() -> None:
    """Have this thread hash where nobody else wants the core; on Linux, where a thread has a priority of its own."""
    if sys.platform == "linux":
        os.nice(5)


HASHING = Hashing()


@cache
def hash_of_nobody() -> str:
    """What is checked where there is no such account, so that it takes as long as where there is one."""
    return HASHER.hash("nobody's password")


async def verify(password: str, stored: str | None) -> bool:
    """Whether this is the password, for who has a place. Without a stored hash it is not, after the same time."""
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


async def store(session: AsyncSession, user: User, password: str) -> None:
    """Give a person this password.

    Raises:
        Invalid: it is guessed soon.
        Crowded: too many are hashed at this moment.
    """
    check(password, name=user.name, email=user.email)
    with HASHING.place():
        made = await HASHING.do(HASHER.hash, password)
    row = insert(Password).values(user_id=user.id, hash=made)
    await session.execute(
        row.on_conflict_do_update(index_elements=["user_id"], set_={"hash": made, "changed_at": func.now()})
    )
