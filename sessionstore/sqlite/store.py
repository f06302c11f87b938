# SPDX-License-Identifier: MIT
"""The operations on the table, a function each, inside the caller's transaction if there is one.

A write returns a Change, and one that refuses raises a SessionStoreError before it has written
anything. What is absent, ended or timed out changes nothing and gives an empty Change. What is
a list for callers is returned as rows still to be fetched, before the job ends. No policy here, no
cache, no clock: `cutoffs` and `now` come from the caller's one reading of the clock.
"""

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..arguments import dump_object
from ..errors import InvalidArgumentError, StorageError
from ..session import Expiry, Row, SessionRow, SessionStatus
from . import queries
from .jobs import Turn
from .times import micros_from_text, micros_to_text
from .transactions import transaction
from .writer import NO_CHANGE, Change

_ANY_TIME = "~"  # sorts after all times
_MARK_LENGTH = 25  # of swept_activity, where a sweep has marked a session as ahead of the clock


class Counts(NamedTuple):
    """The figures of the table, all of one moment."""

    by_status: dict[str, int]
    started_today: int
    database_bytes: int


def insert_session(connection: sqlite3.Connection, row: SessionRow) -> Change:
    """Add a session. An id that is there already is sqlite3.IntegrityError."""
    connection.execute(queries.INSERT_SESSION, row._asdict())
    return Change(rows=[row])


def touch_session(
    connection: sqlite3.Connection, touch: Change, expiry: Expiry, now: int
) -> Change:
    """Move last_activity of a live session to now, and count an interaction; return the touch."""
    if _touch_plainly(connection, touch, expiry, now):
        return touch
    # It may be ahead of the clock, or marked.
    parameters = {"id": touch.touched, "latest": _ANY_TIME, **expiry.cutoffs(now)}
    if connection.execute(queries.UPDATE_SESSION_ACTIVITY, parameters).rowcount == 0:
        return NO_CHANGE
    connection.execute(queries.UPDATE_SESSION_MARKED, parameters)
    return touch


def touch_sessions(
    connection: sqlite3.Connection, touches: Sequence[tuple[Change, Expiry, int]]
) -> list[Change | None]:
    """Touch many sessions in one statement. The expiry is the same for all.

    Gives None for each that is left to touch_session: not there, ended, timed out, ahead of the
    clock or marked; or a second touch of the same session. Raises StorageError, unlike other writes
    after it has written, where it cannot be told which sessions it has touched.
    """
    first, expiry, now = touches[0]
    if len(touches) == 1:
        return [first if _touch_plainly(connection, first, expiry, now) else None]
    moments = {touch.touched: touch.touched_at for touch, _, _ in reversed(touches)}
    # The strictest cutoffs of all.
    parameters = expiry.cutoffs(max([now for _, _, now in touches]))
    parameters["moments"] = json.dumps(moments)
    count = connection.execute(queries.UPDATE_SESSIONS_ACTIVITY, parameters).rowcount
    if count == len(touches):
        return [touch for touch, _, _ in touches]
    done = set(moments)
    if count < len(moments):
        rows = connection.execute(queries.SELECT_SESSIONS_TOUCHED, parameters)
        done = {id_ for (id_,) in rows.fetchall()}
        if len(done) != count:  # by a trigger of the host project's, or another program just now
            raise StorageError("it cannot be told which sessions were touched")
    results: list[Change | None] = []
    for touch, _, _ in touches:
        is_done = touch.touched in done
        done.discard(touch.touched)
        results.append(touch if is_done else None)
    return results


def _touch_plainly(connection: sqlite3.Connection, touch: Change, expiry: Expiry, now: int) -> bool:
    parameters = {"id": touch.touched, "latest": touch.touched_at, **expiry.cutoffs(now)}
    return connection.execute(queries.UPDATE_SESSION_ACTIVITY, parameters).rowcount > 0


