"""Passwords: hashing, rules, limits that outlive a refusal, sessions that change hands with nobody, forgotten ones."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import timedelta
from email.message import Message
from pathlib import Path
from typing import Any, Self

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Message as MessageHandler
from httpx2 import ASGITransport, AsyncClient, Response
from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import attempts, browsers, passwords, signing_in
from app.accounts.credentials import hash_secret
from app.accounts.devices import device_name
from app.accounts.guards import SESSION_COOKIE
from app.accounts.models import Attempts, AuditEntry, Password, Role, SignInLink, User, UserSession
from app.accounts.sessions import create_sign_in_link, list_sessions, person_of_session, sign_in, start_session
from app.config import Settings
from app.db import SessionMaker, make_engine, make_sessionmaker
from app.errors import Invalid
from tests.borrowed import borrowed_app
from tests.factories import make_user, set_password

PASSWORD = "four words are enough"
FORM = {"sec-fetch-site": "same-origin", "accept": "text/html"}
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0"


async def with_password(session: AsyncSession, **values: Any) -> User:
    user = await make_user(session, **{"name": "Ada", "email": "ada@example.org"} | values)
    await set_password(session, user, PASSWORD)
    await session.commit()
    return user


async def try_password(client: AsyncClient, password: str = PASSWORD, **fields: str) -> Response:
    data = {"email": "Ada@example.org", "password": password} | fields
    return await client.post("/sign-in", data=data, headers=FORM | {"user-agent": FIREFOX})


async def test_a_password_signs_in_and_is_stored_as_argon2id(client: AsyncClient, session: AsyncSession) -> None:
    user = await with_password(session)
    answer = await try_password(client, next="/account")
    assert (answer.status_code, answer.headers["location"]) == (303, "/account")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    page = await client.get("/account")
    assert "Firefox, Linux" in page.text
    stored = await session.scalar(select(Password.hash).where(Password.user_id == user.id))
    assert stored
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")


async def test_no_refusal_tells_whether_there_is_an_account(client: AsyncClient, session: AsyncSession) -> None:
    await with_password(session)
    await with_password(session, name="Off", email="off@example.org", disabled_at=func.now())
    await make_user(session, name="No password", email="none@example.org")
    await session.commit()
    told = set()
    for email in ("ada@example.org", "off@example.org", "none@example.org", "nobody@example.org"):
        answer = await client.post("/sign-in", data={"email": email, "password": "wrong"}, headers=FORM)
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers
        told.add(answer.text.replace(email, "…"))
    assert len(told) == 1
    right = await client.post("/sign-in", data={"email": "off@example.org", "password": PASSWORD}, headers=FORM)
    assert right.status_code == 401, "who is switched off stays out, with the right password too"


async def test_a_wrong_password_takes_a_hash_even_where_there_is_no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    check = passwords.HASHER.verify

    def counted(password: str, stored: str) -> bool:
        hashed.append(stored)
        return check(password, stored)

    monkeypatch.setattr(passwords.HASHER, "verify", counted)
    assert not await passwords.verify("wrong", None)
    assert len(hashed) == 1


class Crowd:
    """Strangers from ever other addresses, who have every turn and every place behind, until one of them goes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hashing = passwords.Hashing(num_threads=1)
        monkeypatch.setattr(passwords, "HASHING", self.hashing)
        self.stays: list[asyncio.Event] = []

    async def stand(self, number: int) -> None:
        async with self.hashing.turn(number):
            await self.stays[number].wait()

    async def __aenter__(self) -> Self:
        self.stays = [asyncio.Event() for _ in range(passwords.MOST_WAITING + 2)]
        self.people = [asyncio.create_task(self.stand(number)) for number in range(len(self.stays))]
        await asyncio.sleep(0)
        assert self.hashing.turns.num_waiting == passwords.MOST_WAITING
        return self

    async def __aexit__(self, *_: object) -> None:
        for stay in self.stays:
            stay.set()
        await asyncio.gather(*self.people)
        assert self.hashing.turns.num_waiting == 0


