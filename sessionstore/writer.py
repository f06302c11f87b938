# SPDX-License-Identifier: MIT
"""Group commit: writes of all tasks, gathered and committed as one transaction.

A write is a function of store.py; its result is a Change: the rows as they are now and the ids that
are gone. A caller gets its Change only after COMMIT, and after the cache has been told. Where an
operation fails, the batch is rolled back and replayed one by one, so that only its own caller sees
the error. Nothing is known here of what an operation does.
"""

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVarTuple

from . import queries
from .coherence import Coherence, slot_of
from .concurrency import Batcher, Begun
from .database import Database, translate
from .errors import SessionStoreError, StoreBusyError
from .jobs import Turn
from .models import SessionRow
from .transactions import is_busy, transaction

Arguments = TypeVarTuple("Arguments")


class Change(NamedTuple):
    """What a write did: the changed rows as they are now, and the ids of the erased ones."""

    rows: Sequence[SessionRow] = ()
    erased: Sequence[str] = ()

    def slots(self) -> list[int]:
        """Return the slots of all sessions that were touched."""
        return [slot_of(row.id) for row in self.rows] + [slot_of(id_) for id_ in self.erased]


class Operation(NamedTuple):
    """A write on its way: it must survive a power cut (durable), or a crash of the process only."""

    apply: Callable[..., Change]
    arguments: tuple[Any, ...]
    durable: bool


class Commit(NamedTuple):
    """What became of an operation, and the word of its slots if it was committed."""

    outcome: Change | Exception
    word: int = 0


class Writer:
    """Commits what all tasks write, in the order in which it came."""

    def __init__(
        self,
        database: Database,
        on_commit: Callable[[Change, int], None],
    ) -> None:
        self._database = database
        self._on_commit = on_commit
        self._batcher = Batcher[Operation, Change](self._begin)

    async def submit(
        self,
        apply: Callable[[sqlite3.Connection, *Arguments], Change],
        *arguments: *Arguments,
        durable: bool,
    ) -> Change:
        """Commit one operation and return its change.

        Cancelling the caller leaves it open whether the write happens.
        """
        return await self._batcher.submit(Operation(apply, arguments, durable))

    async def close(self) -> None:
        """Commit what was accepted, and refuse the rest."""
        await self._batcher.close()

    def _begin(self, operations: list[Operation], waited: float) -> Begun[Change]:
        job = self._database.begin_write(
            _commit_batch, operations, self._database.coherence, waited=waited
        )
        return job.future, self._conclude

    def _conclude(self, commits: list[Commit]) -> list[Change | Exception]:
        for commit in commits:
            if isinstance(commit.outcome, Change):
                self._on_commit(commit.outcome, commit.word)
        return [commit.outcome for commit in commits]


def _commit_batch(
    connection: sqlite3.Connection, turn: Turn, operations: list[Operation], coherence: Coherence
) -> list[Commit]:
    """Commit the operations together, or where one of them fails, each by itself."""
    if len(operations) > 1:
        try:
            return _commit_together(connection, turn, operations, coherence)
        except StoreBusyError:  # given up: each by itself would be, too
            raise
        except sqlite3.OperationalError as error:
            if is_busy(error):  # each by itself would wait as long
                return [Commit(translate(error)) for _ in operations]
        except Exception:  # noqa: S110  # the replay below meets it again, and tells whose it is
            pass
    return [_commit_alone(connection, turn, operation, coherence) for operation in operations]


def _commit_alone(
    connection: sqlite3.Connection, turn: Turn, operation: Operation, coherence: Coherence
) -> Commit:
    try:
        return _commit_together(connection, turn, [operation], coherence)[0]
    except sqlite3.Error as error:
        return Commit(translate(error))
    except Exception as error:
        return Commit(error)


def _commit_together(
    connection: sqlite3.Connection, turn: Turn, operations: list[Operation], coherence: Coherence
) -> list[Commit]:
    """Run the operations in one transaction, with the slots in flight round its COMMIT."""
    durable = any(operation.durable for operation in operations)
    connection.execute(queries.SET_SYNCHRONOUS_FULL if durable else queries.SET_SYNCHRONOUS_NORMAL)
    slots: list[int] = []
    try:
        with transaction(connection, turn):
            outcomes = [_apply(connection, operation) for operation in operations]
            for outcome in outcomes:
                if isinstance(outcome, Change):
                    slots += outcome.slots()
            coherence.begin(slots)
    finally:
        word = coherence.settle(slots)
    return [Commit(outcome, word) for outcome in outcomes]


def _apply(connection: sqlite3.Connection, operation: Operation) -> Change | SessionStoreError:
    """Apply an operation. One that refuses does so before it writes: there is nothing to undo."""
    try:
        return operation.apply(connection, *operation.arguments)
    except SessionStoreError as refusal:
        return refusal
