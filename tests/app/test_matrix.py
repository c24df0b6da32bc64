"""Who may open what: every page and every operation of the API, asked by everybody, on things that are really there.

The rows are in matrix.py. The outsider is an admin, but of another project, and has a lease and a ranking in this one
from better days.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from httpx2 import ASGITransport, AsyncClient, Response
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker

from app.accounts import invitations, roles, tokens
from app.accounts.guards import SESSION_COOKIE
from app.accounts.models import ROLE_SCOPES, Role, User
from app.accounts.sessions import create_sign_in_link, sign_in
from app.config import Settings
from app.corpora.models import Corpus
from app.datasets.models import Dataset
from app.loop.models import Comparison
from app.main import API, create_app
from app.projects.models import Project
from app.quality.models import Review
from app.registry.models import Version, VersionKind
from app.registry.service import get_version_by_number, register
from app.runs.models import RunKind, RunState
from app.security import HEADERS
from app.tasks.models import Lease, LeaseState, Task
from app.webhooks.models import Delivery
from app.webhooks.service import create_webhook
from app.writing.models import Writing, WritingKind
from tests.app.matrix import ALLOWED, API_MATRIX, API_ROUTES, ID_GAP, PAGE_MATRIX, PAGE_ROUTES
from tests.borrowed import borrowed_app
from tests.factories import (
    add,
    completion_ids_of,
    make_project,
    make_prompt,
    make_ranking,
    make_run,
    make_task,
    make_user,
)

# No run of these tests delivers a file, their invitation is into a project, and there is no OpenID provider.
MAY_BE_MISSING = {
    "GET /sign-in/provider",
    "GET /sign-in/provider/back",
    "GET /versions/{version_id}/artifacts/{name:path}",
    "GET /runs/{run_id}/artifacts/{name:path}",
    "POST /people/invitations/{invitation_id}/revoke",
}
# Of everybody's name, so that it is found wherever it is told.
FAMILY = "Xanthippe"
# Where names are told on purpose: whoever reviews what somebody wrote, and its author.
TOLD_NAMES = {"GET /writings/{writing_id}", "GET /projects/{slug}/writing/review"}
# These end what may have ended already, by another tab.
HARMLESS_TWICE = {"DELETE /projects/{project_id}/members/{user_id}", "POST /account/sessions/{session_id}/end"}


@dataclass
class World:
    """One project with something in every table, people with each role in it, and a connection that is rolled back."""

    connection: AsyncConnection
    ids: dict[str, str]
    cookies: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    # What belongs to one person: role -> gap -> id
    own: dict[str, dict[str, str]] = field(default_factory=dict)

    def address(self, path: str, role: str) -> str:
        """A path with its gaps filled: everything exists, and leases and rankings are the person's own."""
        values = self.ids | self.own.get(role, self.own["annotator"])
        return re.sub(r"\{(\w+)(:\w+)?\}", lambda gap: values[gap[1]], path)


async def person(session: AsyncSession, role: str, project: Project, elsewhere: Project) -> User:
    """Somebody with this role in the project."""
    name = f"{FAMILY} {role}"
    if role == "owner":
        return await make_user(session, role=Role.ADMIN, name=name)
    user = await make_user(session, role=None, name=name)
    place, name = (elsewhere, Role.ADMIN) if role == "outsider" else (project, Role(role))
    await roles.set_member(session, user_id=user.id, project_id=place.id, role=name)
    return user


async def own_things(session: AsyncSession, user: User, open_task: Task, ranked_task: Task) -> dict[str, str]:
    """A lease, a ranking and a piece of writing of this person."""
    lease = Lease(
        task_id=open_task.id,
        annotator_id=user.id,
        state=LeaseState.OPEN,
        display_order=await completion_ids_of(session, open_task),
        seed=17,
        expires_at=datetime.now(UTC) + timedelta(hours=1),
    )
    ranking = await make_ranking(session, ranked_task, annotator=user)
    writing = Writing(project_id=open_task.project_id, kind=WritingKind.PROMPT, author_id=user.id)
    rows: dict[str, Any] = {
        "lease_id": await add(session, lease),
        "ranking_id": ranking,
        "writing_id": await add(session, writing),
    }
    return {name: str(row.id) for name, row in rows.items()}


