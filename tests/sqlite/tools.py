# SPDX-License-Identifier: MIT
"""What the tests of the engine share: another program on the file, and a store by itself."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

from sessionstore import Session, SessionManager
from sessionstore.expiry import Expiry, Moment
from sessionstore.session import Record, new_id
from sessionstore.sqlite import SQLiteStore
from sessionstore.store import Commit

SECOND = 1_000_000
NOON = 1_700_049_600 * SECOND  # 2023-11-15 12:00:00 UTC
EXPIRY = Expiry(60 * SECOND)
SLOTS = 65_536
LOCK_SIZE = 8 * (SLOTS + 1)


def connect(path: Path) -> closing[sqlite3.Connection]:
    """Open a file as another program would, and close it at the end of the block."""
    return closing(sqlite3.connect(path, isolation_level=None))


def run_sql(path: Path, statement: str, *values: object) -> list[Any]:
    """Run one statement as another program would, and return its rows."""
    with connect(path) as connection:
        return connection.execute(statement, values).fetchall()


def lock_of(database: Path) -> Path:
    """Return the path of a database's lock file."""
    return database.with_name(f"{database.name}-lock")


def quiet(database: Path | str | SQLiteStore, **settings: Any) -> SessionManager:
    """Return a manager without a sweeper."""
    return SessionManager(database, sweep_interval=None, **settings)


async def the_session(manager: SessionManager, session_id: str) -> Session:
    """Return a session that must be there."""
    session = await manager.get_session(session_id)
    assert session is not None
    return session


def moment(seconds: float = 0, expiry: Expiry = EXPIRY) -> Moment:
    """Return the moment so many seconds after noon."""
    return Moment(NOON + int(seconds * SECOND), expiry)


def new_record(**changes: Any) -> Record:
    """Return a session that has started at noon, but for the changes."""
    fields: dict[str, Any] = {
        "id": new_id(NOON),
        "child_id": "lina",
        "status": "active",
        "started_at": NOON,
        "ended_at": None,
        "last_activity": NOON,
        "data": "{}",
        "metadata": "{}",
        "interaction_count": 0,
        "end_reason": None,
    }
    return Record(**{**fields, **changes})


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.commits: list[Commit] = []
        self.forgotten = 0

    def on_commit(self, commit: Commit) -> None:
        """Keep the commit."""
        self.commits.append(commit)

    def forget(self) -> None:
        """Count."""
        self.forgotten += 1


@asynccontextmanager
async def opened(database: Path | str, **settings: Any) -> AsyncIterator[tuple[SQLiteStore, Heard]]:
    """Yield an open store, and what it tells."""
    store, heard = SQLiteStore(database, **settings), Heard()
    await store.open(heard, NOON)
    try:
        yield store, heard
    finally:
        await store.close()


class Held:
    """A change of a session that stays inside of its transaction until it may go on."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.may_go_on = threading.Event()

    def __call__(self, record: Record) -> Record:
        """Wait, and change nothing."""
        self.begun.set()
        assert self.may_go_on.wait(10)
        return record

    async def has_begun(self) -> None:
        """Wait until the transaction is under way, and the event loop is free."""
        assert await asyncio.to_thread(self.begun.wait, 10)


@contextmanager
def writing(database: Path) -> Iterator[sqlite3.Connection]:
    """Hold SQLite's lock for writing, as another program does, during the block."""
    with connect(database) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        if connection.in_transaction:
            connection.execute("ROLLBACK")


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait for what no event tells."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def longest_gap(waiting: "asyncio.Future[Any]") -> float:
    """Tick every millisecond until the future is done; return the longest time between ticks."""
    longest, before = 0.0, time.perf_counter()
    while not waiting.done():
        await asyncio.sleep(0.001)
        longest, before = max(longest, time.perf_counter() - before), time.perf_counter()
    return longest
