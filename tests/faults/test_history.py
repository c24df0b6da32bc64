"""Exact overlap and safe retries over the real API while web and database are killed; the checker finds planted bugs.

The full size is in tests/soak/test_history.py.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from app.embedded import EmbeddedPostgres
from tests.faults.history import Answer, Facts, History, Stored, let_time_jump, play, violations
from tests.faults.house import kill, open_house

OVERLAP = 2


@pytest.mark.slow
async def test_no_promise_is_broken_when_web_and_database_are_killed(
    durable_server: EmbeddedPostgres, durable_url: str, tmp_path: Path
) -> None:
    async with open_house(durable_url, tmp_path, num_tasks=24, num_people=16, overlap=OVERLAP) as house:

        async def kill_both(history: History) -> None:
            await history.reach(15)
            house.web.kill()
            await let_time_jump(history, house.sessions, share=0.5)
            house.web.start()
            await history.reach(35)
            await asyncio.to_thread(kill, durable_server)

        history = await play(house.people, house.project_id, disturb=kill_both)
        facts = await house.facts()
    assert violations(history, facts) == []
    assert history.num_unanswered, "no request was under way when the server was killed"
    assert len({answer.ranking for answer in history.answers if answer.is_taken}) >= 24 * OVERLAP
    assert {answer.status for answer in history.answers} >= {200, 201, 409}


@pytest.mark.slow
async def test_the_checker_finds_what_a_database_forgets(
    durable_server: EmbeddedPostgres, durable_url: str, tmp_path: Path
) -> None:
    """The canary: a checker that finds nothing here is blind, and what it does not find above proves nothing."""
    forgetful = open_house(durable_url, tmp_path, num_tasks=24, num_people=16, overlap=OVERLAP, is_forgetful=True)
    async with forgetful as house:

        async def kill_the_database(history: History) -> None:
            await history.reach(15)
            await asyncio.to_thread(kill, durable_server)

        history = await play(house.people, house.project_id, disturb=kill_the_database)
        facts = await house.facts()
    assert any(found.startswith("lost") for found in violations(history, facts))


@pytest.mark.real_commits
@pytest.mark.slow
async def test_the_checker_finds_count_then_insert(fresh_database_url: str, tmp_path: Path) -> None:
    careless = open_house(fresh_database_url, tmp_path, num_tasks=4, num_people=16, overlap=OVERLAP, is_careless=True)
    async with careless as house:
        async with house.sessions.begin() as session:
            await session.execute(text("drop trigger tasks_guard_places on tasks"))
        history = await play(house.people, house.project_id, disturb=nothing)
        facts = await house.facts()
    assert any(found.startswith("above 2") for found in violations(history, facts))


async def nothing(history: History) -> None:
    """Nothing goes wrong."""


# The checker, on histories made by hand


TAKEN = Answer("ada", "t", "l", ("a", "b"), 201, "r")
ROW = Stored("r", "l", "t", "ada", ("a", "b"), is_surplus=False)


def found(answers: list[Answer], rankings: list[Stored], *, had: set[str] | None = None) -> list[str]:
    facts = Facts(rankings, ["t"], {"t": had or {"ada", "bob"}}, num_people=2)
    return [line.split(":")[0].split(" ")[0] for line in violations(History(1, answers), facts)]


def test_what_was_kept_is_no_violation() -> None:
    refused = replace(TAKEN, order=("b", "a"), status=409, ranking=None)
    assert found([TAKEN, replace(TAKEN, status=200), refused], [ROW]) == []


@pytest.mark.parametrize(
    ("answers", "rankings", "expected"),
    [
        ([TAKEN], [], "lost"),
        ([TAKEN], [replace(ROW, order=("b", "a"))], "lost"),
        ([TAKEN], [replace(ROW, is_surplus=True)], "lost"),
        (
            [TAKEN, replace(TAKEN, status=200, ranking="s")],
            [ROW, replace(ROW, ranking="s", is_surplus=True)],
            "retries",
        ),
        ([TAKEN, replace(TAKEN, status=200, order=("b", "a"))], [ROW], "retries"),
        ([TAKEN, replace(TAKEN, status=404, ranking=None)], [ROW], "l"),
        ([TAKEN], [ROW, replace(ROW, ranking="s", lease="m", is_surplus=True)], "twice"),
        ([TAKEN], [ROW, replace(ROW, ranking="s", lease="m", person="bob")], "above"),
    ],
)
def test_what_was_broken_is_found(answers: list[Answer], rankings: list[Stored], expected: str) -> None:
    assert expected in found(answers, rankings)


def test_a_task_that_somebody_never_got_starves() -> None:
    assert found([], [], had={"ada"}) == ["starved"]
    assert found([], [], had={"ada", "bob"}) == []
