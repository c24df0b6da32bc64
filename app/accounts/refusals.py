"""Who asked for what they may not: written into the log in a transaction of its own, as the request's is undone."""

from __future__ import annotations

import hashlib
import uuid

from app.accounts import attempts
from app.accounts.audit import audit
from app.db import SessionMaker

# Whoever is refused again and again within a quarter of an hour fills the log no further.
PER_PERSON = 20


async def note_refusal(sessionmaker: SessionMaker, *, user_id: uuid.UUID, method: str, route: str) -> None:
    """Write down that a person was refused. `route` is the address with its gaps, which holds no secret of anybody."""
    key = hashlib.sha256(b"refused " + user_id.bytes).digest()
    try:
        async with sessionmaker.begin() as session:
            await attempts.count(session, {key: PER_PERSON})
            await audit(session, actor_id=user_id, action="refused", subject=str(user_id), method=method, route=route)
    except attempts.TooManyAttempts:
        return
