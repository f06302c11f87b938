# SPDX-License-Identifier: MIT
"""diskcache: dicts pickled into a SQLite table of its own."""

import sqlite3
from pathlib import Path
from typing import Any, ClassVar

from . import document
from .installed import find_missing, versions
from .protocol import Durability, Rival
from .table import BUSY_TIMEOUT, new_id

NO_LIMIT = 2**50  # bytes
SYNCHRONOUS = {Durability.FULL: 2, Durability.NORMAL: 1}


class DiskCache(Rival):
    """Calls the library directly: it is synchronous, and a hop to a thread would cost more.

    Its cache is the file: it keeps nothing in memory.
    """

    key: ClassVar = "diskcache"
    name: ClassVar = "diskcache, synchronous"
    durabilities: ClassVar = frozenset(Durability)
    is_concurrent: ClassVar = False
    has_cache: ClassVar = False
    is_shareable: ClassVar = True

    def missing(self) -> str | None:
        """Return diskcache where it is not installed."""
        return find_missing("diskcache")

    def version(self) -> str:
        """Return the versions of diskcache and SQLite."""
        return f"{versions('diskcache')}, SQLite {sqlite3.sqlite_version}"

    async def open(self, folder: Path, durability: Durability, cache_size: int) -> None:
        """Open the cache as a store: it evicts nothing."""
        import diskcache

        self._cache: Any = diskcache.Cache(
            str(folder),
            timeout=BUSY_TIMEOUT,
            eviction_policy="none",
            cull_limit=0,
            size_limit=NO_LIMIT,
            sqlite_synchronous=SYNCHRONOUS[durability],
        )

    async def close(self) -> None:
        """Close the cache."""
        self._cache.close()

    async def fill(self, count: int, data: dict[str, Any]) -> list[str]:
        """Set all in one transaction."""
        ids = [new_id() for _ in range(count)]
        with self._cache.transact():
            for id_ in ids:
                self._cache.set(id_, document.new_document(f"child-{id_[:8]}", data))
        return ids

    async def create(self, child_id: str, data: dict[str, Any]) -> str:
        """Set a new dict."""
        id_ = new_id()
        self._cache.set(id_, document.new_document(child_id, data))
        return id_

    async def get(self, session_id: str) -> object | None:
        """Return the dict, unpickled by the library."""
        session: object | None = self._cache.get(session_id)
        return session

    async def touch(self, session_id: str) -> bool:
        """Count, in one transaction."""
        return self._change(session_id, document.touch)

    async def update(self, session_id: str, data: dict[str, Any]) -> bool:
        """Merge, in one transaction."""
        return self._change(session_id, document.merge(data))

    async def end(self, session_id: str) -> bool:
        """Mark as ended, in one transaction."""
        return self._change(session_id, document.end)

    def _change(self, session_id: str, change: document.Change) -> bool:
        with self._cache.transact():
            session = self._cache.get(session_id)
            if not document.is_active(session):
                return False
            change(session)
            self._cache.set(session_id, session)
        return True
