"""Webhooks: who is told of what, the queue of deliveries, and their signature (the specification Standard Webhooks,
version 1: `webhook-id`, `webhook-timestamp`, `webhook-signature`).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import orjson
from sqlalchemy import and_, delete, exists, func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.audit import audit
from app.errors import Invalid, NotFound, existing
from app.events import events
from app.rankings.models import Ranking, RankingChange
from app.rankings.service import is_kept_apart, is_settled
from app.registry.service import VersionPromoted
from app.runs.service import RunEnded
from app.webhooks.models import Delivery, HookEvent, Webhook

SECRET_PREFIX = "whsec_"  # noqa: S105 (the form of every secret of Standard Webhooks)
MAX_WEBHOOKS = 20
# After a failure, wait so long; after the last one a delivery is given up, and stays in the log to be sent by hand.
WAITS = tuple(timedelta(seconds=seconds) for seconds in (5, 30, 120, 600, 3600, 6 * 3600, 24 * 3600))
# While it is being sent nobody else takes it; who died while sending has his taken over.
SENDING = timedelta(seconds=60)


@dataclass(frozen=True)
class Parcel:
    """A delivery that this process sends now."""

    delivery_id: uuid.UUID
    url: str
    secret: str
    body: bytes


def subscribe() -> None:
    """Listen to what webhooks are told of."""
    events.subscribe(RunEnded, tell_of_run)
    events.subscribe(VersionPromoted, tell_of_promotion)


# Setting up


async def create_webhook(
    session: AsyncSession,
    *,
    project_id: uuid.UUID,
    url: str,
    events: Sequence[str],
    every: int | None = None,
    actor_id: uuid.UUID | None = None,
) -> Webhook:
    """Tell an address of a project's events from now on. Milestones count from here.

    Raises:
        Invalid: the address is no http(s) URL, no event is named, `every` is missing or too much, or there are many.
    """
    check_url(url)
    wanted = sorted(set(events))
    if not wanted:
        raise Invalid.field("events", "name at least one event")
    if (HookEvent.MILESTONE in wanted) != (every is not None):
        raise Invalid.field("every", "is needed for milestones, and for nothing else")
    if len(await list_webhooks(session, project_id)) >= MAX_WEBHOOKS:
        raise Invalid.field("url", f"a project has at most {MAX_WEBHOOKS} webhooks")
    webhook = Webhook(
        project_id=project_id,
        url=url,
        secret=SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode(),
        events=wanted,
        every=every,
        created_by=actor_id,
    )
    session.add(webhook)
    await session.flush()
    await count_rankings_of(session, webhook)
    webhook.num_counted = 0
    await audit(session, actor_id=actor_id, action="webhook.create", subject=str(webhook.id), host=host_of(url))
    return webhook


def check_url(url: str) -> None:
    """An address that can be called.

    Raises:
        Invalid: it can't.
    """
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good or parts.username is not None or not url.isascii() or any(ord(letter) <= 0x20 for letter in url):
        raise Invalid.field(
            "url", "must be an address like https://example.org/hooks, without a name and password in it"
        )


def host_of(url: str) -> str:
    """Where an address leads, for the log that keeps everything: chat services put a secret into what follows."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


async def list_webhooks(session: AsyncSession, project_id: uuid.UUID) -> Sequence[Webhook]:
    """A project's webhooks, oldest first."""
    query = select(Webhook).where(Webhook.project_id == project_id).order_by(Webhook.created_at, Webhook.id)
    return (await session.scalars(query)).all()


async def get_webhook(session: AsyncSession, webhook_id: uuid.UUID) -> Webhook:
    """A webhook by id.

    Raises:
        NotFound: there is none.
    """
    return existing(await session.get(Webhook, webhook_id), "There is no such webhook.")


async def delete_webhook(session: AsyncSession, webhook: Webhook, *, actor_id: uuid.UUID | None = None) -> None:
    """Tell it nothing any more; its log goes with it."""
    await session.delete(webhook)
    await audit(session, actor_id=actor_id, action="webhook.delete", subject=str(webhook.id), host=host_of(webhook.url))


async def list_deliveries(session: AsyncSession, webhook_id: uuid.UUID, *, limit: int = 50) -> Sequence[Delivery]:
    """The newest deliveries of a webhook."""
    query = select(Delivery).where(Delivery.webhook_id == webhook_id)
    return (await session.scalars(query.order_by(Delivery.created_at.desc(), Delivery.id).limit(limit))).all()


async def send_again(session: AsyncSession, *, webhook_id: uuid.UUID, delivery_id: uuid.UUID) -> Delivery:
    """Put a delivery into the queue again, whatever came of it.

    Raises:
        NotFound: the webhook has no such delivery.
    """
    delivery = await session.get(Delivery, delivery_id, with_for_update=True)
    if delivery is None or delivery.webhook_id != webhook_id:
        raise NotFound("There is no such delivery.")
    delivery.num_tries = 0
    delivery.delivered_at = None
    delivery.next_try_at = datetime.now(UTC)
    await session.flush()
    return delivery


# What is told


async def tell_of_run(session: AsyncSession, event: RunEnded) -> None:
    """A run came to its end."""
    run = event.run
    data = {"run_id": run.id, "kind": run.kind, "state": run.state, "error": run.error}
    await tell(session, run.project_id, HookEvent.RUN_ENDED, data)


