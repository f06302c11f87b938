# SPDX-License-Identifier: MIT
"""SQLiteStore: the verbs of the seam on one SQLite file, a method each.

Three connections, each with a thread: one writes; one loads records by id; one runs lists and
statistics, so that a long list never delays a load. In front of each stands a lane. A database in
memory has one connection for all three lanes.
"""

import asyncio
import logging
import os
import sqlite3
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from os import PathLike
from typing import Any

from ..errors import SessionStoreError, StoreClosedError
from ..expiry import Moment
from ..session import Record
from ..store import Counts, Listener, Swept
from . import operations, queries, reader, schema
from .connection import (
    MEMORY,
    Connection,
    check_that_it_writes,
    connect_reader,
    connect_writer,
    fetch_all,
    ours,
    path_of,
    set_up_writer,
)
from .lane import ClosedLane, Guard, Lane, Run, Work
from .operations import Activity, cutoffs
from .reader import Load
from .sidecar import Sidecar
from .times import to_text
from .writer import Create, Touch, Write, Writer

logger = logging.getLogger(__name__)

EDIT_WEIGHT = 65_536  # bytes: a guess, since only the transaction reads what is there
CHUNK = 500  # sessions that one commit brings back to the clock
CLOSE_PATIENCE = 1.0  # seconds that close() waits for locks
CLOSE_LIMIT = 30.0  # seconds that close() waits for a disk

_NOT_OPEN = ClosedLane("the store is not open; use `async with` or `await open()`")
_INHERITED = ClosedLane("the store was opened before fork; open one in each process")


