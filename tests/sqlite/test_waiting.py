# SPDX-License-Identifier: MIT
"""Waiting for a lock that another process or program holds: bounded, and without harm.

The holder is a real process that takes our lock or SQLite's, or one of ours that was stopped by
SIGSTOP in the middle of a write.
"""

import asyncio
import logging
import os
import random
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractContextManager,
    ExitStack,
    asynccontextmanager,
    closing,
    contextmanager,
)
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sessionstore import SessionManager, StoreBusyError
from sessionstore.sqlite import store as store_module

from ..children import ROOT, Child, Line, hold_sidecar, hold_sqlite, holding, is_locked
from .tools import longest_gap

BUSY_TIMEOUT = 0.3  # seconds
CLOSING = 2.5  # seconds that close() may take

Holder = Callable[[Path], AbstractContextManager[object]]


async def write_on(line: Line, database: Path) -> None:
    """Write until told to end, and tell what was acknowledged."""
    async with SessionManager(database, sweep_interval=None, cache_size=0) as sessions:
        id_, acknowledged = await sessions.create_session("writer"), 0
        line.say()
        while not line.has_news():
            assert await sessions.update_activity(id_)
            assert await sessions.update_session(id_, {"a": acknowledged})
            acknowledged += 1
    line.say((id_, acknowledged))


