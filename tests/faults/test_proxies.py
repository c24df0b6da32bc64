"""Our examples for nginx and Caddy, with the real programs before a real web process: what docs/operate.md asks of a
proxy, on a host of its own and below a path of another site.
"""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx2
import pytest
from sqlalchemy import select

from app.accounts.attempts import address_key
from app.accounts.guards import SESSION_COOKIE
from app.accounts.models import Attempts, Role, User
from app.accounts.sessions import create_sign_in_link
from app.accounts.tokens import create_token
from app.db import SessionMaker, make_engine, make_sessionmaker
from app.projects.models import Project
from app.prompts.models import Prompt
from tests.conftest import DatabaseServer
from tests.factories import make_project, make_prompt, make_ranking, make_task, make_user
from tests.faults.proxies import Place, free_ports, proxy
from tests.faults.web import Web
from tests.proxies import find_proxy

pytestmark = [pytest.mark.real_commits, pytest.mark.slow]
VISITOR = "127.0.0.2"
"""Another address of this machine, whose word about addresses counts for nothing."""
CLAIMED = "203.0.113.7"
# What the head of each example says to change below a path.
BELOW = {
    "nginx": {"location / {": "location /rankloop/ {", "location = /metrics": "location = /rankloop/metrics"},
    "caddy": {
        "respond /metrics 404": "respond /rankloop/metrics 404",
        "reverse_proxy 127.0.0.1": "reverse_proxy /rankloop/* 127.0.0.1",
    },
}


@dataclass(frozen=True)
class Site:
    """A proxy and what is behind it."""

    url: str
    plain_port: int
    web: Web
    trust: ssl.SSLContext
    sessions: SessionMaker
    user: User
    prompt: Prompt
    project: Project
    token: str

    @property
    def origin(self) -> str:
        """The site's address without a path, as browsers send it."""
        return self.url.removesuffix("/rankloop")

    def visitor(self, **headers: str) -> httpx2.Client:
        """Somebody from another address than the proxy's."""
        transport = httpx2.HTTPTransport(verify=self.trust, local_address=VISITOR)
        return httpx2.Client(transport=transport, base_url=self.url, headers=headers, timeout=60)

    def program(self) -> httpx2.Client:
        """One with a token that may do anything."""
        return self.visitor(authorization=f"Bearer {self.token}")

    async def link(self) -> str:
        """A one-time link."""
        async with self.sessions.begin() as session:
            return await create_sign_in_link(session, user=self.user, public_url=self.url)


@pytest.fixture(scope="module", params=["nginx", "nginx below a path", "caddy", "caddy below a path"])
async def site(
    request: pytest.FixtureRequest,
    database_server: DatabaseServer,
    template_database: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Site]:
    """The proxy, the web process behind it and a database of their own, for all tests of this file."""
    name, _, below = request.param.partition(" ")
    if find_proxy(name) is None:
        pytest.skip(f"{name} is not installed: `python -m tests.proxies` fetches it")
    database = database_server.create(template=template_database)
    folder = tmp_path_factory.mktemp(name)
    https, http = free_ports(2)
    url = f"https://localhost:{https}{'/rankloop' if below else ''}"
    web = Web(database_server.url(database), folder, public_url=url)
    web.start()
    engine = make_engine(web.database_url, pool_size=2)
    try:
        with proxy(name, Place(folder, https=https, http=http, web=web.port), BELOW[name] if below else {}) as trust:
            yield await furnish(make_sessionmaker(engine), url, http, web, trust)
    finally:
        web.close()
        await engine.dispose()
        database_server.drop(database)


async def furnish(sessions: SessionMaker, url: str, http: int, web: Web, trust: ssl.SSLContext) -> Site:
    """A project with one ranking, and its owner."""
    async with sessions.begin() as session:
        user, project = await make_user(session, role=Role.ADMIN), await make_project(session)
        prompt = await make_prompt(session, project)
        await make_ranking(session, await make_task(session, prompt))
        _, token = await create_token(session, user_id=user.id, name="program", scopes=["read", "write"])
    return Site(url, http, web, trust, sessions, user, prompt, project, token)


