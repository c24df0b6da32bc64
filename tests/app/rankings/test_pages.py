"""The ranking page as a plain form, and the admins' pages of tasks and rankings. No browser and no JavaScript here."""

from __future__ import annotations

import re
import uuid
from typing import Any

import pytest
from httpx2 import AsyncClient
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.guards import SESSION_COOKIE
from app.accounts.models import Role, User
from app.accounts.sessions import create_sign_in_link, sign_in
from app.projects.models import Project
from app.rankings import service
from app.rankings.answers import RankingAnswer
from app.rankings.models import Ranking
from app.tasks import making
from app.tasks.models import Lease, LeaseState
from tests.factories import make_completion, make_project, make_prompt, make_task, make_user

CANARY = "canary-model-7b"
ORIGIN = {"Origin": "http://127.0.0.1:8000"}


@pytest.fixture
async def project(session: AsyncSession) -> Project:
    project = await make_project(session, labels=[{"key": "rude", "en": "Rude", "zh": "粗鲁"}])
    await session.commit()
    return project


@pytest.fixture
async def ada(session: AsyncSession, client: AsyncClient) -> User:
    """An annotator who is signed in."""
    return await enter(session, client, await make_user(session, name="Ada"))


async def enter(session: AsyncSession, client: AsyncClient, user: User) -> User:
    link = await create_sign_in_link(session, user=user, public_url="http://127.0.0.1:8000")
    client.cookies.set(SESSION_COOKIE, await sign_in(session, secret=link.rpartition("#")[2]))
    await session.commit()
    return user


async def open_task(session: AsyncSession, client: AsyncClient, project: Project, num: int = 1) -> Lease:
    for _ in range(num):
        await make_task(session, await make_prompt(session, project))
    await session.commit()
    page = await client.get(f"/projects/{project.slug}/rank")
    assert page.status_code == 200
    return (await session.scalars(select(Lease).where(Lease.state == LeaseState.OPEN))).one()


def fields_of(lease: Lease, *places: int | str) -> dict[str, str]:
    given = places or range(1, len(lease.display_order) + 1)
    return {f"place_{key}": str(place) for key, place in zip(lease.display_order, given, strict=True)}


def checked(html: str, name: str) -> str | None:
    """The value of the radio button that is set."""
    for tag in re.findall(rf'<input type="radio" name="{name}"[^>]*>', html):
        if " checked" in tag:
            return re.search(r'value="(.*?)"', tag)[1]  # type: ignore[index]
    return None


async def test_who_is_not_signed_in_is_sent_to_sign_in(client: AsyncClient, project: Project) -> None:
    page = await client.get(f"/projects/{project.slug}/rank", headers={"Accept": "text/html"})
    assert (page.status_code, page.headers["location"]) == (303, f"/sign-in?next=/projects/{project.slug}/rank")


async def test_the_page_shows_the_answers_in_the_order_of_the_lease(
    client: AsyncClient, session: AsyncSession, project: Project, ada: User
) -> None:
    lease = await open_task(session, client, project)
    page = await client.get(f"/projects/{project.slug}/rank")
    shown = re.findall(r'data-id="([0-9a-f-]{36})" data-letter="(.)"', page.text)
    assert shown == list(zip([str(key) for key in lease.display_order], "ABCD", strict=True))


async def test_nothing_is_placed_at_first(
    client: AsyncClient, session: AsyncSession, project: Project, ada: User
) -> None:
    lease = await open_task(session, client, project)
    page = await client.get(f"/projects/{project.slug}/rank")
    assert {checked(page.text, f"place_{key}") for key in lease.display_order} == {""}


