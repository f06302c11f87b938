# SPDX-License-Identifier: MIT
"""What each write does inside a transaction, a function each; and what it notes for the commit.

What is absent, ended or timed out is left as it is. Policy is the root's, and so is the clock.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import StorageError
from ..expiry import Moment
from ..session import Record
from ..store import Commit, Swept, Touch
from . import queries
from .connection import SQLITE_ERRORS, fetch_all, is_of_the_store
from .rows import from_row, to_row
from .times import from_text, to_text

# Characters of the data and metadata of all rows that one statement reads or writes as JSON, which
# is made and read with the GIL held. Larger rows than the share of each go by themselves.
JSON_LIMIT = 1_048_576


class Activity(NamedTuple):
    """One touch of a session."""

    session_id: str
    moment: Moment


class Changes:
    """What the operations of one transaction have changed so far, each session as it is now."""

    def __init__(self) -> None:
        self._touched: dict[str, Touch] = {}
        self._written: dict[str, Record] = {}
        self._erased: dict[str, None] = {}
        self._ended: list[Record] = []

    def touch(self, session_id: str, times: int, at: int) -> None:
        """Note interactions of a session, which this transaction may have created."""
        created = self._written.get(session_id)
        if created is not None:
            self._written[session_id] = created.touched(times, at)
            return
        before = self._touched.get(session_id)
        if before is not None:
            times, at = before.times + times, max(before.at, at)
        self._touched[session_id] = Touch(times, at)

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


def create_all(connection: sqlite3.Connection, changes: Changes, records: Sequence[Record]) -> None:
    """Add sessions. An id that is there already is sqlite3.IntegrityError."""
    limit = JSON_LIMIT // len(records) if len(records) > 1 else -1
    small: list[Record] = []
    for record in records:
        if len(record.data) + len(record.metadata) <= limit:
            small.append(record)
        else:
            connection.execute(queries.INSERT_SESSION, to_row(record))
        changes.write(record)
    if small:
        rows = json.dumps([[*to_row(record).values()] for record in small])
        connection.execute(queries.INSERT_SESSIONS, {"rows": rows})


def touch_all(
    connection: sqlite3.Connection, changes: Changes, touches: Sequence[Activity]
) -> list[bool]:
    """Touch sessions, all with the same expiry; return for each whether its session was live."""
    latest = max((each.moment for each in touches), key=lambda moment: moment.now)
    times = Counter(each.session_id for each in touches)
    live = _touch_many(connection, times, latest) if len(times) > 1 else set()
    for session_id in live:
        changes.touch(session_id, times[session_id], latest.now)
    results = [each.session_id in live for each in touches]
    alone: set[str] = set()
    for index, each in enumerate(touches):
        # One alone; or, in a batch, one that was live at its own moment, but not at the latest, and
        # those of the same session after it.
        is_left = len(times) == 1 or each.moment != latest or each.session_id in alone
        if not results[index] and is_left and _touch_one(connection, each):
            results[index] = True
            alone.add(each.session_id)
            changes.touch(each.session_id, 1, each.moment.now)
    return results


def edit(
    connection: sqlite3.Connection,
    changes: Changes,
    session_id: str,
    moment: Moment,
    change: Callable[[Record], Record],
) -> bool | Exception:
    """Write what `change` makes of a live session; return whether it was live.

    What `change` raises is returned: nothing was written, and it concerns its caller alone.
    """
    rows = fetch_all(connection, queries.SELECT_LIVE_SESSION, {"id": session_id, **cutoffs(moment)})
    if not rows:
        return False
    before = from_row(rows[0])
    try:
        changed = change(before)
    except Exception as refusal:
        return refusal
    last_activity = max(before.last_activity, moment.now)
    after = before._replace(
        last_activity=last_activity, data=changed.data, metadata=changed.metadata
    )
    if connection.execute(queries.UPDATE_SESSION_EDITED, to_row(after)).rowcount == 0:
        return False  # a trigger of the host project's has ignored it
    changes.write(after)
    return True


def end(
    connection: sqlite3.Connection,
    changes: Changes,
    session_id: str,
    moment: Moment,
    status: str,
    reason: str,
) -> bool:
    """End a live session; return whether it was live."""
    parameters = {"id": session_id, "status": status, "reason": reason, **cutoffs(moment)}
    return _end(connection, changes, queries.UPDATE_SESSION_ENDED, parameters) > 0


def end_all(
    connection: sqlite3.Connection,
    changes: Changes,
    child_id: str,
    moment: Moment,
    status: str,
    reason: str,
    except_id: str | None,
) -> int:
    """End all live sessions of a child but one; return how many there were."""
    parameters = {"child_id": child_id, "except_id": except_id, **cutoffs(moment)}
    parameters |= {"status": status, "reason": reason}
    return _end(connection, changes, queries.UPDATE_SESSIONS_ENDED_BY_CHILD, parameters)


def erase(connection: sqlite3.Connection, changes: Changes, session_id: str) -> bool:
    """Delete a session, whatever its status; return whether there was one."""
    if connection.execute(queries.DELETE_SESSION, {"id": session_id}).rowcount == 0:
        return False
    changes.erase(session_id)
    return True


def time_out(connection: sqlite3.Connection, changes: Changes, moment: Moment, limit: int) -> Swept:
    """End up to `limit` sessions that have timed out, each as of when it expired."""
    parameters = {"limit": limit, **cutoffs(moment)}
    due = fetch_all(connection, queries.SELECT_SESSIONS_IDLE, parameters)
    if moment.expiry.max_lifetime is not None:
        due += fetch_all(connection, queries.SELECT_SESSIONS_AGED, parameters)
    ends: dict[str, str] = {}
    alive: list[str] = []
    for session_id, started_at, last_activity in due:
        try:
            expires_at = moment.expiry.expiration(from_text(started_at), from_text(last_activity))
        except (TypeError, ValueError):
            continue  # another program has written what is no time
        if expires_at > moment.now:
            alive.append(session_id)
        elif len(ends) < limit:
            ends[session_id] = to_text(expires_at)
    timed_out = _time_out(connection, changes, ends) if ends else 0
    moved = 0
    if alive:
        parameters = {"ids": json.dumps(alive)}
        moved = connection.execute(queries.UPDATE_SESSIONS_SWEPT, parameters).rowcount
    # A chunk of sessions that nothing could be done about, as with a trigger, is the last one.
    return Swept(timed_out, has_more=len(due) >= limit and timed_out + moved > 0)


def bring_back(connection: sqlite3.Connection, changes: Changes, moment: Moment, limit: int) -> int:
    """Bring back up to `limit` sessions that are ahead of the clock by more than the timeout."""
    parameters = {"limit": limit, **ahead(moment)}
    rows = fetch_all(connection, queries.UPDATE_SESSIONS_AHEAD, parameters)
    for row in rows:
        changes.write(from_row(row))
    return len(rows)


def purge(connection: sqlite3.Connection, changes: Changes, ended_before: int, limit: int) -> int:
    """Delete up to `limit` sessions that ended at or before then; return how many."""
    parameters = {"ended_before": to_text(ended_before), "limit": limit}
    rows = fetch_all(connection, queries.DELETE_SESSIONS_ENDED_BEFORE, parameters)
    for (session_id,) in rows:
        changes.erase(session_id)
    return len(rows)


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
    live = {id_ for (id_,) in fetch_all(connection, queries.SELECT_LIVE_IDS, parameters)}
    if len(live) != count:
        # A trigger of the host project's has passed a session by. Rolled back, and each by itself.
        raise sqlite3.IntegrityError("it cannot be told which sessions were touched")
    return live


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
