"""Known orders in a file: a researcher's order makes its task gold, and what can't be gold is refused with its rule."""

from __future__ import annotations

import json
import re
from html import unescape
from typing import Any

import pytest
from httpx2 import AsyncClient
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import AuditEntry, Role, Scope
from app.accounts.tokens import create_token
from app.projects.models import Project
from app.prompts.models import Prompt
from app.quality.gold import list_gold
from app.rankings.models import Ranking
from app.tasks.models import GoldOrder, Purpose, Task, TaskCompletion
from tests.app.rankings.test_importing import ABC, count, item, send
from tests.factories import make_project, make_ranking, make_task, make_user, sign_in

ROW: dict[str, Any] = {"prompt": "2 + 2?", "completions": ["22", "4", "four"], "order": [["1", "2"], ["0"]]}


@pytest.fixture
async def project(session: AsyncSession) -> Project:
    return await make_project(session)


async def gold(session: AsyncSession) -> GoldOrder:
    order = (await session.scalars(select(GoldOrder))).one()
    await session.refresh(order)
    return order


async def test_a_known_order_makes_its_task_gold_and_keeps_the_ranking(session: AsyncSession, project: Project) -> None:
    ada = await make_user(session)
    row = ROW | {"gold": True, "why": "A sum."}
    report = await send(session, project, row, by_admin=True, actor_id=ada.id)
    assert (report.num_gold, report.taken, report.num_refused) == (1, 1, 0)
    order = await gold(session)
    assert (order.places, order.why, order.marked_by, order.is_qualifying) == ([2, 1, 1], "A sum.", ada.id, False)
    assert (await session.scalars(select(Task))).one().is_gold
    assert await count(session, Ranking) == 1
    (shown,) = await list_gold(session, project)
    assert (shown.num_rankings, shown.agreement) == (0, None), "it would agree with itself"
    entry = (await session.scalars(select(AuditEntry).where(AuditEntry.action == "rankings.import"))).one()
    assert entry.detail["gold"] == 1


async def test_the_interchange_form_may_say_gold_and_each_pair_has_its_order(
    session: AsyncSession, project: Project
) -> None:
    pairs = [{"a": "a", "b": "b", "pref": "b"}, {"a": "b", "b": "c", "pref": "b"}]
    line = item(annotations=[{"annotator": "ann", "pairs": pairs}], gold="qualification")
    assert (await send(session, project, line, by_admin=True)).num_gold == 2
    orders = (await session.scalars(select(GoldOrder).order_by(GoldOrder.places))).all()
    assert [(order.places, order.is_qualifying) for order in orders] == [([1, 2], True), ([2, 1], True)]


async def test_two_who_say_the_same_are_one_known_order(session: AsyncSession, project: Project) -> None:
    orders = [{"annotator": name, "ranks": {"a": 1, "b": rank, "c": rank}} for name, rank in (("ann", 2), ("ben", 9))]
    report = await send(session, project, item(annotations=orders, gold=True), by_admin=True)
    assert (report.num_gold, report.taken) == (1, 2)
    assert (await gold(session)).places == [1, 2, 2]


async def test_the_same_file_again_changes_nothing(session: AsyncSession, project: Project) -> None:
    await send(session, project, ROW | {"gold": True, "why": "A sum."}, by_admin=True)
    report = await send(session, project, ROW | {"gold": True, "why": "Another."}, by_admin=True)
    assert (report.num_gold, report.taken, report.duplicates, report.num_refused) == (0, 0, 1, 0)
    assert (await gold(session)).why == "A sum."


async def test_what_is_there_already_becomes_gold_whatever_order_its_answers_have(
    session: AsyncSession, project: Project
) -> None:
    await send(session, project, ROW)
    turned = {"prompt": "2 + 2?", "completions": ["four", "22", "4"], "order": [["0", "2"], ["1"]], "gold": True}
    report = await send(session, project, turned, by_admin=True)
    assert (report.num_gold, report.new_completions, await count(session, Task)) == (1, 0, 1)
    assert (await gold(session)).places == [2, 1, 1]


