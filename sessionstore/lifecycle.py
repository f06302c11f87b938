# SPDX-License-Identifier: MIT
"""The settings of a store, and the opening and closing of its parts.

Every call goes through _begin, which refuses a store that is not open, or was opened in another
event loop, and reads the clock. What open() has begun it takes back when it fails or is cancelled;
what close() has begun it finishes.
"""

import asyncio
import logging
import os
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from os import PathLike
from types import TracebackType
from typing import Self

from .arguments import check_count, check_database, check_micros, check_switch
from .endings import Ender, OnEnd
from .errors import InvalidArgumentError, SessionStoreError, StorageError, StoreClosedError
from .session import Expiry
from .sqlite.concurrency import finish
from .sqlite.database import Database
from .sqlite.reader import NO_ROWS, Reader
from .sqlite.times import EARLIEST, micros_to_text, read_clock
from .sqlite.writer import Change, Commit, Writer
from .sweeper import ClockWatch, Sweeper, read_uptime

logger = logging.getLogger(__name__)

_OTHER_LOOP = "the store was opened in another event loop; use one SessionManager a loop"


class Lifecycle:
    """Opens the parts of a store in one event loop, and closes them there."""

    _database: Database
    _writer: Writer
    _reader: Reader
    _ender: Ender
    _sweeper: Sweeper | None
    _clock_watch: ClockWatch
    _monotonic = staticmethod(read_uptime)  # what the clock is held against

    def __init__(
        self,
        database: str | PathLike[str],
        *,
        timeout: timedelta | float = timedelta(minutes=30),
        max_lifetime: timedelta | float | None = None,
        retention: timedelta | float | None = None,
        sweep_interval: timedelta | float | None = timedelta(minutes=1),
        cache_size: int = 10_000,
        max_data_bytes: int = 1_048_576,
        on_end: OnEnd | None = None,
        clock: Callable[[], float] = time.time,
        busy_timeout: timedelta | float = timedelta(seconds=10),
        create: bool = True,
    ) -> None:
        """Take the settings; do no I/O, and need no event loop.

        Args:
            database: a path, ":memory:", or a URL (sqlite:///relative.db, sqlite:////absolute.db).
            timeout: idle time after which a session has timed out; a timedelta or seconds.
            max_lifetime: time after started_at at which it has timed out, however active.
            retention: how long the sweeper keeps sessions that have ended; None keeps them.
            sweep_interval: pause between two sweeps; None for no background sweeper.
            cache_size: sessions kept in memory; 0 for no cache.
            max_data_bytes: limit for data, and for metadata, as JSON in UTF-8.
            on_end: called, plain or async, with the final snapshot of each session that this
                process ended or timed out, after COMMIT, once: a crash in between loses the call.
                An exception in it is logged and changes nothing.
            clock: seconds since the epoch, UTC.
            busy_timeout: how long a write waits for the locks of other processes and programs.
            create: False to open a file only where it is there and has sessions.

        Raises:
            InvalidArgumentError: a setting is of a wrong type or out of range.
        """
        self._path = check_database(database)
        self._expiry = Expiry(
            check_micros("timeout", timeout),
            None if max_lifetime is None else check_micros("max_lifetime", max_lifetime),
        )
        self._retention = (
            None if retention is None else check_micros("retention", retention, minimum=0)
        )
        self._sweep_interval = (
            None if sweep_interval is None else check_micros("sweep_interval", sweep_interval)
        )
        self._cache_size = check_count("cache_size", cache_size)
        self._max_bytes = check_count("max_data_bytes", max_data_bytes, minimum=2)
        if not callable(clock) or not (on_end is None or callable(on_end)):
            raise InvalidArgumentError("clock and on_end must be callable")
        self._on_end = on_end
        self._clock = clock
        self._busy_timeout = check_micros("busy_timeout", busy_timeout) / 1_000_000
        self._create = check_switch("create", create)
        self._is_inherited = False  # by a fork
        self._has_erased = False  # what the write-ahead log may still hold
        self._hot = NO_ROWS  # the reader's, while open
        self._loop: asyncio.AbstractEventLoop | None = None  # the one that opened it, while open
        self._owner: asyncio.AbstractEventLoop | None = None  # of the lock below
        self._transition = asyncio.Lock()

    async def open(self) -> None:
        """Open the file: make it, or bring it to today's schema. Safe to call twice.

        Raises:
            SchemaError: the file is from a newer release or another program; it is untouched.
            StorageError: the file cannot be opened, or is no database.
            StoreBusyError: another program holds a lock on it.
        """
        if self._is_inherited:
            self._check_open()
        async with self._in_transition():
            if self._loop is not None:
                self._check_open()
                return
            database = Database(self._path, create=self._create, busy_timeout=self._busy_timeout)
            self._database = database
            _open_stores.add(self)  # from here on a fork would take connections along
            try:
                now = read_clock(self._clock)
                self._clock_watch = ClockWatch(now, self._monotonic)
                await database.open(micros_to_text(now))
            except BaseException:
                _open_stores.discard(self)
                raise
            self._reader = Reader(database, self._expiry, self._cache_size, self._clock)
            self._hot = self._reader.hot
            self._has_erased = True  # perhaps by a process that has died since
            self._writer = Writer(database, self._note)
            self._ender = Ender(self._writer, self._expiry, self._on_end)
            self._sweeper = None
            if self._sweep_interval is not None:
                self._sweeper = Sweeper(self._sweep, self._sweep_interval / 1_000_000)
                self._sweeper.start()
            self._loop = asyncio.get_running_loop()

    async def close(self) -> None:
        """Finish what was accepted, wait for on_end, and close the file. Safe to call twice.

        Calls that come meanwhile, those of on_end included, raise StoreClosedError. A call of
        on_end that has not returned after 5 seconds is cancelled. Where another process or program
        keeps a lock for a second more, the writes that wait for it raise StoreBusyError.
        """
        if self._is_inherited:  # it is the parent's to close
            return
        async with self._in_transition():
            if self._loop is None:
                return
            self._check_open()
            self._loop = None
            self._hot = NO_ROWS
            await finish(asyncio.create_task(self._shut_down()))

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def _in_transition(self) -> asyncio.Lock:
        """Return the lock of opening and closing, which belongs to one event loop at a time."""
        loop = asyncio.get_running_loop()
        if self._owner is not loop:
            if self._loop is not None or self._transition.locked():
                raise StoreClosedError(_OTHER_LOOP)
            self._owner, self._transition = loop, asyncio.Lock()
        return self._transition

    def _begin(self) -> int:
        """Refuse a call on a closed store or from another event loop; read the clock."""
        if self._loop is None or self._loop is not asyncio.get_running_loop():
            self._check_open()
        return read_clock(self._clock)

    def _check_open(self) -> None:
        if self._is_inherited:
            raise StoreClosedError("the store was opened before fork; open it in each process")
        if self._loop is None:
            raise StoreClosedError("the store is not open; use `async with` or `await open()`")
        if self._loop is not asyncio.get_running_loop():
            raise StoreClosedError(_OTHER_LOOP)

    async def _time_out(self, now: int) -> int:
        await self._reader.notice_foreign_commits()
        return await self._ender.time_out(now)

    async def _sweep(self) -> None:
        """Time out and purge, but not by a clock that has jumped: it may soon be corrected."""
        await self._reader.notice_foreign_commits()
        now = read_clock(self._clock)
        if self._clock_watch.has_jumped(now):
            return
        await self._ender.mark_ahead(now)
        timed_out = purged = 0
        try:
            timed_out = await self._ender.time_out(now, wait=False)  # a callback may hang
        except StorageError:  # of a row that cannot be read, say, which must not keep others
            logger.exception("the sweep could time out no session; it goes on to purge")
        if self._retention is not None:
            purged = await self._purge(now, self._retention)
        if timed_out or purged:
            logger.info("sweep: %d sessions timed out, %d purged", timed_out, purged)
        await self._clear_wal()

    async def _purge(self, now: int, age: int) -> int:
        return await self._ender.purge(micros_to_text(max(EARLIEST, now - age)))

    def _note(self, commit: Commit) -> None:
        """Hear of each commit, also of one whose caller has gone."""
        self._reader.remember(commit)
        if any(isinstance(change, Change) and change.erased for change in commit.results):
            self._has_erased = True

    async def _clear_wal(self) -> None:
        """Take what was erased out of the write-ahead log, too, or try again at the next sweep."""
        if self._has_erased:
            self._has_erased = False  # whoever erases meanwhile sets it again
            is_empty = False
            try:
                is_empty = await self._database.empty_wal()
            finally:
                self._has_erased |= not is_empty

    async def _shut_down(self) -> None:
        self._database.hurry()
        try:
            if self._sweeper is not None:
                await self._sweeper.stop()
            await self._ender.close()
        finally:
            try:
                await self._writer.close()
                await self._reader.close()
                with suppress(SessionStoreError):
                    await self._clear_wal()  # for what no sweep has come by
            finally:
                await self._database.close()
                _open_stores.discard(self)

    def _inherit(self) -> None:
        self._is_inherited = True
        self._loop = None
        self._hot = NO_ROWS
        self._transition = asyncio.Lock()
        self._database.inherit()


_open_stores: weakref.WeakSet[Lifecycle] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """Make the stores of the parent unusable in its child: SQLite's connections do not survive."""
    for store in list(_open_stores):
        store._inherit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
