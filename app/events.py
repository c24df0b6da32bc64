"""What must travel against the order of the domains: published in the transaction of its cause, heard by later domains
(`loop`, `quality`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

Handler = Callable[[AsyncSession, Any], Awaitable[None]]
Condition = Callable[[Any], bool]


class Events:
    """The subscriptions of one app. An event is its dataclass; handlers run at once, in the publisher's transaction."""

    def __init__(self) -> None:
        self._handlers: defaultdict[type, dict[Handler, Condition]] = defaultdict(dict)

    def subscribe(self, event: type, handler: Handler, *, only: Condition = lambda event: True) -> None:
        """Call `handler(session, event)` whenever such an event is published that meets the condition `only`."""
        self._handlers[event][handler] = only

    def unsubscribe(self, event: type, handler: Handler) -> None:
        """Call it no more."""
        del self._handlers[event][handler]

    def is_heard(self, event: object) -> bool:
        """Whether anybody would be called: what they do belongs to the transaction of the cause."""
        return any(only(event) for only in self._handlers[type(event)].values())

    async def publish(self, session: AsyncSession, event: object) -> None:
        """Tell all who listen. What a handler raises undoes the whole transaction."""
        for handler, only in list(self._handlers[type(event)].items()):
            if only(event):
                await handler(session, event)


events = Events()