async def report(session: AsyncSession, user: User, task: Task) -> None:
    """They found a task broken."""
    now = datetime.now(UTC)
    seen = {"display_order": await completion_ids_of(session, task), "seed": 17, "expires_at": now}
    said = {"state": LeaseState.RELEASED, "skip_kind": "broken", "skip_reason": "No question."}
    await add(session, Lease(task_id=task.id, annotator_id=user.id, **seen, **said))


async def begin_comparison(session: AsyncSession, project: Project, base: Version) -> None:
    """A comparison of a second policy with the first."""
    runs = [await make_run(session, project, kind=RunKind.EVALUATE) for _ in range(2)]
    tuning = await make_run(session, project, kind=RunKind.SFT, state=RunState.FINISHED)
    newer = await register(
        session,
        project_id=project.id,
        kind=VersionKind.POLICY,
        parent=base,
        run_id=tuning.id,
        dataset_id=None,
        metrics={},
    )
    compared = {"version_id": newer.id, "against_id": base.id}
    answered = {"version_run_id": runs[0].id, "against_run_id": runs[1].id}
    await add(session, Comparison(project_id=project.id, number=1, **compared, **answered))


async def build(session: AsyncSession, connection: AsyncConnection) -> World:
    project = await make_project(session, name="Access", slug="access", writes_demonstrations=True)
    elsewhere = await make_project(session, name="Elsewhere", slug="elsewhere")
    prompt = await make_prompt(session, project)
    open_task, ranked_task = [await make_task(session, prompt, overlap=50) for _ in range(2)]
    dataset = await add(session, Dataset(project_id=project.id, number=1, num_rows=0, sha256="0" * 64))
    values = {"number": 1, "name": "c", "kind": "text", "num_rows": 1, "sha256": "0" * 64}
    corpus = await add(session, Corpus(project_id=project.id, **values))
    run = await make_run(session, project)
    version = await get_version_by_number(session, project_id=project.id, number=1)
    await begin_comparison(session, project, version)
    member = await make_user(session, role=None, name=f"{FAMILY} who ranked")
    await roles.set_member(session, user_id=member.id, project_id=project.id, role=Role.ANNOTATOR)
    await make_ranking(session, ranked_task, annotator=member)
    await report(session, member, open_task)
    invited, _ = await invitations.create(
        session, project_id=project.id, role="annotator", days=1, max_uses=1, public_url="http://x", actor_id=None
    )
    hook = await create_webhook(session, project_id=project.id, url="https://example.org", events=["run.ended"])
    delivery = await add(session, Delivery(webhook_id=hook.id, event="run.ended", body="{}"))
    review = await add(
        session, Review(project_id=project.id, task_id=ranked_task.id, disagreement=1, last_number=10**9)
    )
    ids = {"slug": "access", "project_id": "access", "number": "1", "name": "model.safetensors"}
    rows: dict[str, Any] = {
        "prompt_id": prompt,
        "task_id": open_task,
        "dataset_id": dataset,
        "corpus_id": corpus,
        "run_id": run,
        "webhook_id": hook,
        "delivery_id": delivery,
    }
    rows |= {"version_id": version, "user_id": member, "invitation_id": invited, "review_id": review}
    world = World(connection, ids | {name: str(row.id) for name, row in rows.items()})
    world.ids |= {"session_id": str(uuid.uuid4())}
    for role in ("outsider", "annotator", "reviewer", "trainer", "admin", "owner"):
        user = await person(session, role, project, elsewhere)
        world.own[role] = await own_things(session, user, open_task, ranked_task)
        link = await create_sign_in_link(session, user=user, public_url="http://127.0.0.1:8000")
        world.cookies[role] = await sign_in(session, secret=link.rpartition("#")[2])
        scopes = ROLE_SCOPES[Role.ADMIN if role in {"outsider", "owner"} else role]
        _, world.tokens[role] = await tokens.create_token(session, user_id=user.id, name=role, scopes=list(scopes))
        # One that is not asked with: revoking it must not end the others' questions.
        spare, _ = await tokens.create_token(session, user_id=user.id, name="spare", scopes=["annotate"])
        world.own[role]["token_id"] = str(spare.id)
    return world