async def test_a_plain_form_is_stored_and_leads_to_the_next_task(
    client: AsyncClient, session: AsyncSession, project: Project, ada: User
) -> None:
    lease = await open_task(session, client, project, num=2)
    first, second = lease.display_order[:2]
    form = fields_of(lease, 2, 1, 2, 4) | {
        f"rating_{first}": "7",
        f"rating_{second}": "",
        f"flag_{second}": "rude",
        "rationale": "B is short.\r\nAnd rude.",
    }
    answer = await client.post(f"/leases/{lease.id}", data=form, headers=ORIGIN)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/projects/{project.slug}/rank")
    rows = await session.execute(text("select completion_id, place, rating, labels from ranking_places"))
    stored = {row.completion_id: (row.place, row.rating, row.labels) for row in rows}
    expected = [(2, 7, []), (1, None, ["rude"]), (2, None, []), (3, None, [])]
    assert [stored[key] for key in lease.display_order] == expected
    ranking = (await session.scalars(select(Ranking))).one()
    assert (ranking.source, ranking.rationale) == ("page", "B is short.\nAnd rude.")
    following = await client.get(answer.headers["location"])
    assert str(lease.id) not in following.text


async def test_sending_the_form_twice_stores_it_once(
    client: AsyncClient, session: AsyncSession, project: Project, ada: User
) -> None:
    lease = await open_task(session, client, project)
    for _ in range(2):
        answer = await client.post(f"/leases/{lease.id}", data=fields_of(lease), headers=ORIGIN)
        assert answer.status_code == 303
    assert len((await session.scalars(select(Ranking))).all()) == 1


async def test_a_form_that_can_not_be_taken_comes_back_as_it_was(
    client: AsyncClient, session: AsyncSession, project: Project, ada: User
) -> None:
    lease = await open_task(session, client, project)
    first, second, third, fourth = lease.display_order
    form = fields_of(lease, 2, 1, "", 2) | {
        f"rating_{first}": "6",
        f"flag_{second}": "rude",
        "rationale": "So far <b>so</b> good",
    }
    page = await client.post(f"/leases/{lease.id}", data=form, headers=ORIGIN)
    assert page.status_code == 422
    assert "Answer C has no place yet" in page.text
    assert [checked(page.text, f"place_{key}") for key in lease.display_order] == ["2", "1", "", "2"]
    assert checked(page.text, f"rating_{first}") == "6"
    assert re.search(rf'name="flag_{second}" value="rude" checked', page.text)
    assert "So far &lt;b&gt;so&lt;/b&gt; good</textarea>" in page.text
    assert f'id="error-{third}"' in page.text
    assert f'id="error-{fourth}"' not in page.text


async def test_the_reasons_are_told_in_the_readers_language(
    client: AsyncClient, session: AsyncSession, project: Project, ada: User
) -> None:
    lease = await open_task(session, client, project)
    headers = ORIGIN | {"Accept-Language": "zh-CN"}
    page = await client.post(f"/leases/{lease.id}", data=fields_of(lease, 1, 2, "", 3), headers=headers)
    assert "回答 C 还没有名次" in page.text


@pytest.mark.parametrize("place", ["0", "5", "x", "1.5", "\uff19", "-1", "9" * 5000], ids=len)
async def test_a_place_that_is_none_is_refused(
    client: AsyncClient, session: AsyncSession, project: Project, ada: User, place: str
) -> None:
    lease = await open_task(session, client, project)
    page = await client.post(f"/leases/{lease.id}", data=fields_of(lease, 1, 2, 3, place), headers=ORIGIN)
    assert (page.status_code, "A place is a number from 1 to 4" in page.text) == (422, True)


async def test_a_field_of_another_task_is_refused(
    client: AsyncClient, session: AsyncSession, project: Project, ada: User
) -> None:
    lease = await open_task(session, client, project)
    form = fields_of(lease) | {f"place_{uuid.uuid4()}": "1"}
    page = await client.post(f"/leases/{lease.id}", data=form, headers=ORIGIN)
    assert (page.status_code, "no answer of this task" in page.text) == (422, True)