async def test_a_form_of_this_site_is_taken_and_the_cookie_is_kept_to_https(site: Site) -> None:
    base = site.url.removeprefix(site.origin)
    with site.visitor(accept="text/html") as visitor:
        first = visitor.get("/")
        assert (first.status_code, first.headers["location"]) == (303, f"{base}/sign-in")
        link = await site.link()
        assert link.startswith(f"{site.url}/sign-in/link#")
        page = visitor.get(link)
        assert f'action="{base}/sign-in/link"' in page.text
        assert page.headers["strict-transport-security"].startswith("max-age=")
        # An older browser tells its origin and nothing else, so that the host must be the one that it sees.
        taken = visitor.post("/sign-in/link", data={"secret": link}, headers={"origin": site.origin})
        assert (taken.status_code, taken.headers["location"]) == (303, f"{base}/")
        for word in ("Secure", "HttpOnly", "SameSite=lax", f"Path={base}/"):
            assert word in taken.headers["set-cookie"]
        assert visitor.get("/account").status_code == 200
        script = re.search(r'src="(/[^"]*app[^"]*\.js)"', page.text)
        assert script is not None
        assert visitor.get(site.origin + script[1]).status_code == 200


@pytest.mark.parametrize(
    "claim", [{"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}]
)
async def test_a_form_of_another_site_is_refused(site: Site, claim: dict[str, str]) -> None:
    forged = claim | {"x-forwarded-host": "evil.example", "forwarded": "host=evil.example"}
    # Its status alone: once in hundreds of tries Caddy gave the head of this answer and none of its 75 bytes.
    with (
        site.visitor(cookie=f"{SESSION_COOKIE}=somebodys") as visitor,
        visitor.stream("POST", "/sign-in/link", headers=forged) as answer,
    ):
        assert answer.status_code == 403


async def test_what_a_visitor_claims_to_be_is_not_believed(site: Site) -> None:
    claims = {"x-forwarded-for": CLAIMED, "forwarded": f"for={CLAIMED}", "x-real-ip": CLAIMED}
    wrong = {"email": "ada@example.org", "password": "not hers"}
    with site.visitor(**claims) as visitor:
        answer = visitor.post("/sign-in", data=wrong, headers={"x-forwarded-proto": "http"})
        assert answer.status_code == 401
    async with site.sessions() as session:
        counted = set(await session.scalars(select(Attempts.key)))
    assert address_key(VISITOR) in counted
    assert address_key(CLAIMED) not in counted


async def test_who_comes_past_the_proxy_is_not_believed_either(site: Site) -> None:
    transport = httpx2.HTTPTransport(local_address="127.0.0.3")
    with httpx2.Client(transport=transport, base_url=site.web.url, timeout=60) as visitor:
        wrong = {"email": "ada@example.org", "password": "not hers"}
        assert visitor.post("/sign-in", data=wrong, headers={"x-forwarded-for": CLAIMED}).status_code == 401
    async with site.sessions() as session:
        counted = set(await session.scalars(select(Attempts.key)))
    assert address_key("127.0.0.3") in counted
    assert address_key(CLAIMED) not in counted


async def test_plain_http_leads_to_https_and_the_metrics_are_not_for_the_world(site: Site) -> None:
    with httpx2.Client() as client:
        answer = client.get(f"http://localhost:{site.plain_port}/projects?q=1")
    assert (answer.status_code, answer.headers["location"].split("?")) in [
        (code, [f"https://localhost{port}/projects", "q=1"])
        for code in (301, 308)
        for port in ("", f":{httpx2.URL(site.url).port}")
    ]
    with site.visitor() as visitor:
        assert visitor.get("/metrics").status_code == 404
        assert "rankloop_" not in visitor.get("/metrics/").text


async def test_a_body_of_32_mib_passes(site: Site) -> None:
    address = f"/api/v1/projects/{site.project.id}/prompts:import"
    with site.program() as program:
        line = json.dumps({"prompt": "Does a large file pass?"}).encode() + b"\n"
        blank = (b" " * 65_535 + b"\n") * 512
        taken = program.post(address, content=line + blank)
        assert (taken.status_code, taken.json()["taken"]) == (200, 1), taken.text


async def test_a_feed_arrives_as_it_is_written(site: Site) -> None:
    headers = {"accept": "text/event-stream"}
    address = f"/api/v1/projects/{site.project.id}/changes"
    with site.program() as program, program.stream("GET", address, headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = (line for line in answer.iter_lines() if line.startswith("event:"))
        assert next(events) == "event: stored"
        async with site.sessions.begin() as session:
            prompt = await session.get_one(Prompt, site.prompt.id)
            await make_ranking(session, await make_task(session, prompt))
        assert next(events) == "event: stored"
