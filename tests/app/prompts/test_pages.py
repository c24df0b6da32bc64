"""The admins' pages of prompts and of imports."""

from __future__ import annotations

import json
from typing import Any

import pytest
from httpx2 import AsyncClient, Response
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Role
from app.formats.parquet_lines import OPENERS
from app.projects.models import Project
from app.prompts.models import Completion, Prompt
from app.rankings.models import Ranking
from tests.factories import make_completion, make_project, make_prompt, sign_in


@pytest.fixture
async def project(session: AsyncSession) -> Project:
    project = await make_project(session)
    await session.commit()
    return project


def lines(*rows: Any) -> str:
    return "\n".join(json.dumps(row) for row in rows)


async def count(session: AsyncSession, table: type[Prompt | Completion | Ranking]) -> int:
    return await session.scalar(select(func.count()).select_from(table)) or 0


async def upload(client: AsyncClient, project: Project, content: str, **fields: str) -> Response:
    address = f"/projects/{project.slug}/prompts/import"
    return await client.post(address, data=fields, files={"file": ("prompts.jsonl", content.encode())})


async def test_the_list_shows_prompts_of_a_split_and_goes_on(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    for number in range(51):
        await make_prompt(session, project, messages=[{"role": "user", "content": f"<b>Train {number}</b>"}])
    await make_prompt(session, project, split="test", messages=[{"role": "user", "content": "Held out."}])
    await sign_in(client, session)
    page = (await client.get(f"/projects/{project.slug}/prompts?split=train")).text
    assert "&lt;b&gt;Train 49&lt;/b&gt;" in page
    assert "<b>Train" not in page
    assert "Held out." not in page
    last = await session.scalar(select(Prompt.number).order_by(Prompt.number).offset(49).limit(1))
    assert f"?split=train&amp;after={last}" in page
    following = (await client.get(f"/projects/{project.slug}/prompts?split=train&after={last}")).text
    assert "Train 50" in following
    assert "Train 49" not in following


async def test_a_prompt_is_shown_with_its_answers(client: AsyncClient, session: AsyncSession, project: Project) -> None:
    prompt = await make_prompt(session, project, messages=[{"role": "user", "content": "<script>1</script>"}])
    await make_completion(session, prompt, text="<img src=x>", model_name="<i>m</i>")
    await sign_in(client, session)
    answer = await client.get(f"/projects/{project.slug}/prompts/{prompt.id}")
    assert answer.status_code == 200
    assert "&lt;script&gt;1" in answer.text
    assert "<img" not in answer.text
    assert "<i>m" not in answer.text


async def test_another_projects_prompt_is_not_there(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    foreign = await make_prompt(session)
    await sign_in(client, session)
    assert (await client.get(f"/projects/{project.slug}/prompts/{foreign.id}")).status_code == 404


async def test_only_admins_see_these_pages(client: AsyncClient, session: AsyncSession, project: Project) -> None:
    await sign_in(client, session, role=Role.ANNOTATOR)
    for path in ("prompts", "prompts/import", "datasets"):
        assert (await client.get(f"/projects/{project.slug}/{path}")).status_code == 403
    assert (await upload(client, project, lines({"prompt": "a"}), kind="prompts")).status_code == 403
    assert await count(session, Prompt) == 0


async def test_a_file_is_checked_first_and_then_taken(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    await sign_in(client, session)
    assert (await client.get(f"/projects/{project.slug}/prompts/import")).status_code == 200
    content = lines({"prompt": "a"}, {"prompt": "b"})
    looked = await upload(client, project, content, kind="prompts", dry_run="true")
    assert (looked.status_code, await count(session, Prompt)) == (200, 0)
    assert "Only checked, nothing stored" in looked.text
    taken = await upload(client, project, content, kind="prompts")
    assert (taken.status_code, await count(session, Prompt)) == (200, 2)


@pytest.mark.parametrize(
    ("kind", "line", "table"),
    [
        ("completions", {"prompt": "a", "completions": ["b", "c"]}, Completion),
        ("rankings", {"prompt": "a", "completions": ["b", "c"], "order": [[0], [1]]}, Ranking),
    ],
)
async def test_pasted_lines_are_taken_as_what_they_are_said_to_be(
    client: AsyncClient, session: AsyncSession, project: Project, kind: str, line: dict[str, Any], table: type[Ranking]
) -> None:
    await sign_in(client, session)
    # A browser sends an empty file along.
    answer = await client.post(
        f"/projects/{project.slug}/prompts/import",
        data={"kind": kind, "text": lines(line)},
        files={"file": ("", b"", "application/octet-stream")},
    )
    assert answer.status_code == 200
    assert await count(session, table) > 0


async def test_who_has_a_parquet_file_read_is_told_to_wait(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    user = await sign_in(client, session)
    async with OPENERS.turn(user.id):
        answer = await client.post(
            f"/projects/{project.slug}/prompts/import", data={"kind": "prompts"}, files={"file": ("a.parquet", b"PAR1")}
        )
    assert answer.status_code == 429
    assert "Another Parquet file of yours is being read" in answer.text


async def test_refused_lines_are_listed_and_the_text_stays(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    await sign_in(client, session)
    answer = await client.post(
        f"/projects/{project.slug}/prompts/import",
        data={"kind": "prompts", "text": lines({"prompt": "kept?"}, {"<u>x</u>": 1})},
    )
    assert answer.status_code == 422
    assert "&lt;u&gt;x&lt;/u&gt;" in answer.text
    assert "is not a known field" in answer.text
    assert "kept?" in answer.text
    assert await count(session, Prompt) == 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "prompts"}, "choose a file, or paste lines below"),
        ({"kind": "answers", "text": "{}"}, "must be one of prompts, completions, rankings"),
        ({"kind": "prompts", "partial": "true", "text": "\ufeff"}, "holds no line"),
    ],
)
async def test_a_form_that_cannot_be_taken_says_why(
    client: AsyncClient, session: AsyncSession, project: Project, fields: dict[str, str], words: str
) -> None:
    await sign_in(client, session)
    answer = await client.post(f"/projects/{project.slug}/prompts/import", data=fields)
    assert answer.status_code == 422
    assert words in answer.text


async def test_a_file_over_the_limit_is_refused_on_the_page(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    await sign_in(client, session)
    client._transport.app.state.settings.max_body_bytes = 10  # type: ignore[attr-defined]
    answer = await upload(client, project, lines({"prompt": "a"}), kind="prompts")
    assert answer.status_code == 413
    assert "larger than the 10 bytes" in answer.text
