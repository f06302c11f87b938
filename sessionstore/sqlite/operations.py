# SPDX-License-Identifier: MIT
"""What each write does inside a transaction, a class each; and what it notes for the commit.

An operation looks at what is there, and then writes. What is absent, ended or timed out it leaves
as it is. Policy is the root's, and so is the clock.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import StorageError
from ..expiry import Moment
from ..session import Record
from ..store import Commit, Swept, Touch
from . import queries
from .connection import SQLITE_ERRORS, fetch_all, is_of_the_store
from .lane import Operation
from .rows import from_row, to_row
from .times import from_text, to_text

JSON_LIMIT = 16_384  # bytes of data beyond which a row is inserted by itself


class Changes:
    """What the operations of one transaction have changed so far, each session as it is now."""

    def __init__(self) -> None:
        self._touched: dict[str, Touch] = {}
        self._written: dict[str, Record] = {}
        self._erased: dict[str, None] = {}
        self._ended: list[Record] = []

    def touch(self, session_id: str, times: int, moment: int) -> None:
        """Note interactions of a session that this transaction has not written otherwise."""
        before = self._touched.get(session_id)
        if before is not None:
            times, moment = before.times + times, max(before.moment, moment)
        self._touched[session_id] = Touch(times, moment)

    def write(self, record: Record) -> None:
        """Note a session as it is now."""
        self._touched.pop(record.id, None)
        self._erased.pop(record.id, None)
        self._written[record.id] = record

    def end(self, record: Record) -> None:
        """Note a session that has ended."""
        self.write(record)
        self._ended.append(record)

    def erase(self, session_id: str) -> None:
        """Note a session that is gone."""
        self._touched.pop(session_id, None)
        self._written.pop(session_id, None)
        self._erased[session_id] = None

    def ids(self) -> list[str]:
        """Return the ids of all that was changed."""
        return [*self._touched, *self._written, *self._erased]

    def commit(self, versions_before: Mapping[str, int], version: int) -> Commit:
        """Return what the listener is told."""
        written, erased = list(self._written.values()), list(self._erased)
        return Commit(self._touched, written, erased, self._ended, versions_before, version)


class Write(Operation):
    """What is done in a transaction with others."""

    __slots__ = ()

    durable: ClassVar[bool] = True  # whether it must survive a power cut, too


class Chore(Operation):
    """What is done under the lock, but outside of a transaction and alone."""

    __slots__ = ()

    def run(self, connection: sqlite3.Connection) -> object:
        """Do it, and return what the caller gets. It is run again if a lock was in the way."""
        raise NotImplementedError


@dataclass(slots=True)
class Create(Write):
    """Adds a session."""

    record: Record

    @property
    def weight(self) -> int:
        """About how many bytes it adds to its batch."""
        return len(self.record.data) + len(self.record.metadata)


@dataclass(slots=True)
class Activity(Write):
    """Moves the last_activity of a live session, and counts an interaction."""

    session_id: str
    moment: Moment

    durable: ClassVar[bool] = False


@dataclass(slots=True)
class Edit(Write):
    """Writes the data and metadata that a function makes of those of a live session."""

    session_id: str
    moment: Moment
    change: Callable[[Record], Record]

    @property
    def weight(self) -> int:
        """A guess: how much there is to read and write is known in the transaction only."""
        return 65_536

    def apply(self, connection: sqlite3.Connection, changes: Changes) -> bool:
        """Return whether the session was live. What the function raises is raised."""
        parameters = {"id": self.session_id, **cutoffs(self.moment)}
        rows = fetch_all(connection, queries.SELECT_LIVE_SESSION, parameters)
        if not rows:
            return False
        before = from_row(rows[0])
        changed = self.change(before)
        after = before._replace(
            last_activity=max(before.last_activity, self.moment.now),
            data=changed.data,
            metadata=changed.metadata,
        )
        if connection.execute(queries.UPDATE_SESSION_EDITED, to_row(after)).rowcount == 0:
            return False  # a trigger of the host project's has ignored it
        changes.write(after)
        return True


@dataclass(slots=True)
class End(Write):
    """Ends a live session."""

    session_id: str
    moment: Moment
    status: str
    reason: str

    def apply(self, connection: sqlite3.Connection, changes: Changes) -> bool:
        """Return whether the session was live."""
        parameters = {
            "id": self.session_id,
            "status": self.status,
            "reason": self.reason,
            **cutoffs(self.moment),
        }
        return _end(connection, changes, queries.UPDATE_SESSION_ENDED, parameters) > 0


@dataclass(slots=True)
class EndAll(Write):
    """Ends all live sessions of a child but one."""

    child_id: str
    moment: Moment
    status: str
    reason: str
    except_id: str | None

    def apply(self, connection: sqlite3.Connection, changes: Changes) -> int:
        """Return how many there were."""
        parameters = {
            "child_id": self.child_id,
            "except_id": self.except_id,
            "status": self.status,
            "reason": self.reason,
            **cutoffs(self.moment),
        }
        return _end(connection, changes, queries.UPDATE_SESSIONS_ENDED_BY_CHILD, parameters)


@dataclass(slots=True)
class Erase(Write):
    """Deletes a session, whatever its status."""

    session_id: str

    def apply(self, connection: sqlite3.Connection, changes: Changes) -> bool:
        """Return whether there was one."""
        if connection.execute(queries.DELETE_SESSION, {"id": self.session_id}).rowcount == 0:
            return False
        changes.erase(self.session_id)
        return True


@dataclass(slots=True)
class TimeOut(Write):
    """Ends up to `limit` sessions that have timed out, each as of when it expired."""

    moment: Moment
    limit: int

    durable: ClassVar[bool] = False

    def apply(self, connection: sqlite3.Connection, changes: Changes) -> Swept:
        """Return how many, and whether there may be more."""
        expiry = self.moment.expiry
        parameters = {"limit": self.limit, **cutoffs(self.moment)}
        due = fetch_all(connection, queries.SELECT_SESSIONS_IDLE, parameters)
        if expiry.max_lifetime is not None:
            due += fetch_all(connection, queries.SELECT_SESSIONS_AGED, parameters)
        ends: dict[str, str] = {}
        alive: list[str] = []
        for session_id, started_at, last_activity in due:
            try:
                expires_at = expiry.moment(from_text(started_at), from_text(last_activity))
            except (TypeError, ValueError):
                continue  # another program has written what is no time
            if expires_at > self.moment.now:
                alive.append(session_id)
            elif len(ends) < self.limit:
                ends[session_id] = to_text(expires_at)
        timed_out = _time_out(connection, changes, ends) if ends else 0
        if alive:
            connection.execute(queries.UPDATE_SESSIONS_SWEPT, {"ids": json.dumps(alive)})
        return Swept(timed_out, has_more=len(due) >= self.limit and timed_out + len(alive) > 0)


@dataclass(slots=True)
class BringBack(Write):
    """Brings back up to `limit` sessions that are ahead of the clock by more than the timeout."""

    moment: Moment
    limit: int

    durable: ClassVar[bool] = False

    def apply(self, connection: sqlite3.Connection, changes: Changes) -> int:
        """Return how many."""
        parameters = {**ahead(self.moment), "limit": self.limit}
        rows = fetch_all(connection, queries.UPDATE_SESSIONS_AHEAD, parameters)
        for row in rows:
            changes.write(from_row(row))
        return len(rows)


@dataclass(slots=True)
class Purge(Write):
    """Deletes up to `limit` sessions that ended at or before then."""

    ended_before: int
    limit: int

    def apply(self, connection: sqlite3.Connection, changes: Changes) -> int:
        """Return how many."""
        parameters = {"ended_before": to_text(self.ended_before), "limit": self.limit}
        rows = fetch_all(connection, queries.DELETE_SESSIONS_ENDED_BEFORE, parameters)
        for (session_id,) in rows:
            changes.erase(session_id)
        return len(rows)


def create_all(connection: sqlite3.Connection, creates: Sequence[Create], changes: Changes) -> None:
    """Add sessions. An id that is there already is sqlite3.IntegrityError."""
    # JSON is made with the GIL held, and SQLite copies it: large rows go by themselves.
    together = [each for each in creates if each.weight <= JSON_LIMIT] if len(creates) > 1 else []
    if together:
        rows = json.dumps([[*to_row(each.record).values()] for each in together])
        connection.execute(queries.INSERT_SESSIONS, {"rows": rows})
    for each in creates:
        if not together or each.weight > JSON_LIMIT:
            connection.execute(queries.INSERT_SESSION, to_row(each.record))
        changes.write(each.record)


def touch_all(
    connection: sqlite3.Connection, touches: Sequence[Activity], changes: Changes
) -> list[bool]:
    """Touch sessions, all with the same expiry; return for each whether its session was live."""
    latest = max((each.moment for each in touches), key=lambda moment: moment.now)
    times = Counter(each.session_id for each in touches)
    live = _touch_many(connection, times, latest) if len(times) > 1 else set()
    for session_id in live:
        changes.touch(session_id, times[session_id], latest.now)
    results = [each.session_id in live for each in touches]
    for index, each in enumerate(touches):
        # One alone; or, in a batch, one that was live at its own moment, but not at the latest.
        if not results[index] and (len(times) == 1 or each.moment != latest):
            results[index] = _touch_one(connection, each)
            if results[index]:
                changes.touch(each.session_id, 1, each.moment.now)
    return results


def cutoffs(moment: Moment) -> dict[str, Any]:
    """Return the parameters that every statement with the rule of expiry in it needs."""
    return {
        "now": to_text(moment.now),
        "idle_cutoff": to_text(moment.idle_cutoff),
        "lifetime_cutoff": to_text(moment.lifetime_cutoff),
    }


def ahead(moment: Moment) -> dict[str, Any]:
    """Return the parameters of the statements on what is ahead of the clock."""
    return {"now": to_text(moment.now), "latest": to_text(moment.now + moment.expiry.timeout)}


def _touch_one(connection: sqlite3.Connection, touch: Activity) -> bool:
    parameters = {"id": touch.session_id, **cutoffs(touch.moment)}
    return connection.execute(queries.UPDATE_SESSION_TOUCHED, parameters).rowcount > 0


def _touch_many(
    connection: sqlite3.Connection, times: Mapping[str, int], latest: Moment
) -> set[str]:
    parameters = {"touches": json.dumps(times), **cutoffs(latest)}
    count = connection.execute(queries.UPDATE_SESSIONS_TOUCHED, parameters).rowcount
    if count == len(times):
        return set(times)
    if count == 0:
        return set()
    return {id_ for (id_,) in fetch_all(connection, queries.SELECT_LIVE_IDS, parameters)}


def _end(
    connection: sqlite3.Connection, changes: Changes, query: str, parameters: Mapping[str, Any]
) -> int:
    records = [from_row(row) for row in fetch_all(connection, query, parameters)]
    for record in records:
        changes.end(record)
    return len(records)


def _time_out(connection: sqlite3.Connection, changes: Changes, ends: Mapping[str, str]) -> int:
    """Time out sessions, each as of its own moment; those that cannot be read stay as they are."""
    parameters = {"ends": json.dumps(ends)}
    connection.execute(queries.SAVEPOINT)
    try:
        timed_out = _end(connection, changes, queries.UPDATE_SESSIONS_TIMED_OUT, parameters)
    except (*SQLITE_ERRORS, StorageError) as error:
        if is_of_the_store(error):
            raise
        connection.execute(queries.ROLLBACK_TO_SAVEPOINT)
        timed_out = 0
        if len(ends) > 1:
            timed_out = sum(_time_out(connection, changes, {id_: ends[id_]}) for id_ in ends)
    connection.execute(queries.RELEASE_SAVEPOINT)
    return timed_out
