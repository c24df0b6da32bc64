"""What the ranking page's script asks for: the next task ahead, packs, answers without a page; and whose work it is."""

from __future__ import annotations

import json
import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from httpx2 import AsyncClient
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Role, User
from app.projects.models import Project
from app.rankings.models import Ranking
from app.tasks.models import Lease, LeaseKind, LeaseState
from tests.factories import make_completion, make_project, make_prompt, make_task, sign_in

SCRIPT = {"Accept": "application/json"}
PAGE = {"Accept": "text/html"}
CANARY = "canary-model-7b"


@pytest.fixture
async def project(session: AsyncSession) -> Project:
    """Four tasks wait."""
    project = await make_project(session, model_alias=CANARY)
    for _ in range(4):
        prompt = await make_prompt(session, project)
        await make_task(session, prompt, k=2)
        await make_completion(session, prompt)
    return project


@pytest.fixture
async def ada(session: AsyncSession, client: AsyncClient) -> User:
    return await sign_in(client, session, role=Role.ANNOTATOR)


async def open_page(session: AsyncSession, client: AsyncClient, project: Project) -> Lease:
    """The ranking page; gives what is in hand."""
    assert (await client.get(f"/projects/{project.slug}/rank", headers=PAGE)).status_code == 200
    query = select(Lease).where(Lease.state == LeaseState.OPEN, Lease.kind != LeaseKind.PRELOADED)
    return (await session.scalars(query.order_by(Lease.created_at, Lease.id))).one()


async def fetch_ahead(client: AsyncClient, project: Project) -> dict[str, Any]:
    answer = await client.post(f"/projects/{project.slug}/rank/ahead", headers=SCRIPT)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def send(client: AsyncClient, lease: Lease, places: str = "12", **headers: str) -> Any:
    fields = {f"place_{key}": place for key, place in zip(lease.display_order, places, strict=False)}
    return await client.post(f"/leases/{lease.id}", data=fields, headers=SCRIPT | headers)


async def take_pack(client: AsyncClient, project: Project, num: int = 3, pack_id: object = None) -> Any:
    form = {"num": str(num), "pack_id": str(pack_id or uuid.UUID(int=5))}
    return await client.post(f"/projects/{project.slug}/rank/pack", data=form, headers=SCRIPT)


async def test_the_next_task_comes_as_a_page_that_counts_the_one_in_hand_as_done(
    client: AsyncClient, session: AsyncSession, project: Project, ada: User
) -> None:
    lease = await open_page(session, client, project)
    desk = await fetch_ahead(client, project)
    assert desk["in_hand"] == str(lease.id)
    assert f'data-lease="{desk["ahead"]["lease_id"]}"' in desk["ahead"]["html"]
    assert "1 done today · 3 waiting" in desk["ahead"]["html"]


@pytest.mark.parametrize("k", [2, 4])
async def test_what_is_fetched_is_what_the_page_says_of_its_task(
    client: AsyncClient, session: AsyncSession, ada: User, k: int
) -> None:
    """The same lines in the same order, and no others: the script puts them in the place of those before."""
    project = await make_project(session, k=k, rationale="optional", confidence="optional")
    for _ in range(2):
        await make_task(session, await make_prompt(session, project), k=k)
    lease = await open_page(session, client, project)
    fetched = lines_of((await fetch_ahead(client, project))["ahead"]["html"])
    assert (await send(client, lease, "1234", preference="1")).status_code == 200
    page = lines_of((await client.get(f"/projects/{project.slug}/rank", headers=PAGE)).text)
    parts = [found for line in fetched for found in PART.findall(line)]
    assert parts == [found for line in page for found in PART.findall(line)]
    assert len(parts) == (8 if k == 2 else 7)
    whole = iter(page)
    assert [line for line in fetched if line not in whole] == []


PART = re.compile(r'data-part="(\w+)"')


def lines_of(html: str) -> list[str]:
    """What stands on them, without the time that is left and the frame around it all."""
    html = re.sub(r' data-expires-in="\d+"', "", html).replace(" data-words=", "\n")
    lines = re.sub(r">\s*<", ">\n<", html).splitlines()
    found = [line.strip().removesuffix(">") for line in lines]
    return [line for line in found if line not in ("", "</head", "<body", "</form")]


async def test_who_wrote_an_answer_is_nowhere_in_what_is_fetched(
    client: AsyncClient, session: AsyncSession, project: Project, ada: User
) -> None:
    await open_page(session, client, project)
    assert CANARY not in json.dumps(await fetch_ahead(client, project))
    assert CANARY not in (await take_pack(client, project)).text


async def test_a_script_is_told_that_its_ranking_is_stored_and_how_its_task_came(
    client: AsyncClient, session: AsyncSession, project: Project, ada: User
) -> None:
    first = await open_page(session, client, project)
    following = await session.get_one(Lease, uuid.UUID((await fetch_ahead(client, project))["ahead"]["lease_id"]))
    answers = [await send(client, first), await send(client, following)]
    assert [answer.status_code for answer in answers] == [200, 200]
    rows = {str(row.id): row for row in await session.scalars(select(Ranking))}
    assert [rows[answer.json()["ranking_id"]].is_preloaded for answer in answers] == [False, True]


