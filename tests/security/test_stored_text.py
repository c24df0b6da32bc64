"""Stored XSS: hostile text in every column, every page opened as every role by a real browser under the real policy."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.async_api import Page
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Role, User
from app.accounts.roles import set_member
from app.projects.service import get_project_by_slug
from tests.app.matrix import ALLOWED, PAGE_MATRIX
from tests.browser.conftest import LiveServer, OpenPage
from tests.browser.test_pages import SLUG, Site, addresses_by_route
from tests.factories import make_user
from tests.security.hostile import RESULT_OF_A_TEMPLATE, poison

pytestmark = [pytest.mark.browser, pytest.mark.real_commits, pytest.mark.slow]
ROLES = ("annotator", "reviewer", "trainer", "admin")
# Columns that a person or a model fills, and that a page shows: they must be among those that were poisoned.
MUST_HOLD = {
    *("completions.text", "prompts.messages", "projects.name", "projects.guidelines", "users.name", "api_tokens.name"),
    *("dataset_pieces.lines", "run_log.text", "runs.worker", "versions.alias", "leases.skip_reason"),
}
FINDINGS = """(result) => {
    const found = [];
    for (const element of document.querySelectorAll("*")) {
        const names = element.getAttributeNames();
        if (names.includes("data-pwned")) found.push("an element from a text: " + element.outerHTML.slice(0, 200));
        const handler = names.find((name) => name.startsWith("on"));
        if (handler) found.push("a handler: " + handler);
        for (const name of ["href", "src", "action", "formaction"]) {
            if (!names.includes(name)) continue;
            const url = new URL(element.getAttribute(name), document.baseURI);
            const goesOut = element.tagName === "A" || element.tagName === "annotation";
            const allowed = goesOut ? ["http:", "https:", "mailto:"] : ["http:", "data:"];
            if (!allowed.includes(url.protocol)) found.push(`an address: ${name}=${url}`);
            const isOurs = goesOut || url.protocol === "data:" || url.origin === location.origin;
            if (!isOurs) found.push(`it leads out: ${url}`);
        }
    }
    if (document.body.innerText.includes(result)) found.push("a template was run");
    return found;
}"""


async def people(session: AsyncSession) -> dict[str, User]:
    """One person a role of the project."""
    project = await get_project_by_slug(session, SLUG)
    found = {}
    for role in ROLES:
        found[role] = await make_user(session, role=None)
        await set_member(session, user_id=found[role].id, project_id=project.id, role=Role(role))
    return found


async def walk(page: Page, role: str, server: LiveServer) -> tuple[int, list[str]]:
    """How many pages this role may open, and what is wrong with them."""
    seen, wrong = 0, []
    for route, path in (await addresses_by_route(server)).items():
        if role not in ALLOWED[PAGE_MATRIX[route]]:
            continue
        answer = await page.goto(path)
        assert answer is not None
        wrong += [f"{path}: {finding}" for finding in await page.evaluate(FINDINGS, RESULT_OF_A_TEMPLATE)]
        # Others don't have the owner's rankings and writings.
        is_missing = role == "owner" and answer.status != 200 and not path.startswith("/sign-in/provider")
        if answer.status >= 500 or is_missing:
            wrong.append(f"{path}: {answer.status}")
        seen += 1
    return seen, wrong


# Project admins and trainers see a part of what the owner sees, by the same templates: they come with the soak.
@pytest.mark.parametrize(
    "roles",
    [
        ("owner", "reviewer", "annotator", "stranger"),
        pytest.param(("admin", "trainer"), marks=pytest.mark.soak),
    ],
    ids="-".join,
)
async def test_no_page_runs_loads_or_shows_as_markup_what_somebody_wrote(
    open_page: OpenPage, site: Site, fresh_database_url: str, roles: tuple[str, ...]
) -> None:
    async with site.server.sessions.begin() as session:
        visitors: dict[str, Any] = {"owner": site.admin, **await people(session), "stranger": None}
    taken = poison(fresh_database_url)
    assert taken >= MUST_HOLD, MUST_HOLD - taken
    for role in roles:
        page = await open_page(visitors[role])
        seen, wrong = await walk(page, role, site.server)
        assert wrong == [], role
        assert seen >= (5 if role == "stranger" else 9), role
        await page.context.close()
