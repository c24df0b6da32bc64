"""People and tokens through the API: what an admin's program may do."""

from __future__ import annotations

import uuid

from fastapi import APIRouter
from starlette import status

from app.accounts import service
from app.accounts.guards import AdminCaller
from app.accounts.schemas import NewToken, TokenIn, TokenOut, UserIn, UserOut
from app.idempotency import idempotent
from app.web import SessionDep

router = APIRouter(tags=["accounts"])


@router.post("/users", status_code=status.HTTP_201_CREATED)
@idempotent()
async def create_user(body: UserIn, caller: AdminCaller, session: SessionDep) -> UserOut:
    """Add a person."""
    user = await service.create_user(session, **body.model_dump(), actor_id=caller.user.id)
    return UserOut.model_validate(user)


@router.get("/users")
async def list_users(caller: AdminCaller, session: SessionDep) -> list[UserOut]:
    """All people."""
    return [UserOut.model_validate(user) for user in await service.list_users(session)]


@router.post("/tokens", status_code=status.HTTP_201_CREATED)
@idempotent(shows_secret=True)
async def create_token(body: TokenIn, caller: AdminCaller, session: SessionDep) -> NewToken:
    """Make a token. Its secret is in this answer and never again."""
    values = body.model_dump() | {"user_id": body.user_id or caller.user.id}
    token, secret = await service.create_token(session, **values, actor_id=caller.user.id)
    return NewToken(**TokenOut.model_validate(token).model_dump(), token=secret)


@router.post("/tokens/{token_id}/revoke", status_code=status.HTTP_204_NO_CONTENT)
async def revoke_token(token_id: uuid.UUID, caller: AdminCaller, session: SessionDep) -> None:
    """End a token at once."""
    await service.revoke_token(session, token_id=token_id, actor_id=caller.user.id)
