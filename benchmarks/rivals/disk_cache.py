# SPDX-License-Identifier: MIT
"""diskcache: dicts pickled into a SQLite table of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import diskcache

from .base import Durability
from .document import Document, DocumentRival, new_document
from .table import BUSY_TIMEOUT, new_id

NO_LIMIT = 2**50  # bytes
SYNCHRONOUS = {Durability.FULL: 2, Durability.NORMAL: 1}


class DiskCache(DocumentRival):
    """Calls the library directly: it is synchronous, and a hop to a thread would cost more.

    Its cache is the file: it keeps nothing in memory. Each change is one transaction.
    """

    name: ClassVar = "diskcache, synchronous"
    distributions: ClassVar = ("diskcache",)
    is_concurrent: ClassVar = False

    async def open(self, folder: Path, durability: Durability, cache_size: int) -> None:
        """Open the cache as a store: it evicts nothing."""
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
                self._cache.set(id_, new_document(f"child-{id_[:8]}", data))
        return ids

    async def create(self, child_id: str, data: dict[str, Any]) -> str:
        """Set a new dict."""
        id_ = new_id()
        self._cache.set(id_, new_document(child_id, data))
        return id_

    async def get(self, session_id: str) -> object | None:
        """Return the dict, unpickled by the library."""
        session: object | None = self._cache.get(session_id)
        return session

    async def _change(self, session_id: str, change: Callable[[Document], Document]) -> bool:
        with self._cache.transact():
            session = self._cache.get(session_id)
            if session is None or session["status"] != "active":
                return False
            self._cache.set(session_id, {**session, "last_activity": self.now(), **change(session)})
        return True
