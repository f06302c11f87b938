# SPDX-License-Identifier: MIT
"""Generations: how a reader of the cache knows that no commit has overtaken what it holds.

There are 65,536 slots, a 64-bit word each, and a session's slot is a hash of its id. A write job
sets the word of each session that it changed to an odd one (in flight) before COMMIT, and to a new
even one afterwards. A load notes the word before its SELECT and keeps the row with it. A cached row
is true while its slot's word is still the one noted:

1. Where a commit came after the SELECT, the word was set after it was noted, so it differs.
2. Where the word was odd when noted, a commit was under way, and the row is not kept at all.
3. A word never comes back: the revision only grows.

Two sessions in one slot cost each other a miss, never a wrong answer. The words are this process's
own memory, so one process at a time may use a file with a cache. Written by one write job at a time
on its connection's thread; read anywhere. Nothing is known here of sessions, SQL or the cache.
"""

import zlib
from collections.abc import Iterable

SLOTS = 65_536


def slot_of(session_id: str) -> int:
    """Return the slot of a session, the same in every process."""
    return zlib.crc32(session_id.encode()) % SLOTS


class Generations:
    """Hold the word of each slot."""

    def __init__(self) -> None:
        self._revision = 0
        self._words = memoryview(bytearray(8 * SLOTS)).cast("Q")

    def word(self, slot: int) -> int:
        """Return the slot's word as it is now, to be noted before a SELECT."""
        return self._words[slot]

    def is_current(self, slot: int, word: int) -> bool:
        """Say whether what was read under the noted word is still what the file holds."""
        return self._words[slot] == word and not word & 1

    def begin(self, slots: Iterable[int]) -> None:
        """Mark the slots as in flight. Call it in the write transaction, before COMMIT."""
        self._revision += 1
        self._set(slots, self._revision << 1 | 1)

    def settle(self, slots: Iterable[int]) -> int:
        """Give the slots a new word after COMMIT, or after its failure, and return the word."""
        word = self._revision << 1
        self._set(slots, word)
        return word

    def _set(self, slots: Iterable[int], word: int) -> None:
        for slot in slots:
            self._words[slot] = word
