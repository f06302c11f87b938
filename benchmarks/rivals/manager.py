# SPDX-License-Identifier: MIT
"""sessionstore itself, through its public methods."""

import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import sessionstore

from .installed import versions
from .protocol import Durability, Rival
from .table import FILE, fill_table

TIME_FORMAT = "%Y-%m-%d %H:%M:%S.%f"  # the README documents the table for other programs


class Sessionstore(Rival):
    """Runs without a sweeper.

    It decides by itself what a commit survives: FULL for create, update and end, NORMAL for touch.
    So it is measured against both, and ignores which.
    """

    key: ClassVar = "sessionstore"
    name: ClassVar = "sessionstore"
    durabilities: ClassVar = frozenset(Durability)
    is_concurrent: ClassVar = True
    has_cache: ClassVar = True
    is_shareable: ClassVar = True

    def missing(self) -> str | None:
        """Return None: it is the package measured."""
        return None

    def version(self) -> str:
        """Return the versions of sessionstore, aiosqlite and SQLite."""
        own = f"sessionstore {sessionstore.__version__}"
        return f"{own}, {versions('aiosqlite')}, SQLite {sqlite3.sqlite_version}"

    async def open(self, folder: Path, durability: Durability, cache_size: int) -> None:
        """Open the manager, with a timeout that no measurement reaches."""
        self._path = folder / FILE
        self._manager = sessionstore.SessionManager(
            self._path, timeout=timedelta(days=1), sweep_interval=None, cache_size=cache_size
        )
        await self._manager.open()

    async def close(self) -> None:
        """Close the manager."""
        await self._manager.close()

    async def fill(self, count: int, data: dict[str, Any]) -> list[str]:
        """Insert rows as another program may, with all that create_session would write."""
        ids = fill_table(self._path, count, data, lambda time: time.strftime(TIME_FORMAT))
        with closing(sqlite3.connect(self._path)) as connection, connection:
            connection.execute("UPDATE sessions SET swept_activity = last_activity")
        return ids

    async def create(self, child_id: str, data: dict[str, Any]) -> str:
        """Call create_session."""
        return await self._manager.create_session(child_id, data)

    async def get(self, session_id: str) -> object | None:
        """Call get_session; the snapshot decodes its JSON when it is asked for it."""
        return await self._manager.get_session(session_id)

    async def touch(self, session_id: str) -> bool:
        """Call update_activity."""
        return await self._manager.update_activity(session_id)

    async def update(self, session_id: str, data: dict[str, Any]) -> bool:
        """Call update_session."""
        return await self._manager.update_session(session_id, data)

    async def end(self, session_id: str) -> bool:
        """Call end_session."""
        return await self._manager.end_session(session_id)