@contextmanager
def stopped_writer(database: Path) -> Iterator[None]:
    """Stop a process of ours in the middle of a write during the block; it loses nothing by it."""
    chance = random.Random(6)
    with Child(write_on, database) as child:
        child.line.hear()
        for _ in range(1_000):
            time.sleep(chance.random() / 500)
            child.stop()
            if is_locked(database):
                break
            child.go_on()
        else:
            raise AssertionError("it was never caught")
        yield
        child.go_on()
        child.line.say()
        id_, acknowledged = child.line.hear()
        assert child.join() == 0
    with closing(sqlite3.connect(database)) as connection:
        select = "SELECT interaction_count FROM sessions WHERE id = ?"
        assert connection.execute(select, [id_]).fetchone() == (acknowledged,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


our_lock: Holder = partial(holding, hold_sidecar)
sqlites_lock: Holder = partial(holding, hold_sqlite)


@pytest.fixture
def _hasty_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have close() wait less for a lock, to spare time; a real process is tested without this."""
    monkeypatch.setattr(store_module, "CLOSE_PATIENCE", 0.1)


LOCKS = pytest.mark.parametrize(
    "hold",
    [our_lock, sqlites_lock, stopped_writer],
    ids=["our lock", "SQLite's lock", "stopped writer"],
)


def quiet(database: Path, **settings: Any) -> SessionManager:
    """Return a manager without a sweeper, with little patience."""
    return SessionManager(database, sweep_interval=None, busy_timeout=BUSY_TIMEOUT, **settings)


async def refused(*calls: Any) -> float:
    """Demand that all calls raise StoreBusyError, and return how long that took."""
    started = time.monotonic()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(result) for result in results} == {StoreBusyError}
    return time.monotonic() - started


@LOCKS
async def test_writes_give_up_after_the_timeout_and_leave_nothing(
    database: Path, hold: Holder
) -> None:
    """Every kind of write raises StoreBusyError in time, does nothing later, and harms nothing."""
    async with quiet(database) as sessions:
        id_, other = await sessions.create_session("lina"), await sessions.create_session("lina")
        with hold(database):
            took = await refused(
                sessions.create_session("ben"),
                sessions.update_activity(id_),
                sessions.update_session(id_, {"a": 1}),
                sessions.end_session(id_),
                sessions.end_sessions("lina"),
                sessions.delete_session(other),
            )
            assert BUSY_TIMEOUT * 0.9 <= took < BUSY_TIMEOUT + 1
            took = await refused(sessions.purge_ended_sessions(0))
            assert BUSY_TIMEOUT * 0.9 <= took < BUSY_TIMEOUT + 1
        started = time.monotonic()
        assert await sessions.update_activity(id_)
        assert time.monotonic() - started < 0.5
        for manager in (sessions, quiet(database)):
            await manager.open()
            found = await manager.get_active_sessions("lina")
            assert [session.id for session in found] == [id_, other]
            assert [session.interaction_count for session in found] == [1, 0]
            assert [session.data for session in found] == [{}, {}]
            assert await manager.get_sessions_for_child("ben") == []
            await manager.close()


@LOCKS
@pytest.mark.usefixtures("_hasty_close")
async def test_a_crowd_gives_up_as_soon_as_one(database: Path, hold: Holder) -> None:
    """Who stands behind thousands waits no longer than the timeout, and neither does close()."""
    sessions = quiet(database)
    await sessions.open()
    id_ = await sessions.create_session("lina")
    with hold(database):
        took = await refused(*(sessions.update_activity(id_) for _ in range(2_000)))
        assert took < BUSY_TIMEOUT * 2 + 0.5
        calls = [asyncio.create_task(sessions.update_activity(id_)) for _ in range(2_000)]
        await asyncio.sleep(0)
        started = time.monotonic()
        await sessions.close()
        assert time.monotonic() - started < CLOSING
        await refused(*calls)
    async with sessions:
        session = await sessions.get_session(id_)
        assert session is not None
        assert session.interaction_count == 0


@LOCKS
async def test_reads_go_on_meanwhile(database: Path, hold: Holder) -> None:
    """Hits, misses, lists and stats do not wait for a lock that holds writes to others up."""
    async with quiet(database, cache_size=1) as sessions:
        ids = [await sessions.create_session("lina") for _ in range(2)]
        written = [await sessions.create_session("omar") for _ in range(2)]
        with hold(database):
            writing = asyncio.create_task(refused(*map(sessions.update_activity, written)))
            await asyncio.sleep(0)
            slowest, rounds = 0.0, 0
            while not writing.done():
                started = time.monotonic()
                for id_ in (ids[0], ids[0], ids[1], ids[1]):
                    session = await sessions.get_session(id_)
                    assert session is not None
                    assert session.is_active
                assert len(await sessions.get_active_sessions("lina")) == 2
                stats = await sessions.get_session_stats()
                slowest, rounds = max(slowest, time.monotonic() - started), rounds + 1
            await writing
            assert rounds > 5
            assert slowest < BUSY_TIMEOUT
            assert stats["cache_hits"] >= 2 * rounds
            assert stats["cache_misses"] >= 2 * rounds


@LOCKS
async def test_the_event_loop_is_not_blocked_meanwhile(database: Path, hold: Holder) -> None:
    """The loop stands still for a few milliseconds at most; the quietest of some rounds counts."""
    async with quiet(database) as sessions:
        id_ = await sessions.create_session("lina")
        with hold(database):
            gaps = []
            for _ in range(4):
                writing = asyncio.create_task(refused(sessions.update_activity(id_)))
                gaps.append(await longest_gap(writing))
                await writing
                if gaps[-1] < 0.02:
                    break
            assert min(gaps) < 0.05


@LOCKS
@pytest.mark.usefixtures("_hasty_close")
async def test_a_cancelled_caller_does_not_wait(database: Path, hold: Holder) -> None:
    """Cancelled while its write waits, a call ends at once, and close() does not wait for it."""
    sessions = quiet(database)
    await sessions.open()
    id_ = await sessions.create_session("lina")
    with hold(database):
        calls = [sessions.update_activity(id_), sessions.cleanup_inactive_sessions()]
        for call in calls:
            writing = asyncio.ensure_future(call)
            await asyncio.sleep(0.02)
            started = time.monotonic()
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
            assert time.monotonic() - started < BUSY_TIMEOUT / 2
        await sessions.close()
        assert time.monotonic() - started < CLOSING


@LOCKS
@pytest.mark.usefixtures("_hasty_close")
async def test_a_sweeper_waits_for_its_next_round(
    database: Path, hold: Holder, caplog: pytest.LogCaptureFixture
) -> None:
    """A sweep that cannot have the lock is logged, later ones work, and close() stops one."""
    ended = asyncio.Event()
    sessions = SessionManager(
        database, timeout=0.001, sweep_interval=0.02, busy_timeout=0.1, on_end=lambda _: ended.set()
    )
    async with sessions:
        with hold(database):
            async with asyncio.timeout(10):
                while "the sweep failed" not in caplog.text:  # noqa: ASYNC110  # no event tells
                    await asyncio.sleep(0.01)
        id_ = await sessions.create_session("lina")
        async with asyncio.timeout(10):
            await ended.wait()
        assert await sessions.get_session(id_)
        with hold(database):
            await asyncio.sleep(0.05)
            started = time.monotonic()
            await sessions.close()
            assert time.monotonic() - started < CLOSING


@asynccontextmanager
async def no_thread_left() -> AsyncIterator[None]:
    """Demand that the threads which came in the block go soon after it."""
    before = threading.active_count()
    yield
    async with asyncio.timeout(5):
        while threading.active_count() > before:  # noqa: ASYNC110  # no event tells
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("hold", [our_lock, stopped_writer])
async def test_open_under_a_held_lock_gives_up(
    database: Path, hold: Holder, caplog: pytest.LogCaptureFixture
) -> None:
    """It raises StoreBusyError, and leaves nothing once the lock is free; a later one works."""
    async with quiet(database) as sessions:
        id_ = await sessions.create_session("lina")
    async with no_thread_left():
        with hold(database):
            started = time.monotonic()
            with pytest.raises(StoreBusyError, match="lock"):
                await sessions.open()
            assert BUSY_TIMEOUT * 0.9 <= time.monotonic() - started < BUSY_TIMEOUT + CLOSING
    caplog.clear()
    async with sessions:
        assert await sessions.update_activity(id_)
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_open_waits_for_sqlites_lock_where_it_has_work_to_do(database: Path) -> None:
    """A new file is made when a foreign program lets go, and is refused while it does not."""
    sessions = quiet(database)
    with sqlites_lock(database):
        started = time.monotonic()
        with pytest.raises(StoreBusyError, match="lock"):
            await sessions.open()
        assert BUSY_TIMEOUT * 0.9 <= time.monotonic() - started < BUSY_TIMEOUT + CLOSING
        patient = SessionManager(database, sweep_interval=None)
        opening = asyncio.create_task(patient.open())
        assert await longest_gap(asyncio.create_task(asyncio.sleep(0.2))) < 0.15
        assert not opening.done()
    await opening
    async with patient, sessions:
        assert await sessions.update_activity(await patient.create_session("lina"))


async def test_close_does_not_need_sqlites_lock(
    database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A write that was given up leaves its thread free: close() is whole, and leaves no word."""
    threads = threading.active_count()
    sessions = quiet(database)
    await sessions.open()
    with sqlites_lock(database):
        await refused(sessions.create_session("lina"), sessions.cleanup_inactive_sessions())
        started = time.monotonic()
        await sessions.close()
        assert time.monotonic() - started < 0.5
        assert threading.active_count() == threads
    assert caplog.records == []


LIVES = {
    "closes": "await sessions.close()",
    "forgets": "pass",
    "raises": "raise SystemExit(0)",
    "opens again": """
            await sessions.close()
            with suppress(StoreBusyError):
                await SessionManager("sessions.db", busy_timeout=0.2).open()""",
}


def start_blocked(life: str, folder: Path) -> "subprocess.Popen[str]":
    """Start an interpreter that opens the store, writes at a sign, hears that it cannot, and ends.

    A real one, since the end of an interpreter is what is tested.
    """
    script = f"""
        import asyncio, sys, warnings
        from contextlib import suppress
        from sessionstore import SessionManager, StoreBusyError

        async def main():
            global sessions
            warnings.simplefilter("ignore", ResourceWarning)
            sessions = SessionManager("sessions.db", busy_timeout=0.2)
            await sessions.open()
            print("open", flush=True)
            sys.stdin.readline()
            try:
                await sessions.create_session("lina")
            except StoreBusyError:
                print("busy")
            {LIVES[life]}

        asyncio.run(main())
        """
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    "hold",
    [
        pytest.param(our_lock, id="our lock"),
        pytest.param(sqlites_lock, id="SQLite's lock", marks=pytest.mark.torture),
        pytest.param(stopped_writer, id="stopped writer", marks=pytest.mark.torture),
    ],
)
async def test_a_blocked_process_ends(database: Path, hold: Holder) -> None:
    """Its end is not held up, whether it closes or not, and shows no traceback."""
    async with quiet(database) as sessions:
        with ExitStack() as stack:
            processes = [
                stack.enter_context(start_blocked(life, database.parent)) for life in LIVES
            ]
            for process in processes:
                assert process.stdout is not None
                assert process.stdout.readline() == "open\n"
            with hold(database):
                started = time.monotonic()
                for process in processes:
                    assert process.stdin is not None
                    process.stdin.write("write\n")
                    process.stdin.flush()
                for process in processes:
                    out, err = process.communicate(timeout=20)
                    assert (process.returncode, out) == (0, "busy\n")
                    assert "Traceback" not in err
                assert time.monotonic() - started < 5
        assert await sessions.get_active_sessions("lina") == []
        assert await sessions.create_session("lina")
