# SPDX-License-Identifier: MIT
"""Reads: records by id, the small ones at once; and lists and figures, one after the other.

A row is decoded for its own caller, so that one that is damaged fails no other. All of it runs on a
connection's thread.
"""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..expiry import Moment
from ..session import Record, SessionStatus
from ..store import Counts
from . import queries
from .connection import SQLITE_ERRORS, fetch_all, is_of_the_store, unless_busy
from .lane import Call, Done, Lane, Operation, failed
from .operations import JSON_LIMIT, ahead, cutoffs
from .rows import from_row
from .times import to_text

DAY = 86_400_000_000  # microseconds


@dataclass(slots=True)
class Load(Operation[Record | None]):
    """Asks for a record by its id."""

    session_id: str


def load(connection: sqlite3.Connection, lane: Lane, calls: Sequence[Call]) -> list[Done]:
    """Load the records that the calls of a batch ask for: small ones all at once."""
    rows: dict[str, Any] = {}
    ids = {call.operation.session_id for call in calls}

    def select() -> None:
        if len(ids) > 1:
            parameters = {"ids": json.dumps([*ids]), "limit": JSON_LIMIT // len(ids)}
            ((found,),) = fetch_all(connection, queries.SELECT_SMALL_SESSIONS, parameters)
            rows.update((row[0], row) for row in json.loads(found))
        for id_ in ids - rows.keys():
            for row in fetch_all(connection, queries.SELECT_SESSION, {"id": id_}):
                rows[id_] = row

    try:
        waiting = lane.wait(calls, unless_busy(select))
    except (*SQLITE_ERRORS, ValueError) as error:  # JSON has no infinity
        if len(calls) > 1 and not is_of_the_store(error):  # a row that cannot be read
            return [done for call in calls for done in load(connection, lane, [call])]
        return [failed(calls, error)]
    return [Done([(call, _decode(rows.get(call.operation.session_id))) for call in waiting])]


def read(connection: sqlite3.Connection, lane: Lane, calls: Sequence[Call]) -> list[Done]:
    """Answer the calls of a batch, one after the other."""
    return [lane.run(connection, call) for call in calls]


def select(
    connection: sqlite3.Connection, query: str, parameters: Mapping[str, Any]
) -> list[Record]:
    """Return the records of a list."""
    return [from_row(row) for row in fetch_all(connection, query, parameters)]


def count(connection: sqlite3.Connection, moment: Moment) -> Counts:
    """Return the figures of the store, all of one snapshot."""
    parameters = cutoffs(moment) | {"midnight": to_text(moment.now // DAY * DAY)}
    by_status = dict.fromkeys(map(str, SessionStatus), 0)
    started_today = 0
    connection.execute(queries.BEGIN_READ)
    try:
        for status, number, since_midnight in fetch_all(
            connection, queries.COUNT_SESSIONS_BY_STATUS, parameters
        ):
            by_status[status] = number
            started_today += since_midnight
        ((unswept,),) = fetch_all(connection, queries.COUNT_SESSIONS_TIMED_OUT, parameters)
        ((size,),) = fetch_all(connection, queries.SELECT_DATABASE_BYTES)
    finally:
        connection.execute(queries.COMMIT)
    by_status["active"] -= unswept
    by_status["timeout"] += unswept
    return Counts(by_status, started_today, size, sqlite3.sqlite_version)


def is_ahead(connection: sqlite3.Connection, moment: Moment) -> bool:
    """Return whether a session is ahead of the clock by more than the timeout."""
    return bool(fetch_all(connection, queries.SELECT_SESSION_AHEAD, ahead(moment)))


def _decode(row: Any) -> Record | Exception | None:
    try:
        return None if row is None else from_row(row)
    except Exception as error:
        return error