class SQLiteStore:
    """The sessions in one SQLite file, shared by all processes of one machine."""

    def __init__(
        self,
        database: str | bytes | PathLike[str],
        *,
        busy_timeout: float = 10.0,
        create: bool = True,
        uptime: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take a path, ":memory:", or a URL such as sqlite:///relative.db.

        Args:
            database: what names the file.
            busy_timeout: seconds that a call waits for the locks of other processes and programs.
            create: False to open a file only if it is there and has sessions.
            uptime: seconds on a clock that nobody sets.

        Raises:
            InvalidArgumentError: it names no file.
        """
        self._database = path_of(database)
        self._busy_timeout = busy_timeout
        self._create = create
        self._uptime = uptime
        self._path = MEMORY  # the resolved one, while open
        self._connections: list[Connection] = []  # the one that writes first
        self._sidecar: Sidecar | None = None
        self.versions: Sequence[int] | None = None  # those of the sidecar
        self._writes: Lane | ClosedLane = _NOT_OPEN
        self._loads: Lane | ClosedLane = _NOT_OPEN
        self._lists: Lane | ClosedLane = _NOT_OPEN
        self._lanes: list[Lane] = []  # those that close() waits for
        self._closing: asyncio.Future[None] | None = None
        self._is_opening = False
        self._is_given_up = False  # whether close() was called in the meantime
        self._data_version = 0  # at the last sweep
        self._ahead_since: float | None = None  # by uptime

    async def open(self, listener: Listener, now: int) -> None:
        """Make the file, or bring it to today's schema, and connect. All or nothing."""
        if self._closing is not None:  # close() was cancelled
            await self.close()
        path = _resolve(self._database)
        if path in _inherited_paths:
            raise StoreClosedError("the file was open when the process was forked; open it after")
        self._path = path
        self._listener = listener
        self._is_opening, self._is_given_up = True, False
        self._ahead_since = None
        _open_stores.add(self)  # from here on a fork would take connections along
        try:
            await self._connect(path, now)
        except BaseException as error:
            self._writes = self._loads = self._lists = _NOT_OPEN
            await _close([], self._connections, self._sidecar)
            self._forsake()
            if isinstance(error, OSError):  # the file could not be looked at
                raise ours(error) from None
            raise
        finally:
            self._is_opening = False

    async def close(self) -> None:
        """Finish what was accepted, and let go of the file. If cancelled, the next call goes on."""
        if self._is_opening:
            self._is_given_up = True
            if isinstance(self._writes, Lane):
                self._writes.hurry(0)
            return
        if not self._connections and self._closing is None:  # not open, or another process's
            return
        if isinstance(self._writes, Lane):
            self._writes.check_loop()
            lanes = (self._writes, self._loads, self._lists)
            self._lanes = [lane for lane in lanes if isinstance(lane, Lane)]
            self._writes = self._loads = self._lists = _NOT_OPEN
            self.versions = None
            for lane in self._lanes:
                lane.hurry(CLOSE_PATIENCE)
        closing = self._closing
        if closing is None or closing.cancelled():
            closing = asyncio.ensure_future(_close(self._lanes, self._connections, self._sidecar))
            self._closing = closing
        await asyncio.wait({closing}, timeout=CLOSE_LIMIT)
        if not closing.done():
            logger.warning("the disk has not answered for %g s: closed without it", CLOSE_LIMIT)
            for lane in self._lanes:
                lane.abandon()
        if not closing.cancelled():
            self._forsake()
        if closing.done():
            closing.result()

    async def create(self, record: Record) -> None:
        """Add a session."""
        weight = len(record.data) + len(record.metadata)
        await self._writes.submit(Create(record, weight=weight))

    async def touch(self, session_id: str, moment: Moment) -> bool:
        """Move the last_activity of a live session, and count an interaction."""
        return await self._writes.submit(Touch(Activity(session_id, moment)))

    async def edit(
        self, session_id: str, moment: Moment, change: Callable[[Record], Record]
    ) -> bool:
        """Write the data and metadata that `change` makes of those of a live session."""
        arguments = (session_id, moment, change)
        return await self._writes.submit(Write(operations.edit, arguments, weight=EDIT_WEIGHT))

    async def end(self, session_id: str, moment: Moment, status: str, reason: str) -> bool:
        """End a live session."""
        arguments = (session_id, moment, status, reason)
        return await self._writes.submit(Write(operations.end, arguments))

    async def end_all(
        self, child_id: str, moment: Moment, status: str, reason: str, except_id: str | None
    ) -> int:
        """End all live sessions of a child but one."""
        arguments = (child_id, moment, status, reason, except_id)
        return await self._writes.submit(Write(operations.end_all, arguments))

    async def erase(self, session_id: str) -> bool:
        """Delete a session, whatever its status."""
        return await self._writes.submit(Write(operations.erase, (session_id,)))

    async def time_out(self, moment: Moment, limit: int) -> Swept:
        """End up to `limit` sessions that have timed out."""
        time_out = Write(operations.time_out, (moment, limit), durable=False)
        return await self._writes.submit(time_out)

    async def purge(self, ended_before: int, limit: int) -> int:
        """Erase up to `limit` sessions that ended at or before then."""
        return await self._writes.submit(Write(operations.purge, (ended_before, limit)))

    async def tidy(self, moment: Moment) -> None:
        """Notice what other programs did, clear the log of what was erased, and mend the clock's.

        A session is ahead of the clock by more than the timeout if the clock was set back. It is
        brought back to the clock once it has been seen ahead for a whole timeout of uptime, so that
        a clock that was wrong for a while has changed nothing.
        """
        data_version = await self._writes.submit(Run(_tidy))
        if data_version != self._data_version:
            self._data_version = data_version
            self._listener.forget()
        if not await self._lists.submit(Run(reader.is_ahead, (moment,))):
            self._ahead_since = None
        elif self._ahead_since is None:
            self._ahead_since = self._uptime()
        elif (self._uptime() - self._ahead_since) * 1_000_000 >= moment.expiry.timeout:
            bring_back = Write(operations.bring_back, (moment, CHUNK), durable=False)
            while await self._writes.submit(bring_back) == CHUNK:
                pass
            self._ahead_since = None  # what is ahead from now on is watched anew

    async def load(self, session_id: str) -> Record | None:
        """Return a session, whatever its status."""
        return await self._loads.submit(Load(session_id))

    async def list_active(
        self, moment: Moment, child_id: str | None, after: tuple[int, str] | None, limit: int | None
    ) -> list[Record]:
        """Return live sessions in the order of starting."""
        started_at, session_id = ("", "") if after is None else (to_text(after[0]), after[1])
        parameters = {
            "child_id": child_id,
            "after_started_at": started_at,
            "after_id": session_id,
            "limit": -1 if limit is None else limit,  # -1: no limit
            **cutoffs(moment),
        }
        of_all, of_child = queries.SELECT_SESSIONS_ACTIVE, queries.SELECT_SESSIONS_ACTIVE_BY_CHILD
        return await self._select(of_all if child_id is None else of_child, parameters)

    async def list_of_child(self, child_id: str, limit: int) -> list[Record]:
        """Return the sessions of a child, started last first."""
        parameters = {"child_id": child_id, "limit": limit}
        return await self._select(queries.SELECT_SESSIONS_BY_CHILD, parameters)

    async def search(
        self, moment: Moment, child_id: str | None, status: str | None, limit: int
    ) -> list[Record]:
        """Return sessions by child and status, started last first. Reads the whole table."""
        parameters = {"child_id": child_id, "status": status, "limit": limit, **cutoffs(moment)}
        return await self._select(queries.SELECT_SESSIONS_BY_FILTER, parameters)

    async def count(self, moment: Moment) -> Counts:
        """Count the sessions."""
        return await self._lists.submit(Run(reader.count, (moment,)))

    async def _select(self, query: str, parameters: dict[str, Any]) -> list[Record]:
        return await self._lists.submit(Run(reader.select, (query, parameters)))

    async def _connect(self, path: str, now: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._guard = Guard(self._loop)
        in_memory = path == MEMORY
        writing = await self._add(Connection(partial(connect_writer, path, self._create)))
        # Before the lock file is made: a file that is refused gets nothing beside it.
        self._writes = self._lane(writing, partial(reader.read, writing.sqlite))
        await self._writes.submit(Run(schema.check, (self._create,)))
        self._sidecar = Sidecar(None if in_memory else path, on_move=self._move)
        self._writes = self._lane(
            writing,
            Writer(writing.sqlite, self._sidecar).work,
            on_commit=self._listener.on_commit,
            holds_back=not in_memory,  # where the thread is not the other lanes', too
        )
        self._data_version = await self._writes.submit(Run(_prepare, (path, now)))
        self.versions = self._sidecar.versions
        loading = listing = writing
        if not in_memory:
            loading = await self._add(Connection(partial(connect_reader, path)))
            listing = await self._add(Connection(partial(connect_reader, path)))
        self._loads = self._lane(loading, partial(reader.load, loading.sqlite))
        # One at a time: a short list does not wait for those that came with it.
        self._lists = self._lane(listing, partial(reader.read, listing.sqlite), batch_limit=1)

    def _lane(self, connection: Connection, work: Work, **settings: Any) -> Lane:
        lane = Lane(connection, work, self._guard, busy_timeout=self._busy_timeout, **settings)
        if self._is_given_up:
            lane.hurry(0)
        return lane

    def _move(self) -> None:
        """Believe nothing in memory: another file has become the lock file. For the thread."""
        if self._sidecar is not None:
            self.versions = self._sidecar.versions
        with suppress(RuntimeError):  # the event loop was closed
            self._loop.call_soon_threadsafe(self._listener.forget)

    async def _add(self, connection: Connection) -> Connection:
        await connection.open()
        self._connections.append(connection)
        return connection

    def _forsake(self) -> None:
        self._connections, self._lanes = [], []
        self._writes = self._loads = self._lists = _NOT_OPEN
        self.versions = None
        self._sidecar = self._closing = None
        _open_stores.discard(self)

    def _inherit(self) -> None:
        """Let go, in a child process, of what belongs to its parent.

        Its connections must not be closed, nor may the child open the file again: SQLite's notes in
        memory say that this process holds locks, which the parent holds.
        """
        for lane in (self._writes, self._loads, self._lists):
            if isinstance(lane, Lane):
                lane.disown()
        self._writes = self._loads = self._lists = _INHERITED
        self.versions = None
        _inherited_connections.extend(self._connections)
        self._connections, self._closing = [], None
        if self._sidecar is not None:
            self._sidecar.disown()
        if self._path != MEMORY:
            _inherited_paths.add(self._path)
        self._listener.forget()


async def _close(lanes: list[Lane], connections: list[Connection], sidecar: Sidecar | None) -> None:
    """Do what was accepted, and let go of the file. If cancelled, the next call goes on."""
    for lane in lanes:
        await lane.rest()
    while connections:
        if len(connections) == 1 and lanes:
            # If somebody keeps the lock, this is not the last connection, and closing is safe.
            with suppress(SessionStoreError):
                await lanes[0].submit(Run(_take_leave))
            lanes.clear()
        await connections[-1].close()
        connections.pop()
    if sidecar is not None:
        sidecar.close()


def _prepare(connection: sqlite3.Connection, path: str, now: int) -> int:
    """Bring a file to today's schema and settings; return its data version."""
    connection.execute(queries.SET_SECURE_DELETE)
    connection.execute(queries.SET_TEMP_STORE_MEMORY)
    connection.execute(queries.SET_PAGE_SIZE)
    # A file that is not in WAL mode yet is committed to once its readers let go.
    connection.execute(queries.SET_BUSY_TIMEOUT)
    schema.migrate(connection, path, now)
    set_up_writer(connection)
    connection.execute(queries.SET_BUSY_TIMEOUT_NONE)
    check_that_it_writes(connection, path)
    return _data_version(connection)


def _tidy(connection: sqlite3.Connection) -> int:
    """Take what was erased out of the log, too; return the data version."""
    _empty_log(connection)
    return _data_version(connection)


def _take_leave(connection: sqlite3.Connection) -> None:
    """Take what was erased out of the log, and close, while nobody else can be writing."""
    _empty_log(connection)
    connection.close()


def _resolve(database: str) -> str:
    return database if database == MEMORY else os.path.realpath(database)


def _data_version(connection: sqlite3.Connection) -> int:
    """Return a number that changes when another connection has committed."""
    ((version,),) = fetch_all(connection, queries.SELECT_DATA_VERSION)
    return int(version)


def _empty_log(connection: sqlite3.Connection) -> None:
    """Copy the log into the database and cut it to nothing, unless a reader needs it just now.

    At once or not at all: there is no waiting for readers with the lock held. Nor is an error
    raised: what was committed is safe, and the next sweep tries again.
    """
    try:
        fetch_all(connection, queries.CHECKPOINT_TRUNCATE)
    except sqlite3.Error:
        logger.exception("the write-ahead log could not be emptied; the next sweep tries again")


_open_stores: "weakref.WeakSet[SQLiteStore]" = weakref.WeakSet()
_inherited_connections: list[Connection] = []
_inherited_paths: set[str] = set()


def _after_fork_in_child() -> None:
    for store in list(_open_stores):
        store._inherit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
