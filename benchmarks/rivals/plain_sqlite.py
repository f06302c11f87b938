# SPDX-License-Identifier: MIT
"""Python's own sqlite3, called synchronously: the cost of SQLite alone, and its lower limit."""

import sqlite3
from pathlib import Path
from typing import Any, ClassVar, Literal

from .base import Durability
from .table import BUSY_TIMEOUT, FILE, SCHEMA, TableRival, pragmas


class PlainSqlite(TableRival):
    """Commits each statement by itself, and blocks the event loop meanwhile."""

    name: ClassVar = "sqlite3, synchronous"
    is_concurrent: ClassVar = False

    # None: sqlite3 begins no transaction by itself
    _isolation_level: ClassVar[Literal["IMMEDIATE"] | None] = None

    async def open(self, folder: Path, durability: Durability, cache_size: int) -> None:
        """Open the file and make the table."""
        self._folder = folder
        self._connection = sqlite3.connect(
            folder / FILE, timeout=BUSY_TIMEOUT, isolation_level=self._isolation_level
        )
        for statement in (*pragmas(durability), *SCHEMA):
            self._connection.execute(statement)

    async def close(self) -> None:
        """Close the file."""
        self._connection.close()

    async def _write(self, statement: str, *parameters: str) -> bool:
        return self._connection.execute(statement, parameters).rowcount == 1

    async def _read(self, statement: str, *parameters: str) -> object | None:
        row: object | None = self._connection.execute(statement, parameters).fetchone()
        return row


class PlainSqliteOneTransaction(PlainSqlite):
    """Commits nothing before settle(): what it answers is not yet safe. No store can be faster.

    The transaction that sqlite3 begins by itself keeps all others from writing meanwhile.
    """

    name: ClassVar = "sqlite3, all in one transaction"
    is_shareable: ClassVar = False

    _isolation_level: ClassVar = "IMMEDIATE"

    async def fill(self, count: int, data: dict[str, Any]) -> list[str]:
        """Commit, since the rows come over another connection."""
        await self.settle()
        return await super().fill(count, data)

    async def settle(self) -> None:
        """Commit all that was written."""
        self._connection.commit()
