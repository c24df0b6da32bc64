"""Signing in with a password, changing it, and the link for whoever forgot it.

Here a request is several transactions: the try is counted before the password is looked at, and no connection waits
while it is hashed. Neither the words nor the time of a refusal tell whether there is such an account.
"""

from __future__ import annotations

import uuid
from collections.abc import Hashable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import attempts, browsers, passwords, sessions
from app.accounts.audit import audit
from app.accounts.credentials import hash_secret
from app.accounts.models import Password, SignInMethod, User, UserSession
from app.db import SessionMaker, let_go
from app.errors import Forbidden, Invalid, Unauthorized

# After a link, an invitation or a visit to the provider, a new password is taken without the old one for so long.
FRESH = timedelta(minutes=15)
LINKS_PER_ACCOUNT = 3


class WrongPassword(Unauthorized):
    """This address and this password do not belong together. Try again, or ask for a one-time link."""


class SignInAgain(Forbidden):
    """To set a first password, sign in again with a one-time link, and do it within 15 minutes."""


class Entered(NamedTuple):
    """The secret of a new session, and the mark by which this browser is known from now on."""

    token: str
    mark: str


async def sign_in(
    sessionmaker: SessionMaker,
    *,
    email: str,
    password: str,
    host: str | None,
    mark: str | None = None,
    device: str = "",
    replaces: str | None = None,
) -> Entered:
    """Sign in with a password. Of strangers, tries are counted by account and by network address; of a browser whose
    `mark` is right, by itself: others who guess at this account neither lock it out nor keep it waiting.

    Raises:
        Crowded: too many do so at this moment; nothing was counted.
        TooManyAttempts: for this account, or from this network address, or this browser.
        WrongPassword: it is wrong, or there is no such account, or it is switched off or has no password.
    """
    account, address = attempts.account_key(email), attempts.address_key(host)
    limits: dict[bytes, int] = {account: attempts.PER_ACCOUNT, address: attempts.PER_ADDRESS}
    whose: Hashable = address
    known = await _known(sessionmaker, email, mark) if mark else None
    if mark and known:
        account = address = attempts.browser_key(mark)
        limits, whose = {account: attempts.PER_ACCOUNT}, known
    async with passwords.HASHING.turn(whose, passwords.KNOWN if known else passwords.STRANGERS):
        async with sessionmaker.begin() as session:
            await attempts.count(session, limits)
            user_id, stored = await _find_account(session, email)
        is_right = await passwords.verify(password, stored)
    async with sessionmaker.begin() as session:
        if is_right and user_id and stored:
            await attempts.forgive(session, account=account, address=address)
            token = await sessions.start_session(
                session, user_id=user_id, method=SignInMethod.PASSWORD, device=device, replaces=replaces
            )
            return Entered(token, browsers.mark(stored))
        await audit(session, actor_id=None, action="sign_in.refused", subject=str(user_id or "nobody"))
    raise WrongPassword


async def _known(sessionmaker: SessionMaker, email: str, mark: str) -> uuid.UUID | None:
    """Whose account this is, if the mark was made for them."""
    async with sessionmaker.begin() as session:
        user_id, stored = await _find_account(session, email)
    return user_id if stored and browsers.is_known(mark, stored) else None


async def _find_account(session: AsyncSession, email: str) -> tuple[uuid.UUID | None, str | None]:
    row = (
        await session.execute(
            select(User.id, Password.hash)
            .outerjoin(Password, Password.user_id == User.id)
            .where(func.lower(User.email) == email.strip().lower(), User.disabled_at.is_(None))
        )
    ).one_or_none()
    return (row.id, row.hash) if row else (None, None)


async def change_password(
    sessionmaker: SessionMaker, session: AsyncSession, *, user: User, token: str, current: str, new: str
) -> str:
    """Give oneself a new password; returns the mark by which this browser is known from now on. All other sessions end;
    this one, whose secret is `token`, stays.

    Raises:
        TooManyAttempts: the current password was guessed at too often.
        Invalid: the current password is wrong, or the new one is guessed soon.
        Crowded: too many are hashed at this moment.
        SignInAgain: there is no password yet, and the session is not fresh.
    """
    if not await _is_fresh(session, token):
        await _require_current(sessionmaker, session, user, current)
    await let_go(session)
    made = await passwords.make_hash(new, name=user.name, email=user.email)
    await passwords.store(session, user.id, made)
    await sessions.end_sessions(session, user_id=user.id, but=token, actor_id=user.id)
    await audit(session, actor_id=user.id, action="password.change", subject=str(user.id))
    return browsers.mark(made)


async def _require_current(sessionmaker: SessionMaker, session: AsyncSession, user: User, current: str) -> None:
    """Whoever found a browser open may not guess on: the tries are counted as those of signing in."""
    stored = await passwords.stored_hash(session, user.id)
    if stored is None:
        raise SignInAgain
    await let_go(session)
    async with sessionmaker.begin() as counting:
        await attempts.count(counting, {attempts.account_key(user.email or str(user.id)): attempts.PER_ACCOUNT})
    async with passwords.HASHING.turn(user.id, passwords.KNOWN):
        is_right = await passwords.verify(current, stored)
    if not is_right:
        raise Invalid.field("current", "is not your password")


async def _is_fresh(session: AsyncSession, token: str) -> bool:
    """Whether this session began just now, by something else than a password."""
    row = await session.get(UserSession, hash_secret(token))
    is_recent = row is not None and row.created_at > datetime.now(UTC) - FRESH
    return is_recent and row is not None and row.method != SignInMethod.PASSWORD


async def needs_current(session: AsyncSession, *, user: User, token: str) -> bool:
    """Whether the page has to ask for the current password."""
    return await passwords.stored_hash(session, user.id) is not None and not await _is_fresh(session, token)


async def make_link_for(
    sessionmaker: SessionMaker, *, email: str, host: str | None, public_url: str
) -> tuple[str, str] | None:
    """A one-time link for whoever forgot their password, and the address it goes to; None: there is no such account.

    Raises:
        TooManyAttempts: for this account, or from this network address.
    """
    account, address = attempts.account_key(f"link {email}"), attempts.address_key(host)
    async with sessionmaker.begin() as session:
        await attempts.count(session, {account: LINKS_PER_ACCOUNT, address: attempts.PER_ADDRESS})
    async with sessionmaker.begin() as session:
        user = await session.scalar(
            select(User).where(func.lower(User.email) == email.strip().lower(), User.disabled_at.is_(None))
        )
        if user is None or user.email is None:
            return None
        return await sessions.create_sign_in_link(session, user=user, public_url=public_url), user.email
