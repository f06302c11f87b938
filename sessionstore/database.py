# SPDX-License-Identifier: MIT
"""The connections to one file, their settings, and the jobs that run on them.

The only module that knows aiosqlite. A job is a plain function that takes the sqlite3.Connection
and runs whole on the connection's own thread: one hop, whatever it does, and no transaction is ever
open between two awaits. A job that has begun is waited for even when its caller is cancelled. One
connection writes; a second one, which cannot write, reads. SQLite's errors become ours here, told
apart by their codes.
"""

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Generic, TypeVar, TypeVarTuple

import aiosqlite

from . import migrations, queries
from .concurrency import finish
from .errors import SessionStoreError, StorageError, StoreBusyError, StoreClosedError

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

BUSY_TIMEOUT = 10.0  # seconds that a statement waits for another program's lock
GUARD_DELAY = 0.005  # seconds: CPython's switch interval
GUARD_HOLD = 0.001  # seconds
MINIMUM_SQLITE = (3, 35, 0)  # the first with RETURNING


def _primary_code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def is_busy(error: sqlite3.Error) -> bool:
    """Say whether another connection's lock was in the way."""
    return _primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def translate(error: sqlite3.Error) -> SessionStoreError:
    """Return our exception for one of SQLite's, which it is chained to."""
    code = _primary_code(error)
    ours: SessionStoreError
    if is_busy(error):
        ours = StoreBusyError("another program holds a lock on the database; try again")
    else:
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        ours = StorageError(f"{_ADVICE.get(code, 'SQLite refused the operation')} ({name})")
    ours.__cause__ = error
    return ours


_ADVICE = {
    sqlite3.SQLITE_CANTOPEN: "the database cannot be opened; check its folder and its permissions",
    sqlite3.SQLITE_CORRUPT: "the database file is damaged; restore a backup",
    sqlite3.SQLITE_FULL: "the disk is full; make room and try again",
    sqlite3.SQLITE_IOERR: "the disk failed to read or write the database; check it",
    sqlite3.SQLITE_NOTADB: "the file is not a SQLite database; use another path",
    sqlite3.SQLITE_READONLY: "the database cannot be written; check its permissions",
}


class _Job(Generic[Result]):
    """One function on its way to the connection's thread and back.

    An object of its own and not a partial: aiosqlite logs what it runs, and a partial would show
    the arguments, which are sessions' data.
    """

    def __init__(self, function: Callable[[], Result], loop: asyncio.AbstractEventLoop) -> None:
        self._function = function
        self._loop = loop
        self._done = threading.Lock()
        self._done.acquire()
        self.future: asyncio.Future[Result] = loop.create_future()
        self.guard = loop.call_later(GUARD_DELAY, self._lend_gil)

    def __call__(self) -> None:
        """Run on the connection's thread."""
        settle: Callable[[], None]
        try:
            settle = partial(self._settle, self._function(), None)
        except BaseException as error:
            settle = partial(self._settle, None, error)
        with suppress(RuntimeError):  # the event loop was closed: nobody waits for the outcome
            self._loop.call_soon_threadsafe(settle)
        self._done.release()

    def _settle(self, result: Result | None, error: BaseException | None) -> None:
        self.guard.cancel()
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)  # type: ignore[arg-type]  # no error: there is a result

    def _lend_gil(self) -> None:
        """Give the thread the GIL where a busy event loop starves it.

        Between any two steps of SQLite the thread needs the GIL. A loop that always has callbacks
        ready lets go of it in each pass, and takes it back before the thread has woken up. Only
        blocking on a lock really hands it over.
        """
        if not self._done.acquire(timeout=GUARD_HOLD):
            self.guard = self._loop.call_later(GUARD_DELAY, self._lend_gil)


class Connection(aiosqlite.Connection):
    """A connection of aiosqlite that runs jobs. It uses internals of 0.22, hence the pin."""

    async def run(
        self,
        function: Callable[[sqlite3.Connection, *Arguments], Result],
        *arguments: *Arguments,
    ) -> Result:
        """Run the function whole on the connection's thread and return its result."""
        if not self._running or self._connection is None:
            raise StoreClosedError("the store is closed")
        return await self._hop(partial(function, self._connection, *arguments))

    async def start(self) -> None:
        """Start the thread and connect on it. On failure nothing is left."""
        # A daemon: a process that forgets to close must not hang at its exit.
        self._thread.daemon = True
        self._thread.start()
        try:
            await self._hop(self._connect_here)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Run the jobs that are queued, then close the connection and end the thread."""
        stopped = self.stop()
        if stopped is not None:
            try:
                await finish(stopped)
            finally:
                self._thread.join()  # it has nothing left to do but return

    def _connect_here(self) -> None:
        self._connection = self._connector()

    async def _hop(self, function: Callable[[], Result]) -> Result:
        job = _Job(function, asyncio.get_running_loop())
        self._tx.put_nowait((None, job))
        try:
            return await finish(job.future)
        except sqlite3.Error as error:
            raise translate(error) from error
        except OSError as error:
            raise StorageError(f"the folder or disk refused: {error.strerror}") from error


class Database:
    """The two connections to one file: `writer` writes; `reader` never waits behind a commit."""

    writer: Connection
    reader: Connection

    def __init__(self, path: str, *, create: bool = True) -> None:
        self._path = path
        self._create = create

    async def open(self, now: str) -> None:
        """Make the folder, connect, and bring the file to today's schema. All or nothing.

        A ":memory:" database has one connection for both: another would have a database of its own.
        """
        if sqlite3.sqlite_version_info < MINIMUM_SQLITE:
            raise StorageError(f"SQLite 3.35 or newer is needed, not {sqlite3.sqlite_version}")
        self.writer = self.reader = await self._connect()
        try:
            await self.writer.run(_prepare, self._path, self._create, now)
            if self._path != ":memory:":
                self.reader = await self._connect()
                await self.reader.run(_forbid_writes)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Finish the jobs that were begun and close; the writer last, so that it can checkpoint."""
        try:
            if self.reader is not self.writer:
                await self.reader.close()
        finally:
            await self.writer.close()

    async def _connect(self) -> Connection:
        connection = Connection(
            partial(_connect_sqlite, self._path, self._create), iter_chunk_size=64
        )
        await connection.start()
        return connection


def _connect_sqlite(path: str, create: bool) -> sqlite3.Connection:
    if not create and not os.path.exists(path):
        raise StorageError("there is no such file, and it was not to be made")
    if path != ":memory:":
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    return sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None)


def _prepare(connection: sqlite3.Connection, path: str, create: bool, now: str) -> None:
    migrations.migrate(connection, path, now, create=create)
    # After the migration: setting WAL changes the file, and one that is refused stays as it was.
    if _set_wal(connection) not in ("wal", "memory"):
        raise StorageError("the file system does not support SQLite's WAL; use a local disk")


def _set_wal(connection: sqlite3.Connection) -> str:
    """Set WAL and return the journal mode. SQLite itself does not wait here for another opener."""
    give_up = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            journal_mode: str = connection.execute(queries.SET_JOURNAL_WAL).fetchone()[0]
            return journal_mode
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() > give_up:
                raise
        time.sleep(0.005)


def _forbid_writes(connection: sqlite3.Connection) -> None:
    connection.execute(queries.SET_QUERY_ONLY)
