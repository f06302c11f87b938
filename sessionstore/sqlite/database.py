# SPDX-License-Identifier: MIT
"""The connections to one file, their settings, and the jobs that run on them.

The only module that knows aiosqlite. A job is a plain function that takes the sqlite3.Connection
and runs whole on the connection's own thread: one hop, whatever it does, and no transaction is ever
open between two awaits. A job that has begun is waited for even when its caller is cancelled. One
connection writes; a second one, which cannot write, reads. SQLite's errors become ours here, told
apart by their codes.
"""

import asyncio
import logging
import math
import os
import sqlite3
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, TypeVarTuple

import aiosqlite
from aiosqlite.core import _STOP_RUNNING_SENTINEL

from ..errors import SessionStoreError, StorageError, StoreBusyError, StoreClosedError
from .concurrency import Outcome, finish, resolve
from .files import identity_at
from .jobs import Errand, Job, Turn
from .preparation import check, check_version, connect, prepare_reader, prepare_writer
from .sidecar import Coherence
from .transactions import SQLITE_ERRORS, is_busy, primary_code
from .wal import WriteAheadLog

logger = logging.getLogger(__name__)

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

CLOSE_PATIENCE = 1.0  # seconds that close() waits for others' locks, the writes before it included


def translate(error: Exception) -> SessionStoreError:
    """Return our exception for one of SQLite's, which it is chained to."""
    code = primary_code(error)
    ours: SessionStoreError
    if is_busy(error):
        ours = StoreBusyError("another program holds a lock on the database; try again")
    else:
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        ours = StorageError(f"{_ADVICE.get(code, 'SQLite refused the operation')} ({name})")
    if hasattr(error, "sqlite_errorcode"):  # else it is Python's own, and may quote what it read
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


class Connection(aiosqlite.Connection):
    """A connection of aiosqlite that runs jobs. It uses internals of 0.22, hence the pin."""

    _last: Job[Any] | None = None  # the job that was queued last

    async def run(
        self,
        function: Callable[[sqlite3.Connection, *Arguments], Result],
        *arguments: *Arguments,
    ) -> Result:
        """Run the function whole on the connection's thread and return its result."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.begin(function, *arguments, on_end=partial(resolve, future))
        return await finish(future)

    def begin(
        self,
        function: Callable[[sqlite3.Connection, *Arguments], Result],
        *arguments: *Arguments,
        on_end: Callable[[Outcome[Result]], object],
        turn: Turn | None = None,
    ) -> Job[Result]:
        """Queue the function for the connection's thread; its outcome goes to on_end."""
        if not self._running or self._connection is None:
            raise StoreClosedError("the store is closed")
        return self._queue(partial(function, self._connection, *arguments), on_end, turn)

    async def start(self) -> None:
        """Start the thread and connect on it. On failure nothing is left."""
        # A daemon: a process that forgets to close must not hang at its exit.
        self._thread.daemon = True
        self._thread.start()
        try:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._queue(self._connect_here, partial(resolve, future))
            await finish(future)
        except BaseException:
            await self.close()
            raise

    async def close(self, coherence: Coherence | None = None, turn: Turn | None = None) -> None:
        """Run the jobs that are queued, close, under the lock if there is one, and end the thread.

        Where another process keeps the lock, the thread waits for it, and closes, by itself.
        """
        self._running = False
        turn = turn or Turn(CLOSE_PATIENCE)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue(partial(self._close_here, coherence, turn), partial(resolve, future), turn)
        self._tx.put_nowait((None, lambda: _STOP_RUNNING_SENTINEL))
        try:
            await finish(future)
            self._thread.join()  # it has nothing left to do but return
        except StoreBusyError:
            logger.warning("another process keeps the lock: the database is closed when it is free")

    def stop(self) -> None:
        """End a forgotten connection. That of aiosqlite would make an event loop for it."""
        self._tx.put_nowait((None, partial(self._close_here, None, Turn(0.0))))
        self._tx.put_nowait((None, lambda: _STOP_RUNNING_SENTINEL))

    def _connect_here(self) -> None:
        self._connection = self._connector()

    def _close_here(self, coherence: Coherence | None, turn: Turn) -> None:
        connection, self._connection = self._connection, None
        try:
            if coherence is not None and coherence.is_open and connection is not None:
                with coherence.hold(turn):
                    turn.give_up()  # too late for the event loop to do so: it waits for the end
                    connection.close()
        except OSError as error:  # its folder is gone, perhaps
            logger.warning("closed without the lock file, which is amiss: %s", error.strerror)
        finally:
            if connection is not None:
                connection.close()
            if coherence is not None:
                coherence.close()

    def _queue(
        self,
        function: Callable[[], Result],
        on_end: Callable[[Outcome[Result]], object],
        turn: Turn | None = None,
    ) -> Job[Result]:
        job = Job(partial(_translating, function), on_end, turn, before=self._last)
        self._last = job
        self._tx.put_nowait((None, Errand(job)))
        return job


def _translating(function: Callable[[], Result]) -> Result:
    try:
        return function()
    except SQLITE_ERRORS as error:
        ours = translate(error)
        raise ours from ours.__cause__
    except OSError as error:
        raise StorageError(f"the folder or disk refused: {error.strerror}") from error


