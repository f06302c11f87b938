# SPDX-License-Identifier: MIT
"""Reading one session through the cache.

A hit is a lookup and one comparison. Misses that come together are loaded together in one job, and
two misses of one id share a load; but never one that had begun before the second miss, since a
commit in between might be missing from it. What the cache keeps is filled after a miss, or by the
writer after COMMIT, and believed only while coherence says so.
"""

from collections.abc import Sequence
from typing import NamedTuple

from . import store
from .cache import LRUCache
from .coherence import Generations, slot_of
from .concurrency import Batcher
from .database import Database
from .models import Expiry, SessionRow
from .writer import Change


class CachedRow(NamedTuple):
    """A row with what a hit needs to know about it."""

    row: SessionRow
    expires_at: int  # microseconds since the epoch
    slot: int
    word: int  # of the slot, noted before the row was read or set when it was written


class Reader:
    """Looks sessions up, in memory where that is true and else in the file."""

    def __init__(
        self, database: Database, generations: Generations, expiry: Expiry, cache_size: int
    ) -> None:
        self._database = database
        self._generations = generations
        self._expiry = expiry
        self._cache: LRUCache[CachedRow] = LRUCache(cache_size)
        self._batcher: Batcher[str, CachedRow | None] = Batcher(self._load)
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._cache)

    async def get(self, session_id: str) -> CachedRow | None:
        """Return the session's row as of now, or None. A hit does not give up control."""
        cached = self._cache.get(session_id)
        if cached is not None and self._generations.is_current(cached.slot, cached.word):
            self.hits += 1
            return cached
        self.misses += 1
        return await self._batcher.submit(session_id)

    def remember(self, change: Change, word: int) -> None:
        """Keep the live rows of a commit, and drop what ended or was erased."""
        for row in change.rows:
            if row.status == "active":
                self._keep(row, slot_of(row.id), word)
            else:
                self._cache.discard(row.id)
        for session_id in change.erased:
            self._cache.discard(session_id)

    async def close(self) -> None:
        """Finish the loads that were begun, and refuse new ones."""
        await self._batcher.close()

    async def _load(self, session_ids: list[str]) -> Sequence[CachedRow | Exception | None]:
        words = {id_: self._generations.word(slot_of(id_)) for id_ in session_ids}
        rows = await self._database.reader.run(store.select_sessions, words.keys())
        found = {id_: self._keep(row, slot_of(id_), words[id_]) for id_, row in rows.items()}
        return [found.get(id_) for id_ in session_ids]

    def _keep(self, row: SessionRow, slot: int, word: int) -> CachedRow:
        cached = CachedRow(row, self._expiry.expires_at(row), slot, word)
        if self._generations.is_current(slot, word):
            self._cache.put(row.id, cached)
        return cached
