"""The examples of the OpenAPI document, sent to the real app: `python -m tests.examples` records what it answers.

The world is the one of app/examples.py: a project with one of each thing. Every operation is asked in the same world,
and what it changed is undone. Ids, times, hashes and secrets of an answer are written as the document's own.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from httpx2 import ASGITransport, AsyncClient, Response
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker

from app.accounts import roles, tokens
from app.accounts.models import Role, Scope, User
from app.config import Settings
from app.corpora.models import Corpus
from app.datasets import service as datasets
from app.db import make_engine
from app.embedded import EmbeddedPostgres
from app.examples import PROJECT, example_id
from app.loop import sampling
from app.loop.models import Comparison
from app.migrate import upgrade
from app.openapi import ANSWERS
from app.projects.models import Project
from app.registry.models import VersionKind
from app.registry.service import get_version_by_number, register
from app.runs.models import RunKind, RunState
from app.runs.service import hold
from app.tasks.models import GoldOrder, Lease, LeaseState
from app.webhooks.models import Delivery
from app.webhooks.service import create_webhook
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

JSON = "application/json"
TESTING = "with-a-test"
# What somebody asks who may not do real work yet, in a project with a test before it.
BY_NEWCOMERS = {"POST /api/v1/projects/{project_id}/qualification:begin"}
# An operation that asks for another thing of its kind than the others: a run that failed, a lease of the caller's own.
OTHERS = {
    "POST /api/v1/runs/{run_id}/retry": {"run": "failed run"},
    "POST /api/v1/rankings/{ranking_id}:revise": {
        "ranking": "own ranking",
        **{f"answer {letter}": f"own answer {letter}" for letter in "ABC"},
    },
    "GET /api/v1/versions/{version_id}/artifacts/{name}": {"version": "newer version"},
    "POST /api/v1/versions/{version_id}:promote": {"version": "newer version"},
}
UUID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")
WRITTEN = [
    (re.compile(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)"), "2026-11-21T12:00:00Z"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"),
    (re.compile(r"\b(rl|whsec)_[\w+/=-]{9,}"), r"\1_shown-this-once"),
]


@dataclass
class World:
    """The project of the examples: the ids of the document -> those of its things, and a token for everything."""

    connection: AsyncConnection
    ids: dict[str, str]
    token: str
    newcomers_token: str

    def real(self, route: str, text: str) -> str:
        """A text of the document about the things that are really there."""
        if route in BY_NEWCOMERS:
            text = text.replace(PROJECT, TESTING)
        own = {noun: self.ids[other] for noun, other in OTHERS.get(route, {}).items()}
        for noun, key in (self.ids | own).items():
            text = text.replace(example_id(noun), key)
        return text


@dataclass(frozen=True)
class Operation:
    """One operation of the document."""

    route: str
    described: dict[str, Any]

    @property
    def promised(self) -> list[int]:
        """The statuses of success."""
        return [int(status) for status in self.described["responses"] if status.startswith("2")]

    def request(self, document: dict[str, Any]) -> dict[str, Any]:
        """What its examples say: method, address, query, headers and body, about the things of the document."""
        method, path = self.route.split()
        found: dict[str, dict[str, Any]] = {"path": {}, "query": {}, "header": {}, "cookie": {}}
        for parameter in self.described["parameters"]:
            if parameter["required"]:
                found[parameter["in"]][parameter["name"]] = str(parameter["example"])
        request: dict[str, Any] = {"method": method, "url": path.format(**found["path"])}
        request |= {"params": found["query"], "headers": found["header"]}
        for media_type, content in self.described.get("requestBody", {}).get("content", {}).items():
            example = example_of(content, document)
            request["content"] = json.dumps(example) if media_type == JSON else example
            request["headers"]["content-type"] = media_type
        return request


def example_of(content: dict[str, Any], document: dict[str, Any]) -> Any:
    """The example of a body: its own, or its schema's."""
    if "example" in content:
        return content["example"]
    schema = content["schema"].get("anyOf", [content["schema"]])[0]
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    assert "examples" in schema, f"{schema.get('title')} has no example"
    return schema["examples"][0]


def operations(document: dict[str, Any]) -> dict[str, Operation]:
    """All of them by method and path."""
    return {
        f"{method.upper()} {path}": Operation(f"{method.upper()} {path}", described)
        for path, item in document["paths"].items()
        for method, described in item.items()
    }


async def ask(client: AsyncClient, world: World, operation: Operation, document: dict[str, Any]) -> Response:
    """Send an example."""
    request = json.loads(world.real(operation.route, json.dumps(operation.request(document))))
    token = world.newcomers_token if operation.route in BY_NEWCOMERS else world.token
    request["headers"]["authorization"] = f"Bearer {token}"
    return await client.request(**request)