async def test_a_draft_is_back_when_the_page_is_loaded_again(
    client: AsyncClient, session: AsyncSession, project: Project, ada: User
) -> None:
    lease = await open_task(session, client, project)
    first, second = lease.display_order[:2]
    draft = {
        "places": {str(first): 3, str(second): None},
        "ratings": {str(first): 2, str(second): None},
        "labels": {str(first): ["rude"]},
        "rationale": "so far",
    }
    saved = await client.post(f"/leases/{lease.id}/draft", json=draft, headers=ORIGIN)
    assert saved.status_code == 200
    assert saved.json()["expires_in_seconds"] > 0
    page = await client.get(f"/projects/{project.slug}/rank")
    assert [checked(page.text, f"place_{key}") for key in (first, second)] == ["3", ""]
    assert checked(page.text, f"rating_{first}") == "2"
    assert re.search(rf'name="flag_{first}" value="rude" checked', page.text)
    assert "so far</textarea>" in page.text


async def test_a_draft_with_an_unknown_field_is_refused_by_name(
    client: AsyncClient, session: AsyncSession, project: Project, ada: User
) -> None:
    lease = await open_task(session, client, project)
    answer = await client.post(
        f"/leases/{lease.id}/draft", json={"palces": {}}, headers=ORIGIN | {"Accept": "application/json"}
    )
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "palces")


async def test_a_skipped_task_gives_way_to_the_next(
    client: AsyncClient, session: AsyncSession, project: Project, ada: User
) -> None:
    lease = await open_task(session, client, project, num=2)
    answer = await client.post(f"/leases/{lease.id}/skip", data={"reason": "too long"}, headers=ORIGIN)
    assert answer.status_code == 303
    assert str(lease.id) not in (await client.get(answer.headers["location"])).text
    await session.refresh(lease)
    assert (lease.state, lease.skip_reason) == (LeaseState.RELEASED, "too long")
    # A script goes on by itself; sent twice it is the same.
    again = await client.post(f"/leases/{lease.id}/skip", headers=ORIGIN | {"Accept": "application/json"})
    assert (again.status_code, again.content) == (204, b"")


async def test_a_skip_that_comes_too_late_shows_the_way_on(
    client: AsyncClient, session: AsyncSession, project: Project, ada: User
) -> None:
    lease = await open_task(session, client, project)
    lease.state = LeaseState.ANSWERED
    await session.flush()
    page = await client.post(
        f"/leases/{lease.id}/skip", data={"kind": "same"}, headers=ORIGIN | {"Accept": "text/html"}
    )
    assert (page.status_code, f'href="/projects/{project.slug}/rank"' in page.text) == (409, True)


async def test_the_last_page_says_that_nothing_waits(client: AsyncClient, project: Project, ada: User) -> None:
    page = await client.get(f"/projects/{project.slug}/rank")
    assert (page.status_code, "Nothing waits for you" in page.text) == (200, True)


async def test_head_takes_no_task(client: AsyncClient, session: AsyncSession, project: Project, ada: User) -> None:
    await make_task(session, await make_prompt(session, project))
    await session.commit()
    await client.head(f"/projects/{project.slug}/rank")
    assert await session.scalar(text("select count(*) from leases")) == 0


async def test_somebody_elses_lease_is_404(
    client: AsyncClient, session: AsyncSession, project: Project, ada: User
) -> None:
    lease = await open_task(session, client, project)
    await enter(session, client, await make_user(session))
    for address in (f"/leases/{lease.id}", f"/leases/{lease.id}/skip"):
        answer = await client.post(address, data=fields_of(lease), headers=ORIGIN)
        assert answer.status_code == 404


async def test_another_sites_form_is_refused(
    client: AsyncClient, session: AsyncSession, project: Project, ada: User
) -> None:
    lease = await open_task(session, client, project)
    answer = await client.post(f"/leases/{lease.id}", data=fields_of(lease), headers={"Origin": "https://evil.example"})
    assert answer.status_code == 403