class Database:
    """The two connections to one file: one writes; `reader` never waits behind a commit."""

    reader: Connection
    _writer: Connection

    def __init__(self, path: str, *, create: bool = True, busy_timeout: float = 10.0) -> None:
        """Take the path, or ":memory:", and the seconds for which a write waits for locks."""
        self._path = path if path == ":memory:" else os.path.realpath(path)
        self._create = create
        self._busy_timeout = busy_timeout
        self._jobs: list[Job[Any]] = []  # that write, and have not ended
        self._give_up_at = math.inf  # by the event loop's clock, once the store is closing
        self._connections: list[Connection] = []
        self._identity: tuple[int, int] | None = None
        self._wal = WriteAheadLog(self._path)
        self.coherence = Coherence(None if path == ":memory:" else self._path)

    async def open(self, now: str) -> None:
        """Make the folder, connect, and bring the file to today's schema. All or nothing.

        A ":memory:" database has one connection for both: another would have a database of its own.
        """
        if self._path in _inherited_files:
            raise StoreClosedError("the file was open when the process was forked; open it after")
        check_version()
        self._writer = self.reader = await self._connect()
        try:
            self._identity = await self._writer.run(lambda _: identity_at(self._path))
            # Before the lock file is made: a file that is refused gets nothing beside it.
            await self._writer.run(check, self._path, self._create, self._busy_timeout)
            await self.write(prepare_writer, self._path, now)
            if self._path != ":memory:":
                self.reader = await self._connect()
                await self.reader.run(prepare_reader)
        except BaseException:
            await self.close()
            raise

    def hurry(self) -> None:
        """Wait for locks no longer than close() does, from now on."""
        self._give_up_at = asyncio.get_running_loop().time() + CLOSE_PATIENCE
        for job in self._jobs:
            job.hurry(CLOSE_PATIENCE)

    def _turn(self, patience: float) -> Turn:
        """Return a turn that waits so many seconds, or hardly longer than close() while closing."""
        left = self._give_up_at - asyncio.get_running_loop().time()
        return Turn(max(0.0, min(patience, max(left, CLOSE_PATIENCE / 10))))

    async def close(self) -> None:
        """Finish the jobs that were begun and close; the writer last, so that it can checkpoint."""
        try:
            if self.reader is not self._writer:
                await self.reader.close()
        finally:
            await self._writer.close(self.coherence, self._turn(CLOSE_PATIENCE))

    def inherit(self) -> None:
        """Let go, in a child process, of what belongs to its parent."""
        for connection in self._connections:
            _inherited_connections.append(connection._connection)
            connection._connection = None
        if self._path != ":memory:":
            _inherited_files.add(self._path)
        self.coherence.inherit()

    async def write(
        self,
        job: Callable[[sqlite3.Connection, Turn, *Arguments], Result],
        *arguments: *Arguments,
    ) -> Result:
        """Run a job on the connection that writes, with the lock of all processes held.

        The job claims its turn before it changes anything, best when it has SQLite's lock, too.
        Raises StoreBusyError, with nothing written, where that takes longer than the timeout.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        begun = self.begin_write(job, *arguments, on_end=partial(resolve, future))
        return await finish(future, begun.give_up)

    def begin_write(
        self,
        job: Callable[[sqlite3.Connection, Turn, *Arguments], Result],
        *arguments: *Arguments,
        on_end: Callable[[Outcome[Result]], object],
        waited: float = 0.0,
        announces: bool = False,
    ) -> Job[Result]:
        """Queue what `write` runs, for callers who have waited that long, and return at once."""
        turn = self._turn(self._busy_timeout - waited)
        turn.announces = announces
        run = self._exclusively
        begun = self._writer.begin(run, turn, job, *arguments, on_end=on_end, turn=turn)
        self._jobs = [*(other for other in self._jobs if other.is_under_way), begun]
        return begun

    async def empty_wal(self) -> bool:
        """Take out of the write-ahead log what was erased; return whether that could be done."""
        return await self.write(self._empty_wal)

    def _exclusively(
        self,
        connection: sqlite3.Connection,
        turn: Turn,
        job: Callable[[sqlite3.Connection, Turn, *Arguments], Result],
        *arguments: *Arguments,
    ) -> Result:
        with self.coherence.hold(turn):
            if self._path != ":memory:" and identity_at(self._path) != self._identity:
                raise StorageError("the database was moved, deleted or replaced; open it again")
            result = job(connection, turn, *arguments)
            self._wal.bound(connection)
            return result

    def _empty_wal(self, connection: sqlite3.Connection, turn: Turn) -> bool:
        turn.claim()
        return self._wal.empty(connection)

    async def _connect(self) -> Connection:
        connector = partial(connect, self._path, self._create, self._busy_timeout)
        connection = Connection(connector, iter_chunk_size=64)
        self._connections.append(connection)
        await connection.start()
        return connection


# Of the parent process. Its connections must not be closed in the child, nor may the child open the
# files again: SQLite's notes in memory say that this process holds locks, which the parent holds.
_inherited_connections: list[sqlite3.Connection | None] = []
_inherited_files: set[str] = set()