async def test_a_script_that_is_refused_is_told_why_and_the_page_comes_on_request(
    client: AsyncClient, session: AsyncSession, project: Project, ada: User
) -> None:
    lease = await open_page(session, client, project)
    answer = await send(client, lease, "1")
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert "no place yet" in answer.json()["errors"][0]["rule"]
    page = await send(client, lease, "1", Accept="text/html")
    assert (page.status_code, "no place yet" in page.text) == (422, True)


async def test_work_is_never_sent_as_somebody_elses(
    client: AsyncClient, session: AsyncSession, project: Project, ada: User
) -> None:
    lease = await open_page(session, client, project)
    assert (await send(client, lease, **{"Rankloop-Person": str(ada.id)})).status_code == 200
    await sign_in(client, session, role=Role.ANNOTATOR)
    answers = [
        await send(client, lease, **{"Rankloop-Person": str(ada.id)}),
        await client.post(f"/leases/{lease.id}/draft", json={}, headers={"Rankloop-Person": str(ada.id)}),
        await client.post(f"/projects/{project.slug}/rank/ahead", headers={"Rankloop-Person": str(ada.id)}),
    ]
    assert [(answer.status_code, answer.json()["title"]) for answer in answers] == [(409, "OtherPerson")] * 3
    assert (await send(client, lease)).status_code == 404


async def test_a_closing_page_lets_go_by_a_beacon(
    client: AsyncClient, session: AsyncSession, project: Project, ada: User
) -> None:
    await open_page(session, client, project)
    following = (await fetch_ahead(client, project))["ahead"]["lease_id"]
    assert (await client.post(f"/leases/{following}/let-go")).status_code == 204
    lease = await session.get_one(Lease, uuid.UUID(following), populate_existing=True)
    assert lease.state == LeaseState.EXPIRED


async def test_a_second_answer_from_another_tab_leads_on(
    client: AsyncClient, session: AsyncSession, project: Project, ada: User
) -> None:
    lease = await open_page(session, client, project)
    await send(client, lease)
    page = await send(client, lease, "21", **PAGE)
    assert (page.status_code, f'href="/projects/{project.slug}/rank"' in page.text) == (409, True)


async def test_a_pack_is_ranked_on_the_device_that_took_it_and_on_no_other(
    client: AsyncClient, session: AsyncSession, project: Project, ada: User
) -> None:
    await open_page(session, client, project)
    taken = (await take_pack(client, project)).json()
    left = datetime.fromisoformat(taken["expires_at"]) - datetime.now(UTC)
    assert timedelta(hours=11, minutes=59) < left <= timedelta(hours=12)
    assert [f"{n} done today" in page["html"] for n, page in enumerate(taken["pages"])] == [True] * 3
    page = await client.get(f"/projects/{project.slug}/rank", headers=PAGE)
    assert taken["pages"][0]["lease_id"] in page.text

    client.cookies.delete("rl_pack")
    elsewhere = await client.get(f"/projects/{project.slug}/rank", headers=PAGE)
    assert elsewhere.status_code == 409
    assert "3 tasks of" in elsewhere.text
    other = await take_pack(client, project, pack_id=uuid.UUID(int=6))
    assert (other.status_code, other.json()["title"]) == (409, "TasksPacked")
    answer = await client.post(f"/projects/{project.slug}/rank/pack/return", headers=PAGE)
    assert answer.headers["location"] == f"/projects/{project.slug}/rank"
    assert (await client.get(answer.headers["location"], headers=PAGE)).status_code == 200


async def test_a_late_answer_from_a_pack_is_kept(
    client: AsyncClient, session: AsyncSession, project: Project, ada: User
) -> None:
    taken = (await take_pack(client, project)).json()
    leases = [await session.get_one(Lease, uuid.UUID(page["lease_id"])) for page in taken["pages"]]
    await session.execute(update(Lease).values(expires_at=datetime.now(UTC) - timedelta(minutes=1)))
    hers = client.cookies["rl_session"]
    await sign_in(client, session, role=Role.ANNOTATOR)
    others = (await take_pack(client, project, 1, uuid.UUID(int=7))).json()["pages"][0]["lease_id"]
    gone = (await session.get_one(Lease, uuid.UUID(others))).task_id
    client.cookies.set("rl_session", hers)
    answers = [(lease.task_id == gone, (await send(client, lease)).json()["is_surplus"]) for lease in leases]
    assert sorted(answers) == [(False, False), (False, False), (True, True)]
    assert {row.is_offline for row in await session.scalars(select(Ranking))} == {True}


@pytest.mark.parametrize("form", [{"num": "0"}, {"num": "26"}, {"num": "x"}, {"pack_id": "mine"}])
async def test_a_pack_that_cant_be_is_422(
    client: AsyncClient, project: Project, ada: User, form: dict[str, str]
) -> None:
    fields = {"num": "3", "pack_id": str(uuid.UUID(int=5))} | form
    answer = await client.post(f"/projects/{project.slug}/rank/pack", data=fields, headers=SCRIPT)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] in form


@pytest.mark.parametrize("path", ["/leases/no-id", "/leases/no-id/skip", "/leases/7/let-go"])
async def test_a_page_with_a_wrong_id_is_404(client: AsyncClient, ada: User, path: str) -> None:
    assert (await client.post(path, headers=PAGE)).status_code == 404
