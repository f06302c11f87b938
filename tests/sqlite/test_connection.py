# SPDX-License-Identifier: MIT
"""Files that can be opened and files that cannot, and the translation of errors."""

import logging
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sessionstore import SessionStoreError, StorageError, StoreBusyError
from sessionstore.sqlite.connection import ours

from ..conftest import FakeClock
from .tools import connect, quiet, run_sql


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (sqlite3.SQLITE_BUSY, StoreBusyError, "lock"),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, StoreBusyError, "lock"),
        (sqlite3.SQLITE_LOCKED, StoreBusyError, "lock"),
        (sqlite3.SQLITE_FULL, StorageError, "disk is full"),
        (sqlite3.SQLITE_IOERR_FSYNC, StorageError, "disk failed"),
        (sqlite3.SQLITE_CORRUPT, StorageError, "damaged"),
        (sqlite3.SQLITE_NOTADB, StorageError, "not a SQLite database"),
        (sqlite3.SQLITE_READONLY_DIRECTORY, StorageError, "permissions"),
        (sqlite3.SQLITE_CONSTRAINT_CHECK, StorageError, "refused"),
    ],
)
def test_errors_are_told_apart_by_their_code(code: int, kind: type[Exception], words: str) -> None:
    """The text of SQLite's message plays no part, and the original is chained."""
    error = sqlite3.OperationalError("database is locked, the disk is full, and all is well")
    error.sqlite_errorcode = code
    error.sqlite_errorname = "SQLITE_SOMETHING"
    translated = ours(error)
    assert type(translated) is kind
    assert words in str(translated)
    assert translated.__cause__ is error


def test_an_error_without_a_code_is_a_storage_error() -> None:
    """What the sqlite3 module raises by itself becomes one of ours, too."""
    assert type(ours(sqlite3.ProgrammingError("closed"))) is StorageError


def test_an_error_that_quotes_what_it_has_read_is_not_chained() -> None:
    """sqlite3's own error for text that is no UTF-8 holds the text."""
    with sqlite3.connect(":memory:") as connection, pytest.raises(sqlite3.Error) as raised:
        connection.execute("SELECT CAST(x'736563726574ff' AS TEXT)").fetchall()
    connection.close()
    assert "secret" in str(raised.value)
    translated = ours(raised.value)
    assert isinstance(translated, StorageError)
    assert "cannot be read" in str(translated)
    assert translated.__cause__ is None


@pytest.mark.parametrize("error", [ZeroDivisionError(), SystemExit(), StoreBusyError()])
def test_an_error_that_is_none_of_sqlites_stays_what_it_is(error: BaseException) -> None:
    """A fault of our own is not taken for one of the disk."""
    assert ours(error) is error


async def test_an_sqlite_that_is_too_old_is_refused(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is made."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(StorageError, match=r"3\.35"):
        await quiet(database).open()
    assert os.listdir(database.parent) == []


async def test_nothing_of_a_session_is_logged(
    database: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """At the lowest level no logger, aiosqlite's among them, shows an id in full, or data."""
    caplog.set_level(logging.DEBUG)
    async with quiet(database, clock=clock, cache_size=0) as sessions:
        id_ = await sessions.create_session("lina-secret", {"word": "secret"})
        await sessions.update_session(id_, {"word": "secret"})
        await sessions.get_session(id_)
        await sessions.get_sessions_for_child("lina-secret")
        await sessions.end_session(id_, "secret")
    assert id_[-8:] in caplog.text
    assert id_ not in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
async def test_what_is_no_regular_file_is_refused(
    database: Path, make: Callable[[Path], None]
) -> None:
    """A folder or a pipe gets StorageError at once, and nothing beside it."""
    make(database)
    with pytest.raises(StorageError, match="regular file"):
        await quiet(database).open()
    assert list(database.parent.iterdir()) == [database]


@pytest.mark.parametrize("content", [b"garbage" * 1000, b"SQLite format 3\0" + b"\xff" * 4096])
async def test_a_file_that_is_no_database_is_refused_untouched(
    database: Path, content: bytes
) -> None:
    """Garbage gets StorageError, is left as it was, and leaves no thread behind."""

    def contents(write: bytes | None = None) -> bytes:
        if write is not None:
            database.write_bytes(write)
        return database.read_bytes()

    contents(content)
    threads = threading.active_count()
    with pytest.raises(StorageError):
        await quiet(database).open()
    assert contents() == content
    assert os.listdir(database.parent) == [database.name]
    assert threading.active_count() == threads


async def test_folders_are_made(tmp_path: Path) -> None:
    """All that are missing above a new file."""
    path = tmp_path / "new" / "deep" / "a.db"
    async with quiet(path) as sessions:
        await sessions.create_session("lina")
    assert sorted(os.listdir(path.parent)) == ["a.db", "a.db-lock"]


@pytest.mark.parametrize("name", ["folder", "folder/file/a.db", "loop/a.db", "loop"])
async def test_a_path_that_cannot_be_a_database_is_an_error(tmp_path: Path, name: str) -> None:
    """A folder, what is under a file, and a link that leads to itself."""
    os.mkdir(tmp_path / "folder")
    os.close(os.open(tmp_path / "folder" / "file", os.O_CREAT))
    os.symlink("loop", tmp_path / "loop")
    threads = threading.active_count()
    for _ in range(2):
        with pytest.raises(StorageError):
            await quiet(tmp_path / name).open()
    assert sorted(os.listdir(tmp_path)) == ["folder", "loop"]
    assert threading.active_count() == threads


async def test_the_file_has_what_keeps_erased_data_out(database: Path) -> None:
    """It is in WAL mode; a database that is not ours by its mode keeps its tables."""
    run_sql(database, "CREATE TABLE host (name)")
    async with quiet(database) as sessions:
        await sessions.create_session("lina")
        assert run_sql(database, "PRAGMA journal_mode") == [("wal",)]
    with connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM host").fetchone() == (0,)


async def test_without_create_only_a_file_with_sessions_is_opened(database: Path) -> None:
    """What is not there is not made, and what has no sessions gets none."""
    with pytest.raises(StorageError, match="no such file"):
        await quiet(database, create=False).open()
    assert os.listdir(database.parent) == []
    run_sql(database, "CREATE TABLE host (name)")
    with pytest.raises(SessionStoreError, match="no sessions"):
        await quiet(database, create=False).open()
    assert run_sql(database, "SELECT name FROM sqlite_master") == [("host",)]
    async with quiet(database):
        pass
    async with quiet(database, create=False) as sessions:
        assert await sessions.create_session("lina")
