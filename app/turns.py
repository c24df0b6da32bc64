"""Turns at what only a few can do at once: who comes when all of them are taken waits, fairly, and with an end."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

Waiter = asyncio.Future[None]


class NoRoom(Exception):
    """So many wait already that nobody else may."""


class Line:
    """People who wait. They are let on one of each in turn: whose many wait keeps nobody's few waiting."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: OrderedDict[Hashable, deque[Waiter]] = OrderedDict()
        self.num_waiting = 0

    def join(self, whose: Hashable) -> Waiter:
        """The end of waiting, which is to be awaited. In a full line the last of those who have most in it has to go.

        Raises:
            NoRoom: that would be this one.
        """
        if self.num_waiting >= self._most:
            most = max(self._waiting, key=lambda key: len(self._waiting[key]))
            if len(self._waiting[most]) <= len(self._waiting.get(whose, ())) + 1:
                raise NoRoom
            last = self._waiting[most][-1]
            self.leave(most, last)
            if not last.done():
                last.set_exception(NoRoom())
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(whose, deque()).append(waiter)
        self.num_waiting += 1
        return waiter

    def leave(self, whose: Hashable, waiter: Waiter) -> None:
        """Wait no longer; once more is harmless."""
        if waiter in self._waiting.get(whose, ()):
            self._waiting[whose].remove(waiter)
            self.num_waiting -= 1
            if not self._waiting[whose]:
                del self._waiting[whose]

    def let_on(self) -> bool:
        """The next one's turn has come; whether there is one."""
        while self._waiting:
            whose, theirs = next(iter(self._waiting.items()))
            waiter = theirs[0]
            self._waiting.move_to_end(whose)
            self.leave(whose, waiter)
            # Who was cancelled at this moment is still in the line.
            if not waiter.done():
                waiter.set_result(None)
                return True
        return False


class Turns:
    """`at_once` are at it; at most `most_waiting` wait in each of the lines, which have every second turn where both
    want it.
    """

    def __init__(self, at_once: int, most_waiting: int, lines: int = 1) -> None:
        self._lines = deque(Line(most_waiting) for _ in range(lines))
        self._by_number = tuple(self._lines)
        self.num_free = at_once

    @property
    def num_waiting(self) -> int:
        """How many wait."""
        return sum(line.num_waiting for line in self._lines)

    @asynccontextmanager
    async def turn(self, whose: Hashable, line: int = 0) -> AsyncIterator[None]:
        """Wait for a turn, and have it.

        Raises:
            NoRoom: too many wait, or somebody else had to be let in in this one's place.
        """
        await self._wait(whose, self._by_number[line])
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, whose: Hashable, line: Line) -> None:
        if self.num_free:
            self.num_free -= 1
            return
        waiter = line.join(whose)
        try:
            await waiter
        except asyncio.CancelledError:
            line.leave(whose, waiter)
            # Let on at the very moment at which nobody wanted it any more.
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """What was taken goes to who is next, of the line that has waited longer for one; or it is free."""
        for _ in self._by_number:
            self._lines.rotate(-1)
            if self._lines[-1].let_on():
                return
        self.num_free += 1
