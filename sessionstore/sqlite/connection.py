# SPDX-License-Identifier: MIT
"""Connections: their files, threads and settings, and SQLite's errors made ours.

The only module that knows aiosqlite. What it uses of its internals (the queue of a connection's
thread, the sqlite3 connection, the thread) is the same in all releases that are allowed.
"""

import errno
import os
import sqlite3
import stat
import sys
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite

from ..errors import InvalidArgumentError, SessionStoreError, StorageError, StoreBusyError
from ..session import UNREADABLE
from . import queries

Result = TypeVar("Result")

MEMORY = ":memory:"
MINIMUM_SQLITE = (3, 35, 0)  # the first with RETURNING

_URL_SCHEMES = ("sqlite://", "sqlite+aiosqlite://")


def path_of(database: str | bytes | PathLike[str]) -> str:
    """Return the path that a path or URL names, or ":memory:".

    Raises:
        InvalidArgumentError: it names none.
    """
    try:
        path = os.fsdecode(database)
        os.fsencode(path)  # a lone surrogate is no byte of a path, but for those of fsdecode
    except (TypeError, UnicodeError) as error:
        raise InvalidArgumentError("database must be a path or a sqlite:/// URL") from error
    scheme, separator, rest = path.partition("://")
    if separator and isinstance(database, str):
        if scheme + separator not in _URL_SCHEMES:
            raise InvalidArgumentError("database URL must start with sqlite:///")
        if rest and not rest.startswith("/"):
            raise InvalidArgumentError("database URL has a host; write sqlite:/// with 3 slashes")
        if "?" in rest:
            raise InvalidArgumentError("database URL must not have parameters")
        path = rest[1:] or MEMORY
    if not path or "\0" in path:
        raise InvalidArgumentError("database must be a path: not empty, and without NUL")
    return path


class Connection:
    """One connection of aiosqlite, as a thread that runs functions in their order."""

    sqlite: sqlite3.Connection

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._aiosqlite = aiosqlite.Connection(connect, iter_chunk_size=64)
        self._thread = getattr(self._aiosqlite, "_thread", self._aiosqlite)
        # A daemon: a process that forgets to close must not hang at its exit.
        self._thread.daemon = True  # type: ignore[union-attr]

    async def open(self) -> None:
        """Start the thread and connect on it."""
        try:
            await self._aiosqlite
        except Exception as error:
            # It was told to stop, and answers in the event loop, which may be closed next.
            self._join()
            raise ours(error) from None
        self.sqlite = self._aiosqlite._conn

    def queue(self, function: Callable[[], None]) -> None:
        """Run the function on the thread, after what was queued before."""
        # The thread keeps what it ran last. If that led to this connection, a store that was never
        # closed could not go, nor its thread.
        once = [function]
        self._aiosqlite._tx.put_nowait((_NOBODY, lambda: once.pop()()))  # type: ignore[arg-type]

    async def run(self, function: Callable[[sqlite3.Connection], Result]) -> Result:
        """Run the function on the thread and return its result, or raise our error for its."""
        try:
            return await self._aiosqlite._execute(function, self.sqlite)  # type: ignore[no-untyped-call, no-any-return]
        except (*SQLITE_ERRORS, OSError) as error:
            raise ours(error) from None

    async def close(self) -> None:
        """Run what was queued, close, and end the thread."""
        # By itself first: aiosqlite's close(), once cancelled, could not be waited for again.
        with suppress(ValueError):  # it is closed already
            await self.run(lambda connection: connection.close())
        await self._aiosqlite.close()
        self._join()

    def _join(self) -> None:
        if self._thread.is_alive():  # type: ignore[union-attr]
            self._thread.join()  # type: ignore[union-attr]  # it has nothing left to do but return


class _Nobody:
    """What aiosqlite tells of a result that nobody waits for: a future and its loop in one."""

    def get_loop(self) -> "_Nobody":
        return self

    def call_soon_threadsafe(self, *_: object) -> None:
        pass


_NOBODY = _Nobody()

# The second is raised if a message of SQLite quotes bytes that are no UTF-8.
SQLITE_ERRORS = (sqlite3.Error, UnicodeDecodeError)


def primary_code(error: BaseException) -> int:
    """Return SQLite's code without its extension; the general one for errors of sqlite3's own."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def is_busy(error: BaseException) -> bool:
    """Return whether another connection's lock was in the way."""
    return primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_of_the_store(error: BaseException) -> bool:
    """Return whether an error concerns all that is written, and not one statement alone."""
    return isinstance(error, OSError) or primary_code(error) in _ADVICE or is_busy(error)


def unless_busy(function: Callable[[], object]) -> Callable[[], bool]:
    """Return an attempt to run the function: False while another's lock is in the way."""

    def attempt() -> bool:
        try:
            function()
        except sqlite3.OperationalError as error:
            if is_busy(error):
                return False
            raise
        return True

    return attempt


