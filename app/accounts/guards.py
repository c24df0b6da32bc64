"""Who may call a route, as types: `Annotator`, `Admin` for pages, `Caller` with its scopes for the API."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.accounts import service
from app.accounts.models import ROLE_SCOPES, Role, Scope, User
from app.errors import Forbidden, NotFound, Unauthorized
from app.web import SessionDep

SESSION_COOKIE = "rl_session"
# What a signed-in person's role allows on the API, as the pages themselves call a few routes of it.
bearer = HTTPBearer(auto_error=False, description="A token of Rankloop: `rankloop token create`, or the page People.")


class TokenRefused(Unauthorized):
    """This token is unknown, revoked or expired. Make a new one on the page People, or with `rankloop token create`."""


class SignInFirst(Unauthorized):
    """Sign in to see this page."""


@dataclass(frozen=True)
class ApiCaller:
    """Who calls the API, and what they may do there."""

    user: User
    scopes: frozenset[str]
    project_ids: frozenset[uuid.UUID] | None
    token_id: uuid.UUID | None

    def require_project(self, project_id: uuid.UUID) -> None:
        """Another project's things do not exist for this caller.

        Raises:
            NotFound: the token is bound to other projects.
        """
        if self.project_ids is not None and project_id not in self.project_ids:
            raise NotFound


@dataclass(frozen=True)
class Visitor:
    """What every page shows of who is signed in."""

    id: uuid.UUID
    name: str
    role: str


async def signed_in_user(request: Request, session: SessionDep) -> User | None:
    """Who is signed in with this browser, if anybody."""
    token = request.cookies.get(SESSION_COOKIE)
    user = await service.user_of_session(session, token) if token else None
    # A copy: the page that says what went wrong is drawn after the transaction, and what it loaded, are gone.
    request.state.user = Visitor(user.id, user.name, user.role) if user else None
    return user


MaybeUser = Annotated[User | None, Depends(signed_in_user)]


async def require_user(user: MaybeUser) -> User:
    """Whoever is signed in.

    Raises:
        SignInFirst: nobody is.
    """
    if user is None:
        raise SignInFirst
    return user


Annotator = Annotated[User, Depends(require_user)]


async def require_admin(user: Annotator) -> User:
    """An admin who is signed in.

    Raises:
        Forbidden: somebody else is.
    """
    if user.role != Role.ADMIN:
        raise Forbidden("This page is for admins. Ask one of them to give you that role.")
    return user


Admin = Annotated[User, Depends(require_admin)]


async def find_caller(
    session: SessionDep,
    user: MaybeUser,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> ApiCaller:
    """The bearer of a token, or who is signed in with this browser.

    Raises:
        Unauthorized: neither.
    """
    if credentials is None:
        if user is None:
            raise Unauthorized("Send a token: `Authorization: Bearer rl_…`.")
        return ApiCaller(user, ROLE_SCOPES[user.role] - {Scope.WORKER}, None, None)
    found = await service.token_of_secret(session, credentials.credentials)
    if found is None:
        raise TokenRefused
    token, owner = found
    projects = None if token.project_ids is None else frozenset(token.project_ids)
    # A token never does more than its owner may today, whatever role they had when it was made.
    return ApiCaller(owner, ROLE_SCOPES[owner.role].intersection(token.scopes), projects, token.id)


def require_scope(*scopes: Scope) -> Callable[..., Awaitable[ApiCaller]]:
    """A dependency that asks for one of these scopes."""

    async def check(caller: Annotated[ApiCaller, Depends(find_caller)]) -> ApiCaller:
        if not caller.scopes.intersection(scopes):
            wanted = " or ".join(f"`{scope}`" for scope in scopes)
            raise Forbidden(
                f"This needs a token with the scope {wanted}; yours has {', '.join(sorted(caller.scopes))}."
            )
        return caller

    return check


AnnotateCaller = Annotated[ApiCaller, Depends(require_scope(Scope.ANNOTATE))]
ReadCaller = Annotated[ApiCaller, Depends(require_scope(Scope.READ))]
WriteCaller = Annotated[ApiCaller, Depends(require_scope(Scope.WRITE))]
AdminCaller = Annotated[ApiCaller, Depends(require_scope(Scope.ADMIN))]
WorkerCaller = Annotated[ApiCaller, Depends(require_scope(Scope.WORKER))]
ReadOrWorkerCaller = Annotated[ApiCaller, Depends(require_scope(Scope.READ, Scope.WORKER))]
