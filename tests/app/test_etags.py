"""What a reader has is not sent again; what somebody else changed is not overwritten."""

from __future__ import annotations

import pytest
from httpx2 import AsyncClient
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Role, Scope
from app.accounts.tokens import create_token
from tests.factories import make_project, make_user

API = "/api/v1"
PROJECT = f"{API}/projects/tagged"


@pytest.fixture(autouse=True)
async def project(client: AsyncClient, session: AsyncSession) -> None:
    """A project, and a client that may change it."""
    await make_project(session, slug="tagged", name="Before")
    user = await make_user(session, role=Role.ADMIN)
    _, secret = await create_token(session, user_id=user.id, name="t", scopes=[Scope.READ, Scope.ADMIN])
    await session.commit()
    client.headers["authorization"] = f"Bearer {secret}"


@pytest.mark.parametrize("address", [PROJECT, f"{API}/projects", f"{API}/datasets?project_id=tagged"])
async def test_what_a_reader_has_is_not_sent_again(client: AsyncClient, address: str) -> None:
    first = await client.get(address)
    tag = first.headers["etag"]
    for known in (tag, f'"other", W/{tag}', "*"):
        again = await client.get(address, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert "content-length" not in again.headers
    other = await client.get(address, headers={"If-None-Match": '"other"'})
    assert (other.status_code, other.content) == (200, first.content)


async def test_a_change_has_another_tag(client: AsyncClient) -> None:
    before = (await client.get(PROJECT)).headers["etag"]
    changed = await client.patch(PROJECT, json={"name": "After"}, headers={"If-Match": before})
    assert (changed.status_code, changed.json()["name"]) == (200, "After")
    now = await client.get(PROJECT, headers={"If-None-Match": before})
    assert (now.status_code, now.headers["etag"]) == (200, changed.headers["etag"])


async def test_a_change_of_what_somebody_else_changed_is_refused(client: AsyncClient) -> None:
    before = (await client.get(PROJECT)).headers["etag"]
    await client.patch(PROJECT, json={"name": "Somebody else's"})
    refused = await client.patch(PROJECT, json={"name": "Mine"}, headers={"If-Match": before})
    assert (refused.status_code, refused.json()["title"]) == (412, "ChangedMeanwhile")
    assert (await client.get(PROJECT)).json()["name"] == "Somebody else's"


async def test_refusals_and_streams_have_no_tag(client: AsyncClient) -> None:
    assert "etag" not in (await client.get(f"{API}/projects/nowhere")).headers
    lines = await client.get(f"{API}/rankings?project_id=tagged", headers={"Accept": "application/x-ndjson"})
    assert (lines.status_code, "etag" in lines.headers) == (200, False)