async def tell_of_promotion(session: AsyncSession, event: VersionPromoted) -> None:
    """A version is the live one of its kind."""
    version = event.version
    data = {"version_id": version.id, "number": version.number, "kind": version.kind, "reason": event.reason}
    await tell(session, version.project_id, HookEvent.VERSION_PROMOTED, data)


async def tell(session: AsyncSession, project_id: uuid.UUID, event: HookEvent, data: Mapping[str, Any]) -> None:
    """Queue an event for every webhook of a project that wants it, in the transaction of its cause."""
    query = select(Webhook).where(Webhook.project_id == project_id, Webhook.events.contains([event]))
    for webhook in await session.scalars(query):
        queue(session, webhook, event, data)


def queue(session: AsyncSession, webhook: Webhook, event: HookEvent, data: Mapping[str, Any]) -> None:
    """One event for one webhook."""
    now = datetime.now(UTC)
    content = {"type": event, "timestamp": now.isoformat(), "data": {"project_id": webhook.project_id, **data}}
    body = orjson.dumps(content).decode()
    session.add(Delivery(webhook_id=webhook.id, event=event, body=body, next_try_at=now))


async def queue_milestones(session: AsyncSession) -> int:
    """Count the rankings that came since the last look, and queue what was reached; returns how many.

    Counted here and not with each ranking: a counter that every annotator must write would make them wait in line.
    """
    num_reached = 0
    query = select(Webhook).where(Webhook.every.is_not(None)).with_for_update(skip_locked=True)
    for webhook in (await session.scalars(query)).all():
        before = webhook.num_counted
        await count_rankings_of(session, webhook)
        assert webhook.every is not None
        if webhook.num_counted // webhook.every > before // webhook.every:
            reached = webhook.num_counted // webhook.every * webhook.every
            queue(session, webhook, HookEvent.MILESTONE, {"num_rankings": reached, "every": webhook.every})
            num_reached += 1
    return num_reached


async def count_rankings_of(session: AsyncSession, webhook: Webhook) -> None:
    """Move a webhook's count, and its cursor in the feed of changes, to what is settled now."""
    place = tuple_(RankingChange.transaction_id, RankingChange.number)
    newer = (
        RankingChange.project_id == webhook.project_id,
        is_settled(RankingChange.transaction_id),
        place > tuple_(webhook.counted_transaction, webhook.counted_number),
    )
    kept_apart = select(Ranking.id).where(Ranking.project_id == webhook.project_id, is_kept_apart())
    kind = and_(RankingChange.kind == "stored", RankingChange.ranking_id.not_in(kept_apart))
    num_new = await session.scalar(select(func.count()).select_from(RankingChange).where(*newer, kind))
    last = (
        await session.execute(
            select(RankingChange.transaction_id, RankingChange.number)
            .where(*newer)
            .order_by(RankingChange.transaction_id.desc(), RankingChange.number.desc())
            .limit(1)
        )
    ).one_or_none()
    webhook.num_counted += num_new or 0
    if last is not None:
        webhook.counted_transaction, webhook.counted_number = last.transaction_id, last.number


# Delivering


async def is_due(session: AsyncSession, now: datetime) -> bool:
    """Whether anything waits to be sent."""
    return bool(await session.scalar(select(exists().where(Delivery.next_try_at <= now))))


async def take_parcel(session: AsyncSession, now: datetime) -> Parcel | None:
    """The delivery that has waited longest, for this process alone to send; None: nothing is due."""
    row = (
        await session.execute(
            select(Delivery, Webhook)
            .join(Webhook, Webhook.id == Delivery.webhook_id)
            .where(Delivery.next_try_at <= now)
            .order_by(Delivery.next_try_at)
            .limit(1)
            .with_for_update(of=Delivery, skip_locked=True)
        )
    ).one_or_none()
    if row is None:
        return None
    delivery, webhook = row
    delivery.num_tries += 1
    delivery.next_try_at = now + SENDING
    return Parcel(delivery.id, webhook.url, webhook.secret, delivery.body.encode())


async def record(
    session: AsyncSession, delivery_id: uuid.UUID, *, status: int | None, error: str | None, now: datetime
) -> None:
    """What came of a try: delivered by any 2xx, else to be tried again, or given up. 410 Gone: given up at once."""
    delivery = await session.get(Delivery, delivery_id)
    if delivery is None:  # its webhook was deleted meanwhile
        return
    delivery.last_status, delivery.last_error = status, error
    if status is not None and 200 <= status < 300:
        delivery.delivered_at, delivery.next_try_at = now, None
    elif status == 410 or delivery.num_tries > len(WAITS):
        delivery.next_try_at = None
    else:
        delivery.next_try_at = now + WAITS[delivery.num_tries - 1]


async def forget_deliveries(session: AsyncSession, *, before: datetime) -> None:
    """Drop what was delivered or given up before a moment."""
    is_old = (Delivery.created_at < before, Delivery.next_try_at.is_(None))
    await session.execute(delete(Delivery).where(*is_old))


def headers_of(parcel: Parcel, now: datetime) -> dict[bytes | str, bytes | str]:
    """The headers by which a receiver knows that it came from here, and that it is no old one sent again."""
    moment = str(int(now.timestamp()))
    signed = f"{parcel.delivery_id}.{moment}.".encode() + parcel.body
    key = base64.b64decode(parcel.secret.removeprefix(SECRET_PREFIX))
    signature = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return {
        "content-type": "application/json",
        "user-agent": "Rankloop",
        "webhook-id": str(parcel.delivery_id),
        "webhook-timestamp": moment,
        "webhook-signature": f"v1,{signature}",
    }