async def test_a_stranger_in_a_crowd_is_told_so_at_once(
    client: AsyncClient, session: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    await with_password(session)
    async with Crowd(monkeypatch):
        refused = await try_password(client)
        assert (refused.status_code, "Too many people" in refused.text) == (503, True)
        assert await session.scalar(select(func.count()).select_from(Attempts)) == 0, "who was refused has not tried"
    assert (await try_password(client)).status_code == 303


async def test_a_crowd_of_strangers_leaves_every_second_turn_to_whom_we_know(
    client: AsyncClient, session: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    await with_password(session)
    assert (await try_password(client)).status_code == 303
    async with Crowd(monkeypatch) as crowd:
        known = asyncio.create_task(try_password(client))
        while crowd.hashing.turns.num_waiting == passwords.MOST_WAITING:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for stay in crowd.stays[:2]:
            stay.set()
        assert (await known).status_code == 303
        assert crowd.hashing.turns.num_waiting >= passwords.MOST_WAITING - 2


async def test_guesses_elsewhere_lock_nobody_out_of_their_own_browser(
    client: AsyncClient, session: AsyncSession
) -> None:
    await with_password(session)
    await try_password(client)
    own = client.cookies[browsers.COOKIE]
    client.cookies.clear()
    guesses = [(await try_password(client, "a guess")).status_code for _ in range(attempts.PER_ACCOUNT + 1)]
    assert guesses == [401] * attempts.PER_ACCOUNT + [429]
    assert (await try_password(client)).status_code == 429
    client.cookies.set(browsers.COOKIE, own)
    assert (await try_password(client)).status_code == 303
    client.cookies.clear()
    assert (await try_password(client)).status_code == 429, "and that opens no door to those who guess"
    client.cookies.set(browsers.COOKIE, own)
    guesses = [(await try_password(client, "a guess")).status_code for _ in range(attempts.PER_ACCOUNT + 1)]
    assert guesses == [401] * attempts.PER_ACCOUNT + [429], "who found the browser may not guess on"


async def test_a_mark_is_for_one_person_and_one_password(client: AsyncClient, session: AsyncSession) -> None:
    stored, other = [passwords.HASHER.hash(PASSWORD) for _ in range(2)]
    mark = browsers.mark(stored)
    assert browsers.is_known(mark, stored)
    assert mark != browsers.mark(stored)
    for forged in (None, "", "é" * 96, mark[:-1], mark[:32], "0" * 32 + mark[32:], mark + "0"):
        assert not browsers.is_known(forged, stored)
    assert not browsers.is_known(mark, other)


async def test_who_changes_a_password_is_known_by_the_new_one(client: AsyncClient, session: AsyncSession) -> None:
    user = await with_password(session)
    await try_password(client)
    before = client.cookies[browsers.COOKIE]
    await client.post("/account/password", data={"current": PASSWORD, "password": "a whole new one"}, headers=FORM)
    stored = await passwords.stored_hash(session, user.id)
    assert stored
    assert browsers.is_known(client.cookies[browsers.COOKIE], stored)
    assert not browsers.is_known(before, stored)


async def test_who_is_counted_has_a_turn(
    client: AsyncClient, session: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a burst would be counted, and then refused."""
    hashing, free = passwords.Hashing(num_threads=1), list[int]()
    monkeypatch.setattr(passwords, "HASHING", hashing)
    count = attempts.count

    async def noted(counting: AsyncSession, limits: Mapping[bytes, int]) -> None:
        free.append(hashing.turns.num_free)
        await count(counting, limits)

    monkeypatch.setattr(attempts, "count", noted)
    await with_password(session)
    await try_password(client)
    assert (free, hashing.turns.num_free) == ([1], 2)


async def test_after_each_hash_there_is_a_rest_as_long() -> None:
    """And nobody waits for it but the next."""
    rests, goes_on = list[float](), threading.Event()

    def rest(seconds: float) -> None:
        rests.append(seconds)
        goes_on.wait(30)

    hashing = passwords.Hashing(num_threads=1, rest=rest)
    took = time.perf_counter()
    await hashing.do(passwords.HASHER.hash, PASSWORD)
    took = time.perf_counter() - took
    following = asyncio.create_task(hashing.do(str.upper, "next"))
    await asyncio.wait([following], timeout=0.1)
    assert not following.done()
    goes_on.set()
    assert await following == "NEXT"
    assert 0 < rests[0] <= took


async def test_who_could_not_be_hashed_hears_why() -> None:
    hashing = passwords.Hashing(num_threads=1)
    with pytest.raises(UnicodeEncodeError):
        await hashing.do(str.encode, "\ud800")
    assert await hashing.do(str.upper, "next") == "NEXT"


async def test_signing_in_rotates_the_session(client: AsyncClient, session: AsyncSession) -> None:
    """Whoever planted a session in this browser has nothing of the one that begins now."""
    user = await with_password(session)
    link = await create_sign_in_link(session, user=user, public_url="http://x")
    planted = await sign_in(session, secret=link.rpartition("#")[2])
    await session.commit()
    client.cookies.set(SESSION_COOKIE, planted)
    answer = await try_password(client)
    assert answer.cookies[SESSION_COOKIE] != planted
    assert await person_of_session(session, planted) is None


@pytest.mark.parametrize(
    ("password", "rule"),
    [
        ("short", "takes 12"),
        ("x" * 300, "takes 12"),
        ("abababababab", "too few"),
        ("ada.lovelace ada.lovelace", "name"),
    ],
)
async def test_a_password_that_is_guessed_soon_is_refused(password: str, rule: str) -> None:
    with pytest.raises(Invalid, match=rule):
        passwords.check(password, name="Ada", email="ada.lovelace@example.org")


async def test_new_passwords_end_every_other_session(client: AsyncClient, session: AsyncSession) -> None:
    user = await with_password(session)
    other = await start_session(session, user_id=user.id, method="password")
    await session.commit()
    await try_password(client)
    wrong = await client.post("/account/password", data={"current": "no", "password": "a whole new one"}, headers=FORM)
    assert wrong.status_code == 422
    assert await person_of_session(session, other)
    right = {"current": PASSWORD, "password": "a whole new one"}
    assert (await client.post("/account/password", data=right, headers=FORM)).status_code == 303
    assert await person_of_session(session, other) is None
    assert (await client.get("/account")).status_code == 200
    assert (await try_password(client)).status_code == 401
    assert (await try_password(client, "a whole new one")).status_code == 303


async def test_a_first_password_needs_a_session_that_began_just_now(client: AsyncClient, session: AsyncSession) -> None:
    user = await make_user(session, name="Ada", email="ada@example.org")
    token = await start_session(session, user_id=user.id, method="link")
    await session.execute(update(UserSession).values(created_at=func.now() - signing_in.FRESH - timedelta(minutes=1)))
    await session.commit()
    client.cookies.set(SESSION_COOKIE, token)
    refused = await client.post("/account/password", data={"password": PASSWORD}, headers=FORM)
    assert refused.status_code == 403
    assert "one-time link" in refused.text
    await session.execute(update(UserSession).values(created_at=func.now()))
    await session.commit()
    assert (await client.post("/account/password", data={"password": PASSWORD}, headers=FORM)).status_code == 303


async def test_sessions_are_listed_and_ended_by_their_owner_only(client: AsyncClient, session: AsyncSession) -> None:
    user, eve = await with_password(session), await make_user(session)
    theirs = await start_session(session, user_id=eve.id, method="link")
    mine = [await start_session(session, user_id=user.id, method="link") for _ in range(3)]
    await session.commit()
    rows = {row.token_hash: row.id for row in await list_sessions(session, eve.id)}
    client.cookies.set(SESSION_COOKIE, mine[0])
    await client.post(f"/account/sessions/{rows[hash_secret(theirs)]}/end", headers=FORM)
    assert await person_of_session(session, theirs)
    own = {row.token_hash: row.id for row in await list_sessions(session, user.id)}
    await client.post(f"/account/sessions/{own[hash_secret(mine[1])]}/end", headers=FORM)
    assert [bool(await person_of_session(session, token)) for token in mine] == [True, False, True]
    await client.post("/account/sessions/end", headers=FORM)
    assert [bool(await person_of_session(session, token)) for token in mine] == [True, False, False]


@pytest.mark.parametrize(
    ("agent", "name"),
    [
        (FIREFOX, "Firefox, Linux"),
        ("Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537 Chrome/142.0 Safari/537 Edg/142.0", "Edge, Windows"),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X) Version/19.0 Mobile Safari/604.1", "Safari, iPhone"),
        ("curl/8", ""),
        (None, ""),
    ],
)
def test_a_browser_is_named_and_not_described(agent: str | None, name: str) -> None:
    assert device_name(agent) == name


# Limits


@pytest.fixture
async def real(fresh_database_url: str, tmp_path: Path) -> AsyncIterator[tuple[AsyncClient, SessionMaker]]:
    """The app with commits of its own."""
    engine = make_engine(fresh_database_url)
    sessionmaker = make_sessionmaker(engine)
    with borrowed_app(Settings(data_dir=tmp_path), sessionmaker) as app:
        async with AsyncClient(transport=ASGITransport(app), base_url="http://127.0.0.1:8000") as client:
            yield client, sessionmaker
    await engine.dispose()


@pytest.mark.real_commits
async def test_guesses_at_one_account_are_counted_exactly_and_outlive_their_refusal(
    real: tuple[AsyncClient, SessionMaker],
) -> None:
    client, sessionmaker = real
    async with sessionmaker.begin() as session:
        await with_password(session)
    answers = await asyncio.gather(*(try_password(client, f"guess {number}") for number in range(14)))
    assert sorted(answer.status_code for answer in answers) == [401] * attempts.PER_ACCOUNT + [429] * 4
    assert (await try_password(client)).status_code == 429, "the right one is not taken either"
    async with sessionmaker.begin() as session:
        refusals = select(func.count()).where(AuditEntry.action == "sign_in.refused")
        assert await session.scalar(refusals) == attempts.PER_ACCOUNT
        await session.execute(update(Attempts).values(since=func.now() - attempts.WINDOW - timedelta(seconds=1)))
    assert (await try_password(client)).status_code == 303


@pytest.mark.real_commits
async def test_what_succeeds_is_not_held_against_an_office(
    real: tuple[AsyncClient, SessionMaker], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, sessionmaker = real
    monkeypatch.setattr(attempts, "PER_ADDRESS", 3)
    async with sessionmaker.begin() as session:
        await with_password(session)
    assert [(await try_password(client)).status_code for _ in range(5)] == [303] * 5
    guesses = [await try_password(client, "no", email=f"p{number}@example.org") for number in range(4)]
    assert [answer.status_code for answer in guesses] == [401, 401, 401, 429]


@pytest.mark.real_commits
async def test_who_signs_in_twice_at_once_waits_in_no_circle(fresh_database_url: str) -> None:
    engine = make_engine(fresh_database_url)
    sessions, account, address = make_sessionmaker(engine), b"b account", b"a address"
    async with sessions.begin() as session:
        await attempts.count(session, {account: 9, address: 9})
    async with sessions() as counting, sessions() as forgiving:
        await counting.execute(update(Attempts).where(Attempts.key == address).values(num=2))
        one = asyncio.create_task(attempts.forgive(forgiving, account=account, address=address))
        async with sessions() as watching, asyncio.timeout(60):
            while not await watching.scalar(text("select exists (select from pg_locks where not granted)")):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await counting.execute(update(Attempts).where(Attempts.key == account).values(num=2))
        await counting.commit()
        await one
        await forgiving.commit()
        left = (await forgiving.execute(select(Attempts.key, Attempts.num))).all()
    assert [(key, num) for key, num in left] == [(address, 1)]
    await engine.dispose()


def test_one_customers_addresses_are_one_key() -> None:
    key = attempts.address_key
    assert key("2001:db8:1:2::1") == key("2001:db8:1:2:ffff::9")
    assert key("2001:db8:1:2::1") != key("2001:db8:1:3::1")
    assert key("192.0.2.1") != key("192.0.2.2")
    assert key(None) == key("nonsense")


# Forgotten passwords


@pytest.fixture
def mailbox() -> Iterator[tuple[int, list[Message]]]:
    """A mail server on this machine: its port, and what it got."""
    letters: list[Message] = []

    class Keep(MessageHandler):
        def handle_message(self, message: Message) -> None:
            letters.append(message)

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = Controller(Keep(), hostname="127.0.0.1", port=port)
    server.start()
    yield port, letters
    server.stop()


async def test_a_link_comes_by_mail_to_whom_there_is_an_account(
    session: AsyncSession, sessionmaker: SessionMaker, mailbox: tuple[int, list[Message]], tmp_path: Path
) -> None:
    await with_password(session)
    port, letters = mailbox
    settings = Settings(data_dir=tmp_path, smtp_host="127.0.0.1", smtp_port=port, smtp_security="none")
    with borrowed_app(settings, sessionmaker) as app:
        async with AsyncClient(transport=ASGITransport(app), base_url="http://127.0.0.1:8000") as client:
            known = await client.post("/sign-in/forgot", data={"email": "ADA@example.org"}, headers=FORM)
            unknown = await client.post("/sign-in/forgot", data={"email": "eve@example.org"}, headers=FORM)
            assert known.text == unknown.text
            assert [letter["To"] for letter in letters] == ["ada@example.org"]
            link = next(line for line in str(letters[0].get_payload()).splitlines() if "#" in line)
            secret = {"secret": link}
            assert (await client.post("/sign-in/link", data=secret, headers=FORM)).status_code == 303
            new = await client.post("/account/password", data={"password": "one that I keep"}, headers=FORM)
            assert new.status_code == 303, "a link is enough to set a new password"
            assert (await client.post("/sign-in/link", data=secret, headers=FORM)).status_code == 401
            for _ in range(signing_in.LINKS_PER_ACCOUNT):
                last = await client.post("/sign-in/forgot", data={"email": "ada@example.org"}, headers=FORM)
            assert last.status_code == 429, "nobody's mailbox is flooded"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_who_merely_opens_a_link_does_not_spend_it(
    client: AsyncClient, session: AsyncSession, method: str
) -> None:
    """Mail servers and messengers open every link that they pass on; some turn its fragment into what they send."""
    link = await create_sign_in_link(session, user=await make_user(session), public_url="http://127.0.0.1:8000")
    await session.commit()
    for opened in (link, link.replace("#", "?secret="), link.replace("#", "/")):
        answer = await client.request(method, opened)
        assert SESSION_COOKIE not in answer.cookies
    assert (await client.post("/sign-in/link", data={"secret": link}, headers=FORM)).status_code == 303


async def test_without_a_mail_server_the_page_says_whom_to_ask(client: AsyncClient, session: AsyncSession) -> None:
    await with_password(session)
    for answer in (
        await client.get("/sign-in/forgot"),
        await client.post("/sign-in/forgot", data={"email": "ada@example.org"}, headers=FORM),
    ):
        assert "owners" in answer.text
    assert await session.scalar(select(func.count()).select_from(SignInLink)) == 0


async def test_an_owner_makes_a_link_for_who_forgot(client: AsyncClient, session: AsyncSession) -> None:
    user = await with_password(session)
    owner = await make_user(session, role=Role.ADMIN)
    client.cookies.set(SESSION_COOKIE, await start_session(session, user_id=owner.id, method="link"))
    await session.commit()
    page = (await client.post(f"/people/{user.id}/link", headers=FORM)).text
    secret = page.split("/sign-in/link#", 1)[1].split("<", 1)[0]
    token = await sign_in(session, secret=secret)
    person = await person_of_session(session, token)
    assert person
    assert person.user.id == user.id
    assert "/sign-in/link#" not in (await client.get(f"/people/{user.id}")).text