# The world


async def build(session: AsyncSession, connection: AsyncConnection) -> World:
    """One of each thing."""
    owner = await make_user(session, name="Ada", role=Role.ADMIN)
    token, secret = await tokens.create_token(session, user_id=owner.id, name="examples", scopes=list(Scope))
    spare, _ = await tokens.create_token(session, user_id=owner.id, name="spare", scopes=[Scope.READ])
    labels = [{"key": "rude", "en": "Rude", "zh": "粗鲁"}]
    project = await make_project(session, name="Support answers", slug=PROJECT, k=3, labels=labels)
    person = await make_user(session, name="Ben", role=None)
    await roles.set_member(session, user_id=person.id, project_id=project.id, role=Role.ANNOTATOR)
    ids: dict[str, Any] = {"user": person.id, "token": spare.id}
    ids |= await ranked_things(session, project, owner, person)
    ids |= await trained_things(session, project, token.id)
    hook = await create_webhook(session, project_id=project.id, url="https://example.org", events=["run.ended"])
    delivery = await add(session, Delivery(webhook_id=hook.id, event="run.ended", body="{}"))
    values = {"name": "Handbook", "kind": "text", "num_rows": 1, "sha256": "0" * 64}
    corpus = await add(session, Corpus(project_id=project.id, number=1, **values))
    ids |= {"webhook": hook.id, "delivery": delivery.id, "corpus": corpus.id}
    newcomers_token = await qualification(session)
    return World(connection, {noun: str(key) for noun, key in ids.items()}, secret, newcomers_token)


async def ranked_things(session: AsyncSession, project: Project, owner: User, person: User) -> dict[str, Any]:
    """Tasks that wait, are being ranked, and were ranked; and two datasets."""
    questions = [[{"role": "user", "content": text}] for text in ("Where is the Louvre?", "What is a prime?")]
    prompts = [await make_prompt(session, project, messages=messages, language="en") for messages in questions]
    await make_task(session, await make_prompt(session, project), k=3)
    await make_prompt(session, project)  # nobody has answered it: there is something to sample
    ranked, leased = [await make_task(session, prompt, k=3, overlap=3, round=1) for prompt in prompts]
    ranking = await make_ranking(session, ranked, annotator=person, places=[2, 1, 2])
    older = await datasets.freeze(session, project=project, name="First try", licence="CC-BY-4.0")
    own = await make_ranking(session, ranked, annotator=owner)
    dataset = await datasets.freeze(session, project=project, name="Round 1", licence="CC-BY-4.0")
    shown, own_shown = [await completion_ids_of(session, task) for task in (leased, ranked)]
    values = {"state": LeaseState.OPEN, "display_order": shown, "seed": 17}
    until = datetime.now(UTC) + timedelta(hours=1)
    lease = await add(session, Lease(task_id=leased.id, annotator_id=owner.id, expires_at=until, **values))
    ids = {"lease": lease.id, "ranking": ranking.id, "own ranking": own.id}
    ids |= {"dataset": dataset.id, "older dataset": older.id}
    ids |= {f"answer {letter}": key for letter, key in zip("ABC", shown, strict=True)}
    return ids | {f"own answer {letter}": key for letter, key in zip("ABC", own_shown, strict=True)}


def made(ago: int) -> dict[str, datetime]:
    """When a run was made, in minutes before now: those of one moment would come in another order each time."""
    return {"created_at": datetime.now(UTC) - timedelta(minutes=ago)}


async def trained_things(session: AsyncSession, project: Project, token_id: uuid.UUID) -> dict[str, Any]:
    """Runs that wait, run and failed; versions, two of which are compared."""
    base = await get_version_by_number(session, project_id=project.id, number=1)
    prompt = await make_prompt(session, project, split="test")
    held = await sampling.start_evaluation(session, project=project, policy=base)
    await hold(session, held, worker="gpu-1", token_id=token_id, lease=timedelta(hours=1))
    await make_run(session, project, kind=RunKind.SFT, **made(5))
    failed = await make_run(session, project, kind=RunKind.DPO, state=RunState.FAILED, error="out of memory", **made(4))
    newer, newest = [
        await register(
            session,
            project_id=project.id,
            kind=VersionKind.POLICY,
            parent=base,
            run_id=run.id,
            dataset_id=None,
            metrics={"win_rate": 0.58},
        )
        for run in (held, await make_run(session, project, kind=RunKind.SFT, state=RunState.FINISHED, **made(3)))
    ]
    sampled = [
        await make_run(session, project, kind=RunKind.EVALUATE, state=RunState.FINISHED, **made(ago)) for ago in (2, 1)
    ]
    await add(
        session,
        Comparison(
            project_id=project.id,
            number=1,
            version_id=newest.id,
            against_id=base.id,
            version_run_id=sampled[0].id,
            against_run_id=sampled[1].id,
        ),
    )
    ids = {"prompt": prompt.id, "run": held.id, "failed run": failed.id}
    return ids | {"version": base.id, "newer version": newer.id}