def ours(error: BaseException) -> BaseException:
    """Return an error as callers may see it: one of SQLite's or the system's as ours."""
    if not isinstance(error, (*SQLITE_ERRORS, OSError)):
        return error
    code = getattr(error, "sqlite_errorname", None)
    if code is None and isinstance(error, UnicodeDecodeError | sqlite3.OperationalError):
        return StorageError(UNREADABLE)  # it is no text in UTF-8; the cause would quote it
    ours: SessionStoreError
    if isinstance(error, OSError):
        what = f"{error.filename}: " if error.filename else ""
        ours = StorageError(f"the folder or disk refused: {what}{error.strerror}")
    elif is_busy(error):
        ours = StoreBusyError("another program holds a lock on the database; try again")
    else:
        advice = _ADVICE.get(primary_code(error), "SQLite refused the operation")
        ours = StorageError(f"{advice} ({code or type(error).__name__})")
    ours.__cause__ = error
    return ours


# What to do about the errors that concern all that is written: is_of_the_store() goes by these.
_ADVICE = {
    sqlite3.SQLITE_CANTOPEN: "the database cannot be opened; check its folder and its permissions",
    sqlite3.SQLITE_CORRUPT: "the database file is damaged; restore a backup",
    sqlite3.SQLITE_FULL: "the disk is full; make room and try again",
    sqlite3.SQLITE_IOERR: "the disk failed to read or write the database; check it",
    sqlite3.SQLITE_NOTADB: "the file is not a SQLite database; use another path",
    sqlite3.SQLITE_READONLY: "the database cannot be written; check its permissions",
}


def fetch_all(
    connection: sqlite3.Connection,
    query: str,
    parameters: Mapping[str, Any] = {},  # never written to
) -> list[Any]:
    """Run one statement and return all its rows. It is finished whatever happens.

    An unfinished one would pin its connection's snapshot: later reads would see old rows.
    """
    with closing(connection.execute(query, parameters)) as cursor:
        return cursor.fetchall()


def connect_writer(path: str, create: bool) -> sqlite3.Connection:
    """Connect to a file, making it and its folder; without create, only if it is there."""
    if sqlite3.sqlite_version_info < MINIMUM_SQLITE:
        raise StorageError(f"SQLite 3.35 or newer is needed, not {sqlite3.sqlite_version}")
    if path != MEMORY:
        if create:
            _make_folder(os.path.dirname(path))
            make_file(path)
        elif not os.path.exists(path):
            raise StorageError("there is no such file, and it was not to be made")
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise StorageError("the path is not that of a regular file; use another path")
        if status.st_nlink > 1:
            raise StorageError(
                "the file has a second name (a hard link); SQLite finds its log by name, so that"
                " two programs would damage it: keep one name"
            )
    return _connect(path)


def connect_reader(path: str) -> sqlite3.Connection:
    """Connect to a file that is open for writing, for statements that read."""
    connection = _connect(path)
    connection.execute(queries.SET_TEMP_STORE_MEMORY)
    connection.execute(queries.SET_QUERY_ONLY)
    return connection


def _connect(path: str) -> sqlite3.Connection:
    """Connect to a file that is there. SQLite waits for no lock: Lane.wait tries again."""
    name = path if path == MEMORY else f"{Path(path).as_uri()}?mode=rw"
    return sqlite3.connect(name, timeout=0, isolation_level=None, uri=path != MEMORY)


def set_up_writer(connection: sqlite3.Connection) -> None:
    """Set the journal of a file to WAL, and the limits of its connection that writes."""
    (journal_mode,) = fetch_all(connection, queries.SET_JOURNAL_WAL)[0]
    if journal_mode not in ("wal", "memory"):
        raise StorageError("the file system does not support SQLite's WAL; use a local disk")
    connection.execute(queries.SET_JOURNAL_SIZE_LIMIT)
    connection.execute(queries.SET_WAL_AUTOCHECKPOINT)


def check_that_it_writes(connection: sqlite3.Connection, path: str) -> None:
    """Raise an error if SQLite opened a file for reading only although it may be written.

    If it cannot open it for writing just now, it opens it for reading, and never tries again.
    """
    try:
        connection.execute(queries.DELETE_MIGRATION_NONE)
    except sqlite3.OperationalError as error:
        files = [file for file in (path, f"{path}-wal") if os.path.exists(file)]
        may_write = all(os.access(file, os.W_OK) for file in files)
        if may_write and primary_code(error) == sqlite3.SQLITE_READONLY:
            raise


def make_file(path: str) -> None:
    """Make an empty file with mode 0600, whatever the umask, if there is none.

    Without opening it if possible, and never one that is there: closing it would drop the locks of
    SQLite's connections to it in this process. SQLite gives its own files beside it the same mode.
    """
    with suppress(FileExistsError):
        if sys.platform == "linux":
            os.mknod(path, 0o600)
        else:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        with suppress(PermissionError):  # not every file system has modes
            os.chmod(path, 0o600)


def _make_folder(folder: str) -> None:
    """Make a folder, and those above it, so that they are still there after a power cut."""
    above = os.path.dirname(folder)
    if os.path.isdir(folder) or above == folder:
        return
    _make_folder(above)
    with suppress(FileExistsError):  # another process was first
        os.mkdir(folder)
    try:
        descriptor = os.open(above, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # One that may be written but not read, or a file system that syncs no folders.
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EINVAL):
            with suppress(OSError):
                os.rmdir(folder)  # or else the next call would take it for certain
            raise
