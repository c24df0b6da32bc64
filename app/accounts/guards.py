"""Who may call a route, as types: `Annotator`, `Reviewer`, `Trainer`, `Admin`, `Owner` for pages, `ReadCaller` and its
kin with their scopes for the API.

A guard looks at the project that the address names, by its short name or by the id of anything in it (app/reach.py).
Whoever has no role there gets 404, whoever has one that allows less gets 403. An address that names no project asks
for the role in every project, but for `Annotator`, who there sees only what is their own.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import sessions, tokens
from app.accounts.credentials import Person
from app.accounts.models import ApiToken, Roles, Scope, TokenFacts, User, Who
from app.accounts.tokens import Bearer
from app.accounts.wanted import NamedProject, ProjectFinder, Wanted, find_wanted
from app.errors import Forbidden, NotFound, Unauthorized
from app.web import SessionDep

SESSION_COOKIE = "rl_session"
# What a signed-in person's role allows on the API, as the pages themselves call a few routes of it.
bearer = HTTPBearer(auto_error=False, description="A token of Rankloop: `rankloop token create`, or the page Tokens.")


class TokenRefused(Unauthorized):
    """This token is unknown, revoked or expired. Make a new one on the page People, or with `rankloop token create`."""


class SignInFirst(Unauthorized):
    """Sign in to see this page."""


# An endpoint with this names its project in its body.
PROJECT_IN_BODY = "project_in_body"
MAX_KEY = 100

HeldFinder = Callable[[AsyncSession, uuid.UUID, Mapping[str, Any]], Awaitable[bool]]


@dataclass(frozen=True)
class Visitor:
    """What every page shows of who is signed in. `role` is the one in the page's project."""

    id: uuid.UUID
    name: str
    role: str | None
    is_owner: bool
    scopes: frozenset[str]


async def wanted_projects(request: Request) -> list[Wanted | None]:
    """What the gaps of a request's address that lead to a project are filled with; else, what its body names."""
    finders: Mapping[str, ProjectFinder] = request.app.state.project_finders
    if getattr(request.scope.get("endpoint"), PROJECT_IN_BODY, False):
        key = await key_in_body(request)
        return [finders["project_id"](key)] if key else []
    return [finders[name](str(value)) for name, value in request.path_params.items() if name in finders]


async def key_in_body(request: Request) -> str | None:
    """The project's key in a body of JSON. None: there is none in it; it is refused with the rest of the body."""
    try:
        body = await request.json()
    except (ValueError, RecursionError):
        return None
    key = body.get("project_id") if isinstance(body, dict) else None
    return key if isinstance(key, str) and len(key) <= MAX_KEY else None


async def first_wanted(request: Request) -> Wanted | None:
    """The first of them, which is looked up together with who asks."""
    return next(iter(await wanted_projects(request)), None)


async def find_project(request: Request, session: AsyncSession, person: Person | Bearer) -> NamedProject | None:
    """The project that a request's address names; None: it names none.

    Raises:
        NotFound: it names what is not there, or lies in a project where this person has no role.
    """
    wanted = await wanted_projects(request)
    if not wanted:
        return None
    project = person.project
    others = [await find_wanted(session, other) for other in wanted[1:]]
    if project is None or not person.roles.scopes_in(project.id):
        raise NotFound
    if any(other is None or other.id != project.id for other in others):
        raise NotFound
    return project


Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


def project_in_body(endpoint: Endpoint) -> Endpoint:
    """Mark an endpoint that finds its project not in its address but, as `project_id`, in its body."""
    setattr(endpoint, PROJECT_IN_BODY, True)
    return endpoint


# Pages


@dataclass(frozen=True)
class Access:
    """Who opens a page, what they may do, and which project the page is about."""

    user: User
    roles: Roles
    project: NamedProject | None

    @property
    def scopes(self) -> frozenset[str]:
        """What they may do here."""
        return self.roles.scopes_in(self.project.id if self.project else None)


async def signed_in_person(request: Request, session: SessionDep) -> Person | None:
    """Who is signed in with this browser, if anybody."""
    token = request.cookies.get(SESSION_COOKIE)
    person = await sessions.person_of_session(session, token, await first_wanted(request)) if token else None
    request.state.user = visitor(person) if person else None
    return person


def visitor(person: Person | Bearer, project_id: uuid.UUID | None = None) -> Visitor:
    """A copy: the page that says what went wrong is drawn after the transaction, and what it loaded, are gone."""
    user, roles = person.user, person.roles
    return Visitor(user.id, user.name, roles.role_in(project_id), roles.is_owner, roles.scopes_in(project_id))


MaybePerson = Annotated[Person | None, Depends(signed_in_person)]