async def test_who_wrote_an_answer_is_nowhere_in_the_page(
    client: AsyncClient, session: AsyncSession, project: Project, ada: User
) -> None:
    prompt = await make_prompt(session, project, source=CANARY, meta={"model": CANARY})
    writer = await make_user(session, name=CANARY)
    sampling = {"model": CANARY}
    columns: list[dict[str, Any]] = [
        {"model_name": CANARY},
        {"author_id": writer.id},
        {"sampling": sampling, "seed": 987654321},
    ]
    ids = [(await make_completion(session, prompt, **values)).id for values in columns]
    await making.create_task(session, project=project, prompt_id=prompt.id, completion_ids=ids)
    lease = await open_task(session, client, project, num=0)
    page = await client.get(f"/projects/{project.slug}/rank")
    refused = await client.post(f"/leases/{lease.id}", data={}, headers=ORIGIN)
    assert refused.status_code == 422
    for html in (page.text, refused.text):
        assert not re.search(f"{CANARY}|987654321|{writer.id}", html)


# For admins


@pytest.fixture
async def admin(session: AsyncSession, client: AsyncClient) -> User:
    """An admin who is signed in, and ranks as well."""
    return await enter(session, client, await make_user(session, name="Grace", role=Role.ADMIN))


async def test_annotators_do_not_see_admins_pages(client: AsyncClient, project: Project, ada: User) -> None:
    for address in ("tasks", "rankings"):
        assert (await client.get(f"/projects/{project.slug}/{address}")).status_code == 403


async def test_a_task_shows_who_said_what(
    client: AsyncClient, session: AsyncSession, project: Project, admin: User
) -> None:
    lease = await open_task(session, client, project)
    await client.post(f"/leases/{lease.id}", data=fields_of(lease, 1, 2, 2, 3), headers=ORIGIN)
    listed = await client.get(f"/projects/{project.slug}/tasks")
    assert f"/tasks/{lease.task_id}" in listed.text
    page = await client.get(f"/projects/{project.slug}/tasks/{lease.task_id}")
    assert page.status_code == 200
    assert "Grace" in page.text


async def test_a_ranking_shows_the_order_in_the_letters_that_were_seen(
    client: AsyncClient, session: AsyncSession, project: Project, admin: User
) -> None:
    lease = await open_task(session, client, project)
    await client.post(f"/leases/{lease.id}", data=fields_of(lease, 2, 1, 2, 3), headers=ORIGIN)
    ranking = (await session.scalars(select(Ranking))).one()
    listed = await client.get(f"/projects/{project.slug}/rankings")
    page = await client.get(f"/projects/{project.slug}/rankings/{ranking.id}")
    for html in (listed.text, page.text):
        cells = re.findall(r'<span class="cell-letters">(.*?)</span>', html)
        assert cells == ["B", "A = C", "D"]


async def test_a_ranking_leads_to_the_one_that_took_its_place(
    client: AsyncClient, session: AsyncSession, project: Project, admin: User
) -> None:
    lease = await open_task(session, client, project)
    await client.post(f"/leases/{lease.id}", data=fields_of(lease), headers=ORIGIN)
    old = (await session.scalars(select(Ranking))).one()
    changed = RankingAnswer(dict(zip(lease.display_order, (4, 3, 2, 1), strict=True)))
    new = await service.revise(session, ranking_id=old.id, annotator=admin, answer=changed)
    await session.commit()
    for one, other in ((old, new), (new, old)):
        page = await client.get(f"/projects/{project.slug}/rankings/{one.id}")
        assert f"/rankings/{other.id}" in page.text


async def test_another_projects_task_and_ranking_are_404(
    client: AsyncClient, session: AsyncSession, project: Project, admin: User
) -> None:
    lease = await open_task(session, client, project)
    await client.post(f"/leases/{lease.id}", data=fields_of(lease), headers=ORIGIN)
    ranking = (await session.scalars(select(Ranking))).one()
    other = await make_project(session)
    await session.commit()
    for address in (f"tasks/{lease.task_id}", f"rankings/{ranking.id}"):
        assert (await client.get(f"/projects/{other.slug}/{address}")).status_code == 404


