"""Secrets and whom they let in: what cookies and tokens share. Secrets are random, shown once, stored as hashes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Select
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Roles, User
from app.accounts.wanted import NamedProject, Wanted

# `last_seen_at` and `last_used_at` are written at most this often, so that reading a page writes no row.
SEEN_EVERY = timedelta(minutes=5)


def hash_secret(secret: str) -> bytes:
    """What is stored of a secret. The secrets are 32 random bytes, so a plain hash is enough."""
    return hashlib.sha256(secret.encode()).digest()


@dataclass(frozen=True)
class Person:
    """A person with their roles."""

    user: User
    roles: Roles
    # The project that was wanted together with them, if there is one.
    project: NamedProject | None = None


def asked_with(query: Select[Any], secret: str, wanted: Wanted | None) -> tuple[Select[Any], dict[str, Any]]:
    """Whom a secret lets in, and beside them the project that they want: the query, and its values."""
    values = {"hash": hash_secret(secret)}
    return (query, values) if wanted is None else (wanted[0].beside(query), values | {"thing": wanted[1]})


async def person_and_project(
    session: AsyncSession, query: Select[Any], secret: str, wanted: Wanted | None
) -> tuple[Any, NamedProject | None] | None:
    """The row of whom a secret lets in, and the project that they want."""
    found = await session.execute(*asked_with(query, secret, wanted))
    row = found.one_or_none()
    if wanted is None:
        return (row, None) if row else None
    # Kept, as a session forgets what nobody holds.
    session.info["along"] = row
    return (row, row[-1]) if row else None
