# SPDX-License-Identifier: MIT
"""Jobs on the connections' threads, the guard against starvation, and the translation of errors."""

import asyncio
import logging
import ntpath
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from sessionstore import (
    SessionManager,
    StorageError,
    StoreBusyError,
    StoreClosedError,
    files,
    jobs,
    queries,
    wal,
)
from sessionstore.sqlite.database import Database, translate

from ..conftest import FakeClock

NOW = "2023-11-14 22:13:20.000000"


async def test_a_job_runs_whole_on_the_connections_thread(tmp_path: Path) -> None:
    """A job sees one thread, not the event loop's, and its result and arguments travel."""
    opened = Database(str(tmp_path / "a.db"))
    await opened.open(NOW)

    def job(connection: sqlite3.Connection, number: int) -> tuple[int, str]:
        (found,) = connection.execute("SELECT ?", [number]).fetchone()
        return found, threading.current_thread().name

    number, thread = await opened._writer.run(job, 7)
    assert number == 7
    assert thread != threading.current_thread().name
    await opened.close()


async def test_the_reader_cannot_write(tmp_path: Path) -> None:
    """The reading connection refuses every statement that writes."""
    opened = Database(str(tmp_path / "a.db"))
    await opened.open(NOW)
    with pytest.raises(StorageError, match="READONLY"):
        await opened.reader.run(lambda connection: connection.execute("DELETE FROM sessions"))
    await opened.close()


