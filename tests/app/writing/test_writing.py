"""What people write: drafts, review by somebody else, and where it goes when it is approved."""

from __future__ import annotations

import re
from typing import Any

import pytest
from httpx2 import AsyncClient
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Role, User
from app.corpora import service as corpora
from app.errors import Invalid
from app.projects.models import Project
from app.prompts.models import Completion, Prompt, PromptKind, Split
from app.writing import service
from app.writing.bodies import WrittenPrompt, checked_body
from app.writing.forms import read_body
from app.writing.models import Step, Writing, WritingState, WritingStep
from tests.factories import completion_ids_of, make_project, make_prompt, make_ranking, make_task, make_user, sign_in

FEW_SHOT: dict[str, Any] = {
    "kind": "few_shot",
    "instruction": "Give the capital.",
    "pairs": [{"query": "France", "response": "Paris"}],
    "query": "Italy",
}


@pytest.fixture
async def project(session: AsyncSession) -> Project:
    return await make_project(session, slug="tone", writes_demonstrations=True, writes_prompts=True)


@pytest.fixture
async def ada(session: AsyncSession) -> User:
    return await make_user(session, name="Ada")


@pytest.fixture
async def grace(session: AsyncSession) -> User:
    """A reviewer."""
    return await make_user(session, name="Grace", role=Role.REVIEWER)


async def sent(session: AsyncSession, project: Project, ada: User, answer: str = "Dear Sir.") -> Writing:
    """An ideal answer in review."""
    await make_prompt(session, project)
    writing = await service.begin_demonstration(session, project=project, author=ada)
    assert writing is not None
    await service.submit(session, writing=writing, author=ada, body={"text": answer})
    return writing


async def steps_of(session: AsyncSession, writing: Writing) -> list[str]:
    query = select(WritingStep.step).where(WritingStep.writing_id == writing.id).order_by(WritingStep.id)
    return list(await session.scalars(query))


# Beginning


async def test_each_writer_gets_a_training_prompt_that_nobody_answers(
    session: AsyncSession, project: Project, ada: User, grace: User
) -> None:
    for split in (Split.TEST, Split.VALIDATION):
        await make_prompt(session, project, split=split)
    await make_prompt(session, project, withdrawn_at=project.created_at)
    first, second = [await make_prompt(session, project) for _ in range(2)]
    mine = await service.begin_demonstration(session, project=project, author=ada)
    again = await service.begin_demonstration(session, project=project, author=ada)
    other = await service.begin_demonstration(session, project=project, author=grace)
    third = await service.begin_demonstration(session, project=project, author=await make_user(session))
    assert mine is again
    assert [item.prompt_id if item else None for item in (mine, other, third)] == [first.id, second.id, None]


async def test_a_project_that_asks_for_no_writing_refuses_it(session: AsyncSession, ada: User) -> None:
    closed = await make_project(session)
    with pytest.raises(service.NotOpen):
        await service.begin_demonstration(session, project=closed, author=ada)
    with pytest.raises(service.NotOpen):
        await service.begin_prompt(session, project=closed, author=ada, prompt_kind="plain")