async def test_a_check_alone_says_how_many_and_stores_none(session: AsyncSession, project: Project) -> None:
    report = await send(session, project, ROW | {"gold": True}, by_admin=True, dry_run=True)
    assert (report.num_gold, await count(session, GoldOrder), await count(session, Task)) == (1, 0, 0)


GOLD = {"gold": True}


@pytest.mark.parametrize(
    ("line", "field", "words"),
    [
        (ROW | GOLD | {"order": [["1"], ["0"]]}, "gold", "a place for every answer"),
        (ROW | GOLD | {"order": [["0", "1", "2"]]}, "gold", "two places or more"),
        (
            item(annotations=[{"ranks": dict(zip("abc", ranks, strict=True))} for ranks in ((1, 2, 3), (1, 3, 2))])
            | GOLD,
            "gold",
            "two on this line differ",
        ),
        (item(annotations=[{"ranks": {"a": 1, "b": 2}}]) | GOLD, "gold", "a place for every answer"),
        (ROW | {"why": "A sum."}, "why", "set `gold`"),
        (ROW | GOLD | {"why": "x" * 2001}, "why", "at most 2,000 characters"),
        (ROW | {"gold": "silver"}, "gold", "qualification"),
    ],
)
async def test_what_cannot_be_gold_is_refused_and_not_learned_from_instead(
    session: AsyncSession, project: Project, line: dict[str, Any], field: str, words: str
) -> None:
    good = {"prompt": "Which?", "completions": ["x", "y"], "order": [["1"], ["0"]], "gold": True}
    report = await send(session, project, good, line, by_admin=True, partial=True)
    assert [(refused.line, refused.field) for refused in report.refused] == [(2, field)]
    assert words in report.refused[0].rule
    assert (report.num_gold, await count(session, Ranking), await count(session, Task)) == (1, 1, 1)


async def test_who_is_no_admin_makes_no_gold(session: AsyncSession, project: Project) -> None:
    report = await send(session, project, ROW, ROW | GOLD, partial=True)
    assert [(refused.line, refused.field) for refused in report.refused] == [(2, "gold")]
    assert "for admins" in report.refused[0].rule
    assert await count(session, GoldOrder) == 0


@pytest.mark.parametrize("change", [{"order": [["1"], ["0", "2"]]}, {"gold": "qualification"}])
async def test_what_is_known_is_not_written_over(
    session: AsyncSession, project: Project, change: dict[str, Any]
) -> None:
    first, other = ROW | GOLD, ROW | GOLD | change
    report = await send(session, project, first, other, by_admin=True, partial=True)
    assert [(refused.line, refused.field) for refused in report.refused] == [(2, "gold")]
    again = await send(session, project, other, by_admin=True)
    assert (again.num_refused, again.is_stored) == (1, False)
    order = await gold(session)
    assert (order.places, order.is_qualifying, await count(session, Ranking)) == ([2, 1, 1], False, 1)


async def test_what_a_refused_line_says_is_not_known_to_the_next(session: AsyncSession, project: Project) -> None:
    """Line 2 says two things: one is known otherwise, so that the other is not stored either."""
    first = item(annotations=[{"annotator": "ann", "pairs": [{"a": "a", "b": "b", "pref": "b"}]}], gold=True)
    pairs = [{"a": "b", "b": "c", "pref": "b"}, {"a": "a", "b": "b", "pref": "a"}]
    second = item(annotations=[{"annotator": "ann", "pairs": pairs}], gold=True)
    third = item(annotations=[{"annotator": "ann", "pairs": [{"a": "b", "b": "c", "pref": "c"}]}], gold=True)
    report = await send(session, project, first, second, third, by_admin=True, partial=True)
    assert [refused.line for refused in report.refused] == [2]
    assert report.num_gold == 2


async def test_our_own_ranking_is_taken_over_on_its_page(session: AsyncSession) -> None:
    task = await make_task(session, k=2)
    ranking = await make_ranking(session, task)
    project = await session.get_one(Project, task.project_id)
    line = {"ranking_id": str(ranking.id), "prompt": "?", "completions": ABC, "order": [["a"], ["b"], ["c"]]} | GOLD
    (refused,) = (await send(session, project, line, by_admin=True)).refused
    assert (refused.field, "take its order over" in refused.rule) == ("gold", True)