async def test_a_withdrawn_task_is_handed_out_no_more(
    client: AsyncClient, session: AsyncSession, project: Project, admin: User
) -> None:
    lease = await open_task(session, client, project)
    answer = await client.post(f"/projects/{project.slug}/tasks/{lease.task_id}/withdraw", headers=ORIGIN)
    assert answer.status_code == 303
    assert "withdrawn" in (await client.get(answer.headers["location"])).text
    assert "Nothing waits" in (await client.get(f"/projects/{project.slug}/rank")).text


async def test_long_lists_have_pages(client: AsyncClient, session: AsyncSession, project: Project, admin: User) -> None:
    prompt = await make_prompt(session, project)
    for _ in range(51):
        await make_task(session, prompt, k=2)
    await session.commit()
    page = await client.get(f"/projects/{project.slug}/tasks")
    following = re.search(r'href="(\?[^"]*after=\d+)"', page.text)
    assert following
    second = await client.get(f"/projects/{project.slug}/tasks{following[1].replace('&amp;', '&')}")
    links = re.compile(r"/tasks/([0-9a-f-]{36})")
    shown = [set(links.findall(html)) for html in (page.text, second.text)]
    assert [len(ids) for ids in shown] == [50, 1]
    assert not shown[0] & shown[1]


# The questions of a project, and two answers


async def make_asking(session: AsyncSession, client: AsyncClient, **settings: Any) -> tuple[Project, Lease]:
    """A project with these settings, and a task of it in hand."""
    asking = await make_project(session, **settings)
    await make_task(session, await make_prompt(session, asking), k=settings.get("k", 4))
    await session.commit()
    await client.get(f"/projects/{asking.slug}/rank")
    return asking, (await session.scalars(select(Lease).where(Lease.state == LeaseState.OPEN))).one()


ASKED: dict[str, Any] = {
    "rationale": "required",
    "min_rationale": 10,
    "confidence": "required",
    "asks_all_bad": True,
    "labels": [
        {"key": "rude", "en": "Rude", "zh": "粗鲁", "required": True},
        {"key": "old", "en": "Gone", "zh": "", "removed": True},
    ],
}


async def test_what_a_project_asks_is_on_the_page_and_a_missing_answer_is_named(
    client: AsyncClient, session: AsyncSession, ada: User
) -> None:
    _, lease = await make_asking(session, client, **ASKED)
    page = await client.post(f"/leases/{lease.id}", data=fields_of(lease) | {"rationale": "short"}, headers=ORIGIN)
    assert page.status_code == 422
    for told in ("in at least 10 characters; these are 5", "Say how sure you are", "Answer D: say yes or no to “Rude”"):
        assert told in page.text
    assert re.search(r'name="all_bad" value="true"', page.text)
    assert "Gone" not in page.text


async def test_what_was_answered_is_stored_with_the_ranking(
    client: AsyncClient, session: AsyncSession, ada: User
) -> None:
    _, lease = await make_asking(session, client, **ASKED)
    first, *others = lease.display_order
    said = {f"said_{first}_rude": "yes"} | {f"said_{key}_rude": "no" for key in others}
    form = fields_of(lease) | said | {"rationale": "A is clearer.", "confidence": "2", "all_bad": ["", "true"]}
    assert (await client.post(f"/leases/{lease.id}", data=form, headers=ORIGIN)).status_code == 303
    await session.execute(text("set constraints all immediate"))
    ranking = (await session.scalars(select(Ranking))).one()
    assert (ranking.rationale, ranking.confidence, ranking.all_bad) == ("A is clearer.", 2, True)
    rows = await session.execute(text("select completion_id, labels, denied from ranking_places"))
    stored = {row.completion_id: (row.labels, row.denied) for row in rows}
    assert stored == {first: (["rude"], [])} | {key: ([], ["rude"]) for key in others}


