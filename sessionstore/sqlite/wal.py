# SPDX-License-Identifier: MIT
"""The write-ahead log: it stays small, and keeps nothing that was erased.

For jobs on the connection that writes, with the lock of all processes held. SQLite copies the log
into the database by itself, but readers that overlap all the time keep it from beginning anew, and
what it has copied stays in the log until something is written over it.
"""

import logging
import sqlite3

from . import queries
from .files import size_at

logger = logging.getLogger(__name__)

LIMIT = 33_554_432  # bytes; queries.SET_JOURNAL_SIZE_LIMIT has it, too


class WriteAheadLog:
    """The log of one database, as the process that writes looks after it."""

    def __init__(self, database: str) -> None:
        """Take the resolved path of the database, or ":memory:", which has no log."""
        self._path = f"{database}-wal"
        self._limit = LIMIT
        self._size = 0  # bytes, after the last job

    def bound(self, connection: sqlite3.Connection) -> None:
        """Empty the log where it has outgrown its limit.

        While a long list runs that cannot be done: the next try comes when it has grown further.
        """
        size = size_at(self._path)
        if size < self._size:  # it has begun anew: the long list is over
            self._limit = LIMIT
        self._size = size
        if size > self._limit:
            self._limit = LIMIT + (0 if self.empty(connection) else size)

    def empty(self, connection: sqlite3.Connection) -> bool:
        """Copy the log into the database and cut it to nothing; return False if a reader needs it.

        Nor is an error raised: a commit before has succeeded, and its callers must hear that.
        """
        try:
            (busy, _, _) = connection.execute(queries.CHECKPOINT_TRUNCATE).fetchone()
        except sqlite3.Error:
            logger.exception("the write-ahead log could not be emptied; it is tried again later")
            return False
        return not busy
