"""Drafts: what an annotator placed so far. A draft lives with its lease and ends with its ranking."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import AnyUser
from app.db import stamp
from app.errors import Invalid, TooLarge
from app.tasks.models import Lease
from app.tasks.service import check_text, extend_lease

MAX_DRAFT_BYTES = 64 * 1024


async def save_draft(
    session: AsyncSession,
    *,
    lease_id: uuid.UUID,
    annotator: AnyUser,
    draft: Mapping[str, Any],
    now: datetime,
    follows: str | None = None,
) -> Lease:
    """Keep what was placed so far, and the lease with it. An expired lease keeps its draft for when it is reopened.

    `draft`: `{"places": {id: int | None}, "ratings": {…}, "labels": {id: [key]}, "rationale": str}`, and what else
    `DraftIn` has. `follows`: the stamp of the draft that its writer knew, empty for none. When another was saved
    since, this one was overtaken on its way and is not stored; without `follows` nobody asks.

    Raises:
        LeaseNotFound, LeaseAnswered, LeaseReleased: it can't be worked on.
        Invalid: it names an answer of another task.
        TooLarge: over 64 kB.
    """
    lease = await extend_lease(session, lease_id=lease_id, annotator=annotator, now=now)
    check_draft(lease, draft)
    last = lease.draft_saved_at
    if follows is not None and follows != stamp(last):
        return lease
    lease.draft = dict(draft)
    # Two that waited for each other may have looked at the clock in the other order.
    lease.draft_saved_at = max(now, last + timedelta(microseconds=1)) if last else now
    await session.flush()
    return lease


def check_draft(lease: Lease, draft: Mapping[str, Any]) -> None:
    """Refuse a draft that is too large, or names an answer of another task."""
    if len(json.dumps(draft).encode()) > MAX_DRAFT_BYTES:
        raise TooLarge(f"A draft takes at most {MAX_DRAFT_BYTES // 1024} kB. Shorten the rationale.")
    known = {str(completion_id) for completion_id in lease.display_order}
    for field in ("places", "ratings", "labels", "denied"):
        for completion_id in draft.get(field) or {}:
            if completion_id not in known:
                raise Invalid.field(f"{field}.{completion_id}", "is no answer of this task")
    check_text("rationale", draft.get("rationale") or "", MAX_DRAFT_BYTES)
