"""What must travel against the order of the domains: published in the transaction of its cause, heard by later domains
(`loop`, `quality`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

Handler = Callable[[AsyncSession, Any], Awaitable[None]]


class Events:
    """The subscriptions of one app. An event is its dataclass; handlers run at once, in the publisher's transaction."""

    def __init__(self) -> None:
        self._handlers: defaultdict[type, list[Handler]] = defaultdict(list)

    def subscribe(self, event: type, handler: Handler) -> None:
        """Call `handler(session, event)` whenever such an event is published."""
        if handler not in self._handlers[event]:
            self._handlers[event].append(handler)

    async def publish(self, session: AsyncSession, event: object) -> None:
        """Tell all who listen. What a handler raises undoes the whole transaction."""
        for handler in self._handlers[type(event)]:
            await handler(session, event)


events = Events()