async def test_no_file_reaches_the_tasks_of_a_comparison(session: AsyncSession, project: Project) -> None:
    project.test_share, project.validation_share = 0, 0.99
    await send(session, project, ROW)
    task = (await session.scalars(select(Task))).one()
    compared = await make_task(session, await session.get_one(Prompt, task.prompt_id), k=0, purpose=Purpose.COMPARE)
    answers = (await session.scalars(select(TaskCompletion).order_by(TaskCompletion.position))).all()
    for answer in answers[:2]:
        session.add(TaskCompletion(task_id=compared.id, completion_id=answer.completion_id, position=answer.position))
    await session.flush()
    row = {"prompt": "2 + 2?", "completions": ["22", "4"], "order": [["1"], ["0"]]} | GOLD
    assert (await send(session, project, row, by_admin=True)).num_gold == 1
    assert (await gold(session)).task_id not in (task.id, compared.id)


@pytest.mark.parametrize("kind", ["prompts", "completions"])
async def test_gold_without_its_order_is_refused_and_says_where_it_belongs(
    client: AsyncClient, session: AsyncSession, project: Project, kind: str
) -> None:
    await sign_in(client, session)
    line = {"prompt": "2 + 2?", "responses": [{"text": "4"}], "gold": True}
    sent = {"kind": kind, "text": json.dumps(line)}
    answer = await client.post(f"/projects/{project.slug}/prompts/import", data=sent)
    assert (answer.status_code, "import this file as rankings" in answer.text) == (422, True)
    assert await count(session, Prompt) == 0


# Who may, and the words of the page


@pytest.mark.parametrize(("role", "status"), [(Role.ADMIN, 200), (Role.TRAINER, 422)])
async def test_only_an_admins_page_makes_gold(
    client: AsyncClient, session: AsyncSession, project: Project, role: str, status: int
) -> None:
    await sign_in(client, session, role=role)
    sent = {"kind": "rankings", "text": json.dumps(ROW | GOLD)}
    answer = await client.post(f"/projects/{project.slug}/prompts/import", data=sent)
    assert answer.status_code == status
    assert ("1 order is known from now on." in answer.text) == (status == 200)
    assert await count(session, GoldOrder) == (status == 200)


@pytest.mark.parametrize(
    ("role", "scopes", "status"),
    [
        (Role.ADMIN, (Scope.WRITE, Scope.ADMIN), 200),
        (Role.ADMIN, (Scope.WRITE,), 422),
        (Role.TRAINER, (Scope.WRITE,), 422),
    ],
)
async def test_only_an_admins_token_makes_gold(
    client: AsyncClient, session: AsyncSession, project: Project, role: str, scopes: tuple[Scope, ...], status: int
) -> None:
    user = await make_user(session, role=role)
    _, secret = await create_token(session, user_id=user.id, name="test", scopes=scopes)
    await session.commit()
    answer = await client.post(
        f"/api/v1/projects/{project.slug}/rankings:import",
        content=json.dumps(ROW | GOLD),
        headers={"authorization": f"Bearer {secret}"},
    )
    assert answer.status_code == status
    if status == 200:
        assert answer.json()["num_gold"] == 1
    else:
        assert answer.json()["errors"][0]["field"] == "line 1: gold"


async def test_every_example_of_the_page_is_taken(client: AsyncClient, session: AsyncSession, project: Project) -> None:
    await sign_in(client, session)
    page = (await client.get(f"/projects/{project.slug}/prompts/import")).text
    found = re.search(r"<details class=\"more help\">.*?<code>(.*?)</code>", page, re.DOTALL)
    assert found
    examples = [json.loads(line) for line in unescape(found[1]).splitlines()]
    kinds = ["prompts", "prompts", "completions", "rankings", "rankings", "completions", "corpus", "corpus"]
    for kind, line in zip(kinds, examples, strict=True):
        sent = {"kind": kind, "text": json.dumps(line)}
        answer = await client.post(f"/projects/{project.slug}/prompts/import", data=sent)
        assert answer.status_code == 200, (kind, line, answer.text)
