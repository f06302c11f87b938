# SPDX-License-Identifier: MIT
"""The table of the rivals that write SQL by hand, and all of them that is not its execution.

They share the statements, the ids, the times and the JSON, and differ in how a statement is run and
committed: _write and _read. Each call is one statement, the shortest way that SQLite offers.
"""

import json
import sqlite3
import uuid
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from .base import Durability, Rival

FILE = "sessions.db"
BUSY_TIMEOUT = 30.0  # seconds: a wait for another process shows as latency, not as an error
FILLED_SPAN = timedelta(hours=1)  # over which the sessions that are put in have started

SCHEMA = (
    """
    CREATE TABLE IF NOT EXISTS sessions (
        id                TEXT PRIMARY KEY,
        child_id          TEXT NOT NULL,
        status            TEXT NOT NULL,
        started_at        TEXT NOT NULL,
        last_activity     TEXT NOT NULL,
        ended_at          TEXT,
        data              TEXT NOT NULL,
        metadata          TEXT NOT NULL,
        interaction_count INTEGER NOT NULL
    )
    """,
    "CREATE INDEX IF NOT EXISTS idx_sessions_child_id ON sessions (child_id)",
    "CREATE INDEX IF NOT EXISTS idx_sessions_activity ON sessions (status, last_activity)",
)

# fill_table runs it on SQLAlchemy's table, too: the columns have the same names there.
INSERT_SESSION = """
INSERT INTO sessions
       (id, child_id, status, started_at, last_activity, data, metadata, interaction_count)
VALUES (?, ?, 'active', ?, ?, ?, '{}', 0)
"""

SELECT_SESSION = """
SELECT id, child_id, status, started_at, last_activity, ended_at, data, metadata, interaction_count
  FROM sessions
 WHERE id = ?
"""

UPDATE_ACTIVITY = """
UPDATE sessions
   SET last_activity     = ?,
       interaction_count = interaction_count + 1
 WHERE id = ?
   AND status = 'active'
"""

# json_patch merges like dict.update if no value is null or an object.
UPDATE_DATA = """
UPDATE sessions
   SET last_activity = ?,
       data          = json_patch(data, ?)
 WHERE id = ?
   AND status = 'active'
"""

UPDATE_ENDED = """
UPDATE sessions
   SET status   = 'ended',
       ended_at = ?
 WHERE id = ?
   AND status = 'active'
"""


def pragmas(durability: Durability) -> tuple[str, ...]:
    """Return the settings of a connection that are usual for a server's database."""
    return ("PRAGMA journal_mode = WAL", f"PRAGMA synchronous = {durability}")


def new_id() -> str:
    """Return a new session's id."""
    return str(uuid.uuid4())


def now() -> str:
    """Return the time as it is written, in UTC."""
    return datetime.now(UTC).isoformat()


def starts(count: int) -> list[datetime]:
    """Return when so many sessions have started, evenly over FILLED_SPAN."""
    end = datetime.now(UTC)
    return [end - FILLED_SPAN * ((count - number) / count) for number in range(count)]


def insert_rows(path: Path, statement: str, rows: list[tuple[Any, ...]]) -> None:
    """Insert in one transaction of a connection's own, and leave the write-ahead log empty."""
    with closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT)) as connection:
        connection.execute("PRAGMA cache_size = -500000")  # kB: the indexes are filled at random
        with connection:
            connection.executemany(statement, rows)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def fill_table(
    path: Path, count: int, data: dict[str, Any], to_text: Callable[[datetime], str]
) -> list[str]:
    """Insert active sessions, and return their ids."""
    content = json.dumps(data)
    times = map(to_text, starts(count))
    rows = [(id_ := new_id(), f"child-{id_[:8]}", at, at, content) for at in times]
    insert_rows(path, INSERT_SESSION, rows)
    return [row[0] for row in rows]


class TableRival(Rival):
    """Keeps the sessions in the table of SCHEMA; a subclass runs the statements."""

    _folder: Path

    async def _write(self, statement: str, *parameters: str) -> bool:
        """Run and commit a statement; tell whether it changed a row."""
        raise NotImplementedError

    async def _read(self, statement: str, *parameters: str) -> object | None:
        """Return the first row, or None."""
        raise NotImplementedError

    async def fill(self, count: int, data: dict[str, Any]) -> list[str]:
        """Insert the rows over a connection of their own."""
        return fill_table(self._folder / FILE, count, data, datetime.isoformat)

    async def create(self, child_id: str, data: dict[str, Any]) -> str:
        """Insert a row."""
        id_, started_at = new_id(), now()
        await self._write(INSERT_SESSION, id_, child_id, started_at, started_at, json.dumps(data))
        return id_

    async def get(self, session_id: str) -> object | None:
        """Return the row as it was fetched, its JSON not decoded."""
        return await self._read(SELECT_SESSION, session_id)

    async def touch(self, session_id: str) -> bool:
        """Update the row if it is active."""
        return await self._write(UPDATE_ACTIVITY, now(), session_id)

    async def update(self, session_id: str, data: dict[str, Any]) -> bool:
        """Merge the JSON in SQL."""
        return await self._write(UPDATE_DATA, now(), json.dumps(data), session_id)

    async def end(self, session_id: str) -> bool:
        """Mark the row as ended."""
        return await self._write(UPDATE_ENDED, now(), session_id)