def merge_session(
    connection: sqlite3.Connection,
    session_id: str,
    data: str,
    metadata: str,
    remove: Iterable[str],
    max_bytes: int,
    cutoffs: Mapping[str, str],
) -> Change:
    """Merge two JSON objects into those of a live session, and then drop keys of its data.

    Raises InvalidArgumentError where the result would have more than max_bytes.
    """
    parameters = {"id": session_id, **cutoffs}
    rows = _rows(connection, queries.SELECT_LIVE_SESSION_BY_ID, parameters)
    if not rows:
        return NO_CHANGE
    try:
        merged = {**json.loads(rows[0].data), **json.loads(data)}
        for key in remove:
            merged.pop(key, None)
        merged_metadata = {**json.loads(rows[0].metadata), **json.loads(metadata)}
        parameters["data"] = dump_object("data", merged, max_bytes)
        parameters["metadata"] = dump_object("metadata", merged_metadata, max_bytes)
    except (TypeError, ValueError, RecursionError) as error:  # which quotes what it could not read
        is_half = isinstance(error.__context__, UnicodeError)  # a lone surrogate, and not a new one
        if isinstance(error, InvalidArgumentError) and not is_half:
            raise
        raise StorageError("the session holds JSON that cannot be handled; mend the row") from None
    connection.execute(queries.UPDATE_SESSION_MARKED, parameters)
    return _change(connection, queries.UPDATE_SESSION_DATA, parameters)


def end_session(
    connection: sqlite3.Connection, session_id: str, reason: str, cutoffs: Mapping[str, str]
) -> Change:
    """End a live session for a reason, which decides the status."""
    parameters = {"id": session_id, "reason": reason, "status": _status_for(reason), **cutoffs}
    return _change(connection, queries.UPDATE_SESSION_ENDED, parameters)


def end_sessions_of_child(
    connection: sqlite3.Connection,
    child_id: str,
    except_id: str | None,
    reason: str,
    cutoffs: Mapping[str, str],
) -> Change:
    """End all live sessions of a child but one."""
    parameters = {
        "child_id": child_id,
        "except_id": except_id,
        "reason": reason,
        "status": _status_for(reason),
        **cutoffs,
    }
    return _change(connection, queries.UPDATE_SESSIONS_ENDED_BY_CHILD, parameters)


def time_out_sessions(
    connection: sqlite3.Connection, expiry: Expiry, now: int, limit: int
) -> Change:
    """Of up to limit sessions that are due, mark those that have timed out, as ended when they did.

    The others got activity since they came due, and will be due again when they may have timed out.
    One that is ahead of the clock has timed out when it was idle since a sweep has marked it.
    """
    parameters = {"limit": limit, **expiry.cutoffs(now)}
    due = connection.execute(queries.SELECT_SESSIONS_DUE, parameters).fetchall()
    # All before anything is written: a row that is damaged refuses here.
    moments = [(id_, _moment(expiry, now, *times)) for id_, *times in due]
    rows: list[SessionRow] = []
    for id_, expires_at in moments:
        if expires_at <= now:
            ended = {"id": id_, "ended_at": micros_to_text(expires_at)}
            rows += _rows(connection, queries.UPDATE_SESSION_TIMED_OUT, ended)
    alive = [{"id": id_} for id_, expires_at in moments if expires_at > now]
    moved = connection.executemany(queries.UPDATE_SESSION_SWEPT, alive).rowcount
    stuck = not rows and moved <= 0  # a trigger of the host project's may stand in the way
    return Change(rows, is_all=len(due) < limit or stuck)


def mark_sessions_ahead(connection: sqlite3.Connection, now: int, limit: int) -> Change:
    """Mark up to limit sessions that the clock, which was set back, has yet to reach."""
    parameters = {"now": micros_to_text(now), "limit": limit}
    marked = connection.execute(queries.UPDATE_SESSIONS_AHEAD, parameters).rowcount
    return Change(is_all=marked < limit)


def delete_session(connection: sqlite3.Connection, session_id: str) -> Change:
    """Erase a session, whatever its status."""
    erased = connection.execute(queries.DELETE_SESSION, {"id": session_id}).fetchall()
    return Change(erased=[id_ for (id_,) in erased])


def purge_sessions(connection: sqlite3.Connection, cutoff: str, limit: int) -> Change:
    """Erase up to limit sessions that ended at the cutoff or before it."""
    parameters = {"cutoff": cutoff, "limit": limit}
    erased = connection.execute(queries.DELETE_SESSIONS_ENDED_BEFORE, parameters).fetchall()
    return Change(erased=[id_ for (id_,) in erased], is_all=len(erased) < limit)


