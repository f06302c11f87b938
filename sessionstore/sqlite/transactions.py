# SPDX-License-Identifier: MIT
"""Transactions on a sqlite3 connection, and the scripts of statements that run inside one.

Plain functions for jobs on the connection's own thread. Never executescript: it commits an open
transaction, and can leave a script that failed half applied.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager

from . import queries
from .jobs import Turn

# The second where a message of SQLite's quotes what is damaged.
SQLITE_ERRORS = (sqlite3.Error, UnicodeDecodeError)


def is_busy(error: Exception) -> bool:
    """Say whether another connection's lock was in the way."""
    return primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def primary_code(error: Exception) -> int:
    """Return SQLite's code without its extension; the general one for errors of sqlite3's own."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


@contextmanager
def transaction(
    connection: sqlite3.Connection,
    turn: Turn | None = None,
    *,
    begin: str = queries.BEGIN_WRITE,
) -> Iterator[None]:
    """Commit when the block ends, and roll back when it, or the COMMIT itself, raises.

    With a turn, wait for other programs' locks until it is given up, and claim it then. One that
    was claimed before, for another transaction, is not given up any more: its patience ends.
    """
    _begin(connection, turn, begin)
    try:
        if turn is not None:
            turn.claim()
        yield
        if turn is not None:
            turn.announce()
        connection.execute(queries.COMMIT)
    except BaseException:
        if connection.in_transaction:  # on a full disk, say, SQLite has rolled back by itself
            connection.execute(queries.ROLLBACK)
        raise


def _begin(connection: sqlite3.Connection, turn: Turn | None, begin: str) -> None:
    begun = time.monotonic()
    while True:
        try:
            connection.execute(begin)
            break
        except sqlite3.OperationalError as error:
            if not is_busy(error) or turn is None or turn.is_over:
                raise
            if time.monotonic() - begun > turn.patience:
                raise
            turn.wait()
    if turn is not None:
        turn.waiting = False


def split_script(script: str) -> Iterator[str]:
    """Yield the statements of a script, each ending where SQLite says that one is complete."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        yield statement
