"""`Idempotency-Key`: a POST that was sent twice is done once (draft-ietf-httpapi-idempotency-key-header-07).

The key, what was asked and what was answered are one row, written in the transaction of the work itself: either both
are there after a crash, or neither. A second request with the same key waits on the row's lock for the first one, and
gets the same bytes. A refusal stores nothing, so that the same key may be sent again when its cause is mended.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import Annotated, Any, TypeVar, cast

from fastapi import Header, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.routing import APIRoute
from sqlalchemy import ForeignKey, LargeBinary, delete, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Created
from app.errors import Conflict

KEPT_FOR = timedelta(hours=24)
REPLAYED = {"Idempotency-Replayed": "true"}
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="Any text of your own, such as a UUID. Sent again within 24 hours, the same request is not done "
        "again: it gets the same answer, with `Idempotency-Replayed: true`. Another request under it gets 409.",
    ),
]


class KeyUsedOtherwise(Conflict):
    """This Idempotency-Key was sent before, with another request. Make a new key for each thing that you create."""


class SecretWasShown(Conflict):
    """This was done before under this Idempotency-Key, and its secret was shown then. Revoke it, and make another."""


class IdempotentAnswer(Base):
    """What was answered to a key of one person."""

    __tablename__ = "idempotent_answers"

    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    # SHA-256 of method, address and body.
    request_hash: Mapped[bytes] = mapped_column(LargeBinary)
    # Null while the first request runs, which nobody else ever sees, and for ever where the answer held a secret.
    status: Mapped[int | None]
    body: Mapped[bytes | None] = mapped_column(LargeBinary)
    created_at: Mapped[Created]


Endpoint = TypeVar("Endpoint", bound=Callable[..., Awaitable[Any]])


def idempotent(*, shows_secret: bool = False) -> Callable[[Endpoint], Endpoint]:
    """A route that takes an `Idempotency-Key`: below `@router.post`, on an endpoint that takes `caller` and `session`.

    `shows_secret`: the answer is not kept, as it holds what is stored nowhere; the same again is refused.
    """

    def wrap(endpoint: Endpoint) -> Endpoint:
        @wraps(endpoint)
        async def once(*, idempotent_request: Request, idempotency_key: str | None, **values: Any) -> Any:
            if idempotency_key is None:
                return await endpoint(**values)
            session: AsyncSession = values["session"]
            row = (values["caller"].user.id, idempotency_key)
            kept = await claim(session, *row, request_hash=await hash_of(idempotent_request))
            if kept is not None:
                return replay(kept)
            answer = as_response(await endpoint(**values), idempotent_request)
            if not shows_secret:
                await keep(session, *row, answer)
            return answer

        once.__signature__ = with_key(inspect.signature(endpoint))  # type: ignore[attr-defined]
        return cast("Endpoint", once)

    return wrap


def with_key(signature: inspect.Signature) -> inspect.Signature:
    """A signature with what FastAPI has to hand in besides: the request and its key."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    own = [parameter.replace(kind=keyword) for parameter in signature.parameters.values()]
    request = inspect.Parameter("idempotent_request", keyword, annotation=Request)
    key = inspect.Parameter("idempotency_key", keyword, annotation=Key, default=None)
    return signature.replace(parameters=[*own, request, key])


async def hash_of(request: Request) -> bytes:
    """SHA-256 of what is asked for: method, address and body."""
    asked = f"{request.method} {request.url.path}?{request.url.query}\n".encode()
    return hashlib.sha256(asked + await request.body()).digest()


async def claim(session: AsyncSession, user_id: uuid.UUID, key: str, *, request_hash: bytes) -> IdempotentAnswer | None:
    """Take a key, or find what was answered to it. Waits for a request that holds it at this moment.

    Raises:
        KeyUsedOtherwise: it was sent with another request.
    """
    await session.execute(
        delete(IdempotentAnswer).where(
            IdempotentAnswer.user_id == user_id, IdempotentAnswer.created_at < datetime.now(UTC) - KEPT_FOR
        )
    )
    row = insert(IdempotentAnswer).values(user_id=user_id, key=key, request_hash=request_hash)
    taken = await session.scalar(row.on_conflict_do_nothing().returning(IdempotentAnswer.key))
    if taken is not None:
        return None
    found = await session.scalar(
        select(IdempotentAnswer)
        .where(IdempotentAnswer.user_id == user_id, IdempotentAnswer.key == key)
        .execution_options(populate_existing=True)
    )
    assert found is not None, "a key that could not be inserted is there"
    if found.request_hash != request_hash:
        raise KeyUsedOtherwise
    return found


def replay(kept: IdempotentAnswer) -> Response:
    """The answer that was given before, byte for byte.

    Raises:
        SecretWasShown: it was not kept.
    """
    if kept.status is None:
        raise SecretWasShown
    return Response(kept.body, kept.status, headers=REPLAYED, media_type="application/json")


def as_response(result: Any, request: Request) -> Response:
    """What an endpoint gave back, as it is sent: with the status that its route names."""
    if isinstance(result, Response):
        return result
    route = request.scope["route"]
    status = (route.status_code if isinstance(route, APIRoute) else None) or 200
    body = json.dumps(jsonable_encoder(result), ensure_ascii=False, separators=(",", ":")).encode()
    return Response(body, status, media_type="application/json")


async def keep(session: AsyncSession, user_id: uuid.UUID, key: str, answer: Response) -> None:
    """Store what will be sent, in the transaction of the work."""
    await session.execute(
        update(IdempotentAnswer)
        .where(IdempotentAnswer.user_id == user_id, IdempotentAnswer.key == key)
        .values(status=answer.status_code, body=bytes(answer.body))
    )
