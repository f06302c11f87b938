# SPDX-License-Identifier: MIT
"""sessionstore itself, through its public methods."""

import sqlite3
from collections.abc import Callable, Coroutine
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import sessionstore

from .installed import versions
from .protocol import Durability
from .table import FILE, fill_table

TIME_FORMAT = "%Y-%m-%d %H:%M:%S.%f"  # the README documents the table for other programs


class Sessionstore:
    """Runs without a sweeper. Its calls are the manager's own methods, as users call them.

    It decides by itself what a commit survives: FULL for create, update and end, NORMAL for touch.
    So it is measured against both, and ignores which.
    """

    key: ClassVar = "sessionstore"
    name: ClassVar = "sessionstore"
    durabilities: ClassVar = frozenset(Durability)
    is_concurrent: ClassVar = True
    has_cache: ClassVar = True
    is_shareable: ClassVar = True

    create: Callable[[str, dict[str, Any]], Coroutine[Any, Any, str]]
    get: Callable[[str], Coroutine[Any, Any, object | None]]
    touch: Callable[[str], Coroutine[Any, Any, bool]]
    update: Callable[[str, dict[str, Any]], Coroutine[Any, Any, bool]]
    end: Callable[[str], Coroutine[Any, Any, bool]]

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
        self.create = self._manager.create_session
        self.get = self._manager.get_session
        self.touch = self._manager.update_activity
        self.update = self._manager.update_session
        self.end = self._manager.end_session

    async def close(self) -> None:
        """Close the manager."""
        await self._manager.close()

    async def fill(self, count: int, data: dict[str, Any]) -> list[str]:
        """Insert rows as another program may, with all that create_session would write."""
        ids = fill_table(self._path, count, data, lambda time: time.strftime(TIME_FORMAT))
        with closing(sqlite3.connect(self._path)) as connection, connection:
            connection.execute("UPDATE sessions SET swept_activity = last_activity")
        return ids

    async def settle(self) -> None:
        """Do nothing: what was acknowledged is committed."""
