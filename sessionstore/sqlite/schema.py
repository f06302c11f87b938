# SPDX-License-Identifier: MIT
"""How a file gets today's tables.

A fresh file gets schema.sql; one of an earlier release gets the migrations that it lacks, each in
one transaction with its own bookkeeping row; the predecessor's file is adopted. A file from a newer
release, or with another program's `sessions`, is refused and left as it was. The bookkeeping is a
table of ours: PRAGMA user_version belongs to the host project. Plain functions for jobs on the
connection's own thread.
"""

import sqlite3
from importlib.resources import files
from typing import NamedTuple

from ..errors import SchemaError
from . import predecessor as adoption
from . import queries
from .transactions import primary_code, split_script, transaction


class Migration(NamedTuple):
    """One file of migrations/: its number, its name and its statements."""

    version: int
    name: str
    script: str


def load_migrations() -> list[Migration]:
    """Return all migrations of this release, in their order."""
    folder = files(__package__) / "migrations"
    found = [
        Migration(int(entry.name.split("_")[0]), entry.name.removesuffix(".sql"), entry.read_text())
        for entry in folder.iterdir()
        if entry.name.endswith(".sql")
    ]
    return sorted(found)


def check(connection: sqlite3.Connection, create: bool) -> None:
    """Raise SchemaError for a file that this release must not touch.

    Without `create` that is also one that has no sessions at all.
    """
    _missing(connection, load_migrations())
    if not create and not _tables(connection):
        raise SchemaError("the file has no sessions, and was not to get any")


def migrate(connection: sqlite3.Connection, path: str, now: str) -> None:
    """Bring the file to today's schema, step by step. Several processes may do so at once."""
    migrations = load_migrations()
    while _missing(connection, migrations):
        with transaction(connection):
            missing = _missing(connection, migrations)  # another process may have been first
            if missing:
                _step(connection, migrations, missing, path, now)


def _step(
    connection: sqlite3.Connection,
    migrations: list[Migration],
    missing: list[Migration],
    path: str,
    now: str,
) -> None:
    tables = _tables(connection)
    if "sessionstore_migrations" in tables:
        _run_script(connection, missing[0].script)
        _record(connection, missing[:1], now)
        return
    if "sessions" in tables:
        with adoption.adopting(connection, path, now):
            _create(connection, migrations, now)
    else:
        _create(connection, migrations, now)


def _create(connection: sqlite3.Connection, migrations: list[Migration], now: str) -> None:
    _run_script(connection, (files(__package__) / "schema.sql").read_text())
    _record(connection, migrations, now)


def _missing(connection: sqlite3.Connection, migrations: list[Migration]) -> list[Migration]:
    """Return the migrations that the file lacks; raise SchemaError where it is not ours."""
    tables = _tables(connection)
    if "sessionstore_migrations" not in tables:
        if "sessions" in tables and not _is_predecessor(connection, tables["sessions"]):
            raise SchemaError("the file has 'sessions' of another program; use another file")
        return migrations
    if "sessions" not in tables:
        raise SchemaError("the file has our bookkeeping but no table 'sessions'; restore a backup")
    applied = {version for (version,) in connection.execute(queries.SELECT_MIGRATION_VERSIONS)}
    unknown = applied - {migration.version for migration in migrations}
    if unknown:
        raise SchemaError(
            f"the file was made by a newer release (it has migration {max(unknown)}); upgrade"
        )
    return [migration for migration in migrations if migration.version not in applied]


def _tables(connection: sqlite3.Connection) -> dict[str, str]:
    """Return the type of what has one of our names: a table, or a view or index of another's."""
    return dict(connection.execute(queries.SELECT_TABLES).fetchall())


def _is_predecessor(connection: sqlite3.Connection, kind: str) -> bool:
    columns = [name for (name,) in connection.execute(queries.SELECT_SESSIONS_COLUMNS)]
    return kind == "table" and adoption.is_predecessor(columns)


def _run_script(connection: sqlite3.Connection, script: str) -> None:
    for statement in split_script(script):
        try:
            connection.execute(statement)
        except sqlite3.OperationalError as error:
            if primary_code(error) != sqlite3.SQLITE_ERROR:
                raise
            # Something of the host project's has a name that we need, or has changed our table.
            raise SchemaError(
                f"the file cannot get our tables: {error}; it is unchanged"
            ) from error


def _record(connection: sqlite3.Connection, applied: list[Migration], now: str) -> None:
    connection.execute(queries.CREATE_MIGRATIONS)
    for migration in applied:
        row = {"version": migration.version, "name": migration.name, "applied_at": now}
        connection.execute(queries.INSERT_MIGRATION, row)