async def find_access(request: Request, session: SessionDep, person: MaybePerson) -> Access:
    """Whoever is signed in, if the project of this address is theirs to see.

    Raises:
        SignInFirst: nobody is.
        NotFound: they have no role in it.
    """
    if person is None:
        raise SignInFirst
    project = await find_project(request, session, person)
    if project:
        request.state.user = visitor(person, project.id)
    return Access(person.user, person.roles, project)


AccessDep = Annotated[Access, Depends(find_access)]
FORBIDDEN = {
    Scope.ANNOTATE: "You have no role that ranks here. Ask an admin of the project for one.",
    Scope.REVIEW: "This page is for reviewers. Ask an admin of the project to give you that role.",
    Scope.WRITE: "This page is for trainers. Ask an admin of the project to give you that role.",
    Scope.ADMIN: "This page is for admins. Ask one of them to give you that role.",
}


def require_role(scope: Scope) -> Callable[..., Awaitable[User]]:
    """A dependency that asks for a role with this scope in the project of the address."""

    async def check(access: AccessDep) -> User:
        if access.project is None and scope == Scope.ANNOTATE:
            return access.user
        if scope not in access.scopes:
            raise Forbidden(FORBIDDEN[scope])
        return access.user

    return check


async def require_owner(access: AccessDep) -> User:
    """An owner of the site who is signed in.

    Raises:
        Forbidden: somebody else is.
    """
    if not access.roles.is_owner:
        raise Forbidden("This page is for the owners of this site.")
    return access.user


Annotator = Annotated[User, Depends(require_role(Scope.ANNOTATE))]
Reviewer = Annotated[User, Depends(require_role(Scope.REVIEW))]
Trainer = Annotated[User, Depends(require_role(Scope.WRITE))]
Admin = Annotated[User, Depends(require_role(Scope.ADMIN))]
Owner = Annotated[User, Depends(require_owner)]


# The API


@dataclass(frozen=True)
class ApiCaller:
    """Who calls the API, with a token or from our own pages, and which project the address names.

    A token never does more than its owner may today, whatever role they had when it was made; a browser never claims
    runs. `wanted` are the scopes of which the operation asks for one.
    """

    user: User | Who
    roles: Roles
    token: ApiToken | TokenFacts | None
    project: NamedProject | None = None
    wanted: frozenset[str] = frozenset()

    @property
    def token_id(self) -> uuid.UUID | None:
        """The token that was sent."""
        return self.token.id if self.token else None

    @property
    def project_ids(self) -> frozenset[uuid.UUID] | None:
        """The projects where the caller may do what the operation asks for; None: all of them."""
        reached = self.roles.projects_with(self.wanted)
        bound = frozenset(self.token.project_ids) if self.token and self.token.project_ids is not None else None
        if bound is None or reached is None:
            return reached if bound is None else bound
        return reached & bound

    def scopes_in(self, project_id: uuid.UUID) -> frozenset[str]:
        """What the caller may do in a project: nothing where the token is bound to others."""
        if self.token and self.token.project_ids is not None and project_id not in self.token.project_ids:
            return frozenset()
        return self._of_token(self.roles.scopes_in(project_id))

    @property
    def scopes_without_project(self) -> frozenset[str]:
        """What the caller may do at an address that names no project; to administrate asks for all projects."""
        anywhere = self.roles.scopes_in(None).union(*map(self.roles.scopes_in, self.roles.by_project))
        is_owner = self.roles.is_owner and (self.token is None or self.token.project_ids is None)
        return self._of_token(anywhere if is_owner else anywhere - {Scope.ADMIN})

    def _of_token(self, scopes: frozenset[str]) -> frozenset[str]:
        return scopes - {Scope.WORKER} if self.token is None else scopes.intersection(self.token.scopes)

    def require_project(self, project_id: uuid.UUID) -> None:
        """For operations that name their project elsewhere than in the address: the same question again.

        Raises:
            NotFound: the caller has no role there, or the token is bound to other projects.
            Forbidden: the role there, or the token, allows less.
        """
        scopes = self.scopes_in(project_id)
        if not scopes:
            raise NotFound
        if not scopes & self.wanted:
            raise scope_missing(self.wanted, scopes)


ANNOTATES = frozenset[str]({Scope.ANNOTATE})


def scope_missing(wanted: frozenset[str], given: frozenset[str]) -> Forbidden:
    """The refusal that names what is needed and what was sent."""
    needed = " or ".join(f"`{scope}`" for scope in sorted(wanted))
    return Forbidden(
        f"This needs a token with the scope {needed}; yours has {', '.join(sorted(given)) or 'none here'}."
    )


