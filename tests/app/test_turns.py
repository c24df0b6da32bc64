"""Who waits for a turn gets one: fairly, with an end to waiting, and nobody's turn is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable

import pytest

from app.turns import NoRoom, Turns


class Desk:
    """Where people want a turn; `done` says in which order they had it."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.done: list[Hashable] = []
        self.goes_on = asyncio.Event()

    async def want(self, whose: Hashable, name: str, line: int = 0) -> None:
        async with self.turns.turn(whose, line):
            self.done.append(name)
            await self.goes_on.wait()

    async def come(self, whose: Hashable, name: str, line: int = 0) -> asyncio.Task[None]:
        task = asyncio.create_task(self.want(whose, name, line))
        await asyncio.sleep(0)
        return task


async def test_whose_many_wait_keeps_nobodys_few_waiting() -> None:
    desk = Desk(Turns(1, 10))
    tasks = [await desk.come("flood", f"flood {number}") for number in range(5)]
    tasks += [await desk.come("ada", "ada"), await desk.come("bo", "bo 1"), await desk.come("bo", "bo 2")]
    desk.goes_on.set()
    await asyncio.gather(*tasks)
    assert desk.done == ["flood 0", "flood 1", "ada", "bo 1", "flood 2", "bo 2", "flood 3", "flood 4"]


async def test_of_two_lines_each_has_every_second_turn() -> None:
    desk = Desk(Turns(1, 10, lines=2))
    tasks = [await desk.come(number, f"stranger {number}", 0) for number in range(4)]
    tasks += [await desk.come(number, f"known {number}", 1) for number in range(2)]
    desk.goes_on.set()
    await asyncio.gather(*tasks)
    assert desk.done == ["stranger 0", "stranger 1", "known 0", "stranger 2", "known 1", "stranger 3"]


async def test_in_a_full_line_the_last_of_the_longest_has_to_go() -> None:
    desk = Desk(Turns(1, 3))
    tasks = [await desk.come("flood", f"flood {number}") for number in range(4)]
    ada = await desk.come("ada", "ada")
    with pytest.raises(NoRoom):
        await tasks[3]
    bo, eve = await desk.come("bo", "bo"), await desk.come("eve", "eve")
    for pushed_out in (tasks[2], eve):
        with pytest.raises(NoRoom):
            await pushed_out
    desk.goes_on.set()
    await asyncio.gather(*tasks[:2], ada, bo)
    assert desk.done == ["flood 0", "flood 1", "ada", "bo"]
    assert desk.turns.num_waiting == 0


async def test_no_turn_is_lost_by_who_goes_away() -> None:
    desk = Desk(Turns(1, 3))
    async with desk.turns.turn("a"):
        waiting, let_on = await desk.come("b", "b"), await desk.come("c", "c")
        waiting.cancel()
    # Nobody else has run since: it has the turn, and does not know it yet.
    let_on.cancel()
    await asyncio.gather(waiting, let_on, return_exceptions=True)
    assert desk.done == []
    async with asyncio.timeout(20), desk.turns.turn("d"):
        assert desk.turns.num_waiting == 0


async def test_who_fails_passes_the_turn_on() -> None:
    turns = Turns(1, 3)
    with pytest.raises(ZeroDivisionError):
        async with turns.turn("a"):
            raise ZeroDivisionError
    async with asyncio.timeout(20), turns.turn("b"):
        pass