def select_sessions(connection: sqlite3.Connection, session_ids: list[str]) -> list[Row]:
    """Return the rows with these ids, whatever their status."""
    ids = {"ids": json.dumps(session_ids)}
    return connection.execute(queries.SELECT_SESSIONS_BY_IDS, ids).fetchall()


def select_active_sessions(
    connection: sqlite3.Connection,
    child_id: str | None,
    after: tuple[str, str],
    limit: int,
    cutoffs: Mapping[str, str],
) -> Iterable[Row]:
    """Return live sessions in the order of (started_at, id), from behind `after` on."""
    parameters = {
        "after_started_at": after[0],
        "after_id": after[1],
        "limit": limit,
        **cutoffs,
    }
    if child_id is None:
        return connection.execute(queries.SELECT_ACTIVE_SESSIONS, parameters)
    parameters["child_id"] = child_id
    return connection.execute(queries.SELECT_ACTIVE_SESSIONS_BY_CHILD, parameters)


def select_sessions_of_child(
    connection: sqlite3.Connection, child_id: str, limit: int
) -> Iterable[Row]:
    """Return the sessions of a child, started last first, whatever their status."""
    parameters = {"child_id": child_id, "limit": limit}
    return connection.execute(queries.SELECT_SESSIONS_BY_CHILD, parameters)


def select_sessions_by_filter(
    connection: sqlite3.Connection,
    child_id: str | None,
    status: str | None,
    limit: int,
    cutoffs: Mapping[str, str],
) -> Iterable[Row]:
    """Return sessions by child and status, started last first. Reads the whole table."""
    parameters = {"child_id": child_id, "status": status, "limit": limit, **cutoffs}
    return connection.execute(queries.SELECT_SESSIONS_BY_FILTER, parameters)


def count_sessions(connection: sqlite3.Connection, cutoffs: Mapping[str, str]) -> Counts:
    """Count the sessions by status, those that have timed out but were not swept as timed out."""
    by_status = dict.fromkeys(map(str, SessionStatus), 0)
    started_today = 0
    with transaction(connection, begin=queries.BEGIN_READ):
        today = {"today": cutoffs["now"][:10]}
        for status, count, since_midnight in connection.execute(
            queries.COUNT_SESSIONS_BY_STATUS, today
        ).fetchall():
            by_status[status] = count
            started_today += since_midnight
        unswept = _count(connection, queries.COUNT_SESSIONS_TIMED_OUT, cutoffs)
        size = _count(connection, queries.SELECT_DATABASE_BYTES, {})
    by_status["active"] -= unswept
    by_status["timeout"] += unswept
    return Counts(by_status, started_today, size)


def read_data_version(connection: sqlite3.Connection, turn: Turn) -> int:
    """Return a number that changes when another connection has committed."""
    turn.claim()
    version: int = connection.execute(queries.SELECT_DATA_VERSION).fetchone()[0]
    return version


def _moment(expiry: Expiry, now: int, started_at: str, last_activity: str, swept: str) -> int:
    """Return when a session times out; one that is ahead of the clock, when idle since its mark."""
    expires_at = expiry.moment(started_at, last_activity)
    is_marked = len(swept) == _MARK_LENGTH and last_activity > micros_to_text(now)
    if expires_at > now and is_marked:
        return micros_from_text(f"{swept}0") + expiry.timeout
    return expires_at


def _status_for(reason: str) -> str:
    return reason if reason in ("timeout", "error") else "ended"


def _rows(
    connection: sqlite3.Connection, query: str, parameters: Mapping[str, Any]
) -> list[SessionRow]:
    return list(map(SessionRow._make, connection.execute(query, parameters).fetchall()))


def _change(connection: sqlite3.Connection, query: str, parameters: Mapping[str, Any]) -> Change:
    return Change(_rows(connection, query, parameters))


def _count(connection: sqlite3.Connection, query: str, parameters: Mapping[str, str]) -> int:
    count: int = connection.execute(query, parameters).fetchone()[0]
    return count
