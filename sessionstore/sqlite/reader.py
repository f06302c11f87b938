# SPDX-License-Identifier: MIT
"""Reads: records by id, gathered into one statement; and lists and figures, one after the other.

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
from .lane import Call, Done, Operation, Wait, failed
from .operations import ahead, cutoffs
from .rows import from_row
from .times import to_text

DAY = 86_400_000_000  # microseconds


@dataclass(slots=True)
class Load(Operation):
    """Asks for a record by its id."""

    session_id: str


@dataclass(slots=True)
class Select(Operation):
    """Asks for the records of a list."""

    query: str
    parameters: Mapping[str, Any]

    def read(self, connection: sqlite3.Connection) -> list[Record]:
        """Return them."""
        return [from_row(row) for row in fetch_all(connection, self.query, self.parameters)]


@dataclass(slots=True)
class Count(Operation):
    """Asks for the figures of the store."""

    moment: Moment

    def read(self, connection: sqlite3.Connection) -> Counts:
        """Return them, all of one snapshot."""
        parameters = cutoffs(self.moment)
        parameters["midnight"] = to_text(self.moment.now // DAY * DAY)
        by_status = dict.fromkeys(map(str, SessionStatus), 0)
        started_today = 0
        connection.execute(queries.BEGIN_READ)
        try:
            for status, count, since_midnight in fetch_all(
                connection, queries.COUNT_SESSIONS_BY_STATUS, parameters
            ):
                by_status[status] = count
                started_today += since_midnight
            ((unswept,),) = fetch_all(connection, queries.COUNT_SESSIONS_IDLE, parameters)
            if self.moment.expiry.max_lifetime is not None:
                ((aged,),) = fetch_all(connection, queries.COUNT_SESSIONS_AGED, parameters)
                unswept += aged
            ((size,),) = fetch_all(connection, queries.SELECT_DATABASE_BYTES)
        finally:
            connection.execute(queries.COMMIT)
        by_status["active"] -= unswept
        by_status["timeout"] += unswept
        return Counts(by_status, started_today, size, sqlite3.sqlite_version)


@dataclass(slots=True)
class IsAhead(Operation):
    """Asks whether a session is ahead of the clock by more than the timeout."""

    moment: Moment

    def read(self, connection: sqlite3.Connection) -> bool:
        """Return it."""
        return bool(fetch_all(connection, queries.SELECT_SESSION_AHEAD, ahead(self.moment)))


def load(
    connection: sqlite3.Connection, wait: Wait, calls: Sequence[Call[Load]]
) -> list[Done[Load]]:
    """Load the records that the calls of a batch ask for, in one statement."""
    rows: dict[str, Any] = {}

    def select() -> None:
        ids = json.dumps([*{call.operation.session_id for call in calls}])
        found = fetch_all(connection, queries.SELECT_SESSIONS_BY_IDS, {"ids": ids})
        rows.update((row[0], row) for row in found)

    try:
        waiting = wait(calls, unless_busy(select))
    except SQLITE_ERRORS as error:
        if len(calls) > 1 and not is_of_the_store(error):  # a row that cannot be read
            return [done for call in calls for done in load(connection, wait, [call])]
        return [failed(calls, error)]
    return [Done([(call, _decode(rows.get(call.operation.session_id))) for call in waiting])]


def read(connection: sqlite3.Connection, wait: Wait, calls: Sequence[Call[Any]]) -> list[Done[Any]]:
    """Answer the calls of a batch, one after the other."""
    done: list[Done[Any]] = []
    for call in calls:
        results: list[object] = []

        def answer(call: Call[Any] = call, results: list[object] = results) -> None:
            results.append(call.operation.read(connection))

        try:
            if wait([call], unless_busy(answer)):
                done.append(Done([(call, results[0])]))
        except Exception as error:
            done.append(failed([call], error))
    return done


def _decode(row: Any) -> Record | Exception | None:
    try:
        return None if row is None else from_row(row)
    except Exception as error:
        return error
