"""Dear texts are rendered in a process of their own, which may die of them; nobody waits for it but their reader."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator

import pytest
from httpx2 import AsyncClient
from markupsafe import Markup
from sqlalchemy.ext.asyncio import AsyncSession

from app import markdown, rendering
from app.remembering import Remembered
from app.rendering import Renderer, Texts
from app.turns import NoRoom
from tests.app.test_markdown import BOMBS
from tests.factories import make_completion, make_project, make_prompt, sign_in

# Of the length that a careful model writes.
HONEST = "\n\n".join(
    f"## Step {number}\n\nLet $x_{number} = \\frac{{1}}{{{number}}}$.\n\n| a | b |\n|---|---|\n| **1** | `{number}` |"
    for number in range(1, 80)
)
# A text with "hang" in it is the bug that nobody has found yet.
WITH_A_BUG = """
import sys
from app import markdown, rendering
rendered = markdown.render
def render(text):
    while "hang" in text: pass
    if "memory" in text: bytearray(2 * rendering.MEMORY_BYTES)
    return rendered(text)
markdown.render = render
rendering.CPU_SECONDS = 0
rendering.work()
"""


@pytest.fixture
def buggy() -> Iterator[Renderer]:
    renderer = Renderer((sys.executable, "-c", WITH_A_BUG))
    yield renderer
    renderer.close()


@pytest.fixture
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markdown, "KEPT", Remembered(100))


@pytest.mark.parametrize("text", [HONEST, *BOMBS.values()])
@pytest.mark.usefixtures("nothing_kept")
async def test_what_is_rendered_there_is_what_would_be_rendered_here(text: str) -> None:
    assert await rendering.RENDERER.render(text, "me") == markdown._rendered(text)


@pytest.mark.usefixtures("nothing_kept")
async def test_a_page_of_bombs_is_not_rendered_by_who_answers_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    here: list[float] = []

    def noted(text: str) -> Markup:
        here.append(markdown.effort(text))
        return Markup("")

    monkeypatch.setattr(markdown, "_rendered", noted)
    texts = Texts("me", "note")
    page = "".join(texts.show(f"new {bomb}") for bomb in BOMBS.values())
    assert sum(here) <= rendering.EFFORT_HERE
    assert "<!--" not in await texts.fill_in(page)


@pytest.mark.usefixtures("nothing_kept")
def test_a_usual_page_is_rendered_at_once() -> None:
    texts = Texts("me", "note")
    for number in range(4):
        texts.show(f"{number} " + "A paragraph with **words** and `code`.\n\n" * 20)
    assert not texts.are_missing


@pytest.mark.usefixtures("nothing_kept")
async def test_a_long_answer_reads_as_a_short_one_does(client: AsyncClient, session: AsyncSession) -> None:
    project = await make_project(session)
    prompt = await make_prompt(session, project)
    for _ in range(2):
        await make_completion(session, prompt, text=HONEST)
    await sign_in(client, session, role="admin")
    address = f"/projects/{project.slug}/prompts/{prompt.id}"
    answer = await client.get(address, headers={"accept-encoding": "identity"})
    assert answer.text.count(markdown.render(HONEST)) == 2
    assert int(answer.headers["content-length"]) == len(answer.content)


@pytest.mark.parametrize("end", ["hang", "memory"])
@pytest.mark.usefixtures("nothing_kept")
async def test_a_text_that_ends_the_process_is_shown_as_it_is_written(buggy: Renderer, end: str) -> None:
    first, bad, last = await asyncio.gather(*(buggy.render(text, "me") for text in ("*a*", f"*{end}*", "*b*")))
    assert bad == markdown.as_written(f"*{end}*")
    assert (first, last) == (markdown._rendered("*a*"), markdown._rendered("*b*"))
    assert await buggy.render(f"*{end}*", "me") == bad, "and is not tried again"


@pytest.mark.usefixtures("nothing_kept")
async def test_a_reader_for_whom_there_is_no_room_gets_it_as_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = Renderer(("no such program",))

    def full(whose: object) -> None:
        raise NoRoom

    monkeypatch.setattr(renderer._turns, "turn", full)
    assert await renderer.render("*a*", "me") == markdown.as_written("*a*")
    assert markdown.render("*a*") != markdown.as_written("*a*"), "for this once"


@pytest.mark.usefixtures("nothing_kept")
async def test_without_the_process_the_page_comes_as_well() -> None:
    assert await Renderer(("/no/such/program",)).render("*a*", "me") == markdown.as_written("*a*")


async def test_a_reader_is_told_that_a_text_is_not_set() -> None:
    texts = Texts("me", 'why "not"')
    assert texts.show("\n" * 20_001).startswith('<pre class="plain" dir="auto" data-note="why &#34;not&#34;">')


async def test_the_process_knows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKLOOP_DATABASE_URL", "postgresql://secret")
    tells = "import os; from app import rendering; rendering.write(os.sys.stdout.buffer, str(dict(os.environ)))"
    renderer = Renderer((sys.executable, "-c", tells))
    told = await renderer.render(f"who are you {os.getpid()}", "me")
    renderer.close()
    assert "PATH" in told
    assert "secret" not in told