async def test_a_list_does_not_wait_behind_a_write(tmp_path: Path) -> None:
    """While the writing connection is in a long transaction, reads go on."""
    opened = Database(str(tmp_path / "a.db"))
    await opened.open(NOW)
    release = threading.Event()

    def hold(connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        release.wait(10)
        connection.execute("COMMIT")

    writing = asyncio.create_task(opened._writer.run(hold))
    await asyncio.sleep(0)
    found = await opened.reader.run(lambda c: c.execute("SELECT count(*) FROM sessions").fetchone())
    assert found == (0,)
    assert not writing.done()
    release.set()
    await writing
    await opened.close()


async def test_a_cancelled_job_is_waited_for(tmp_path: Path) -> None:
    """Cancelling a caller does not leave its job behind, and the connection is fit for the next."""
    opened = Database(str(tmp_path / "a.db"))
    await opened.open(NOW)
    started, finished = threading.Event(), threading.Event()

    def slow(_: sqlite3.Connection) -> None:
        started.set()
        time.sleep(0.05)
        finished.set()

    running = asyncio.create_task(opened._writer.run(slow))
    await asyncio.to_thread(started.wait, 10)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert finished.is_set()
    assert await opened._writer.run(lambda _: 1) == 1
    await opened.close()


async def test_after_close_jobs_are_refused(tmp_path: Path) -> None:
    """A job on a closed connection raises StoreClosedError and does not hang."""
    opened = Database(str(tmp_path / "a.db"))
    await opened.open(NOW)
    await opened.close()
    for connection in (opened.reader, opened._writer):
        with pytest.raises(StoreClosedError):
            await connection.run(lambda _: 1)


@pytest.mark.parametrize("ending", ["announces", "waits for a lock", "forgets", "fails"])
async def test_the_next_job_announces_the_end_of_the_one_before(
    tmp_path: Path, ending: str
) -> None:
    """Where it offers to do so: when it says that a long time begins, and at its end at the latest.

    Meanwhile the callers of the first one go on, though the second one is still under way.
    """
    opened = Database(str(tmp_path / "a.db"))
    await opened.open(NOW)
    queued, heard, ended = threading.Event(), threading.Event(), threading.Event()
    told: list[str] = []

    def first(*_: object) -> str:
        assert queued.wait(10)
        return "first"

    def second(_: sqlite3.Connection, turn: jobs.Turn) -> str:
        ended.set()
        time.sleep(0.02)  # time to tell of the first one, if it were not left to this one
        assert told == []
        if ending == "fails":
            raise StorageError("second")
        if ending != "forgets":
            (turn.wait if ending == "waits for a lock" else turn.announce)()
            assert heard.wait(10)
        return "second"

    def tell(outcome: Callable[[], str]) -> None:
        try:
            told.append(outcome())
        except StorageError as error:
            told.append(str(error))
        heard.set()

    opened.begin_write(first, on_end=tell)
    opened.begin_write(second, on_end=tell, announces=True)
    queued.set()
    await opened.close()
    assert ended.is_set()
    assert told == ["first", "second"]


async def test_a_job_that_waits_for_one_of_its_own_store_does_not_give_up(tmp_path: Path) -> None:
    """However long that works: nobody else holds a lock. Also not while the store is closed."""
    opened = Database(str(tmp_path / "a.db"), busy_timeout=0.05)
    await opened.open(NOW)

    def work(_: sqlite3.Connection, turn: jobs.Turn) -> str:
        turn.claim()
        time.sleep(0.2)
        return "done"

    writes = [asyncio.create_task(opened.write(work)) for _ in range(3)]
    await asyncio.sleep(0)
    opened.hurry()
    assert await asyncio.gather(*writes) == ["done"] * 3
    await opened.close()


async def test_a_job_gives_up_behind_one_that_waits(tmp_path: Path) -> None:
    """Where the one before it waits for a lock, so does this one, and gives up in time."""
    opened = Database(str(tmp_path / "a.db"), busy_timeout=0.1)
    await opened.open(NOW)
    release = threading.Event()

    def wait(_: sqlite3.Connection, turn: jobs.Turn) -> None:
        turn.wait()
        assert release.wait(10)
        turn.claim()

    first = asyncio.create_task(opened.write(wait))
    others = [asyncio.create_task(opened.write(lambda *_: None)) for _ in range(2)]
    results = await asyncio.gather(first, *others, return_exceptions=True)
    assert [type(result) for result in results] == [StoreBusyError] * 3
    release.set()
    await opened.close()


async def test_a_job_that_does_not_announce_delays_nobody(tmp_path: Path) -> None:
    """The end of a job before it is heard of as soon as it has ended."""
    opened = Database(str(tmp_path / "a.db"))
    await opened.open(NOW)
    heard = threading.Event()
    opened.begin_write(lambda *_: None, on_end=lambda _: heard.set())
    assert await opened.write(lambda *_: heard.wait(10))
    await opened.close()


def test_a_job_outlives_its_event_loop(tmp_path: Path) -> None:
    """Where the loop is closed under a running job, the thread goes on without a traceback."""
    opened = Database(str(tmp_path / "a.db"))
    loop = asyncio.new_event_loop()
    loop.run_until_complete(opened.open(NOW))
    release, ended = threading.Event(), threading.Event()

    def slow(_: sqlite3.Connection) -> None:
        release.wait(10)

    running = loop.create_task(opened._writer.run(slow))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    release.set()
    opened._writer._tx.put_nowait((None, ended.set))
    assert ended.wait(10)
    del running
    asyncio.run(opened.close())


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
    ours = translate(error)
    assert type(ours) is kind
    assert words in str(ours)
    assert ours.__cause__ is error


def test_an_error_without_a_code_is_a_storage_error() -> None:
    """What the sqlite3 module raises by itself becomes one of ours, too."""
    assert type(translate(sqlite3.ProgrammingError("closed"))) is StorageError


async def test_nothing_of_a_session_is_logged(
    tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """At the lowest level no logger, aiosqlite's among them, shows an id in full, or data."""
    caplog.set_level(logging.DEBUG)
    async with SessionManager(tmp_path / "a.db", clock=clock, cache_size=0) as sessions:
        id_ = await sessions.create_session("lina-secret", {"word": "secret"})
        await sessions.update_session(id_, {"word": "secret"})
        await sessions.get_session(id_)
        await sessions.get_sessions_for_child("lina-secret")
        await sessions.end_session(id_, "secret")
    assert id_[:8] in caplog.text
    assert id_ not in caplog.text
    assert "secret" not in caplog.text


async def test_a_busy_loop_does_not_starve_the_jobs(tmp_path: Path, clock: FakeClock) -> None:
    """With callbacks ready all the time twenty writes get through.

    Without the guard they take minutes on a machine that is otherwise idle; on a busy one, where
    the kernel takes the loop's processor away now and then, they may not. The test below holds the
    guard itself.
    """
    loop = asyncio.get_running_loop()
    spinning = True

    def spin() -> None:
        slice_end = time.perf_counter() + 0.0002
        while time.perf_counter() < slice_end:
            pass
        if spinning:
            loop.call_soon(spin)

    async with SessionManager(tmp_path / "a.db", clock=clock) as sessions:
        id_ = await sessions.create_session("lina")
        loop.call_soon(spin)
        try:
            async with asyncio.timeout(10):
                for _ in range(20):
                    assert await sessions.update_activity(id_)
        finally:
            spinning = False


async def test_the_guard_blocks_the_loop_shortly_until_a_slow_job_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes every few milliseconds while a job is under way, and never for a quick one."""
    held: list[float] = []
    watch = jobs.Job._watch

    def timed(job: jobs.Job[object]) -> None:
        started = time.perf_counter()
        watch(job)
        held.append(time.perf_counter() - started)

    monkeypatch.setattr(jobs.Job, "_watch", timed)
    opened = Database(str(tmp_path / "a.db"))
    await opened.open(NOW)
    held.clear()
    await opened._writer.run(lambda _: time.sleep(0.1))
    assert 3 <= len(held) <= 20
    assert sorted(held)[len(held) // 2] >= jobs.GUARD_HOLD / 2
    held.clear()
    monkeypatch.setattr(jobs, "GUARD_DELAY", 0.2)
    await opened._writer.run(lambda _: None)
    await asyncio.sleep(0.3)
    assert held == []
    await opened.close()


async def test_the_guard_looks_after_the_first_of_many_jobs(tmp_path: Path) -> None:
    """With a hundred slow jobs in the queue the loop is not blocked a hundred times as often."""
    opened = Database(str(tmp_path / "a.db"))
    await opened.open(NOW)
    loop = asyncio.get_running_loop()
    running = asyncio.gather(*(opened.reader.run(lambda _: time.sleep(0.004)) for _ in range(100)))
    passes = 0
    started = loop.time()
    while not running.done():
        await asyncio.sleep(0.001)
        passes += 1
    assert passes > 0.3 * (loop.time() - started) / 0.001
    await running
    await opened.close()


def test_the_limit_of_the_wal_is_one_number() -> None:
    """SQLite cuts the WAL to the size at which a write job empties it, in either place."""
    assert queries.SET_JOURNAL_SIZE_LIMIT.split()[-1] == str(wal.LIMIT)


@pytest.mark.parametrize("content", [b"garbage" * 1000, b"SQLite format 3\0" + b"\xff" * 4096])
async def test_a_file_that_is_no_database_is_refused_untouched(
    tmp_path: Path, content: bytes
) -> None:
    """Garbage gets StorageError, is left as it was, and leaves no thread behind."""
    path = tmp_path / "a.db"
    path.write_bytes(content)
    with pytest.raises(StorageError):
        await SessionManager(path).open()
    assert path.read_bytes() == content
    assert threading.active_count() == 1


async def test_a_folder_is_made_and_a_folder_is_no_database(tmp_path: Path) -> None:
    """A missing parent folder is created; a path that is a folder, or under a file, is refused."""
    async with SessionManager(tmp_path / "new" / "deep" / "a.db") as sessions:
        await sessions.create_session("lina")
    with pytest.raises(StorageError, match="cannot be opened"):
        await SessionManager(tmp_path / "new").open()
    with pytest.raises(StorageError, match="folder"):
        await SessionManager(tmp_path / "new" / "deep" / "a.db" / "b.db").open()


def test_a_drive_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows the way up ends at a drive, be it there or not."""

    def make(folder: str) -> None:
        raise FileNotFoundError(folder)

    monkeypatch.setattr(files, "os", SimpleNamespace(path=ntpath, mkdir=make))
    with pytest.raises(FileNotFoundError, match=r"^Z:\\$"):
        files.make_folder("Z:\\new\\deep")
