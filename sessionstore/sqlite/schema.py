# SPDX-License-Identifier: MIT
"""How a file gets today's tables.

A fresh file gets schema.sql; one of an earlier release gets the migrations that it lacks, each in
one transaction with its own bookkeeping row; the predecessor's file is adopted. A file from a newer
release, or with another program's `sessions`, is refused and left as it was. The bookkeeping is a
table of ours: PRAGMA user_version belongs to the host project.

The SQL files are read once, at import: a package that is upgraded on disk under a running process
must not hand it the new release's migration.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.resources import files
from typing import NamedTuple

from ..errors import SchemaError
from ..session import Record
from . import predecessor, queries
from .connection import fetch_all, primary_code
from .times import to_text


class Migration(NamedTuple):
    """One file of migrations/: its number, its name and its statements."""

    version: int
    name: str
    script: str


def _read_migrations() -> list[Migration]:
    """Return all migrations of this release, in their order."""
    folder = files(__package__ or "") / "migrations"
    return sorted(
        Migration(
            int(entry.name.split("_")[0]), entry.name.removesuffix(".sql"), entry.read_text("utf-8")
        )
        for entry in folder.iterdir()
        if entry.name.endswith(".sql")
    )


_COLUMNS = {*Record._fields} - {"end_reason"} | {"swept_activity"}

SCHEMA = (files(__package__ or "") / "schema.sql").read_text("utf-8")
MIGRATIONS = _read_migrations()


def check(connection: sqlite3.Connection, create: bool) -> None:
    """Raise SchemaError for a file that this release must not touch.

    Without `create` that is also one that has no sessions at all.
    """
    _missing(connection)
    if not create and not _tables(connection):
        raise SchemaError("there are no sessions in this file")


def migrate(connection: sqlite3.Connection, path: str, now: int) -> None:
    """Bring the file to today's schema, step by step. Several processes may do so at once."""
    while _missing(connection):
        with ExitStack() as outside, _transaction(connection):
            missing = _missing(connection)  # another process may have been first
            if missing:
                _step(connection, missing, path, now, outside)


def _step(
    connection: sqlite3.Connection,
    missing: list[Migration],
    path: str,
    now: int,
    outside: ExitStack,
) -> None:
    """Take one step inside a transaction; `outside` is left once that has ended."""
    tables = _tables(connection)
    if "sessionstore_migrations" in tables:
        columns = {name for (name,) in fetch_all(connection, queries.SELECT_SESSIONS_COLUMNS)}
        if foreign := len(columns - _COLUMNS):
            raise SchemaError(
                f"'sessions' has {foreign} columns that are not ours and an upgrade would lose;"
                " move them to a table of your own"
            )
        with _keeping_host_objects(connection):
            _run_script(connection, missing[0].script)
        _record(connection, missing[:1], now)
    elif "sessions" in tables:
        outside.enter_context(predecessor.copied(path))
        with predecessor.adopting(connection, now):
            _create(connection, now)
    else:
        _create(connection, now)


def _create(connection: sqlite3.Connection, now: int) -> None:
    _run_script(connection, SCHEMA)
    _record(connection, MIGRATIONS, now)


def _missing(connection: sqlite3.Connection) -> list[Migration]:
    """Return the migrations that the file lacks; raise SchemaError if it is not ours."""
    tables = _tables(connection)
    if "sessionstore_migrations" not in tables:
        if "sessions" in tables and not _is_predecessor(connection, tables["sessions"]):
            raise SchemaError("the file has 'sessions' of another program; use another file")
        return MIGRATIONS
    if "sessions" not in tables:
        raise SchemaError("the file has our bookkeeping but no table 'sessions'; restore a backup")
    applied = {version for (version,) in fetch_all(connection, queries.SELECT_MIGRATION_VERSIONS)}
    unknown = applied - {migration.version for migration in MIGRATIONS}
    if unknown:
        raise SchemaError(
            f"the file was made by a newer release (it has migration {max(unknown)}); upgrade"
        )
    return [migration for migration in MIGRATIONS if migration.version not in applied]


def _tables(connection: sqlite3.Connection) -> dict[str, str]:
    """Return the type of what has one of our names: a table, or a view or index of another's."""
    return dict(fetch_all(connection, queries.SELECT_TABLES))


def _is_predecessor(connection: sqlite3.Connection, kind: str) -> bool:
    columns = [name for (name,) in fetch_all(connection, queries.SELECT_SESSIONS_COLUMNS)]
    return kind == "table" and predecessor.is_predecessor(columns)


@contextmanager
def _keeping_host_objects(connection: sqlite3.Connection) -> Iterator[None]:
    """Make the host project's indexes and triggers on our table anew, if the block drops them."""
    before = fetch_all(connection, queries.SELECT_HOST_OBJECTS)
    yield
    left = {name for (name,) in fetch_all(connection, queries.SELECT_OBJECT_NAMES)}
    for name, statement in before:
        if name not in left:
            _run_script(connection, f"{statement};")


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute(queries.BEGIN_WRITE)
    try:
        yield
        connection.execute(queries.COMMIT)
    except BaseException:
        if connection.in_transaction:
            connection.execute(queries.ROLLBACK)
        raise


def _run_script(connection: sqlite3.Connection, script: str) -> None:
    """Run a script inside the transaction. Never executescript: it would commit it."""
    for statement in _statements(script):
        try:
            connection.execute(statement)
        except sqlite3.OperationalError as error:
            if primary_code(error) != sqlite3.SQLITE_ERROR:
                raise
            # Something of the host project's has a name that we need, or has changed our table.
            raise SchemaError(
                f"the file cannot get our tables: {error}; it is unchanged"
            ) from error


def _statements(script: str) -> Iterator[str]:
    """Yield the statements of a script, each ending where SQLite says that one is complete."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        yield statement


def _record(connection: sqlite3.Connection, applied: list[Migration], now: int) -> None:
    connection.execute(queries.CREATE_MIGRATIONS)
    for migration in applied:
        row = {"version": migration.version, "name": migration.name, "applied_at": to_text(now)}
        connection.execute(queries.INSERT_MIGRATION, row)
