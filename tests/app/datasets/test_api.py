"""Datasets over HTTP: freeze, list, the frozen bytes; and the admin's pages of them."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable

import pytest
from httpx2 import AsyncClient
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Role, Scope
from app.accounts.tokens import create_token
from app.datasets import service
from app.projects.models import Project
from tests.factories import make_project, make_prompt, make_ranking, make_run, make_task, make_user, sign_in

API = "/api/v1"
Headers = Callable[..., Awaitable[dict[str, str]]]


@pytest.fixture
async def project(session: AsyncSession) -> Project:
    """A project with three rankings."""
    project = await make_project(session, slug="支持")
    for _ in range(3):
        await make_ranking(session, await make_task(session, await make_prompt(session, project), k=2))
    await session.commit()
    return project


@pytest.fixture
def headers(session: AsyncSession) -> Headers:
    async def make(*scopes: str, **values: object) -> dict[str, str]:
        user = await make_user(session, role=Role.ADMIN)
        _, secret = await create_token(session, user_id=user.id, name="test", scopes=scopes, **values)
        await session.commit()
        return {"Authorization": f"Bearer {secret}"}

    return make


async def test_a_trainer_freezes_a_dataset_and_a_worker_reads_its_rows(
    client: AsyncClient, session: AsyncSession, project: Project, headers: Headers
) -> None:
    made = await client.post(f"{API}/datasets", json={"project_id": project.slug}, headers=await headers(Scope.WRITE))
    assert made.status_code == 201
    dataset = made.json()
    assert (dataset["number"], dataset["num_rows"], dataset["counts"]["num_pairs"]) == (1, 3, 3)
    await make_run(session, project, kind="reward", config={"dataset": {"id": dataset["id"]}})
    worker = await headers(Scope.WORKER)
    assert (
        await client.post(f"{API}/runs:claim", json={"worker": "w", "kinds": ["reward"]}, headers=worker)
    ).is_success
    rows = await client.get(f"{API}/datasets/{dataset['id']}/rows", headers=worker)
    assert hashlib.sha256(rows.content).hexdigest() == dataset["sha256"]
    assert rows.headers["etag"] == f'"{dataset["sha256"]}"'


async def test_an_export_is_a_file_whose_name_says_what_it_is(
    client: AsyncClient, session: AsyncSession, project: Project, headers: Headers
) -> None:
    dataset = await service.freeze(session, project=project)
    await session.commit()
    answer = await client.get(f"{API}/datasets/{dataset.id}/export", headers=await headers(Scope.READ))
    assert hashlib.sha256(answer.content).hexdigest() == dataset.sha256
    name = "%E6%94%AF%E6%8C%81-dataset-1.jsonl"
    assert answer.headers["content-disposition"] == f"attachment; filename*=UTF-8''{name}"


async def test_an_unknown_format_is_refused(
    client: AsyncClient, session: AsyncSession, project: Project, headers: Headers
) -> None:
    dataset = await service.freeze(session, project=project)
    address = f"{API}/datasets/{dataset.id}/export?format=xml"
    await session.commit()
    answer = await client.get(address, headers=await headers(Scope.READ))
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "format")


async def test_datasets_are_listed_newest_first_page_by_page(
    client: AsyncClient, session: AsyncSession, project: Project, headers: Headers
) -> None:
    for _ in range(3):
        await service.freeze(session, project=project)
    reader = await headers(Scope.READ)
    params = {"project_id": str(project.id), "limit": "2"}
    first = (await client.get(f"{API}/datasets", params=params, headers=reader)).json()
    second = (
        await client.get(f"{API}/datasets", params=params | {"cursor": first["next_cursor"]}, headers=reader)
    ).json()
    assert [item["number"] for item in first["items"] + second["items"]] == [3, 2, 1]
    assert second["next_cursor"] is None


async def test_nothing_to_freeze_is_a_conflict_that_says_what_to_do(
    client: AsyncClient, session: AsyncSession, headers: Headers
) -> None:
    empty = await make_project(session)
    answer = await client.post(
        f"{API}/datasets", json={"project_id": str(empty.id)}, headers=await headers(Scope.WRITE)
    )
    assert answer.status_code == 409
    assert "Rank some tasks first" in answer.json()["detail"]


async def test_another_projects_dataset_is_not_there(
    client: AsyncClient, session: AsyncSession, project: Project, headers: Headers
) -> None:
    dataset = await service.freeze(session, project=project)
    other = await make_project(session)
    stranger = await headers(Scope.READ, Scope.WORKER, Scope.WRITE, project_ids=[other.id])
    for path in ("", "/rows", "/export"):
        assert (await client.get(f"{API}/datasets/{dataset.id}{path}", headers=stranger)).status_code == 404
    frozen = await client.post(f"{API}/datasets", json={"project_id": str(project.id)}, headers=stranger)
    assert frozen.status_code == 404


# Pages


async def test_an_admin_freezes_looks_and_downloads(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    await sign_in(client, session)
    base = f"/projects/{project.slug}/datasets"
    assert "A new one would hold 3 rankings." in (await client.get(base)).text
    frozen = await client.post(base)
    assert frozen.status_code == 303
    dataset = await service.get_dataset_by_number(session, project.id, 1)
    page = (await client.get(frozen.headers["location"])).text
    assert dataset.sha256 in page
    downloaded = await client.get(f"{base}/1/download")
    assert hashlib.sha256(downloaded.content).hexdigest() == dataset.sha256


async def test_an_empty_project_has_nothing_to_freeze_and_no_dataset(
    client: AsyncClient, session: AsyncSession
) -> None:
    empty = await make_project(session)
    await sign_in(client, session)
    base = f"/projects/{empty.slug}/datasets"
    assert (await client.post(base)).status_code == 409
    assert (await client.get(f"{base}/1")).status_code == 404
