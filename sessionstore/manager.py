# SPDX-License-Identifier: MIT
"""SessionManager: every public method, and the opening and closing of what they need.

A method reads the clock once, checks what it was given, and calls a verb of the store. What open()
has begun it takes back if it fails or is cancelled; what close() has begun it finishes.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from datetime import timedelta
from os import PathLike
from typing import Any, Self

from .arguments import (
    check_count,
    check_keys,
    check_micros,
    check_optional_micros,
    check_owner,
    check_position,
    check_session_id,
    check_spared_id,
    check_status,
    check_switch,
    check_text,
    encode_merged,
    encode_object,
)
from .cache import Cache
from .endings import Endings, OnEnd
from .errors import InvalidArgumentError, StoreClosedError
from .expiry import Expiry, Moment, read_clock
from .session import Record, Session, SessionStats, SessionStatus, decode_object, new_id, short_id
from .store import Commit, Store, make_store
from .sweeper import Sweeper, purge_all, time_out_all

logger = logging.getLogger(__name__)

PAGE = 500  # sessions that iter_active_sessions asks for at once


class SessionManager:
    """The sessions of an application in one store, for all its tasks and processes.

    Use it as `async with SessionManager("sessions.db") as sessions:`. All methods may be called by
    many tasks of one event loop at once. Cancelling a call cancels no other one; whether its own
    write still happens is then open. What creates, updates, ends, deletes or purges sessions
    survives a power cut from the moment that the call returns; activity and timeouts survive a
    crash of the process then, and a power cut from the next such call on.

    Every method that reaches the store raises StoreClosedError if it is not open, StoreBusyError if
    another process or program has held a lock for busy_timeout, and StorageError if the disk
    refuses.
    """

    def __init__(
        self,
        database: str | PathLike[str] | Store,
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
            database: a path, ":memory:", a URL (sqlite:///relative.db, sqlite:////absolute.db), or
                a Store of one's own (see store.py).
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
            create: False to open a database only if it is there and has sessions.

        Raises:
            InvalidArgumentError: a setting is of a wrong type or out of range.
        """
        if not callable(clock) or not (on_end is None or callable(on_end)):
            raise InvalidArgumentError("clock and on_end must be callable")
        self._clock = clock
        self._expiry = Expiry(
            check_micros("timeout", timeout), check_optional_micros("max_lifetime", max_lifetime)
        )
        self._retention = check_optional_micros("retention", retention, minimum=0)
        self._sweep_interval = check_optional_micros("sweep_interval", sweep_interval)
        self._max_bytes = check_count("max_data_bytes", max_data_bytes, minimum=2)
        self._store = make_store(
            database,
            busy_timeout=check_micros("busy_timeout", busy_timeout) / 1_000_000,
            create=check_switch("create", create),
        )
        self._cache = Cache(self._store, self._expiry, check_count("cache_size", cache_size))
        self._endings = Endings(on_end, self._expiry)
        self._sweeper: Sweeper | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # the one that opened it, while open
        self._transition = asyncio.Lock()
        self._transition_loop: asyncio.AbstractEventLoop | None = None  # the one that used it last

    async def open(self) -> None:
        """Open the store: make it, or bring it to today's schema. Safe to call twice.

        Raises:
            SchemaError: it is from a newer release or another program; it is untouched.
            StorageError: it cannot be opened, or is no database.
            StoreBusyError: another program holds a lock on it.
        """
        async with self._in_transition():
            if self._loop is not None:
                return
            listener = _CommitListener(self._cache, self._endings)
            opening = asyncio.ensure_future(self._store.open(listener, read_clock(self._clock)))
            try:
                await asyncio.shield(opening)
            except BaseException:  # cancelled, or failed: what was opened is closed
                await _finish(lambda: self._close_store(opening))
                raise
            self._loop = asyncio.get_running_loop()
            if self._sweep_interval is not None:
                self._sweeper = Sweeper(self._store, self._clock, self._expiry, self._retention)
                self._sweeper.start(self._sweep_interval / 1_000_000)

    async def close(self) -> None:
        """Finish what was accepted, wait for on_end, and close the store. Safe to call twice.

        Calls that come meanwhile, those of on_end included, raise StoreClosedError. A call of
        on_end that has not returned after 5 seconds is cancelled. If another process or program
        keeps a lock for a second more, the writes that wait for it raise StoreBusyError.
        """
        async with self._in_transition():
            if self._loop is not None:
                self._loop = None
                await _finish(self._close)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def session_timeout(self) -> timedelta:
        """The idle time after which a session has timed out."""
        return timedelta(microseconds=self._expiry.timeout)

    async def create_session(
        self,
        child_id: str,
        initial_data: Mapping[str, Any] | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        """Start a session and return its id: a UUID of version 7 (RFC 9562) of 36 characters.

        child_id is the id of whoever owns it. The id is not a secret of web strength.

        Raises:
            InvalidArgumentError: child_id is no string of 1 to 255 characters, or the data is no
                JSON object that comes back equal, or too large.
        """
        now = read_clock(self._clock)
        record = Record(
            id=new_id(now),
            child_id=check_owner(child_id),
            status="active",
            started_at=now,
            ended_at=None,
            last_activity=now,
            data=encode_object("initial_data", initial_data, self._max_bytes),
            metadata=encode_object("metadata", metadata, self._max_bytes),
            interaction_count=0,
            end_reason=None,
        )
        logger.debug("creating session …%s", short_id(record.id))
        await self._store.create(record)
        return record.id

    async def get_session(self, session_id: str) -> Session | None:
        """Return a snapshot of the session, whatever its status, or None if there is none.

        A session past its expires_at is shown as timed out, whether a sweep came by or not.
        """
        entry = self._cache.get(session_id)
        if entry is not None:
            record, expires_at, true_until, _, _ = entry
            try:
                is_true = self._clock() < true_until
            except (TypeError, ArithmeticError):  # it is no number, as read_clock will say
                is_true = False
            if is_true:
                return Session(record, expires_at)
        now = read_clock(self._clock)
        if entry is not None:
            return self._expiry.session(entry.record, now)
        checked_id = check_session_id(session_id)
        if checked_id is None:
            return None
        if checked_id is not session_id:  # a UUID, which is no key of the cache
            return await self.get_session(checked_id)
        ticket = self._cache.ticket(checked_id)
        loaded = await self._store.load(checked_id)
        if loaded is None:
            return None
        self._cache.keep(loaded, ticket)
        return self._expiry.session(loaded, now)

    async def update_activity(self, session_id: str) -> bool:
        """Move last_activity to now, never backwards, and count an interaction.

        Returns True if the session is still active; False if it is not there, ended or timed out.
        """
        moment = self._moment()
        checked_id = check_session_id(session_id)
        return checked_id is not None and await self._store.touch(checked_id, moment)

    async def update_session(
        self,
        session_id: str,
        data: Mapping[str, Any] | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        remove: Iterable[str] = (),
    ) -> bool:
        """Merge the top-level keys, like dict.update, atomically in the store; then drop `remove`.

        Two updates at once lose neither. Counts as activity, but not as an interaction. Returns
        True if the session is still active; False if it is not there, ended or timed out.

        Raises:
            InvalidArgumentError: data or metadata is no JSON object, or would become too large;
                remove is not several keys. Nothing was changed.
        """
        moment = self._moment()
        # Copies: the caller may change its own while the write is under way.
        new_data = decode_object(encode_object("data", data, self._max_bytes))
        new_metadata = decode_object(encode_object("metadata", metadata, self._max_bytes))
        keys = check_keys("remove", remove)
        max_bytes = self._max_bytes

        def merge(record: Record) -> Record:
            merged = {**decode_object(record.data), **new_data}
            for key in keys:
                merged.pop(key, None)
            merged_metadata = {**decode_object(record.metadata), **new_metadata}
            return record._replace(
                data=encode_merged("data", merged, max_bytes),
                metadata=encode_merged("metadata", merged_metadata, max_bytes),
            )

        checked_id = check_session_id(session_id)
        return checked_id is not None and await self._store.edit(checked_id, moment, merge)

    async def end_session(self, session_id: str, reason: str = "manual") -> bool:
        """End the session for good and return True for the one call that ended it.

        The reason "timeout" gives the status timeout, "error" gives error, any other one gives
        ended; it is kept in metadata["end_reason"]. False: not there, ended or timed out before.
        Returns after on_end has returned.

        Raises:
            InvalidArgumentError: reason is no string of 1 to 255 characters.
        """
        moment = self._moment()
        checked_reason = check_text("reason", reason)
        checked_id = check_session_id(session_id)
        if checked_id is None:
            return False
        status = _status_for(checked_reason)
        has_ended = await self._store.end(checked_id, moment, status, checked_reason)
        if has_ended:
            await self._endings.wait(lambda record: record.id == checked_id)
        return has_ended

    async def end_sessions(
        self, child_id: str, *, except_id: str | None = None, reason: str = "manual"
    ) -> int:
        """End all active sessions of a child, but for except_id, in one transaction.

        Returns the number ended, after on_end has returned for each. Reasons and errors are those
        of end_session.
        """
        moment = self._moment()
        child = check_owner(child_id)
        kept = check_spared_id(except_id)
        checked_reason = check_text("reason", reason)
        status = _status_for(checked_reason)
        count = await self._store.end_all(child, moment, status, checked_reason, kept)
        if count:
            await self._endings.wait(lambda record: record.child_id == child)
        return count

    async def delete_session(self, session_id: str) -> bool:
        """Erase the session, whatever its status, without on_end; return True if there was one."""
        checked_id = check_session_id(session_id)
        return checked_id is not None and await self._store.erase(checked_id)

    async def get_active_sessions(
        self, child_id: str | None = None, *, limit: int | None = None, after: Session | None = None
    ) -> list[Session]:
        """Return the active sessions, of a child or of all, in the order in which they started.

        Ties go by id. `after` is the last Session of the page before. Raises InvalidArgumentError
        for a child_id, limit or after that is none.
        """
        moment = self._moment()
        child = None if child_id is None else check_owner(child_id)
        count = None if limit is None else check_count("limit", limit)
        start = None if after is None else check_position(after)
        records = await self._store.list_active(moment, child, start, count)
        return self._sessions(records, moment)

    async def iter_active_sessions(self, child_id: str | None = None) -> AsyncIterator[Session]:
        """Iterate over the active sessions like get_active_sessions, in pages, in constant memory.

        Each page is of its own moment: what ends meanwhile is left out, what starts is included.
        """
        page = await self.get_active_sessions(child_id, limit=PAGE)
        while page:
            for session in page:
                yield session
            page = await self.get_active_sessions(child_id, limit=PAGE, after=page[-1])

    async def get_sessions_for_child(self, child_id: str, limit: int = 10) -> list[Session]:
        """Return the child's sessions of every status, started last first."""
        moment = self._moment()
        child = check_owner(child_id)
        records = await self._store.list_of_child(child, check_count("limit", limit))
        return self._sessions(records, moment)

    async def list_sessions(
        self,
        *,
        child_id: str | None = None,
        status: SessionStatus | str | None = None,
        limit: int = 100,
    ) -> list[Session]:
        """Return sessions of a child, of a status, or all, started last first, for an operator.

        Reads the whole table: not for every request.
        """
        moment = self._moment()
        child = None if child_id is None else check_owner(child_id)
        count = check_count("limit", limit)
        wanted = None if status is None else check_status(status)
        return self._sessions(await self._store.search(moment, child, wanted, count), moment)

    async def cleanup_inactive_sessions(self) -> int:
        """Mark the sessions that have timed out as such, each as ended at its expires_at.

        Returns their number, after on_end has returned for each. Works in short transactions of
        500, queued behind waiting callers.
        """
        moment = self._moment()
        timed_out = await time_out_all(self._store, moment)
        await self._store.tidy(moment)
        await self._endings.wait(lambda record: record.status == "timeout")
        return timed_out

    async def purge_ended_sessions(self, older_than: timedelta | float) -> int:
        """Erase the sessions that ended, or timed out, at least older_than ago.

        Returns their number. on_end is called before a session that has timed out goes. Raises
        InvalidArgumentError if older_than is no length of time.
        """
        moment = self._moment()
        age = check_micros("older_than", older_than, minimum=0)
        await time_out_all(self._store, moment)
        await self._endings.wait(lambda record: record.status == "timeout")
        purged = await purge_all(self._store, moment.now - age)
        await self._store.tidy(moment)
        return purged

    async def get_session_stats(self) -> SessionStats:
        """Return the counts of sessions, of the cache, and the database's size in bytes."""
        counts = await self._store.count(self._moment())
        return SessionStats(
            active_sessions=counts.by_status["active"],
            sessions_today=counts.started_today,
            total_sessions=sum(counts.by_status.values()),
            by_status=counts.by_status,
            memory_cache_size=len(self._cache),
            cache_hits=self._cache.hits,
            cache_misses=self._cache.misses,
            session_timeout_minutes=self.session_timeout / timedelta(minutes=1),
            database_bytes=counts.database_bytes,
            sqlite_version=counts.engine_version,
        )

    def _in_transition(self) -> asyncio.Lock:
        """Return the lock of opening and closing, which are done in one event loop."""
        loop, last = asyncio.get_running_loop(), self._transition_loop
        is_under_way = self._transition.locked() and last is not None and not last.is_closed()
        if self._loop not in (None, loop) or (is_under_way and last is not loop):
            raise StoreClosedError("the store was opened in another event loop; use one for each")
        if not is_under_way:
            self._transition, self._transition_loop = asyncio.Lock(), loop
        return self._transition

    def _moment(self) -> Moment:
        return Moment(read_clock(self._clock), self._expiry)

    def _sessions(self, records: list[Record], moment: Moment) -> list[Session]:
        return [self._expiry.session(record, moment.now) for record in records]

    async def _close_store(self, opening: "asyncio.Future[None]") -> None:
        """Close a store whose opening has failed or was cut off."""
        await self._store.close()  # the opening gives up, if it is still under way
        await asyncio.wait({opening})
        if not opening.cancelled():
            opening.exception()  # is raised elsewhere
        await self._store.close()

    async def _close(self) -> None:
        try:
            if self._sweeper is not None:
                await self._sweeper.stop()
                self._sweeper = None
        finally:
            try:
                await self._store.close()
            finally:
                self._cache.forget()
                await self._endings.close()


class _CommitListener:
    """What hears of the store's commits: the cache, and the calls of on_end."""

    def __init__(self, cache: Cache, endings: Endings) -> None:
        self._cache = cache
        self._endings = endings

    def on_commit(self, commit: Commit) -> None:
        try:
            self._cache.on_commit(commit)
        finally:
            self._endings.on_commit(commit)

    def forget(self) -> None:
        self._cache.forget()


async def _finish(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run the work to its end, even if cancelled meanwhile; then pass the cancellation on.

    Whoever cancels all tasks cancels that of the work, too: it is begun again then.
    """
    cancelled: asyncio.CancelledError | None = None
    task = asyncio.ensure_future(work())
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
        if task.cancelled():
            task = asyncio.ensure_future(work())
    task.result()
    if cancelled is not None:
        raise cancelled


def _status_for(reason: str) -> str:
    return reason if reason in ("timeout", "error") else "ended"
