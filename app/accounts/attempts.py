"""How often something may be tried: passwords of one account, and from one network address.

The count is raised before the try and committed at once, in a transaction of its own: neither the refusal's rollback
nor many tries at the same moment get past it. One row a key; its lock makes the count exact.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Mapping
from datetime import timedelta

from sqlalchemy import ColumnElement, case, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Attempts
from app.errors import TooManyRequests

WINDOW = timedelta(minutes=15)
PER_ACCOUNT = 10
# Whole offices sign in from one address; what succeeds is not counted.
PER_ADDRESS = 100


class TooManyAttempts(TooManyRequests):
    """Too many attempts to sign in. Wait 15 minutes, or ask for a one-time link."""


def account_key(email: str) -> bytes:
    """The key of an account, which may not exist."""
    return hashlib.sha256(b"account " + email.strip().lower().encode()).digest()


def browser_key(mark: str) -> bytes:
    """The key of a browser that somebody signed in with before."""
    return hashlib.sha256(b"browser " + mark.encode()).digest()


def address_key(host: str | None) -> bytes:
    """The key of a network address; of IPv6 the first 64 bits, of which one customer has all."""
    try:
        address = ipaddress.ip_address(host or "")
        network = ipaddress.ip_network((address, 64 if address.version == 6 else 32), strict=False)
    except ValueError:
        return hashlib.sha256(b"address unknown").digest()
    return hashlib.sha256(b"address " + str(network).encode()).digest()


def is_old() -> ColumnElement[bool]:
    """Whether a count is over, and the next try begins a new one."""
    return Attempts.since < func.now() - WINDOW


async def forget_old(session: AsyncSession) -> None:
    """Drop counts that are over; those that somebody is counting at this moment stay."""
    old = select(Attempts.key).where(is_old()).with_for_update(skip_locked=True)
    await session.execute(delete(Attempts).where(Attempts.key.in_(old.scalar_subquery())))


async def count(session: AsyncSession, limits: Mapping[bytes, int]) -> None:
    """Count a try against each key. Commit it before the try is made.

    Raises:
        TooManyAttempts: one of the keys has had as many of late; it is not counted.
    """
    await forget_old(session)
    # In one order everywhere, so that nobody waits in a circle.
    for key in sorted(limits):
        row = insert(Attempts).values(key=key, num=1)
        num = await session.scalar(
            row.on_conflict_do_update(
                index_elements=["key"],
                set_={
                    "num": case((is_old(), 1), else_=Attempts.num + 1),
                    "since": case((is_old(), func.now()), else_=Attempts.since),
                },
            ).returning(Attempts.num)
        )
        assert num is not None
        if num > limits[key]:
            raise TooManyAttempts


async def forgive(session: AsyncSession, *, account: bytes, address: bytes) -> None:
    """A try succeeded: the account starts anew, and the address has this one back."""
    # In the order in which they are counted: who signs in twice at once waits, and not in a circle.
    await session.execute(
        select(Attempts.key).where(Attempts.key.in_([account, address])).order_by(Attempts.key).with_for_update()
    )
    await session.execute(delete(Attempts).where(Attempts.key == account))
    await session.execute(
        update(Attempts).where(Attempts.key == address, Attempts.num > 0).values(num=Attempts.num - 1)
    )
