# SPDX-License-Identifier: MIT
"""Group commit: writes of all tasks, gathered and committed together.

A write is a function of store.py; its result is a Change: what it did to which sessions. A caller
gets its Change only after COMMIT, and after the cache has been told. A batch is one transaction;
where an operation fails, it is rolled back and replayed one by one, so that only its own caller
sees the error. Operations that one statement does together need none; what it leaves does. Nothing
is known here of what an operation does.
"""

import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple, TypeVarTuple, cast

from ..errors import SessionStoreError, StorageError, StoreBusyError
from ..session import SessionRow
from . import queries
from .concurrency import Batcher, Finish, Outcome
from .database import Database, translate
from .jobs import Turn
from .sidecar import Coherence, slot_of
from .transactions import SQLITE_ERRORS, is_busy, transaction

Arguments = TypeVarTuple("Arguments")


class Change(NamedTuple):
    """What a write did."""

    rows: Sequence[SessionRow] = ()  # the changed ones, as they are now
    touched: str | None = None  # the id of a session that got an interaction at the moment below
    touched_at: str = ""
    erased: Sequence[str] = ()  # the ids of sessions that are gone
    is_all: bool = True  # whether a bounded operation, one of a sweep, has found all there was

    def slots(self) -> list[int]:
        """Return the slots of all sessions that were changed."""
        if self.touched is not None:
            return [slot_of(self.touched)]
        return [slot_of(row.id) for row in self.rows] + [slot_of(id_) for id_ in self.erased]


NO_CHANGE = Change()
PATIENCE = 0.005  # seconds, after which the callers of the batch before must hear of its end


class Operation(NamedTuple):
    """A write on its way."""

    apply: Callable[..., Change]
    arguments: tuple[Any, ...]
    durable: bool  # whether it must survive a power cut, or a crash of the process only
    together: Callable[..., Sequence[Change | None]] | None = None  # see submit_jointly


class Commit(NamedTuple):
    """What became of operations, and the words of their slots, if they were committed."""

    results: Sequence[Change | Exception | None]  # None: nothing yet
    word: int = 0  # of all slots that they changed, from now on
    words_before: Mapping[int, int] = {}  # by slot, from before they began


# The commits of a batch, and what became of each of its operations, in their order.
Concluded = tuple[list[Commit], list[Change | Exception]]


class Writer:
    """Commits what all tasks write, in the order in which it came."""

    def __init__(
        self,
        database: Database,
        on_commit: Callable[[Commit], None],
    ) -> None:
        self._database = database
        self._on_commit = on_commit
        # Two batches under way would leave the lock free too shortly for another process.
        self._batcher = Batcher[Operation, Change](
            self._begin, may_overlap=lambda: database.coherence.is_alone
        )

    def submit(
        self,
        apply: Callable[[sqlite3.Connection, *Arguments], Change],
        *arguments: *Arguments,
        durable: bool,
    ) -> Awaitable[Change]:
        """Commit one operation; awaiting gives its change.

        Cancelling the caller leaves it open whether the write happens.
        """
        return self._batcher.submit(Operation(apply, arguments, durable))

    def submit_jointly(
        self,
        together: Callable[
            [sqlite3.Connection, list[tuple[Change, *Arguments]]], Sequence[Change | None]
        ],
        apply: Callable[[sqlite3.Connection, Change, *Arguments], Change],
        change: Change,
        *arguments: *Arguments,
        durable: bool,
    ) -> Awaitable[Change]:
        """Commit one operation, of which it is known what it changes, if anything: one session.

        Many of a kind are done by `together`, in one statement that writes; it gives None for each
        that is left to `apply`.
        """
        return self._batcher.submit(Operation(apply, (change, *arguments), durable, together))

    async def close(self) -> None:
        """Commit what was accepted, and refuse the rest."""
        await self._batcher.close()

    def _begin(self, operations: list[Operation], waited: float, finish: Finish[Change]) -> None:
        self._database.begin_write(
            _commit_batch,
            operations,
            self._database.coherence,
            waited=waited,
            announces=True,
            on_end=lambda outcome: finish(partial(self._conclude, outcome)),
        )

    def _conclude(self, outcome: Outcome[Concluded]) -> Sequence[Change | Exception]:
        commits, results = outcome()
        for commit in commits:
            self._on_commit(commit)
        return results


def _commit_batch(
    connection: sqlite3.Connection, turn: Turn, operations: list[Operation], coherence: Coherence
) -> Concluded:
    """Commit the operations, at once as far as that goes, and the others in a transaction."""
    first = _commit_at_once(connection, turn, operations, coherence)
    left = [each for each, result in zip(operations, first.results, strict=True) if result is None]
    commits = _commit_in_transaction(connection, turn, left, coherence) if left else []
    others = (result for commit in commits for result in commit.results)
    results = [next(others) if result is None else result for result in first.results]
    return [first, *commits], cast("list[Change | Exception]", results)


