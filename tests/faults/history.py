"""Many people who rank over the API while the server is killed, the history of what it told them, and its checker.

The checker believes no counter of ours: it compares what was acknowledged with the rankings and leases that are there.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2
from sqlalchemy import text

from app.db import SessionMaker

API = "/api/v1"
# As often a request is sent again to a server that is away: far beyond any restart.
MOST_TRIES = 600
IDLE_SECONDS = 0.3
"""Until somebody looks again whether a task came back."""


@dataclass(frozen=True)
class Answer:
    """What the server said to one ranking that was sent; `order` is best first."""

    person: str
    task: str
    lease: str
    order: tuple[str, ...]
    status: int
    ranking: str | None = None
    is_surplus: bool = False

    @property
    def is_taken(self) -> bool:
        """Whether the server acknowledged it."""
        return self.status in {200, 201}


@dataclass
class History:
    """All that was told to anybody, and how many rankings were acknowledged so far."""

    overlap: int
    answers: list[Answer] = field(default_factory=list)
    num_sent: int = 0
    num_taken: int = 0
    """Acknowledged rankings, repeated ones too."""
    num_unanswered: int = 0
    troubles: Counter[int] = field(default_factory=Counter)
    """Statuses of 500 and more that were answered. Only 503 says that the same may be sent again."""
    num_changes: int = 0
    """Moments at which there may be work again for who had none."""
    found_nothing: dict[str, int] = field(default_factory=dict)
    """By person: after how many changes they asked last for a task, and there was none."""
    goals: list[tuple[int, asyncio.Event]] = field(default_factory=list)

    async def reach(self, num_taken: int) -> None:
        """Wait until so many rankings are acknowledged."""
        goal = asyncio.Event()
        self.goals.append((num_taken, goal))
        self.take(0)
        await goal.wait()

    def take(self, num: int) -> None:
        """So many more are acknowledged: tell those who wait for it."""
        self.num_taken += num
        for wanted, goal in self.goals:
            if self.num_taken >= wanted:
                goal.set()


@dataclass(frozen=True)
class Stored:
    """A first ranking as the database has it."""

    ranking: str
    lease: str
    task: str
    person: str
    order: tuple[str, ...]
    is_surplus: bool


Disturb = Callable[[History], Coroutine[Any, Any, None]]

# The people


@dataclass
class Person:
    """Somebody who takes tasks, skips some, and sends each ranking until it is answered, at times twice at once."""

    name: str
    client: httpx2.AsyncClient
    chance: random.Random
    history: History

    async def work(self, project_id: str, num_people: int) -> None:
        """Until nobody finds anything. Whoever found nothing asks again after the next change: on a busy machine all of
        them asking all the time would keep each other from an end.
        """
        history = self.history
        while list(history.found_nothing.values()).count(history.num_changes) < num_people:
            if history.found_nothing.get(self.name) == history.num_changes:
                await asyncio.sleep(IDLE_SECONDS)
                continue
            seen = history.num_changes
            found = await self.send("/tasks:next", {"project_id": project_id})
            if found.status_code == 200:
                history.num_changes += 1
                await self.handle(found.json())
                history.num_changes += 1
            else:
                assert found.status_code == 204, found.text
                history.found_nothing[self.name] = seen

    async def handle(self, task: dict[str, Any]) -> None:
        """Skip it, or rank it."""
        if self.chance.random() < 0.05:
            await self.send(f"/leases/{task['lease_id']}:release", {})
            return
        order = [card["id"] for card in task["completions"]]
        self.chance.shuffle(order)
        times = 2 if self.chance.random() < 0.3 else 1
        await asyncio.gather(*(self.rank(task, order) for _ in range(times)))
        if self.chance.random() < 0.3:
            await self.rank(task, order)
        if self.chance.random() < 0.2:
            await self.rank(task, order[::-1])

    async def rank(self, task: dict[str, Any], order: Sequence[str]) -> None:
        """Send one ranking until there is an answer, and write the answer down."""
        body = {"order": [[item] for item in order]}
        found = await self.send(f"/leases/{task['lease_id']}/ranking", body)
        told = found.json() if found.status_code in {200, 201} else {}
        self.history.take(int(bool(told)))
        self.history.answers.append(
            Answer(
                person=self.name,
                task=task["task_id"],
                lease=task["lease_id"],
                order=tuple(order),
                status=found.status_code,
                ranking=told.get("id"),
                is_surplus=told.get("is_surplus", False),
            )
        )

    async def send(self, path: str, body: dict[str, Any]) -> httpx2.Response:
        """The same again and again, until a server that is there has decided."""
        self.history.num_sent += 1
        for attempt in range(MOST_TRIES):
            try:
                found = await self.client.post(f"{API}{path}", json=body)
                if found.status_code < 500:
                    return found
                self.history.troubles[found.status_code] += 1
            except httpx2.TransportError:
                pass
            self.history.num_unanswered += 1
            await asyncio.sleep(min(0.02 * 2**attempt, 0.3))
        raise AssertionError("the server did not come back")


async def let_time_jump(history: History, sessions: SessionMaker, *, share: float) -> None:
    """For some of the open leases the time is over."""
    query = text(
        "update leases set expires_at = now() - interval '1 second' where id in"
        " (select id from leases where state = 'open' and random() < :share for update skip locked)"
    )
    async with sessions.begin() as session:
        await session.execute(query, {"share": share})
    history.num_changes += 1


async def work_off(people: Sequence[Person], project_id: str) -> None:
    """All work until nothing is left; since they were asked last, there may be more."""
    people[0].history.num_changes += 1
    await asyncio.gather(*(person.work(project_id, len(people)) for person in people))


async def play(
    people: Sequence[Person], project_id: str, *, disturb: Callable[[History], Coroutine[Any, Any, None]]
) -> History:
    """All work until nothing is left, and something goes wrong meanwhile."""
    history = people[0].history
    trouble: asyncio.Task[None] = asyncio.create_task(disturb(history))
    await work_off(people, project_id)
    trouble.cancel()
    # What went wrong with the trouble itself is no cancellation, and is told.
    for outcome in await asyncio.gather(trouble, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome
    return history


# The checker


@dataclass(frozen=True)
class Facts:
    """What the database says in the end. `had`: who ever had a lease on a task."""

    rankings: Sequence[Stored]
    tasks: Sequence[str]
    had: dict[str, set[str]]
    num_people: int


def violations(history: History, facts: Facts) -> list[str]:
    """What was promised and not kept; empty: all was."""
    return [
        *[f"trouble: {num} answers {status}" for status, num in history.troubles.items() if status != 503],
        *lost(history.answers, facts.rankings),
        *repeated(history.answers),
        *twice(facts.rankings),
        *overfull(facts, history.overlap),
        *starved(facts, history.overlap),
    ]


def lost(answers: Iterable[Answer], rankings: Iterable[Stored]) -> list[str]:
    """Every acknowledged ranking is there, as it was sent."""
    stored = {row.ranking: row for row in rankings}
    broken = []
    for answer in answers:
        row = stored.get(answer.ranking or "")
        sent = (answer.lease, answer.task, answer.person, answer.order, answer.is_surplus)
        if answer.is_taken and (not row or (row.lease, row.task, row.person, row.order, row.is_surplus) != sent):
            broken.append(f"lost: {answer.person} was told that {answer.ranking} of {answer.task} is stored")
    return broken


def repeated(answers: Iterable[Answer]) -> list[str]:
    """A lease takes one body: the same again gets the same answer, another one 409."""
    taken: defaultdict[str, set[Any]] = defaultdict(set)
    refused: defaultdict[str, set[int]] = defaultdict(set)
    for answer in answers:
        if answer.is_taken:
            taken[answer.lease].add((answer.order, answer.ranking, answer.is_surplus))
        else:
            refused[answer.lease].add(answer.status)
    broken = [f"retries of {lease} got {len(told)} different answers" for lease, told in taken.items() if len(told) > 1]
    return broken + [f"{lease} was refused with {codes}" for lease, codes in refused.items() if codes != {409}]


def twice(rankings: Iterable[Stored]) -> list[str]:
    """Nobody ranks a task twice."""
    times = Counter((row.person, row.task) for row in rankings)
    return [f"twice: {person} ranked {task} {num} times" for (person, task), num in times.items() if num > 1]


def overfull(facts: Facts, overlap: int) -> list[str]:
    """No task has more rankings that count than its overlap."""
    counted = Counter(row.task for row in facts.rankings if not row.is_surplus)
    return [f"above {overlap}: {task} has {num} rankings" for task, num in counted.items() if num > overlap]


def starved(facts: Facts, overlap: int) -> list[str]:
    """In the end no task lacks a ranking that somebody could have given who never had it."""
    counted = Counter(row.task for row in facts.rankings if not row.is_surplus)
    waiting = [task for task in facts.tasks if counted[task] < overlap]
    return [f"starved: {task}" for task in waiting if len(facts.had.get(task, ())) < facts.num_people]


async def read_facts(sessions: SessionMaker, project_id: str, num_people: int) -> Facts:
    """First rankings with their places, the tasks, and who had them."""
    rankings = text(
        "select r.id::text, r.lease_id::text, r.task_id::text, r.annotator_id::text,"
        " array_agg(p.completion_id::text order by p.place) as places, r.is_surplus"
        " from rankings r join ranking_places p on p.ranking_id = r.id"
        " where r.project_id = :project and r.supersedes_id is null group by r.id"
    )
    had = text(
        "select t.id::text, array_remove(array_agg(l.annotator_id::text), null) as people"
        " from tasks t left join leases l on l.task_id = t.id where t.project_id = :project group by t.id"
    )
    async with sessions() as session:
        stored = (await session.execute(rankings, {"project": project_id})).all()
        tasks = (await session.execute(had, {"project": project_id})).all()
    return Facts(
        rankings=[Stored(row[0], row[1], row[2], row[3], tuple(row.places), row.is_surplus) for row in stored],
        tasks=[row[0] for row in tasks],
        had={row[0]: set(row.people) for row in tasks},
        num_people=num_people,
    )
