"""The form of a project as browsers without a script send it: rows that move, what was typed, and rules in words."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest
from httpx2 import AsyncClient
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.projects.models import Project
from app.projects.schemas import ProjectSettings
from app.projects.service import list_projects
from tests.factories import make_project, sign_in

RUDE = {"key": "rude", "en": "Rude", "zh": "粗鲁"}
MADE_UP = {"key": "made_up", "en": "Made up", "zh": "凭空编造", "required": True}


@pytest.fixture
async def project(client: AsyncClient, session: AsyncSession) -> Project:
    """A project of two labels; an admin is signed in."""
    await sign_in(client, session)
    project = await make_project(session, slug="tone", labels=[RUDE, MADE_UP])
    await session.commit()
    return project


def fields_of(page: str) -> dict[str, str]:
    """What a browser would send of the settings' form."""
    page = page[page.index('<form class="form"') :]
    fields = {}
    for tag in re.findall(r"<input [^>]*>", page):
        named = re.search(r' name="([^"]*)"', tag)
        value = re.search(r' value="([^"]*)"', tag)
        if named and (" checked" in tag or 'type="checkbox"' not in tag):
            fields[named[1]] = html.unescape(value[1]) if value else ""
    for name, text in re.findall(r'<textarea [^>]*name="([^"]*)"[^>]*>\n(.*?)</textarea>', page, re.DOTALL):
        fields[name] = html.unescape(text)
    for name, options in re.findall(r'<select [^>]*name="([^"]*)"[^>]*>(.*?)</select>', page, re.DOTALL):
        found = re.search(r'value="([^"]*)" selected', options)
        fields[name] = found[1] if found else ""
    return fields


async def open_form(client: AsyncClient) -> dict[str, str]:
    return fields_of((await client.get("/projects/tone/settings")).text)


async def send(client: AsyncClient, fields: dict[str, Any], **more: str) -> Any:
    return await client.post("/projects/tone/settings", data=fields | more)