@pytest.fixture(scope="module")
async def world(shared_engine: AsyncEngine, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    create_app(Settings(data_dir=tmp_path_factory.mktemp("matrix")))  # subscribes to events, so that version 1 is made
    async with shared_engine.connect() as connection:
        transaction = await connection.begin()
        async with AsyncSession(connection, join_transaction_mode="create_savepoint") as session, session.begin():
            built = await build(session, connection)
        yield built
        await transaction.rollback()


@pytest.fixture
async def client(world: World, tmp_path: Path) -> AsyncIterator[AsyncClient]:
    """The app on the world's connection; what a test changes there is undone."""
    await world.connection.begin_nested()
    sessions = async_sessionmaker(world.connection, expire_on_commit=False, join_transaction_mode="create_savepoint")
    headers = {"sec-fetch-site": "same-origin", "rankloop-fence": "1"}
    with borrowed_app(Settings(data_dir=tmp_path), sessions) as app:
        transport = ASGITransport(app)
        async with AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", headers=headers) as client:
            yield client
    await rolled_back(world)


async def rolled_back(world: World) -> None:
    """Undo what was done since the test's savepoint."""
    nested = world.connection.get_nested_transaction()
    assert nested is not None
    await nested.rollback()


def check(route: str, word: str, role: str, answer: Response) -> None:
    """What this role gets from a route with this word in the matrix."""
    status = answer.status_code
    told = f"{role} on {route}: {status} {answer.text[-300:]}"
    assert HEADERS.items() <= dict(answer.headers).items(), told
    if role in ALLOWED[word]:
        public = {401, 410} if word == "public" else set()
        missing = {404} if route in MAY_BE_MISSING else set()
        assert status < 500, told
        assert status not in {401, 403, 404} - public - missing, told
    elif role == "outsider" and word != "owner":
        assert status == 404, told
    else:
        assert status == 403, told


@pytest.mark.parametrize("route", PAGE_ROUTES)
async def test_pages_let_in_whom_the_matrix_names(client: AsyncClient, world: World, route: str) -> None:
    method, path = route.split()
    word = PAGE_MATRIX[route]
    client.headers["accept"] = "text/html"
    for role, cookie in world.cookies.items():
        client.cookies.clear()
        client.cookies.set(SESSION_COOKIE, cookie)
        body = {"data": {"project_id": "access"}} if method == "POST" else {}
        check(route, word, role, await client.request(method, world.address(path, role), **body))
        # Signing out and switching people off would change who the next one is.
        await undo(world)
    client.cookies.clear()
    answer = await client.request(method, world.address(path, "stranger"))
    if word == "public":
        check(route, word, "stranger", answer)
    elif method == "GET":
        assert answer.status_code == 303
        assert answer.headers["location"].startswith("/sign-in")
    else:
        assert answer.status_code == 401


@pytest.mark.parametrize("route", API_ROUTES)
async def test_the_api_lets_in_whom_the_matrix_names(client: AsyncClient, world: World, route: str) -> None:
    method, path = route.split()
    word = API_MATRIX[route]
    for role, token in world.tokens.items():
        headers = {"authorization": f"Bearer {token}"}
        check(route, word, role, await ask_api(client, method, world.address(path, role), headers))
        await undo(world)
    for headers in ({}, {"authorization": "Bearer rl_nobody's"}):
        answer = await ask_api(client, method, world.address(path, "stranger"), headers)
        assert answer.status_code == 401
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("role", ["annotator", "reviewer", "trainer"])
async def test_only_admins_read_the_names_of_those_who_rank(client: AsyncClient, world: World, role: str) -> None:
    """To all others a person is the end of a random id, as in data sets."""
    told = []
    for route in PAGE_ROUTES + API_ROUTES:
        method, path = route.split()
        if method == "GET" and route not in TOLD_NAMES:
            prefix = API if route in API_ROUTES else ""
            client.cookies.set(SESSION_COOKIE, world.cookies[role])
            page = (await client.get(prefix + world.address(path, role))).text
            told += [route] if FAMILY in page.replace(f"{FAMILY} {role}", "") else []
    assert told == []


async def ask_api(client: AsyncClient, method: str, address: str, headers: dict[str, str]) -> Response:
    """Ask, naming the project wherever an operation may look for it."""
    params = {} if "access" in address else {"project_id": "access"}
    return await client.request(method, API + address, params=params, json={"project_id": "access"}, headers=headers)


async def undo(world: World) -> None:
    """Begin the test's savepoint again."""
    await rolled_back(world)
    await world.connection.begin_nested()


@pytest.mark.parametrize("route", [route for route in API_ROUTES + PAGE_ROUTES if ID_GAP.search(route)])
async def test_what_is_not_there_is_not_found(client: AsyncClient, world: World, route: str) -> None:
    method, path = route.split()
    for wrong in (str(uuid.UUID(int=7)), "7"):
        address = ID_GAP.sub(wrong, path)
        client.headers["authorization"] = f"Bearer {world.tokens['owner']}"
        client.cookies.set(SESSION_COOKIE, world.cookies["owner"])
        prefix = API if route in API_ROUTES else ""
        answer = await client.request(method, prefix + world.address(address, "owner"))
        already_gone = {204, 303} if route in HARMLESS_TWICE else set()
        assert answer.status_code in {404, 422} | already_gone, answer.text[-300:]


# These let anybody of the site in, or end what may have ended.
MEMBERS = "/projects/{project_id}/members/{user_id}"
FITTING = {"abilities": {"languages": [], "skills": []}, "standing": {"decision": "let_in"}}


def below_a_project(route: str) -> bool:
    """Whether its address names a project, and below it a thing that this project may have or not."""
    return bool(re.search(r"\{(slug|project_id)\}.*" + ID_GAP.pattern, route)) and not route.endswith(MEMBERS)


@pytest.mark.parametrize("route", [route for route in API_ROUTES + PAGE_ROUTES if below_a_project(route)])
async def test_a_thing_of_another_project_is_not_in_this_one(client: AsyncClient, world: World, route: str) -> None:
    """Also where whoever asks may see both."""
    method, path = route.split()
    client.headers["authorization"] = f"Bearer {world.tokens['owner']}"
    client.cookies.set(SESSION_COOKIE, world.cookies["owner"])
    prefix = API if route in API_ROUTES else ""
    elsewhere = re.sub(r"\{(slug|project_id)\}", "elsewhere", path)
    body = FITTING.get(path.rpartition("/")[2])
    sent = {} if method == "GET" or body is None else {"json": body} if prefix else {"data": body}
    answer = await client.request(method, prefix + world.address(elsewhere, "owner"), **sent)
    assert answer.status_code == 404, answer.text[-300:]


async def test_everybody_sees_their_own_projects(client: AsyncClient, world: World) -> None:
    for role, seen in {"outsider": ["elsewhere"], "annotator": ["access"], "owner": ["access", "elsewhere"]}.items():
        client.cookies.set(SESSION_COOKIE, world.cookies[role])
        home = (await client.get("/")).text
        assert [slug for slug in ("access", "elsewhere") if f"/projects/{slug}/rank" in home] == seen
    headers = {"authorization": f"Bearer {world.tokens['outsider']}"}
    listed = (await client.get(f"{API}/projects", headers=headers)).json()["items"]
    assert [item["slug"] for item in listed] == ["elsewhere"]
