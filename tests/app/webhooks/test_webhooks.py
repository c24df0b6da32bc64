"""Webhooks: told in the transaction of the cause, delivered once, signed so that others can check it, tried again, and
never to an address that is not public.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from httpx2 import AsyncClient
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession
from standardwebhooks import Webhook as Receipt

from app.accounts.models import AuditEntry
from app.db import SessionMaker, make_engine, make_sessionmaker
from app.errors import Invalid
from app.projects.models import Project
from app.runs.models import RunState
from app.runs.service import end
from app.tasks.models import GoldOrder
from app.webhooks import delivery, guarded, service
from app.webhooks.models import Delivery, HookEvent
from tests.factories import make_project, make_prompt, make_ranking, make_run, make_task, sign_in

API = "/api/v1"
HOST = "127.0.0.1"


@pytest.fixture(autouse=True)
def listening() -> None:
    service.subscribe()


@dataclass
class Receiver:
    """Somebody else's server: what it got, and what it answers."""

    port: int = 0
    status: int = 200
    location: str | None = None
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/hooks"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            found.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(found.status)
            if found.location:
                self.send_header("location", found.location)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((HOST, 0), Handler)
    found.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
async def committed(fresh_database_url: str) -> AsyncIterator[SessionMaker]:
    engine = make_engine(fresh_database_url, pool_size=10)
    yield make_sessionmaker(engine)
    await engine.dispose()


async def make_ended_run(session: AsyncSession, project: Project) -> None:
    await end(session, await make_run(session, project), state=RunState.FAILED, error="out of memory")


async def log_of(sessionmaker: SessionMaker) -> list[Delivery]:
    async with sessionmaker() as session:
        return list(await session.scalars(select(Delivery).order_by(Delivery.created_at, Delivery.id)))


@pytest.mark.real_commits
async def test_an_ended_run_is_told_and_the_receiver_can_check_who_sent_it(
    committed: SessionMaker, receiver: Receiver
) -> None:
    async with committed.begin() as session:
        project = await make_project(session)
        webhook = await service.create_webhook(
            session, project_id=project.id, url=receiver.url, events=[HookEvent.RUN_ENDED]
        )
        await make_ended_run(session, project)
        await make_ended_run(session, await make_project(session))
    assert await delivery.deliver_due(committed, allowed_hosts=[HOST]) == 1
    assert await delivery.deliver_due(committed, allowed_hosts=[HOST]) == 0
    [(headers, body)] = receiver.got
    told = Receipt(webhook.secret).verify(body, headers)
    assert (told["type"], told["data"]["state"], told["data"]["error"]) == ("run.ended", "failed", "out of memory")
    with pytest.raises(Exception, match="signature"):
        Receipt(webhook.secret).verify(body.replace(b"failed", b"finished"), headers)
    [kept] = await log_of(committed)
    assert (kept.last_status, kept.num_tries, kept.next_try_at) == (200, 1, None)
    assert kept.delivered_at is not None