async def test_the_best_answer_is_edited_into_an_ideal_one(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    ada = await sign_in(client, session, role=Role.ANNOTATOR)
    task = await make_task(session, await make_prompt(session, project), k=3)
    ranking = await make_ranking(session, task, places=[3, 1, 2], annotator=ada)
    best = (await completion_ids_of(session, task))[1]
    await session.commit()
    answer = await client.post(f"/leases/{ranking.lease_id}/write")
    assert answer.status_code == 303
    writing = (await session.scalars(select(Writing))).one()
    completion = await session.get_one(Completion, best)
    assert (writing.began_from_id, writing.body) == (best, {"text": completion.text})
    assert completion.text in (await client.get(answer.headers["location"])).text
    again = await client.post(f"/leases/{ranking.lease_id}/write")
    assert again.headers["location"] == answer.headers["location"]


async def test_the_ranking_page_leads_to_writing_where_the_project_asks_for_it(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    await sign_in(client, session, role=Role.ANNOTATOR)
    await make_task(session, await make_prompt(session, project))
    await session.commit()
    page = await client.get("/projects/tone/rank")
    address = re.search(r'form="write" formaction="(/leases/[0-9a-f-]+/write)"', page.text)
    assert address
    assert (await client.post(address[1])).status_code == 303
    assert (await session.scalars(select(Writing.body))).one() == {}
    project.writes_demonstrations = False
    await session.commit()
    assert "formaction" not in (await client.get("/projects/tone/rank")).text


async def test_no_ideal_answer_to_a_prompt_that_is_held_out(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    ada = await sign_in(client, session, role=Role.ANNOTATOR)
    task = await make_task(session, await make_prompt(session, project, split=Split.TEST))
    ranking = await make_ranking(session, task, annotator=ada)
    await session.commit()
    assert (await client.post(f"/leases/{ranking.lease_id}/write")).status_code == 422
    assert "/write" not in (await client.get("/projects/tone/rank")).text
    await sign_in(client, session, role=Role.ANNOTATOR)
    assert (await client.post(f"/leases/{ranking.lease_id}/write")).status_code == 404


# Review


async def test_an_approved_answer_is_a_demonstration_by_its_author_and_learned_from(
    session: AsyncSession, project: Project, ada: User, grace: User
) -> None:
    writing = await sent(session, project, ada)
    assert await corpora.freeze_demonstrations(session, project=project) is None
    await service.approve(session, project=project, writing=writing, reviewer=grace, body={"text": "Dear Madam."})
    completion = await session.get_one(Completion, writing.completion_id)
    assert (completion.text, completion.author_id, completion.is_demonstration) == ("Dear Madam.", ada.id, True)
    assert await steps_of(session, writing) == [Step.SUBMITTED, Step.CORRECTED, Step.APPROVED]
    corpus = await corpora.freeze_demonstrations(session, project=project)
    assert corpus is not None
    assert corpus.num_rows == 1


async def test_the_author_does_not_approve_unless_the_project_says_so(
    session: AsyncSession, project: Project, grace: User
) -> None:
    writing = await sent(session, project, grace)
    with pytest.raises(service.OwnWriting):
        await service.approve(session, project=project, writing=writing, reviewer=grace, body=writing.body)
    with pytest.raises(IntegrityError, match="approved by its author"):
        async with session.begin_nested():
            await service.note(session, writing, Step.APPROVED, grace)
    project.allows_self_review = True
    await service.approve(session, project=project, writing=writing, reviewer=grace, body=writing.body)
    assert writing.state == WritingState.APPROVED


async def test_what_is_given_back_has_a_reason_and_can_be_sent_again(
    session: AsyncSession, project: Project, ada: User, grace: User
) -> None:
    writing = await sent(session, project, ada)
    with pytest.raises(Invalid, match="Say why"):
        await service.reject(session, writing=writing, reviewer=grace, reason="  ")
    await service.reject(session, writing=writing, reviewer=grace, reason="Too curt.")
    await service.submit(session, writing=writing, author=ada, body={"text": "Dear Sir or Madam."})
    assert await steps_of(session, writing) == [Step.SUBMITTED, Step.REJECTED, Step.SUBMITTED]


async def test_two_reviewers_settle_once(session: AsyncSession, project: Project, ada: User, grace: User) -> None:
    writing = await sent(session, project, ada)
    await service.approve(session, project=project, writing=writing, reviewer=grace, body=writing.body)
    with pytest.raises(service.NotInReview):
        await service.approve(session, project=project, writing=writing, reviewer=grace, body=writing.body)
    with pytest.raises(service.NotInReview):
        await service.reject(session, writing=writing, reviewer=grace, reason="late")
    with pytest.raises(service.NotEditable):
        await service.save(session, writing=writing, author=ada, body={"text": "other"})


async def test_steps_stay_as_they_were(session: AsyncSession, project: Project, ada: User) -> None:
    writing = await sent(session, project, ada)
    with pytest.raises(IntegrityError, match="never changed"):
        async with session.begin_nested():
            await session.execute(text("update writing_steps set reason = 'x'"))
    await session.execute(text("delete from users where id = :id"), {"id": ada.id})
    await session.refresh(writing)
    assert writing.author_id is None


# Prompts


def test_a_few_shot_prompt_is_a_conversation() -> None:
    assert WrittenPrompt(**FEW_SHOT).messages() == [
        {"role": "user", "content": "Give the capital.\n\nFrance"},
        {"role": "assistant", "content": "Paris"},
        {"role": "user", "content": "Italy"},
    ]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"instruction": " "}, "instruction"),
        ({"instruction": "a\0b"}, "instruction"),
        ({"kind": "few_shot", "instruction": "Go"}, "pairs"),
        (FEW_SHOT | {"query": " "}, "query"),
        (FEW_SHOT | {"pairs": [{"query": "", "response": "x"}]}, "pairs.0.query"),
        ({"instruction": "Go", "language": "klingon!"}, "language"),
        ({"instruction": "x" * 100_001}, "instruction"),
    ],
)
def test_a_prompt_that_can_not_be_sent_names_the_field(body: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as refusal:
        checked_body("prompt", body)
    assert [item.field for item in refusal.value.errors] == [field]


async def test_an_approved_prompt_joins_the_project_once(
    session: AsyncSession, project: Project, ada: User, grace: User
) -> None:
    for _ in range(2):
        writing = await service.begin_prompt(session, project=project, author=ada, prompt_kind="few_shot")
        await service.submit(session, writing=writing, author=ada, body=FEW_SHOT)
    first, second = await session.scalars(select(Writing).order_by(Writing.number))
    await service.approve(session, project=project, writing=first, reviewer=grace, body=first.body)
    prompt = await session.get_one(Prompt, first.written_prompt_id)
    assert (prompt.kind, prompt.source, len(prompt.messages)) == (PromptKind.FEW_SHOT, "written", 3)
    with pytest.raises(Invalid, match="already"):
        await service.approve(session, project=project, writing=second, reviewer=grace, body=second.body)


# Pages


async def test_the_road_of_an_answer_by_plain_forms(client: AsyncClient, session: AsyncSession) -> None:
    project = await make_project(session, slug="tone", writes_demonstrations=True)
    await make_prompt(session, project, messages=[{"role": "user", "content": "How are you?"}])
    await sign_in(client, session, role=Role.ANNOTATOR)
    begun = await client.post("/projects/tone/writing", data={"kind": "demonstration"})
    address = begun.headers["location"]
    assert "How are you?" in (await client.get(address)).text
    saved = await client.post(
        address, data={"text": "Fine <b>", "action": "save"}, headers={"accept": "application/json"}
    )
    page = (await client.get(address)).text
    assert "Fine &lt;b&gt;</textarea>" in page
    assert f'data-saved-at="{saved.json()["saved_at"]}"' in page
    overtaken = await client.post(
        address, data={"text": "Fi", "action": "save", "follows": ""}, headers={"accept": "application/json"}
    )
    assert overtaken.json() == {"saved_at": saved.json()["saved_at"], "is_stored": False}
    assert "Fine &lt;b&gt;</textarea>" in (await client.get(address)).text
    refused = await client.post(address, data={"text": " ", "action": "submit"})
    assert (refused.status_code, "must not be empty" in refused.text) == (422, True)
    assert (await client.post(address, data={"text": "Fine.", "action": "submit"})).status_code == 303
    assert "in review" in (await client.get("/projects/tone/writing")).text
    assert (await client.get("/projects/tone/writing/review")).status_code == 403
    assert (await client.post(f"{address}/review", data={"action": "approve", "text": "x"})).status_code == 403
    await sign_in(client, session, role=Role.ANNOTATOR)
    assert (await client.get(address)).status_code == 404
    await sign_in(client, session, role=Role.REVIEWER)
    assert address in (await client.get("/projects/tone/writing/review")).text
    rejected = await client.post(f"{address}/review", data={"action": "reject", "text": "Fine.", "reason": ""})
    assert (rejected.status_code, "Say why" in rejected.text) == (422, True)
    done = await client.post(f"{address}/review", data={"action": "approve", "text": "Fine, thanks."})
    assert done.status_code == 303
    assert (await session.scalars(select(Completion.text))).one() == "Fine, thanks."


async def test_a_refused_correction_leaves_no_step(client: AsyncClient, session: AsyncSession) -> None:
    project = await make_project(session, slug="tone", writes_prompts=True)
    await make_prompt(session, project, messages=[{"role": "user", "content": "Known?"}])
    ada = await make_user(session)
    writing = await service.begin_prompt(session, project=project, author=ada, prompt_kind="plain")
    await service.submit(session, writing=writing, author=ada, body={"instruction": "New?"})
    await sign_in(client, session, role=Role.REVIEWER)
    page = await client.post(f"/writings/{writing.id}/review", data={"action": "approve", "instruction": "Known?"})
    assert (page.status_code, "already" in page.text) == (422, True)
    assert await steps_of(session, writing) == [Step.SUBMITTED]


async def test_the_rows_of_a_few_shot_prompt_come_and_go(client: AsyncClient, session: AsyncSession) -> None:
    await make_project(session, slug="tone", writes_prompts=True)
    await sign_in(client, session, role=Role.ANNOTATOR)
    begun = await client.post("/projects/tone/writing", data={"kind": "prompt", "prompt_kind": "few_shot"})
    address = begun.headers["location"]
    fields = {"kind": "few_shot", "instruction": "Go", "pair_0_query": "a", "pair_0_response": "b"}
    await client.post(address, data=fields | {"action": "pair:add"})
    names = re.findall(r'name="(pair_\d_\w+)"', (await client.get(address)).text)
    assert names == ["pair_0_query", "pair_0_response", "pair_1_query", "pair_1_response"]
    await client.post(address, data=fields | {"pair_1_query": "c", "action": "pair:remove:0"})
    assert 'name="pair_0_query" rows="2" dir="auto">\nc</textarea>' in (await client.get(address)).text


def test_the_fields_of_a_form_are_a_body() -> None:
    fields = {
        "kind": "few_shot",
        "instruction": "a\r\nb",
        "pair_3_query": "q",
        "pair_3_response": "r",
        "action": "save",
    }
    pairs = [{"query": "q", "response": "r"}]
    assert read_body("prompt", fields) == {"kind": "few_shot", "instruction": "a\nb", "pairs": pairs}
