"""Prompts and completions over HTTP: who may, what is sent, what comes back."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from httpx2 import AsyncClient
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import ApiToken, Role, Scope
from app.accounts.tokens import create_token
from app.formats.parquet_lines import OPENERS
from app.projects.models import Project
from app.prompts.models import Completion, Prompt
from app.prompts.service import freeze_run_prompts
from app.runs.models import Run
from tests.factories import make_completion, make_project, make_prompt, make_run, make_user

API = "/api/v1"


@pytest.fixture
async def project(session: AsyncSession) -> Project:
    project = await make_project(session)
    await session.commit()
    return project


async def token_for(session: AsyncSession, *scopes: str, **values: Any) -> tuple[dict[str, str], ApiToken]:
    """The header of a new token, and the token."""
    user = await make_user(session, role=Role.ADMIN)
    token, secret = await create_token(session, user_id=user.id, name="test", scopes=scopes, **values)
    await session.commit()
    return {"Authorization": f"Bearer {secret}"}, token


async def count(session: AsyncSession, table: type[Prompt | Completion]) -> int:
    return await session.scalar(select(func.count()).select_from(table)) or 0


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


async def test_a_file_is_imported_by_the_short_name_of_its_project(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    headers, _ = await token_for(session, Scope.WRITE)
    body = lines({"prompt": "a"}, {"prompt": "b"})
    answer = await client.post(f"{API}/projects/{project.slug}/prompts:import", content=body, headers=headers)
    assert (answer.status_code, answer.json()["taken"]) == (200, 2)
    assert await count(session, Prompt) == 2


async def test_a_refused_file_is_a_problem_that_names_line_field_and_rule(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    headers, _ = await token_for(session, Scope.WRITE)
    body = lines({"prompt": "a"}, {"promt": "b"}) + b"{oops"
    answer = await client.post(f"{API}/projects/{project.id}/prompts:import", content=body, headers=headers)
    problem = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert "Nothing was stored: 2 of 3 lines" in problem["detail"]
    assert {"field": "line 2: promt", "rule": "is not a known field; extras belong into `meta`"} in problem["errors"]
    assert problem["errors"][-1]["field"] == "line 3: line"
    assert problem["errors"][-1]["rule"].startswith("is not JSON")
    assert await count(session, Prompt) == 0


async def test_partial_and_dry_run_are_asked_for_in_the_address(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    headers, _ = await token_for(session, Scope.WRITE)
    address = f"{API}/projects/{project.id}/completions:import"
    body = lines({"prompt": "a", "completions": ["b", "c"]}, {"prompt": "d"})
    looked = await client.post(address, params={"dry_run": True}, content=body, headers=headers)
    assert (looked.status_code, looked.json()["num_refused"], await count(session, Completion)) == (200, 1, 0)
    taken = await client.post(address, params={"partial": True}, content=body, headers=headers)
    assert (taken.status_code, taken.json()["taken"], await count(session, Completion)) == (200, 2, 2)


async def test_a_body_over_the_limit_is_413_and_stores_nothing(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    headers, _ = await token_for(session, Scope.WRITE)
    client._transport.app.state.settings.max_body_bytes = 30  # type: ignore[attr-defined]
    body = lines({"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"})
    answer = await client.post(f"{API}/projects/{project.id}/prompts:import", content=body, headers=headers)
    assert answer.status_code == 413
    assert await count(session, Prompt) == 0


async def test_who_has_a_parquet_file_read_sends_the_next_one_afterwards(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    headers, token = await token_for(session, Scope.WRITE)
    address = f"{API}/projects/{project.id}/prompts:import"
    async with OPENERS.turn(token.user_id):
        answer = await client.post(address, content=b"PAR1", headers=headers)
        assert (answer.status_code, answer.json()["title"]) == (429, "OneAtATime")
        assert (await client.post(address, content=lines({"prompt": "a"}), headers=headers)).status_code == 200
    assert (await client.post(address, content=b"PAR1", headers=headers)).status_code == 422


async def test_importing_needs_the_scope_write(client: AsyncClient, session: AsyncSession, project: Project) -> None:
    headers, _ = await token_for(session, Scope.READ)
    address = f"{API}/projects/{project.id}/prompts:import"
    assert (await client.post(address, content=lines({"prompt": "a"}), headers=headers)).status_code == 403
    assert (await client.post(address, content=lines({"prompt": "a"}))).status_code == 401


async def test_another_projects_token_finds_nothing(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    other = await make_project(session)
    headers, _ = await token_for(session, Scope.WRITE, Scope.READ, project_ids=[other.id])
    for answer in (
        await client.post(
            f"{API}/projects/{project.id}/prompts:import", content=lines({"prompt": "a"}), headers=headers
        ),
        await client.get(f"{API}/projects/{project.slug}/prompts", headers=headers),
        await client.get(f"{API}/completions", params={"project_id": str(project.id)}, headers=headers),
    ):
        assert answer.status_code == 404


async def test_prompts_are_listed_page_by_page(client: AsyncClient, session: AsyncSession, project: Project) -> None:
    made = [await make_prompt(session, project, split=split) for split in ("train", "test", "train", "train")]
    headers, _ = await token_for(session, Scope.READ)
    address = f"{API}/projects/{project.id}/prompts"
    found, cursor = [], None
    for _ in range(2):
        params = {"split": "train", "limit": "2"} | ({"cursor": cursor} if cursor else {})
        page = (await client.get(address, params=params, headers=headers)).json()
        found += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert found == [str(made[index].id) for index in (0, 2, 3)]
    assert cursor is None


async def test_a_cursor_of_somebody_else_is_400(client: AsyncClient, session: AsyncSession, project: Project) -> None:
    headers, _ = await token_for(session, Scope.READ)
    for cursor in ("x", "-1", "9" * 30, "٣"):
        answer = await client.get(f"{API}/projects/{project.id}/prompts", params={"cursor": cursor}, headers=headers)
        assert answer.status_code == 400


async def test_completions_are_streamed_with_their_prompts(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    prompt = await make_prompt(session, project, split="test")
    mine = await make_completion(session, prompt, text="Yes.", model_name="m")
    await make_completion(session, await make_prompt(session, project))
    headers, _ = await token_for(session, Scope.READ)
    params = {"project_id": project.slug, "split": "test"}
    answer = await client.get(f"{API}/completions", params=params, headers=headers)
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    (row,) = [json.loads(line) for line in answer.text.splitlines()]
    assert (row["id"], row["messages"], row["text"], row["model"]) == (str(mine.id), prompt.messages, "Yes.", "m")


# A worker and its run


async def held_run(session: AsyncSession, project: Project) -> tuple[Run, dict[str, str]]:
    """A run that a worker holds, and the headers of that worker."""
    headers, token = await token_for(session, Scope.WORKER)
    run = await make_run(
        session,
        project,
        state="running",
        fence=3,
        claimed_token_id=token.id,
        lease_expires_at=datetime.now(UTC) + timedelta(minutes=1),
    )
    return run, headers | {"Rankloop-Fence": "3"}


async def test_a_worker_reads_its_prompts_and_delivers_answers(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    prompt = await make_prompt(session, project)
    run, headers = await held_run(session, project)
    await freeze_run_prompts(session, run_id=run.id, project_id=project.id, splits=("train",))
    await session.commit()
    got = await client.get(f"{API}/runs/{run.id}/prompts", headers=headers)
    assert [json.loads(line)["id"] for line in got.text.splitlines()] == [str(prompt.id)]
    body = {"completions": [{"prompt_id": str(prompt.id), "index": index, "text": str(index)} for index in range(4)]}
    sent = [await client.post(f"{API}/runs/{run.id}/completions", json=body, headers=headers) for _ in range(2)]
    assert [answer.json() for answer in sent] == [{"stored": 4, "repeated": 0}, {"stored": 0, "repeated": 4}]


async def test_a_worker_that_was_given_up_neither_reads_nor_writes(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    prompt = await make_prompt(session, project)
    run, headers = await held_run(session, project)
    await session.commit()
    old = headers | {"Rankloop-Fence": "2"}
    body = {"completions": [{"prompt_id": str(prompt.id), "index": 0, "text": "a"}]}
    assert (await client.get(f"{API}/runs/{run.id}/prompts", headers=old)).status_code == 409
    assert (await client.post(f"{API}/runs/{run.id}/completions", json=body, headers=old)).status_code == 409
    assert await count(session, Completion) == 0


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
async def test_text_that_cannot_be_stored_is_422_with_its_place(
    client: AsyncClient, session: AsyncSession, project: Project, text: str
) -> None:
    prompt = await make_prompt(session, project)
    run, headers = await held_run(session, project)
    await session.commit()
    body = {"completions": [{"prompt_id": str(prompt.id), "index": 0, "text": text}]}
    headers |= {"Content-Type": "application/json"}
    answer = await client.post(f"{API}/runs/{run.id}/completions", content=json.dumps(body), headers=headers)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "completions.0.text"