@pytest.mark.real_commits
async def test_while_nothing_is_due_it_is_asked_for_once(
    committed: SessionMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every web process looks every two seconds: eight questions each were a twelfth of what it did beside ranking."""

    async def nobody(*_: object) -> None:
        pytest.fail("a parcel was looked for")

    monkeypatch.setattr(service, "take_parcel", nobody)
    assert await delivery.deliver_due(committed) == 0


@pytest.mark.real_commits
async def test_many_processes_send_each_delivery_once(committed: SessionMaker, receiver: Receiver) -> None:
    async with committed.begin() as session:
        project = await make_project(session)
        await service.create_webhook(session, project_id=project.id, url=receiver.url, events=[HookEvent.RUN_ENDED])
        for _ in range(20):
            await make_ended_run(session, project)
    sent = await asyncio.gather(*(delivery.deliver_due(committed, allowed_hosts=[HOST]) for _ in range(4)))
    assert sum(sent) == 20
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == len(receiver.got) == 20


@pytest.mark.real_commits
async def test_a_failure_is_tried_again_with_the_same_bytes_and_then_given_up(
    committed: SessionMaker, receiver: Receiver
) -> None:
    receiver.status = 500
    async with committed.begin() as session:
        project = await make_project(session)
        await service.create_webhook(session, project_id=project.id, url=receiver.url, events=[HookEvent.RUN_ENDED])
        await make_ended_run(session, project)
    for num_tries in range(1, len(service.WAITS) + 2):
        assert await delivery.deliver_due(committed, allowed_hosts=[HOST]) == 1
        [kept] = await log_of(committed)
        assert (kept.num_tries, kept.last_status, kept.delivered_at) == (num_tries, 500, None)
        async with committed.begin() as session:
            await session.execute(text("update webhook_deliveries set next_try_at = now() where next_try_at > now()"))
    assert kept.next_try_at is None, "given up"
    assert len({(headers["webhook-id"], body) for headers, body in receiver.got}) == 1
    receiver.status = 204
    async with committed.begin() as session:
        await service.send_again(session, webhook_id=kept.webhook_id, delivery_id=kept.id)
    assert await delivery.deliver_due(committed, allowed_hosts=[HOST]) == 1
    assert (await log_of(committed))[0].delivered_at is not None


@pytest.mark.real_commits
async def test_gone_is_believed(committed: SessionMaker, receiver: Receiver) -> None:
    receiver.status = 410
    async with committed.begin() as session:
        project = await make_project(session)
        await service.create_webhook(session, project_id=project.id, url=receiver.url, events=[HookEvent.RUN_ENDED])
        await make_ended_run(session, project)
    await delivery.deliver_due(committed, allowed_hosts=[HOST])
    assert (await log_of(committed))[0].next_try_at is None


@pytest.mark.real_commits
async def test_milestones_are_counted_from_the_webhooks_first_day(committed: SessionMaker, receiver: Receiver) -> None:
    async def rank(num: int, *, is_gold: bool = False) -> None:
        async with committed.begin() as session:
            for _ in range(num):
                task = await make_task(session, await make_prompt(session, project), k=2)
                if is_gold:
                    session.add(GoldOrder(task_id=task.id, places=[1, 2]))
                await make_ranking(session, task)

    async with committed.begin() as session:
        project = await make_project(session)
    await rank(2)
    async with committed.begin() as session:
        values = {"url": receiver.url, "events": [HookEvent.MILESTONE], "every": 3}
        await service.create_webhook(session, project_id=project.id, **values)
    told = []
    for num in (2, 1, 1, 7):
        await rank(num)
        await rank(3, is_gold=True)
        await delivery.deliver_due(committed, allowed_hosts=[HOST])
        told.append([json.loads(body)["data"]["num_rankings"] for _, body in receiver.got])
    assert told == [[], [3], [3], [3, 9]]


# What is refused


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org",
        "https://",
        "example.org",
        "http://a:b@example.org/",
        "http://exa mple.org",
        "http://[::1",
        "",
    ],
)
async def test_an_address_that_cannot_be_called_is_refused(session: AsyncSession, url: str) -> None:
    project = await make_project(session)
    with pytest.raises(Invalid, match="url"):
        await service.create_webhook(session, project_id=project.id, url=url, events=[HookEvent.RUN_ENDED])


async def test_a_milestone_needs_its_number(session: AsyncSession) -> None:
    project = await make_project(session)
    for events, every in (([HookEvent.MILESTONE], None), ([HookEvent.RUN_ENDED], 5)):
        with pytest.raises(Invalid, match="every"):
            await service.create_webhook(
                session, project_id=project.id, url="https://example.org", events=events, every=every
            )


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "[::1]", "[::]", "[fe80::1]", "[fc00::1]", "[::ffff:127.0.0.1]", "[2002:7f00:1::]", "[64:ff9b::7f00:1]",
        "[::127.0.0.1]",
        "2130706433", "0x7f000001", "127.1", "224.0.0.1", "255.255.255.255",
    ],
)  # fmt: skip
async def test_no_address_that_is_not_public_is_called(receiver: Receiver, host: str) -> None:
    with pytest.raises(guarded.AddressRefused):
        await guarded.post(f"http://{host}:{receiver.port}/", b"{}", {})
    assert receiver.got == []


async def test_a_name_is_checked_when_the_connection_is_made(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rebinding: the name was public when the webhook was made, and leads to this machine now."""

    async def resolve(_: object, host: str, port: int) -> list[str]:
        return ["93.184.216.34", HOST]

    monkeypatch.setattr(guarded.GuardedBackend, "_resolve", resolve)
    with pytest.raises(guarded.AddressRefused, match="no public address"):
        await guarded.post(f"http://rebind.example:{receiver.port}/", b"{}", {})
    assert receiver.got == []


async def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    receiver.status, receiver.location = 302, f"{receiver.url}/elsewhere"
    assert await guarded.post(receiver.url, b"{}", {}, allowed_hosts=[HOST]) == 302
    assert len(receiver.got) == 1


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "64:ff9b::5db8:d822", "2002:5db8:d822::1"])
def test_public_addresses_are_public(address: str) -> None:
    assert guarded.is_public(address)


# Page and API


async def test_an_admin_adds_looks_at_and_deletes_a_webhook(client: AsyncClient, session: AsyncSession) -> None:
    await sign_in(client, session)
    client.headers["sec-fetch-site"] = "same-origin"
    project = await make_project(session, slug="hooked")
    await session.commit()
    address = "/projects/hooked/webhooks"
    form = {"url": "https://example.org/x", "events": ["rankings.milestone", "run.ended"], "every": "100"}
    made = await client.post(address, data=form)
    assert (made.status_code, "whsec_" in made.text) == (200, True)
    await make_ended_run(session, project)
    await session.commit()
    page = await client.get(address)
    assert ("https://example.org/x" in page.text, "whsec_" in page.text) == (True, False)
    refused = await client.post(address, data=form | {"url": "nonsense", "every": "7"})
    assert (refused.status_code, 'value="nonsense"' in refused.text) == (422, True)
    [webhook] = await service.list_webhooks(session, project.id)
    assert (await client.post(f"{address}/{webhook.id}/delete")).status_code == 303
    assert await service.list_webhooks(session, project.id) == []


async def test_the_log_that_keeps_everything_keeps_no_address_that_is_a_secret(session: AsyncSession) -> None:
    project = await make_project(session)
    secret = "https://chat.example.org:444/hooks/T0/s3cret?key=s3cret"
    webhook = await service.create_webhook(session, project_id=project.id, url=secret, events=[HookEvent.RUN_ENDED])
    await service.delete_webhook(session, webhook)
    written = await session.scalars(select(AuditEntry.detail).where(AuditEntry.subject == str(webhook.id)))
    assert list(written) == [{"host": "https://chat.example.org:444"}] * 2


async def test_the_log_is_cleared_of_what_is_old(session: AsyncSession) -> None:
    project = await make_project(session)
    await service.create_webhook(session, project_id=project.id, url="https://a.org", events=[HookEvent.RUN_ENDED])
    for _ in range(2):
        await make_ended_run(session, project)
    done = (await session.scalars(select(Delivery))).first()
    assert done is not None
    done.next_try_at = None
    await session.flush()
    await service.forget_deliveries(session, before=datetime.now(UTC) + timedelta(days=1))
    assert len((await session.scalars(select(Delivery))).all()) == 1, "what waits is kept"
