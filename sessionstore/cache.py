# SPDX-License-Identifier: MIT
"""A least-recently-used cache: a plain class, with no asyncio, no SQL and no clock.

It holds what it is given and decides only what to drop when it is full. Whether an entry is still
true is the caller's question to coherence.Generations. Used from one thread.
"""

from collections import OrderedDict
from typing import TypeVar

Value = TypeVar("Value")


class LRUCache(OrderedDict[str, Value]):
    """A dict in the order of use; beyond its capacity the value used least recently goes.

    Whoever reads a value says so by move_to_end(key): reading is then two operations of C, and no
    call of Python's, which a hit would feel.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity

    def put(self, key: str, value: Value) -> None:
        """Add or replace a value and count it as used. With capacity 0, do nothing."""
        if self._capacity == 0:
            return
        self[key] = value
        self.move_to_end(key)
        if len(self) > self._capacity:
            self.popitem(last=False)