async def test_the_form_sent_back_unchanged_changes_nothing(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    names = list(ProjectSettings.model_fields)
    before = {name: getattr(project, name) for name in names}
    answer = await send(client, await open_form(client))
    assert answer.status_code == 303
    await session.refresh(project)
    assert {name: getattr(project, name) for name in names} == before


async def test_questions_and_labels_are_stored(client: AsyncClient, session: AsyncSession, project: Project) -> None:
    changed = {
        "rationale": "required",
        "min_rationale": "20",
        "confidence": "optional",
        "asks_all_bad": "true",
        "layout": "stacked",
        "has_review_step": "true",
        "label_0_en": "Impolite",
        "label_0_required": "true",
        "label_7_en": "Too long!",
        "label_8_zh": "跑题",
        "label_8_en": "Off topic",
        "label_8_key": "off_topic",
    }
    assert (await send(client, await open_form(client) | changed)).status_code == 303
    await session.refresh(project)
    assert (project.rationale, project.min_rationale, project.confidence) == ("required", 20, "optional")
    assert (project.asks_all_bad, project.layout, project.has_review_step) == (True, "stacked", True)
    said = [(item["key"], item["en"], item["required"]) for item in project.labels]
    assert said == [
        ("rude", "Impolite", True),
        ("made_up", "Made up", True),
        ("too_long", "Too long!", False),
        ("off_topic", "Off topic", False),
    ]


async def keys(page: Any) -> list[str]:
    """The keys of the labels in the form, removed ones too, in their order."""
    fields = fields_of(page.text)
    return [fields[name] for name in sorted(fields) if re.fullmatch(r"label_\d_key", name)]


async def test_labels_move_by_buttons_and_nothing_is_stored_before_save(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    typed = await open_form(client) | {"name": "Half typed", "guidelines": "so <far>"}
    moved = await send(client, typed, edit="label:down:0")
    assert await keys(moved) == ["made_up", "rude"]
    assert fields_of(moved.text)["name"] == "Half typed"
    assert fields_of(moved.text)["guidelines"] == "so <far>"
    assert await keys(await send(client, fields_of(moved.text), edit="label:up:1")) == ["rude", "made_up"]
    await session.refresh(project)
    assert project.name != "Half typed"


async def test_a_label_that_was_removed_stays_in_the_history_and_can_come_back(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    page = await send(client, await open_form(client), edit="label:remove:0")
    assert (await send(client, fields_of(page.text))).status_code == 303
    await session.refresh(project)
    assert [(item["key"], item["removed"]) for item in project.labels] == [("made_up", False), ("rude", True)]
    page = await send(client, await open_form(client), edit="label:restore:1")
    await send(client, fields_of(page.text))
    await session.refresh(project)
    assert [(item["key"], item["removed"]) for item in project.labels] == [("made_up", False), ("rude", False)]


async def test_a_new_row_is_added_and_goes_when_it_is_removed(client: AsyncClient, project: Project) -> None:
    page = await send(client, await open_form(client), edit="label:add")
    assert "label_2_en" in fields_of(page.text)
    assert (await send(client, fields_of(page.text))).status_code == 303, "a row without text is no label"
    page = await send(client, fields_of(page.text) | {"label_2_en": "Vague"}, edit="label:remove:2")
    assert "label_2_en" not in fields_of(page.text)
    assert "Vague" not in page.text


async def test_guidelines_are_previewed_and_examples_stored(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    typed = await open_form(client) | {"guidelines": "Be **kind** <script>alert(1)</script>"}
    page = await send(client, typed, edit="preview")
    assert "<strong>kind</strong>" in page.text
    assert "<script>alert" not in page.text
    page = await send(client, fields_of(page.text), edit="example:add")
    row = {"example_0_prompt": "Hi", "example_0_good": "Hello!", "example_0_bad": "What?", "example_0_bad_why": "Rude."}
    assert (await send(client, fields_of(page.text) | row)).status_code == 303
    await session.refresh(project)
    assert project.examples == [{"prompt": "Hi", "good": "Hello!", "good_why": "", "bad": "What?", "bad_why": "Rude."}]


@pytest.mark.parametrize(
    ("field", "value", "english", "chinese"),
    [
        ("k", "12", "This must be at most 9.", "不能大于 9。"),
        ("k", "many", "This must be a whole number.", "必须是整数。"),
        ("temperature", "0", "This must be more than 0.", "必须大于 0。"),
        ("name", " ", "This is required.", "此项必填。"),
        ("label_0_en", "", "This is required.", "此项必填。"),
        ("label_2_key", "Ä b", "Use at most 40 of a-z, 0-9 and _.", "最多 40 个字符，只用 a-z、0-9 和 _。"),
        ("label_1_key", "rude", "Two labels have the key rude.", "有两个标记的键都是 rude"),
        ("layout", "round", "Choose one of: ", "请从中选择："),
        ("training_ppo", "{", "This is not JSON: ", "这不是 JSON："),
        ("training_ppo", "[]", "This must be a JSON object", "必须是 JSON 对象"),
    ],
)
async def test_a_rule_is_told_in_words_of_the_readers_language_and_what_was_typed_stays(
    client: AsyncClient, project: Project, field: str, value: str, english: str, chinese: str
) -> None:
    typed = await open_form(client) | {field: value, "guidelines": "Half <typed>"}
    for language, told in (("en", english), ("zh-CN", chinese)):
        page = await client.post("/projects/tone/settings", data=typed, headers={"accept-language": language})
        assert page.status_code == 422
        assert told in html.unescape(page.text)
        assert fields_of(page.text)["guidelines"] == "Half <typed>"
        assert not re.search(r"pattern|\[a-z0-9|Input should|String should", page.text)


async def test_a_new_project_that_is_refused_keeps_its_rows(client: AsyncClient, session: AsyncSession) -> None:
    await sign_in(client, session)
    typed = fields_of((await client.get("/projects/new")).text) | {"name": "Tone", "slug": "Not a slug", "k": "2"}
    page = await client.post("/projects", data=typed)
    assert page.status_code == 422
    assert "Use at most 60 of a-z, 0-9 and -" in page.text
    page = await client.post("/projects", data=fields_of(page.text) | {"slug": "tone"})
    assert (page.status_code, page.headers["location"]) == (303, "/projects/tone/prompts/import")


@pytest.mark.parametrize("path", ["/projects/tone/settings", "/projects"])
async def test_a_judge_that_does_not_exist_is_refused_beside_its_field(
    client: AsyncClient, session: AsyncSession, project: Project, path: str
) -> None:
    fields = await open_form(client) if path.endswith("settings") else {"name": "New", "model_alias": "pocket"}
    answer = await client.post(path, data=fields | {"policy_judge": "2", "overlap": "7"})
    assert answer.status_code == 422
    assert "must be the number of a reward version of this project" in answer.text
    await session.refresh(project)
    assert (project.policy_judge, project.overlap) == (None, 1)
    assert [item.slug for item in await list_projects(session)] == ["tone"]


async def test_the_form_says_what_overlap_for_a_share_costs(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    answer = await send(client, await open_form(client), overlap="3", overlap_share="0.3")
    page = (await client.get(answer.headers["location"])).text
    await session.refresh(project)
    assert (project.overlap, project.overlap_share) == (3, 0.3)
    assert "1,600 rankings for 1,000 tasks" in page
    assert "overlap_share" in (await send(client, await open_form(client), overlap_share="1.5")).text


async def test_the_share_of_one_person_is_a_setting_that_can_be_left_empty(
    client: AsyncClient, session: AsyncSession, project: Project
) -> None:
    for typed, share in (("0.15", 0.15), ("", None)):
        assert (await send(client, await open_form(client), max_annotator_share=typed)).status_code == 303
        await session.refresh(project)
        assert project.max_annotator_share == share
    refused = await send(client, await open_form(client), max_annotator_share="0")
    assert (refused.status_code, "This must be more than 0." in refused.text) == (422, True)
    for share in (0, 1.5, float("nan")):
        with pytest.raises(IntegrityError, match="max_annotator_share"):
            async with session.begin_nested():
                await session.execute(update(Project).values(max_annotator_share=share))
