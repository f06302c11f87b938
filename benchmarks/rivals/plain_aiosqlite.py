# SPDX-License-Identifier: MIT
"""aiosqlite on one shared connection, in three ways: as it is usually written, safely, and briefly.

Each await of the connection is a hop to its thread and back.
"""

import asyncio
from pathlib import Path
from typing import ClassVar, Literal

import aiosqlite

from .base import Durability
from .table import BUSY_TIMEOUT, FILE, SCHEMA, TableRival, pragmas


class AiosqliteRival(TableRival):
    """What the three ways have in common."""

    distributions: ClassVar = ("aiosqlite",)

    # None: sqlite3 begins no transaction by itself
    _isolation_level: ClassVar[Literal["DEFERRED"] | None] = None

    async def open(self, folder: Path, durability: Durability, cache_size: int) -> None:
        """Open the file and make the table."""
        self._folder = folder
        self._lock = asyncio.Lock()
        self._db = await aiosqlite.connect(
            folder / FILE, timeout=BUSY_TIMEOUT, isolation_level=self._isolation_level
        )
        for statement in (*pragmas(durability), *SCHEMA):
            await self._db.execute(statement)

    async def close(self) -> None:
        """Close the file and end the connection's thread."""
        await self._db.close()

    async def _read(self, statement: str, *parameters: str) -> object | None:
        async with self._db.execute(statement, parameters) as cursor:
            return await cursor.fetchone()


class AiosqliteUsual(AiosqliteRival):
    """Executes and commits, as the documentation shows it.

    Tasks share the connection's transaction: the commit of one takes along what others have written
    by then, and a rollback would, too. What a call has returned is committed all the same. If
    another process writes as well, a write fails at once with "database is locked" if it joins a
    read that another task has begun before (SQLITE_BUSY_SNAPSHOT): hence not shareable.
    """

    name: ClassVar = "aiosqlite, execute and commit"
    is_shareable: ClassVar = False

    _isolation_level: ClassVar = "DEFERRED"  # the default of sqlite3

    async def _write(self, statement: str, *parameters: str) -> bool:
        cursor = await self._db.execute(statement, parameters)
        await self._db.commit()
        return cursor.rowcount == 1


class AiosqliteLocked(AiosqliteRival):
    """Gives each call the connection to itself, and each write a transaction.

    Reads wait, too: on the same connection they would see what is not committed yet.
    """

    name: ClassVar = "aiosqlite, a lock and a transaction a call"

    async def _write(self, statement: str, *parameters: str) -> bool:
        async with self._lock:
            try:
                await self._db.execute("BEGIN IMMEDIATE")
                cursor = await self._db.execute(statement, parameters)
                await self._db.execute("COMMIT")
            except BaseException:
                await self._db.rollback()
                raise
            return cursor.rowcount == 1

    async def _read(self, statement: str, *parameters: str) -> object | None:
        async with self._lock:
            return await super()._read(statement, *parameters)


class AiosqliteAutocommit(AiosqliteRival):
    """Makes each call one autocommitted statement and one hop, the least that aiosqlite can do."""

    name: ClassVar = "aiosqlite, one autocommitted statement"

    async def _write(self, statement: str, *parameters: str) -> bool:
        cursor = await self._db.execute(statement, parameters)
        return cursor.rowcount == 1

    async def _read(self, statement: str, *parameters: str) -> object | None:
        return next(iter(await self._db.execute_fetchall(statement, parameters)), None)
