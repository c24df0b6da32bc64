"""What was worked out before, kept in this process: for what follows from its key alone, so that nothing kept is wrong.

A figure over rankings has the keys of these rankings (`quality.reading.Key`) as its key: another ranking makes another
key. A text's HTML has the text.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Remembered(Generic[K, V]):
    """The values that were asked for last. Their sizes are at most `most` in all; each has one where none is given."""

    def __init__(self, most: int, size: Callable[[K, V], int] = lambda _key, _value: 1) -> None:
        self.most = most
        self._size = size
        self._values: OrderedDict[K, V] = OrderedDict()
        self._total = 0

    def get(self, key: K) -> V | None:
        """What was kept, or None."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key]

    def keep(self, key: K, value: V) -> V:
        """Keep a value, and give it back."""
        if key in self._values:
            self._total -= self._size(key, self._values.pop(key))
        self._values[key] = value
        self._total += self._size(key, value)
        while self._total > self.most:
            self._total -= self._size(*self._values.popitem(last=False))
        return value