async def qualification(session: AsyncSession) -> str:
    """A project that asks for a test before real work, and the token of somebody who has not passed it."""
    project = await make_project(session, slug=TESTING, qualify_tasks=1)
    task = await make_task(session, await make_prompt(session, project), k=2)
    await add(session, GoldOrder(task_id=task.id, places=[1, 2], is_qualifying=True))
    newcomer = await make_user(session)
    return (await tokens.create_token(session, user_id=newcomer.id, name="judge", scopes=[Scope.ANNOTATE]))[1]


# Recording


def written(world: World, text: str) -> str:
    """An answer in the words of the document."""
    for noun, key in world.ids.items():
        text = text.replace(key, example_id(noun))
    known = {example_id(noun) for noun in world.ids}
    others = dict.fromkeys(key for key in UUID.findall(text) if key not in known)
    for number, key in enumerate(others, 1):
        text = text.replace(key, example_id(f"thing {number}"))
    for pattern, words in WRITTEN:
        text = pattern.sub(words, text)
    return text


def shortened(value: Any) -> Any:
    """The first two of many."""
    if isinstance(value, dict):
        return {name: shortened(item) for name, item in value.items()}
    return [shortened(item) for item in value[:2]] if isinstance(value, list) else value


def told(world: World, operation: Operation, answer: Response) -> dict[str, Any] | None:
    """An answer as the document shows it; None where it describes no body."""
    media_type = answer.headers.get("content-type", "").partition(";")[0]
    status = str(answer.status_code)
    if media_type not in operation.described["responses"][status].get("content", {}):
        return None
    text = written(world, answer.text)
    body = shortened(json.loads(text)) if media_type == JSON else text
    return {"status": status, "type": media_type, "body": body}


@asynccontextmanager
async def asked(engine: AsyncEngine, data_dir: Path) -> AsyncIterator[tuple[AsyncClient, World, FastAPI]]:
    """The app with the world of the examples, which is gone afterwards."""
    async with engine.connect() as connection:
        transaction = await connection.begin()
        sessions = async_sessionmaker(connection, expire_on_commit=False, join_transaction_mode="create_savepoint")
        with borrowed_app(Settings(data_dir=data_dir), sessions) as app:
            async with sessions.begin() as session:
                world = await build(session, connection)
            async with AsyncClient(transport=ASGITransport(app), base_url="http://127.0.0.1:8000") as client:
                await deliver(client, world, app)
                yield client, world, app
        await transaction.rollback()


async def deliver(client: AsyncClient, world: World, app: FastAPI) -> None:
    """The file of the run, for those who fetch it."""
    document = app.openapi()
    operation = operations(document)["PUT /api/v1/runs/{run_id}/artifacts/{name}"]
    (await ask(client, world, operation, document)).raise_for_status()


async def all_answers(engine: AsyncEngine, data_dir: Path) -> AsyncIterator[tuple[World, Operation, Response]]:
    """What each operation answers to its example; what it changed is undone."""
    async with asked(engine, data_dir) as (client, world, app):
        document = app.openapi()
        for operation in operations(document).values():
            nested = await world.connection.begin_nested()
            yield world, operation, await ask(client, world, operation, document)
            await nested.rollback()


async def record(database_url: str, data_dir: Path) -> dict[str, Any]:
    """What the document shows of answers."""
    engine = make_engine(database_url)
    answers = {}
    async for world, operation, answer in all_answers(engine, data_dir):
        if answer.status_code not in operation.promised:
            sys.stderr.write(f"{operation.route}: {answer.status_code} {answer.text}\n")
        elif body := told(world, operation, answer):
            answers[operation.route] = body
    await engine.dispose()
    return answers


def main() -> None:
    """Write what the document shows of answers, from a database of its own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        with EmbeddedPostgres(Path(folder), durable=False) as server:
            upgrade(server.url("postgres"))
            answers = asyncio.run(record(server.url("postgres"), Path(folder) / "data"))
    ANSWERS.write_text(json.dumps(dict(sorted(answers.items())), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
