# SPDX-License-Identifier: MIT
"""One transaction for all that callers have gathered, under the lock of all processes.

A batch takes the lock, begins, does all creates in one statement and all touches in another, then
the other operations in their order, marks the versions, commits, and lets go of the lock. If an
operation fails by its own fault, the batch is rolled back and each operation is tried by itself, so
that only its own caller hears of it. What concerns all (a full disk, say) is not tried again. What
must be done outside of a transaction (Run) comes last. All of it runs on the connection's thread.
"""

import logging
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import SessionStoreError, StorageError
from ..expiry import Expiry
from ..session import Record
from . import queries
from .connection import is_of_the_store, unless_busy
from .lane import Call, Done, Lane, Operation, Run, failed
from .operations import Activity, Changes, create_all, touch_all
from .sidecar import Sidecar

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(slots=True)
class Create(Operation[None]):
    """Asks for a new session."""

    record: Record
    durable = True


@dataclass(slots=True)
class Touch(Operation[bool]):
    """Asks for a touch of a session."""

    activity: Activity
    durable = False


@dataclass(slots=True)
class Write(Operation[Result]):
    """Asks for what a function does in a transaction with others."""

    apply: Callable[..., Result | Exception]  # of the connection, the changes and the arguments
    arguments: tuple[Any, ...]
    durable: bool = True  # whether it must survive a power cut, and not only a crash


class Writer:
    """What writes to one file: a connection, with the lock and the versions."""

    def __init__(self, connection: sqlite3.Connection, sidecar: Sidecar) -> None:
        self._connection = connection
        self._sidecar = sidecar
        self._identity = sidecar.database_identity()
        self._synchronous = ""  # the statement that was run last

    def work(self, lane: Lane, calls: Sequence[Call]) -> list[Done]:
        """Do what the calls of a batch ask for, and return what became of them."""
        done: list[Done] = []
        try:
            calls = lane.wait(calls, self._sidecar.try_lock, self._sidecar.revision)
            if calls and self._sidecar.database_identity() != self._identity:
                raise StorageError("the database was moved, deleted or replaced; open it again")
        except (SessionStoreError, OSError) as error:
            self._sidecar.unlock()
            return [failed(calls, error)]
        try:
            writes = [call for call in calls if not isinstance(call.operation, Run)]
            if writes:
                self._write(lane, writes, done)
            lane.hand_over()
            runs = [call for call in calls if isinstance(call.operation, Run)]
            done += [lane.run(self._connection, call) for call in runs]
        finally:
            self._sidecar.unlock()
        return done

    def _write(self, lane: Lane, calls: Sequence[Call], done: list[Done]) -> None:
        """Commit all of the calls in one transaction, or if one of them fails, each by itself."""
        try:
            calls = self._begin(lane, calls)
            lane.hand_over()
            if calls:
                done.append(self._commit(calls))
            else:
                self._roll_back()  # it may have begun before the last caller went
        except Exception as error:
            self._roll_back()
            if len(calls) > 1 and not is_of_the_store(error):
                for call in calls:
                    self._write(lane, [call], done)
            else:
                done.append(failed(calls, error))

    def _begin(self, lane: Lane, calls: Sequence[Call]) -> Sequence[Call]:
        durable = any(call.operation.durable for call in calls)
        wanted = queries.SET_SYNCHRONOUS_FULL if durable else queries.SET_SYNCHRONOUS_NORMAL
        if wanted != self._synchronous:
            self._synchronous = ""
            self._connection.execute(wanted)
            self._synchronous = wanted
        return lane.wait(calls, unless_busy(lambda: self._connection.execute(queries.BEGIN_WRITE)))

    def _commit(self, calls: Sequence[Call]) -> Done:
        changes = Changes()
        outcomes = _apply(self._connection, calls, changes)
        ids = changes.ids()
        if not ids:
            self._connection.execute(queries.COMMIT)
            return Done(outcomes)
        before = self._sidecar.mark(ids)
        try:
            self._connection.execute(queries.COMMIT)
        finally:
            version = self._sidecar.settle()
        return Done(outcomes, changes.commit(before, version))

    def _roll_back(self) -> None:
        if self._connection.in_transaction:  # on a full disk, say, SQLite has rolled back by itself
            try:
                self._connection.execute(queries.ROLLBACK)
            except sqlite3.Error:  # the next BEGIN will fail, and tell its callers
                logger.exception("a transaction could not be rolled back")


def _apply(
    connection: sqlite3.Connection, calls: Sequence[Call], changes: Changes
) -> list[tuple[Call, object]]:
    """Do what the calls ask for, those of a kind together; return the result of each."""
    outcomes: list[tuple[Call, object]] = []
    creates = [call for call in calls if isinstance(call.operation, Create)]
    if creates:
        create_all(connection, changes, [call.operation.record for call in creates])
        outcomes += [(call, None) for call in creates]
    touches: dict[Expiry, list[Call]] = {}
    for call in calls:
        if isinstance(call.operation, Touch):
            touches.setdefault(call.operation.activity.moment.expiry, []).append(call)
    for group in touches.values():
        live = touch_all(connection, changes, [call.operation.activity for call in group])
        outcomes += zip(group, live, strict=True)
    for call in calls:
        if isinstance(call.operation, Write):
            write = call.operation
            outcomes.append((call, write.apply(connection, changes, *write.arguments)))
    return outcomes
