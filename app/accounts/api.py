"""People and tokens through the API: what an admin's program may do."""

from __future__ import annotations

import uuid

from fastapi import APIRouter
from starlette import status

from app.accounts import abilities, roles, service, tokens
from app.accounts.guards import AdminCaller, ApiCaller
from app.accounts.schemas import AbilitiesIn, MemberIn, MemberOut, NewToken, TokenIn, TokenOut, UserIn, UserOut
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


@router.get("/projects/{project_id}/members")
async def list_members(caller: AdminCaller, session: SessionDep) -> list[MemberOut]:
    """Who has a role of their own in this project; roles that hold in every project are with `/users`."""
    members = await roles.list_members(session, project_of(caller))
    return [MemberOut.of(user, membership) for user, membership in members]


@router.put("/projects/{project_id}/members/{user_id}", status_code=status.HTTP_204_NO_CONTENT)
async def set_member(user_id: uuid.UUID, body: MemberIn, caller: AdminCaller, session: SessionDep) -> None:
    """Give a person a role in this project, in place of the one they had here."""
    project_id = project_of(caller)
    await roles.set_member(session, user_id=user_id, project_id=project_id, role=body.role, actor_id=caller.user.id)


@router.delete("/projects/{project_id}/members/{user_id}", status_code=status.HTTP_204_NO_CONTENT)
async def remove_member(user_id: uuid.UUID, caller: AdminCaller, session: SessionDep) -> None:
    """Take a person's role in this project away. Their rankings stay."""
    await roles.remove_member(session, user_id=user_id, project_id=project_of(caller), actor_id=caller.user.id)


@router.put("/projects/{project_id}/members/{user_id}/abilities", status_code=status.HTTP_204_NO_CONTENT)
async def set_member_abilities(user_id: uuid.UUID, body: AbilitiesIn, caller: AdminCaller, session: SessionDep) -> None:
    """What a member can be asked in this project: tasks that ask for more go to others."""
    told = {"languages": ", ".join(body.languages), "skills": ", ".join(body.skills)}
    project_id = project_of(caller)
    await abilities.set_in_project(session, project_id=project_id, user_id=user_id, actor_id=caller.user.id, **told)


def project_of(caller: ApiCaller) -> uuid.UUID:
    """The project of the address; `app.projects.guards` has the whole of it, for later domains."""
    assert caller.project is not None
    return caller.project.id


@router.post("/tokens", status_code=status.HTTP_201_CREATED)
@idempotent(shows_secret=True)
async def create_token(body: TokenIn, caller: AdminCaller, session: SessionDep) -> NewToken:
    """Make a token. Its secret is in this answer and never again."""
    values = body.model_dump() | {"user_id": body.user_id or caller.user.id}
    token, secret = await tokens.create_token(session, **values, actor_id=caller.user.id)
    return NewToken(**TokenOut.model_validate(token).model_dump(), token=secret)


@router.post("/tokens/{token_id}/revoke", status_code=status.HTTP_204_NO_CONTENT)
async def revoke_token(token_id: uuid.UUID, caller: AdminCaller, session: SessionDep) -> None:
    """End a token at once."""
    await tokens.revoke_token(session, token_id=token_id, actor_id=caller.user.id)