async def test_a_project_that_asks_nothing_stores_nothing(
    client: AsyncClient, session: AsyncSession, ada: User
) -> None:
    asking, lease = await make_asking(session, client, rationale="off")
    page = await client.get(f"/projects/{asking.slug}/rank")
    assert not re.search(r'name="(rationale|confidence|all_bad|preference)"', page.text)
    await client.post(f"/leases/{lease.id}", data=fields_of(lease), headers=ORIGIN)
    ranking = (await session.scalars(select(Ranking))).one()
    assert (ranking.confidence, ranking.all_bad, ranking.strength) == (None, None, None)


async def test_a_draft_keeps_the_questions(client: AsyncClient, session: AsyncSession, ada: User) -> None:
    asking, lease = await make_asking(session, client, **ASKED)
    first, second, *_ = lease.display_order
    draft = {"confidence": 3, "all_bad": True, "labels": {str(first): ["rude"]}, "denied": {str(second): ["rude"]}}
    saved = await client.post(f"/leases/{lease.id}/draft", json=draft, headers=ORIGIN)
    assert saved.status_code == 200
    html = (await client.get(f"/projects/{asking.slug}/rank")).text
    assert checked(html, "confidence") == "3"
    assert checked(html, f"said_{first}_rude") == "yes"
    assert checked(html, f"said_{second}_rude") == "no"
    assert re.search(r'name="all_bad" value="true" checked', html)


@pytest.mark.parametrize(
    ("preference", "places", "strength"), [("-3", (1, 2), 3), ("-1", (1, 2), 1), ("0", (1, 1), 0), ("2", (2, 1), 2)]
)
async def test_a_step_between_two_answers_is_an_order_with_a_strength(
    client: AsyncClient,
    session: AsyncSession,
    ada: User,
    preference: str,
    places: tuple[int, int],
    strength: int,
) -> None:
    _, lease = await make_asking(session, client, k=2)
    form = {"preference": preference, "all_bad": ""}
    assert (await client.post(f"/leases/{lease.id}", data=form, headers=ORIGIN)).status_code == 303
    await session.execute(text("set constraints all immediate"))
    ranking = (await session.scalars(select(Ranking))).one()
    assert (ranking.strength, ranking.all_bad) == (strength, False)
    rows = {row.completion_id: row.place for row in await session.execute(text("select * from ranking_places"))}
    assert tuple(rows[key] for key in lease.display_order) == places


async def test_no_step_or_one_that_is_none_is_refused_and_the_rest_is_kept(
    client: AsyncClient, session: AsyncSession, ada: User
) -> None:
    _, lease = await make_asking(session, client, k=2)
    for form in ({"all_bad": ["", "true"]}, {"preference": "4", "all_bad": ["", "true"]}):
        page = await client.post(f"/leases/{lease.id}", data=form, headers=ORIGIN)
        assert page.status_code == 422
        assert re.search(r'name="all_bad" value="true" checked', page.text)


async def test_a_project_without_ties_has_no_middle_step(client: AsyncClient, session: AsyncSession, ada: User) -> None:
    asking, _ = await make_asking(session, client, k=2, ties_allowed=False)
    html = (await client.get(f"/projects/{asking.slug}/rank")).text
    assert re.findall(r'name="preference" value="(-?\d)"', html) == ["-3", "-2", "-1", "1", "2", "3"]


async def test_the_projects_examples_stand_below_its_guidelines(
    client: AsyncClient, session: AsyncSession, ada: User
) -> None:
    example = {"prompt": "Hi", "good": "Hello **you**", "good_why": "kind", "bad": "<b>What?</b>", "bad_why": "rude"}
    asking, _ = await make_asking(session, client, examples=[example])
    html = (await client.get(f"/projects/{asking.slug}/rank")).text
    assert "Hello <strong>you</strong>" in html
    assert "<b>What?" not in html
