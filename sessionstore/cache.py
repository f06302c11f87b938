# SPDX-License-Identifier: MIT
"""A least-recently-used cache: a plain class, with no asyncio, no SQL and no clock.

It holds what it is given and decides only what to drop when it is full. Whether an entry is still
true is the caller's question to coherence.Generations. Used from one thread.
"""

from collections import OrderedDict
from typing import Generic, TypeVar

Value = TypeVar("Value")


class LRUCache(Generic[Value]):
    """Map ids to values; beyond capacity, drop the one that was used least recently."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._values: OrderedDict[str, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> Value | None:
        """Return the value and count it as used, or None."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: str, value: Value) -> None:
        """Add or replace a value and count it as used. With capacity 0, do nothing."""
        if self._capacity == 0:
            return
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._capacity:
            self._values.popitem(last=False)

    def discard(self, key: str) -> None:
        """Drop a value, if it is there."""
        self._values.pop(key, None)
