# SPDX-License-Identifier: MIT
"""Transactions on a sqlite3 connection, and the scripts of statements that run inside one.

Plain functions for jobs on the connection's own thread. Never executescript: it commits an open
transaction, and can leave a script that failed half applied.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from . import queries


@contextmanager
def transaction(
    connection: sqlite3.Connection, begin: str = queries.BEGIN_WRITE
) -> Iterator[sqlite3.Connection]:
    """Commit when the block ends, and roll back when it, or the COMMIT itself, raises."""
    connection.execute(begin)
    try:
        yield connection
        connection.execute(queries.COMMIT)
    except BaseException:
        if connection.in_transaction:  # on a full disk, say, SQLite has rolled back by itself
            connection.execute(queries.ROLLBACK)
        raise


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
