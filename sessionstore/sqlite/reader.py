# SPDX-License-Identifier: MIT
"""Reading one session through the cache.

A hit is a lookup and one comparison. Misses that come together are loaded together in one job, and
two misses of one id share a load; but never one that had begun before the second miss, since a
commit in between might be missing from it. What the cache keeps is filled after a miss, or by the
writer after COMMIT, and believed only while coherence says so.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import cast

from ..cache import LRUCache
from ..session import Context, Expiry, Row, Session, SessionRow
from . import store
from .concurrency import Batcher, Finish, Outcome
from .database import Database
from .sidecar import Coherence, slot_of
from .writer import Change, Commit

CLOCK_ROUNDING = 0.000_01  # seconds, more than a float of today's times is off


# A row; until when it has certainly not timed out, in seconds since the epoch; its slot; and the
# slot's word, noted before the row was read or set when it was written. A plain tuple: a hit takes
# it apart, which is slower for a named one.
CachedRow = tuple[Row, float, int, int]


# What SessionManager.get_session needs for a hit: the rows; the words; the clock; what notes a use;
# where it is counted; and what a snapshot has beside its row. Plain, too.
Hot = tuple[
    LRUCache[CachedRow], Coherence, Callable[[], float], Callable[[str], None], "Reader", Context
]

# While there is no reader: nothing is found, so nothing else is asked for.
NO_ROWS = cast("Hot", ({}, None, None, None, None, None))


class Reader:
    """Looks sessions up, in memory where that is true and else in the file."""

    def __init__(
        self,
        database: Database,
        expiry: Expiry,
        cache_size: int,
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._coherence = database.coherence
        self._expiry = expiry
        self._cache: LRUCache[CachedRow] = LRUCache(cache_size)
        note_use = self._cache.move_to_end
        self.hot: Hot = (self._cache, self._coherence, clock, note_use, self, expiry.context)
        self._batcher = Batcher[str, CachedRow | None](self._begin)
        self._data_version: int | None = None  # at the last sweep
        self._era = 0  # that ends when all is forgotten
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._cache)

    async def get(self, session_id: str, now: int) -> Session | None:
        """Return the snapshot of the session at now, or None where there is none."""
        cached = self._cache.get(session_id)
        if cached is not None and self._coherence.is_current(*cached[2:]):
            self._cache.move_to_end(session_id)
            self.hits += 1
        else:
            self.misses += 1
            cached = await self._batcher.submit(session_id)
        if cached is None:
            return None
        row, true_until, _, _ = cached
        if now < true_until * 1_000_000:
            return self._expiry.snapshot(row)
        return self._expiry.session(row, now)

    def remember(self, commit: Commit) -> None:
        """Keep the live rows of a commit, and drop what ended or was erased."""
        kept: set[str] = set()  # as this commit has them, so far
        for change in commit.results:
            if not isinstance(change, Change):
                continue
            if change.touched is not None:
                self._touch(change.touched, change.touched_at, commit, kept)
            for row in change.rows:
                if row.status == "active":
                    # Also where a batch after it was committed already: its touches come next.
                    self._cache.put(row.id, self._as_cached(row, slot_of(row.id), commit.word))
                    kept.add(row.id)
                else:
                    self._cache.pop(row.id, None)
            for session_id in change.erased:
                self._cache.pop(session_id, None)

    def _touch(self, session_id: str, moment: str, commit: Commit, kept: set[str]) -> None:
        """Do to the cached row what the commit did to the one in the file.

        The cached one must be that of before, or one that had its other changes here. One that has
        the commit's word already, but not from here, was read after the COMMIT: it has all of them.
        """
        cached = self._cache.get(session_id)
        if cached is None:
            return
        row, _, slot, word = cached
        if word == commit.words_before.get(slot) or session_id in kept:
            touched = SessionRow._make(row).touched(moment)
            self._cache.put(session_id, self._as_cached(touched, slot, commit.word))
            kept.add(session_id)

    async def notice_foreign_commits(self) -> None:
        """Empty the cache where a connection other than our writer has committed.

        The words tell of commits by processes of ours; one by a foreign program is among these
        only. Loads that are under way are not kept either.
        """
        version = await self._database.write(store.read_data_version)
        if version != self._data_version:
            self._data_version = version
            self.forget()

    def forget(self) -> None:
        """Drop all that is cached, and keep nothing of the loads that are under way."""
        self._cache.clear()
        self._era += 1

    async def close(self) -> None:
        """Finish the loads that were begun, and refuse new ones."""
        await self._batcher.close()

    def _begin(self, session_ids: list[str], _: float, finish: Finish[CachedRow | None]) -> None:
        slots = ((id_, slot_of(id_)) for id_ in session_ids)
        words = {id_: (slot, self._coherence.word(slot)) for id_, slot in slots}
        conclude = partial(self._conclude, session_ids, words, self._era)
        self._database.reader.begin(
            store.select_sessions,
            list(words),
            on_end=lambda outcome: finish(partial(conclude, outcome)),
        )

    def _conclude(
        self,
        session_ids: list[str],
        words: dict[str, tuple[int, int]],
        era: int,
        outcome: Outcome[list[Row]],
    ) -> list[CachedRow | None]:
        found: dict[str, CachedRow] = {}
        for row in outcome():
            found[row[0]] = cached = self._as_cached(row, *words[row[0]])
            if era == self._era:
                self._keep(cached)
        return [found.get(id_) for id_ in session_ids]

    def _as_cached(self, row: Row, slot: int, word: int) -> CachedRow:
        expires_at = self._expiry.expires_at(row)
        true_until = expires_at / 1_000_000 - CLOCK_ROUNDING if row[2] == "active" else math.inf
        return row, true_until, slot, word

    def _keep(self, cached: CachedRow) -> None:
        row, _, slot, word = cached
        if self._coherence.is_current(slot, word):
            self._cache.put(row[0], cached)
