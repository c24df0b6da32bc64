"""People who rank and people who sign in, at a fixed pace whatever becomes of them, and how long each of them waits."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import httpx2

from app.accounts.browsers import COOKIE as MARK

CYCLES_A_SECOND = 10
SIGN_INS_A_SECOND = 2
FIRST_SIGN_INS_A_SECOND = 0.5
LOOKS_A_SECOND = 5
PASSWORD = "four words are enough"  # noqa: S105 (of people who are made for one run)


@dataclass
class Felt:
    """Milliseconds of each request by its name, from the moment at which it was due; and what was refused."""

    waits: dict[str, list[float]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)

    def note(self, name: str, due: float, answer: httpx2.Response, *good: int) -> None:
        """One more answer."""
        self.waits.setdefault(name, []).append(1000 * (time.perf_counter() - due))
        if answer.status_code not in good:
            self.refused[f"{name} {answer.status_code}"] += 1

    def add(self, other: Felt) -> None:
        """Of another time, as well."""
        for name, waits in other.waits.items():
            self.waits.setdefault(name, []).extend(waits)
        self.refused += other.refused

    def summary(self) -> dict[str, dict[str, float]]:
        """p50, p95, p99 and the longest of each, in milliseconds."""
        return {name: percentiles(sorted(waits)) for name, waits in self.waits.items()}


def percentiles(waits: Sequence[float]) -> dict[str, float]:
    """Of sorted waits: the value below which so many in a hundred are."""
    named = {f"p{share}": waits[min(len(waits) - 1, len(waits) * share // 100)] for share in (50, 95, 99)}
    return {**named, "max": waits[-1], "num": len(waits)}


class Visitors:
    """Everybody who behaves: `people` have tokens, `members` an address and PASSWORD."""

    def __init__(self, base: str, project_id: str, people: Sequence[Mapping[str, str]], members: Sequence[str]) -> None:
        self.base = base
        self.project_id = project_id
        self.people = people
        self.members = members
        self._next_person = 0
        # What the browser of each member keeps of signing in.
        self._marks: dict[str, str] = {}

    async def visit(self, seconds: float) -> Felt:
        """All of them for a while. Each request is due at its moment: what is late counts from there."""
        felt = Felt()
        limits = httpx2.Limits(max_connections=200, max_keepalive_connections=200)
        async with httpx2.AsyncClient(base_url=self.base, timeout=60, limits=limits) as client:
            # These are many people's browsers: nothing that one of them is given is sent by another.
            client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))
            await asyncio.gather(
                at_pace(CYCLES_A_SECOND, seconds, lambda due: self._rank(client, felt, due)),
                at_pace(SIGN_INS_A_SECOND, seconds, lambda due: self._sign_in(client, felt, due)),
                at_pace(FIRST_SIGN_INS_A_SECOND, seconds, lambda due: self._sign_in_first(client, felt, due)),
                at_pace(LOOKS_A_SECOND, seconds, lambda due: self._look(client, felt, due)),
            )
        return felt

    async def _rank(self, client: httpx2.AsyncClient, felt: Felt, due: float) -> None:
        """Take the next task and rank it."""
        self._next_person += 1
        person = self.people[self._next_person % len(self.people)]
        headers = {"authorization": f"Bearer {person['token']}"}
        asked = {"project_id": self.project_id}
        taken = await client.post("/api/v1/tasks:next", json=asked, headers=headers)
        felt.note("next", due, taken, 200)
        if taken.status_code != 200:
            return
        task: dict[str, Any] = json.loads(taken.content)
        order = [[one["id"]] for one in task["completions"]]
        random.shuffle(order)
        begun = time.perf_counter()
        place = f"/api/v1/leases/{task['lease_id']}/ranking"
        felt.note("submit", begun, await client.post(place, json={"order": order}, headers=headers), 201)

    async def _sign_in(self, client: httpx2.AsyncClient, felt: Felt, due: float) -> None:
        """Again, in the browser in which they did before."""
        member = random.choice(self.members)
        answer = await self._send_password(client, member, self._marks.get(member))
        felt.note("sign-in", due, answer, 303)

    async def _sign_in_first(self, client: httpx2.AsyncClient, felt: Felt, due: float) -> None:
        """In a browser in which they never did."""
        felt.note("first sign-in", due, await self._send_password(client, random.choice(self.members), None), 303)

    async def meet(self) -> None:
        """Every member signs in once."""
        async with httpx2.AsyncClient(base_url=self.base, timeout=60) as client:
            for member in self.members:
                client.cookies.clear()
                self._marks[member] = (await self._send_password(client, member, None)).cookies[MARK]

    async def _send_password(self, client: httpx2.AsyncClient, member: str, mark: str | None) -> httpx2.Response:
        headers = {"sec-fetch-site": "same-origin"} | ({"cookie": f"{MARK}={mark}"} if mark else {})
        return await client.post("/sign-in", data={"email": member, "password": PASSWORD}, headers=headers)

    async def _look(self, client: httpx2.AsyncClient, felt: Felt, due: float) -> None:
        """Whether the process is alive, as whatever watches over it asks."""
        felt.note("health", due, await client.get("/health"), 200)


async def at_pace(rate: float, seconds: float, act: Callable[[float], Awaitable[None]]) -> None:
    """Begin so many acts a second, each with the moment at which it was due, and wait for the last."""
    start = time.perf_counter()
    async with asyncio.TaskGroup() as acts:
        for number in range(int(rate * seconds)):
            due = start + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            acts.create_task(_as_coroutine(act, due))


async def _as_coroutine(act: Callable[[float], Awaitable[None]], due: float) -> None:
    await act(due)
