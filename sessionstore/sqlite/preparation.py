# SPDX-License-Identifier: MIT
"""How a sqlite3 connection is made, and made fit for use: its folder, its schema, its settings.

Plain functions for jobs on the connection's own thread. Those that write run with the lock held.
"""

import logging
import os
import sqlite3
import time
from contextlib import closing
from urllib.parse import quote

from ..errors import StorageError
from . import queries
from . import schema as migrations
from .files import make_folder, make_private, size_at
from .jobs import Turn
from .transactions import is_busy, primary_code, transaction

logger = logging.getLogger(__name__)

MINIMUM_SQLITE = (3, 35, 0)  # the first with RETURNING


def has_wal_reset_bug(version: tuple[int, int, int]) -> bool:
    """Say whether commits can be lost when two connections write and checkpoint at one moment.

    See sqlite.org/wal.html: fixed in 3.51.3, and in 3.50.7 and 3.44.6.
    """
    fixed = {(3, 44): 6, (3, 50): 7}
    patch = fixed.get(version[:2])
    return version < (3, 51, 3) if patch is None else version[2] < patch


def check_version() -> None:
    """Refuse a library that is too old, and tell the operator of one with the bug."""
    if sqlite3.sqlite_version_info < MINIMUM_SQLITE:
        raise StorageError(f"SQLite 3.35 or newer is needed, not {sqlite3.sqlite_version}")
    if has_wal_reset_bug(sqlite3.sqlite_version_info):
        logger.info(
            "SQLite %s has the WAL-reset bug; the lock file beside the database keeps clear of it",
            sqlite3.sqlite_version,
        )


def connect(path: str, create: bool, busy_timeout: float) -> sqlite3.Connection:
    """Connect to a file, making it and its folder; without create, only where it is there."""
    if not create and not os.path.exists(path):
        raise StorageError("there is no such file, and it was not to be made")
    if path != ":memory:":
        make_folder(os.path.dirname(path))
        make_private(path)  # SQLite gives its own files beside it the same mode
    return sqlite3.connect(path, timeout=busy_timeout, isolation_level=None)


def check(connection: sqlite3.Connection, path: str, create: bool, busy_timeout: float) -> None:
    """Refuse a file that is not ours before anything of it is changed.

    With a WAL beside it, perhaps of a process that died, it is looked at by a connection that
    cannot write: another one would copy the WAL into the file when it is closed.
    """
    if not size_at(f"{path}-wal"):
        migrations.check(connection, create)
        return
    uri = f"file:{quote(os.fsencode(path))}?mode=ro"
    reading = sqlite3.connect(uri, timeout=busy_timeout, isolation_level=None, uri=True)
    with closing(reading):
        migrations.check(reading, create)


def prepare_writer(connection: sqlite3.Connection, turn: Turn, path: str, now: str) -> None:
    """Bring the file to today's schema and to WAL."""
    turn.claim()
    connection.execute(queries.SET_SECURE_DELETE)
    connection.execute(queries.SET_PAGE_SIZE)
    migrations.migrate(connection, path, now)
    # After the migration: setting WAL changes the file, and one that is refused stays as it was.
    if _set_wal(connection, turn) not in ("wal", "memory"):
        raise StorageError("the file system does not support SQLite's WAL; use a local disk")
    # Likewise: the rows of a file that is adopted may be too many for the memory.
    connection.execute(queries.SET_TEMP_STORE_MEMORY)
    connection.execute(queries.SET_JOURNAL_SIZE_LIMIT)
    connection.execute(queries.SET_WAL_AUTOCHECKPOINT)
    connection.execute(queries.SET_BUSY_TIMEOUT)
    _try_to_write(connection, path)


def _try_to_write(connection: sqlite3.Connection, path: str) -> None:
    """Raise where the files could be opened for reading only, as SQLite does without a word.

    Such a connection would stay so when the disk was mended. A file that must not be written can
    be read all the same, and so can one with a faulty trigger of the host project's.
    """
    try:
        with transaction(connection):
            connection.execute(queries.UPDATE_SESSION_SWEPT, {"id": None})  # no session
    except sqlite3.OperationalError as error:
        code = primary_code(error)
        is_barred = code == sqlite3.SQLITE_READONLY and not _may_write(path)
        if not is_busy(error) and code != sqlite3.SQLITE_ERROR and not is_barred:
            raise


def _may_write(path: str) -> bool:
    effective = os.access in os.supports_effective_ids  # as files are opened; else the real user
    files = [file for file in (path, f"{path}-wal") if os.path.exists(file)]
    return all(os.access(file, os.W_OK, effective_ids=effective) for file in files)


def _set_wal(connection: sqlite3.Connection, turn: Turn) -> str:
    """Set WAL and return the journal mode. SQLite itself does not wait here for others' locks."""
    give_up = time.monotonic() + turn.patience
    while True:
        try:
            journal_mode: str = connection.execute(queries.SET_JOURNAL_WAL).fetchone()[0]
            return journal_mode
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() > give_up:
                raise
        time.sleep(0.005)


def prepare_reader(connection: sqlite3.Connection) -> None:
    """Refuse every statement that writes, to temporary files, too."""
    connection.execute(queries.SET_TEMP_STORE_MEMORY)
    connection.execute(queries.SET_QUERY_ONLY)
