"""Pages and API of quality: what they show, in both languages, and what changes when a flag is settled."""

from __future__ import annotations

import csv
import io

from httpx2 import AsyncClient
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import AuditEntry, Role
from app.accounts.tokens import create_token
from app.main import API
from app.quality import service
from app.quality.models import QualityFlag
from tests.app.quality.test_service import crowd_project
from tests.factories import make_project, make_prompt, make_ranking, make_task, make_user, sign_in


async def test_agreement_stands_beside_instructgpts(client: AsyncClient, session: AsyncSession) -> None:
    project, _ = await crowd_project(session, num_people=2, num_tasks=4)
    await sign_in(client, session)
    page = await client.get(f"/projects/{project.slug}/quality")
    assert page.status_code == 200
    assert "InstructGPT: 72.6 % ± 1.5" in page.text
    assert "8 rankings · 4 tasks · 2 people" in page.text
    client.cookies.set("rl_language", "zh")
    assert "成对一致率" in (await client.get(f"/projects/{project.slug}/quality")).text


async def test_without_overlap_the_pages_say_so(client: AsyncClient, session: AsyncSession) -> None:
    project = await make_project(session)
    await sign_in(client, session)
    base = f"/projects/{project.slug}"
    assert "no task was ranked by two people" in (await client.get(f"{base}/quality")).text
    assert "Nobody has ranked anything here yet." in (await client.get(f"{base}/quality/annotators")).text
    assert "No rankings yet." in (await client.get(f"{base}/quality/bias")).text
    assert "You have ranked nothing here yet." in (await client.get(f"{base}/my-work")).text


async def test_a_flag_is_shown_settled_and_kept(client: AsyncClient, session: AsyncSession) -> None:
    project, people = await crowd_project(session, reversed_person=True)
    admin = await sign_in(client, session)
    base = f"/projects/{project.slug}/quality"
    assert "ranks in reverse" in (await client.get(f"{base}/annotators")).text
    page = await client.get(f"{base}/annotators/{people[-1].id}")
    assert "It is wrong" in page.text
    flags = (await session.scalars(select(QualityFlag))).all()
    for flag in flags:
        answer = await client.post(f"{base}/flags/{flag.id}", data={"settlement": "dismissed", "note": "<b>talked</b>"})
        assert answer.headers["location"] == f"{base}/annotators/{people[-1].id}"
    page = await client.get(f"{base}/annotators/{people[-1].id}")
    assert "It is wrong" not in page.text
    assert "&lt;b&gt;talked&lt;/b&gt;" in page.text
    entry = (await session.scalars(select(AuditEntry).where(AuditEntry.action == "flag.dismissed"))).first()
    assert entry is not None
    assert (entry.actor_id, entry.subject) == (admin.id, str(people[-1].id))


async def test_everybodys_share_of_the_rankings_is_shown(client: AsyncClient, session: AsyncSession) -> None:
    """Of two who ranked four tasks, one ranks four more: 8 of 12, on every page of the list."""
    project, people = await crowd_project(session, num_people=2, num_tasks=4)
    for _ in range(4):
        await make_ranking(
            session, await make_task(session, await make_prompt(session, project), k=3), annotator=people[1]
        )
    await sign_in(client, session)
    page = (await client.get(f"/projects/{project.slug}/quality/annotators")).text
    assert '<td class="n">8</td><td class="n">66.7 %</td>' in page
    assert '<td class="n">4</td><td class="n">33.3 %</td>' in page
    rows = [await service.list_people(session, project, limit=1, offset=offset) for offset in (0, 1)]
    assert {row.share for (row,) in rows} == {4 / 12, 8 / 12}


async def test_a_settlement_is_one_of_two_and_a_flag_of_this_project(
    client: AsyncClient, session: AsyncSession
) -> None:
    project, _ = await crowd_project(session, reversed_person=True)
    other = await make_project(session)
    await sign_in(client, session)
    await client.get(f"/projects/{project.slug}/quality/annotators")
    flag = (await session.scalars(select(QualityFlag))).first()
    assert flag is not None
    wrong = await client.post(f"/projects/{project.slug}/quality/flags/{flag.id}", data={"settlement": "maybe"})
    assert wrong.status_code == 422
    away = await client.post(f"/projects/{other.slug}/quality/flags/{flag.id}", data={"settlement": "dismissed"})
    assert away.status_code == 404


async def test_who_neither_ranked_here_nor_may_has_no_page(client: AsyncClient, session: AsyncSession) -> None:
    project, _ = await crowd_project(session, num_people=1, num_tasks=1)
    stranger, newcomer = await make_user(session, role=None), await make_user(session)
    await sign_in(client, session)
    address = f"/projects/{project.slug}/quality/annotators"
    assert (await client.get(f"{address}/{stranger.id}")).status_code == 404
    assert (await client.get(f"{address}/{newcomer.id}")).status_code == 200


async def test_everybody_sees_their_own_work_and_no_flags(client: AsyncClient, session: AsyncSession) -> None:
    project, _ = await crowd_project(session, num_people=2, num_tasks=2)
    user = await sign_in(client, session, role=Role.ANNOTATOR)
    await make_ranking(session, await make_task(session, await make_prompt(session, project), k=3), annotator=user)
    await session.commit()
    page = await client.get(f"/projects/{project.slug}/my-work")
    assert page.status_code == 200
    assert "Two people here agree on" in page.text
    assert "Evidence" not in page.text
    assert "/my-work" in (await client.get("/")).text


async def test_the_report_is_a_page_a_table_and_json(client: AsyncClient, session: AsyncSession) -> None:
    project, _ = await crowd_project(session, num_people=2, num_tasks=10)
    await sign_in(client, session)
    base = f"/projects/{project.slug}/quality/bias"
    assert "card 3" in (await client.get(base)).text
    table = await client.get(f"{base}.csv")
    assert table.headers["content-disposition"] == f'attachment; filename="{project.slug}-bias.csv"'
    rows = list(csv.DictReader(io.StringIO(table.text)))
    found = (await client.get(f"{base}.json")).json()
    assert len(found["rates"]) == len(rows) > 4
    assert found["num_rankings"] == 20


async def test_the_api_has_the_same_figures(client: AsyncClient, session: AsyncSession) -> None:
    project, people = await crowd_project(session, num_people=3, num_tasks=4)
    admin = await make_user(session, role=Role.ADMIN)
    _, secret = await create_token(session, user_id=admin.id, name="t", scopes=["read", "admin"])
    await session.commit()
    headers = {"authorization": f"Bearer {secret}"}
    base = f"{API}/projects/{project.slug}/quality"
    found = (await client.get(base, headers=headers)).json()
    assert found["everything"]["with_ties"]["num_prompts"] == 4
    assert found["instructgpt"] == {"value": 0.726, "margin": 0.015}
    first = (await client.get(f"{base}/annotators?limit=2", headers=headers)).json()
    rest = (await client.get(f"{base}/annotators?limit=2&cursor={first['next_cursor']}", headers=headers)).json()
    assert {item["id"] for item in first["items"] + rest["items"]} == {str(person.id) for person in people}
    assert rest["next_cursor"] is None
    assert set(first["items"][0]["portrait"]["checks"]) == {"random", "reversed", "first_card", "longest", "speeding"}
    assert (await client.get(f"{base}/bias", headers=headers)).json()["position"]["expected"] > 0.3