def _commit_at_once(
    connection: sqlite3.Connection, turn: Turn, operations: list[Operation], coherence: Coherence
) -> Commit:
    """Where one statement does all operations, have SQLite commit at its end, by itself.

    SQLite lets go of the GIL once for both, so that the event loop can serve others meanwhile.
    """
    undone = Commit([None] * len(operations))
    together, *others = {each.together for each in operations}
    if together is None or others:
        return undone
    session_ids = {each.arguments[0].touched for each in operations}
    if len(session_ids) < len(operations):  # one of them would be left, for a second transaction
        return undone
    _set_durability(connection, operations)
    turn.claim()  # for what is left, too: that gives up by itself when its patience is over
    turn.announce()
    words_before = coherence.begin(map(slot_of, session_ids))
    written = connection.total_changes
    results: Sequence[Change | Exception | None]
    try:
        results = together(connection, [each.arguments for each in operations])
    except (*SQLITE_ERRORS, StorageError) as error:
        if connection.total_changes == written or _is_undone(connection):
            return undone  # a transaction will meet the error again, and tell whose it is
        # A trigger stopped it half done (RAISE(FAIL)), or who was touched cannot be told.
        failure = StorageError("a trigger was in the way; it is unknown which calls were written")
        failure.__cause__ = error if hasattr(error, "sqlite_errorcode") else None
        results = [failure] * len(operations)
    finally:
        word = coherence.settle(words_before)
    return Commit(results, word, words_before)


def _is_undone(connection: sqlite3.Connection) -> bool:
    """Say whether the last statement left nothing. Those of its triggers count in total_changes."""
    undone: int = connection.execute(queries.SELECT_CHANGES).fetchone()[0]
    return undone == 0


def _commit_in_transaction(
    connection: sqlite3.Connection, turn: Turn, operations: list[Operation], coherence: Coherence
) -> list[Commit]:
    """Commit the operations together, or where one of them fails, each by itself."""
    if len(operations) > 1:
        try:
            return [_commit_together(connection, turn, operations, coherence)]
        except StoreBusyError:  # given up: each by itself would be, too
            raise
        except sqlite3.OperationalError as error:
            if is_busy(error):  # each by itself would wait as long
                return [Commit([translate(error)] * len(operations))]
        except Exception:  # noqa: S110  # the replay below meets it again, and tells whose it is
            pass
    return [_commit_alone(connection, turn, operation, coherence) for operation in operations]


def _commit_alone(
    connection: sqlite3.Connection, turn: Turn, operation: Operation, coherence: Coherence
) -> Commit:
    try:
        return _commit_together(connection, turn, [operation], coherence)
    except SQLITE_ERRORS as error:
        return Commit([translate(error)])
    except Exception as error:
        return Commit([error])


def _commit_together(
    connection: sqlite3.Connection, turn: Turn, operations: list[Operation], coherence: Coherence
) -> Commit:
    """Run the operations in one transaction, with the slots in flight round its COMMIT."""
    _set_durability(connection, operations)
    words_before: dict[int, int] = {}
    try:
        with transaction(connection, turn):
            results = _apply_all(connection, turn, operations)
            changes = [result for result in results if isinstance(result, Change)]
            words_before = coherence.begin(slot for change in changes for slot in change.slots())
    finally:
        word = coherence.settle(words_before)
    return Commit(results, word, words_before)


def _set_durability(connection: sqlite3.Connection, operations: list[Operation]) -> None:
    durable = any(operation.durable for operation in operations)
    connection.execute(queries.SET_SYNCHRONOUS_FULL if durable else queries.SET_SYNCHRONOUS_NORMAL)


def _apply_all(
    connection: sqlite3.Connection, turn: Turn, operations: list[Operation]
) -> list[Change | Exception]:
    """Apply the operations in their order, those of a kind that can be done together so."""
    results: list[Change | Exception] = []
    late = time.monotonic() + PATIENCE
    for together, group in groupby(operations, key=attrgetter("together")):
        run = list(group)
        done: Sequence[Change | None] = [None] * len(run)
        if together is not None and len(run) > 1:
            turn.announce()
            done = together(connection, [operation.arguments for operation in run])
        for operation, change in zip(run, done, strict=True):
            results.append(change or _apply(connection, operation))
            if time.monotonic() > late:
                turn.announce()
    return results


def _apply(connection: sqlite3.Connection, operation: Operation) -> Change | Exception:
    """Apply an operation. One that refuses does so before it writes: there is nothing to undo."""
    try:
        return operation.apply(connection, *operation.arguments)
    except SessionStoreError as refusal:
        return refusal