async def find_caller(
    request: Request,
    session: SessionDep,
    person: MaybePerson,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> ApiCaller:
    """The bearer of a token, or who is signed in with this browser.

    Raises:
        Unauthorized: neither.
        NotFound: the address names a project where the caller has no role, or that the token does not reach.
    """
    caller, owner = await caller_of(request, session, person, credentials)
    return await with_project(request, session, caller, owner)


async def with_project(request: Request, session: AsyncSession, caller: ApiCaller, owner: Person | Bearer) -> ApiCaller:
    """The caller at the project that the address names, if it names one.

    Raises:
        NotFound: the caller has no role there, or the token does not reach it.
    """
    project = await find_project(request, session, owner)
    if project and not caller.scopes_in(project.id):
        raise NotFound
    return replace(caller, project=project)


async def caller_of(
    request: Request, session: AsyncSession, person: Person | None, credentials: HTTPAuthorizationCredentials | None
) -> tuple[ApiCaller, Person]:
    """The caller, whatever the address names, and who they are.

    Raises:
        Unauthorized: no token, and nobody is signed in.
        TokenRefused: the token is none of ours, or ended.
    """
    if credentials is None:
        if person is None:
            raise Unauthorized("Send a token: `Authorization: Bearer rl_…`.")
        return ApiCaller(person.user, person.roles, token=None), person
    found = await tokens.person_of_token(session, credentials.credentials, await first_wanted(request))
    if found is None:
        raise TokenRefused
    token, owner = found
    request.state.user = visitor(owner)
    return ApiCaller(owner.user, owner.roles, token), owner


async def is_known(request: Request) -> bool:
    """Whether a request bears a session or a token of ours, whatever it asks for. It holds no connection afterwards."""
    async with request.app.state.sessionmaker.begin() as session:
        try:
            person = await signed_in_person(request, session)
            await caller_of(request, session, person, await bearer(request))
        except Unauthorized:
            return False
    return True


def require_scope(*scopes: Scope) -> Callable[..., Awaitable[ApiCaller]]:
    """A dependency that asks for one of these scopes."""
    wanted = frozenset[str](scopes)

    async def check(
        request: Request, session: SessionDep, caller: Annotated[ApiCaller, Depends(find_caller)]
    ) -> ApiCaller:
        given = given_to(caller, wanted)
        if Scope.READ in wanted and Scope.READ not in given:
            await require_held(request, session, caller)
        return replace(caller, wanted=wanted)

    return check


def given_to(caller: ApiCaller, wanted: frozenset[str]) -> frozenset[str]:
    """What the caller may do here.

    Raises:
        Forbidden: nothing of what is wanted.
    """
    given = caller.scopes_in(caller.project.id) if caller.project else caller.scopes_without_project
    if not given & wanted:
        raise scope_missing(wanted, given)
    return given


async def find_ranker(
    request: Request, session: SessionDep, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> ApiCaller:
    """As `AnnotateCaller`, for what is asked at every ranking: who sends a token is looked up by a few facts, and all
    in one dependency, as each costs as much as a question to the database.

    Raises:
        Unauthorized, TokenRefused, NotFound, Forbidden: as there.
    """
    if credentials is None:
        caller = await find_caller(request, session, await signed_in_person(request, session), None)
    else:
        owner = await tokens.bearer_of_token(session, credentials.credentials, await first_wanted(request))
        if owner is None:
            raise TokenRefused
        request.state.user = visitor(owner)
        caller = await with_project(request, session, ApiCaller(owner.user, owner.roles, owner.token), owner)
    given_to(caller, ANNOTATES)
    return replace(caller, wanted=ANNOTATES)


async def require_held(request: Request, session: AsyncSession, caller: ApiCaller) -> None:
    """A worker reads what the runs need that its token has claimed, and nothing else of the project.

    Raises:
        NotFound: this is none of it, or its run is over.
    """
    is_held: HeldFinder = request.app.state.is_held
    if not caller.token_id or not await is_held(session, caller.token_id, request.path_params):
        raise NotFound


Ranker = Annotated[ApiCaller, Depends(find_ranker)]
AnnotateCaller = Annotated[ApiCaller, Depends(require_scope(Scope.ANNOTATE))]
ReviewCaller = Annotated[ApiCaller, Depends(require_scope(Scope.REVIEW))]
ReadCaller = Annotated[ApiCaller, Depends(require_scope(Scope.READ))]
WriteCaller = Annotated[ApiCaller, Depends(require_scope(Scope.WRITE))]
AdminCaller = Annotated[ApiCaller, Depends(require_scope(Scope.ADMIN))]
WorkerCaller = Annotated[ApiCaller, Depends(require_scope(Scope.WORKER))]
ReadOrWorkerCaller = Annotated[ApiCaller, Depends(require_scope(Scope.READ, Scope.WORKER))]
