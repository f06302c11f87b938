# SPDX-License-Identifier: MIT
"""Files of earlier releases and of the predecessor, made by plain sqlite3, for attacks on upgrades.

A file of a release has what its migrations made. One of the predecessor has SQLAlchemy's table.
"""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

from sessionstore.sqlite import queries
from sessionstore.sqlite.schema import MIGRATIONS, Migration

CHILD = "found"  # who owns all that is in the files
APPLIED_AT = "2023-11-14 22:00:00.000000"
OLD_ID = "00000000-0000-4000-8000-{:012}".format

PREDECESSORS_TABLE = """
CREATE TABLE sessions (
    id VARCHAR(36) NOT NULL PRIMARY KEY,
    child_id VARCHAR(36),
    status VARCHAR(20),
    started_at DATETIME,
    ended_at DATETIME,
    last_activity DATETIME,
    data TEXT,
    session_metadata TEXT,
    interaction_count INTEGER
);
CREATE INDEX idx_sessions_child_id ON sessions (child_id);
CREATE INDEX idx_sessions_status ON sessions (status);
CREATE INDEX idx_sessions_activity ON sessions (last_activity);
"""

Maker = Callable[[Path, int, str], None]


def make_release(last_migration: int, path: Path, rows: int, time: str) -> None:
    """Make the file of the release with this last migration, with active sessions of that time."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(queries.SET_JOURNAL_WAL)
        connection.executescript(queries.CREATE_MIGRATIONS)
        for migration in MIGRATIONS[:last_migration]:
            apply(connection, migration, APPLIED_AT)
        insert = """INSERT INTO sessions (id, child_id, started_at, last_activity, data)
                    VALUES (?, ?, ?, ?, ?)"""
        values = [(OLD_ID(n), CHILD, time, time, f'{{"n": {n}}}') for n in range(rows)]
        connection.executemany(insert, values)
        connection.commit()


def apply(connection: sqlite3.Connection, migration: Migration, applied_at: str) -> None:
    """Apply one migration, and note it."""
    connection.executescript(migration.script)
    row = {"version": migration.version, "name": migration.name, "applied_at": applied_at}
    connection.execute(queries.INSERT_MIGRATION, row)
    connection.commit()


def make_predecessors(journal_mode: str, path: Path, rows: int, time: str) -> None:
    """Make the predecessor's file, with active sessions of that time."""
    values = [
        (OLD_ID(n), CHILD, "active", time, None, time, str({"n": n}), "{}", 0) for n in range(rows)
    ]
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal_mode}")
        connection.executescript(PREDECESSORS_TABLE)
        connection.executemany("INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
        connection.commit()


RELEASES: dict[str, Maker] = {"0.1.0": partial(make_release, 1), "0.4.1": partial(make_release, 2)}
PREDECESSORS: dict[str, Maker] = {
    "predecessor": partial(make_predecessors, "DELETE"),
    "predecessor in WAL": partial(make_predecessors, "WAL"),
}


def dump(path: Path) -> list[str]:
    """Return the whole contents of a file as SQL."""
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def copies(path: Path) -> list[Path]:
    """Return the copies beside an adopted file that are whole by their names."""
    beside = path.parent.glob("*.before-sessionstore*")
    return sorted(copy for copy in beside if ".part" not in copy.name)
