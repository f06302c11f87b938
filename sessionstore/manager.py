# SPDX-License-Identifier: MIT
"""SessionManager, the public face: ids, checks of arguments, and one call of a layer below each.

A method reads the clock once, checks what it was given, and hands both to the writer, the reader,
the ender, or a job of store.py. It knows no SQL and no SQLite, and keeps no state.
"""

import logging
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import timedelta
from sqlite3 import Connection, sqlite_version
from typing import Any, TypeVarTuple

from .arguments import (
    check_count,
    check_keys,
    check_micros,
    check_position,
    check_session_id,
    check_spared_id,
    check_status,
    check_text,
    encode_object,
)
from .lifecycle import Lifecycle
from .session import Row, Session, SessionRow, SessionStats, SessionStatus
from .sqlite import store
from .sqlite.times import micros_to_text
from .sqlite.writer import Change

logger = logging.getLogger(__name__)

Arguments = TypeVarTuple("Arguments")

PAGE = 500  # sessions that iter_active_sessions reads in one job


class SessionManager(Lifecycle):
    """Keep the sessions of an application in one SQLite file, for all its tasks and processes.

    Use it as `async with SessionManager("sessions.db") as sessions:`. All methods may be called by
    many tasks of one event loop at once. Cancelling a call cancels no other one; whether its own
    write still happens is then open. What creates, updates, ends, deletes or purges sessions
    survives a power cut from the moment that the call returns; activity and timeouts survive a
    crash of the process then, and a power cut from the next such call on. Settings: see Lifecycle.
    """

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
        """Start a session and return its id, a UUID4 of 36 characters from the system's randomness.

        Raises:
            InvalidArgumentError: child_id is no string of 1 to 255 characters, or the data is no
                JSON object (string keys, finite numbers, 64-bit integers, 64 levels) or too large.
        """
        now = micros_to_text(self._begin())
        row = SessionRow(
            id=str(uuid.uuid4()),
            child_id=check_text("child_id", child_id),
            status="active",
            started_at=now,
            ended_at=None,
            last_activity=now,
            data=encode_object("initial_data", initial_data, self._max_bytes),
            metadata=encode_object("metadata", metadata, self._max_bytes),
            interaction_count=0,
        )
        await self._writer.submit(store.insert_session, row, durable=True)
        logger.debug("session %s created", row.id[:8])
        return row.id

    async def get_session(self, session_id: str) -> Session | None:
        """Return a snapshot of the session, whatever its status, or None where there is none.

        A session past its expires_at is shown as timed out, whether a sweep came by or not.
        """
        # What is in memory, and true, costs little more than a lookup in a dict.
        rows, coherence, clock, note_use, reader, context = self._hot
        if type(session_id) is str:  # a subclass has methods of its own, which may say anything
            try:
                row, true_until, slot, word = rows[session_id]
                if coherence.words[slot] == word and clock() < true_until:
                    note_use(session_id)
                    reader.hits += 1
                    session = Session()
                    session._source, session._context = row, context
                    return session
            except (KeyError, TypeError, ArithmeticError):  # not there; or a clock without time
                pass
        now = self._begin()
        checked_id = check_session_id(session_id)
        return None if checked_id is None else await self._reader.get(checked_id, now)

    async def update_activity(self, session_id: str) -> bool:
        """Move last_activity to now, never backwards, and count an interaction.

        Returns True if the session is still active; False if it is not there, ended or timed out.
        """
        now = self._begin()
        checked_id = check_session_id(session_id)
        if checked_id is None:
            return False
        touch = Change((), checked_id, micros_to_text(now))
        change = await self._writer.submit_jointly(
            store.touch_sessions, store.touch_session, touch, self._expiry, now, durable=False
        )
        return change is touch

    async def update_session(
        self,
        session_id: str,
        data: Mapping[str, Any] | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        remove: Iterable[str] = (),
    ) -> bool:
        """Merge the top-level keys, like dict.update, atomically in the file; then drop `remove`.

        Two updates at once lose neither. Counts as activity, but not as an interaction. Returns
        True if the session is still active; False if it is not there, ended or timed out.

        Raises:
            InvalidArgumentError: data or metadata is no JSON object, or would become too large;
                remove is not several keys. Nothing was changed.
        """
        cutoffs = self._expiry.cutoffs(self._begin())
        new_data = encode_object("data", data, self._max_bytes)
        new_metadata = encode_object("metadata", metadata, self._max_bytes)
        keys = check_keys("remove", remove, self._max_bytes)
        checked_id = check_session_id(session_id)
        if checked_id is None:
            return False
        merge = (checked_id, new_data, new_metadata, keys, self._max_bytes, cutoffs)
        change = await self._writer.submit(store.merge_session, *merge, durable=True)
        return bool(change.rows)

    async def end_session(self, session_id: str, reason: str = "manual") -> bool:
        """End the session for good and return True for the one call that ended it.

        The reason "timeout" gives the status timeout, "error" gives error, any other one gives
        ended; it is kept in metadata["end_reason"]. False: not there, ended or timed out before.

        Raises:
            InvalidArgumentError: reason is no string of 1 to 255 characters.
        """
        cutoffs = self._expiry.cutoffs(self._begin())
        checked_reason = check_text("reason", reason)
        checked_id = check_session_id(session_id)
        if checked_id is None:
            return False
        change = await self._ender.end(
            store.end_session, checked_id, checked_reason, cutoffs, durable=True
        )
        return bool(change.rows)

    async def delete_session(self, session_id: str) -> bool:
        """Erase the session, whatever its status, without on_end; return True if there was one."""
        self._begin()
        checked_id = check_session_id(session_id)
        if checked_id is None:
            return False
        change = await self._writer.submit(store.delete_session, checked_id, durable=True)
        return bool(change.erased)

    async def end_sessions(
        self, child_id: str, *, except_id: str | None = None, reason: str = "manual"
    ) -> int:
        """End all active sessions of a child, but for except_id, in one transaction.

        Returns the number ended. Reasons and errors are those of end_session.
        """
        cutoffs = self._expiry.cutoffs(self._begin())
        child = check_text("child_id", child_id)
        kept = check_spared_id(except_id)
        checked_reason = check_text("reason", reason)
        change = await self._ender.end(
            store.end_sessions_of_child, child, kept, checked_reason, cutoffs, durable=True
        )
        return len(change.rows)

    async def get_active_sessions(
        self,
        child_id: str | None = None,
        *,
        limit: int | None = None,
        after: Session | None = None,
    ) -> list[Session]:
        """Return the active sessions, of a child or of all, in the order in which they started.

        Ties go by id. `after` is the last Session of the page before. Raises InvalidArgumentError
        for a child_id, limit or after that is none.
        """
        now = self._begin()
        child = None if child_id is None else check_text("child_id", child_id)
        count = -1 if limit is None else check_count("limit", limit)  # -1: SQLite's for no limit
        start = ("", "") if after is None else check_position(after)
        cutoffs = self._expiry.cutoffs(now)
        return await self._list(now, store.select_active_sessions, child, start, count, cutoffs)

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
        now = self._begin()
        child = check_text("child_id", child_id)
        count = check_count("limit", limit)
        return await self._list(now, store.select_sessions_of_child, child, count)

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
        now = self._begin()
        child = None if child_id is None else check_text("child_id", child_id)
        count = check_count("limit", limit)
        wanted = None if status is None else check_status(status)
        cutoffs = self._expiry.cutoffs(now)
        return await self._list(now, store.select_sessions_by_filter, child, wanted, count, cutoffs)

    async def cleanup_inactive_sessions(self) -> int:
        """Mark the sessions that have timed out as such, each as ended at its expires_at.

        Returns their number. Works in short transactions of 500, queued behind waiting callers.
        """
        return await self._time_out(self._begin())

    async def purge_ended_sessions(self, older_than: timedelta | float) -> int:
        """Delete the sessions that ended, or timed out, at least older_than ago.

        Returns their number. Raises InvalidArgumentError where older_than is no length of time.
        """
        now = self._begin()
        age = check_micros("older_than", older_than, minimum=0)
        await self._ender.time_out(now)  # on_end is called before a session that timed out goes
        purged = await self._purge(now, age)
        await self._clear_wal()
        return purged

    async def get_session_stats(self) -> SessionStats:
        """Return the counts of sessions, of the cache, and the database's size in bytes."""
        cutoffs = self._expiry.cutoffs(self._begin())
        counts = await self._database.reader.run(store.count_sessions, cutoffs)
        return SessionStats(
            active_sessions=counts.by_status["active"],
            sessions_today=counts.started_today,
            total_sessions=sum(counts.by_status.values()),
            by_status=counts.by_status,
            memory_cache_size=len(self._reader),
            cache_hits=self._reader.hits,
            cache_misses=self._reader.misses,
            session_timeout_minutes=self.session_timeout / timedelta(minutes=1),
            database_bytes=counts.database_bytes,
            sqlite_version=sqlite_version,
        )

    async def _list(
        self,
        now: int,
        select: Callable[[Connection, *Arguments], Iterable[Row]],
        *arguments: *Arguments,
    ) -> list[Session]:
        """Run a query and make its snapshots on the connection's thread, not in the event loop."""

        def job(connection: Connection) -> list[Session]:
            return [self._expiry.session(row, now) for row in select(connection, *arguments)]

        return await self._database.reader.run(job)
