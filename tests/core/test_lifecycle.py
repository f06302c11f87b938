# SPDX-License-Identifier: MIT
"""Opening and closing, from any state and under cancellation, with nothing left behind."""

import asyncio
import gc
import os
import random
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sessionstore import SchemaError, SessionManager, StorageError, StoreClosedError
from sessionstore.sqlite import connection

from ..children import ROOT
from ..conftest import FakeClock


def descriptors() -> int:
    """Return how many files this process has open."""
    return len(os.listdir("/proc/self/fd"))


def nothing_left(threads: int, files: int) -> bool:
    """Say whether no task, thread or descriptor has come since they were counted."""
    gc.collect()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    return (tasks, threading.active_count(), descriptors()) == (set(), threads, files)


async def call_everything(sessions: SessionManager) -> list[Any]:
    """Call every method and return the results, exceptions among them."""

    async def iterate() -> list[Any]:
        return [session async for session in sessions.iter_active_sessions()]

    return await asyncio.gather(
        sessions.create_session("lina"),
        sessions.get_session("x"),
        sessions.update_activity("x"),
        sessions.update_session("x"),
        sessions.end_session("x"),
        sessions.end_sessions("lina"),
        sessions.delete_session("x"),
        sessions.get_active_sessions(),
        iterate(),
        sessions.get_sessions_for_child("lina"),
        sessions.list_sessions(),
        sessions.cleanup_inactive_sessions(),
        sessions.purge_ended_sessions(0),
        sessions.get_session_stats(),
        return_exceptions=True,
    )


async def test_use_before_open_and_after_close_is_refused(tmp_path: Path) -> None:
    """Every method raises StoreClosedError, and none hangs."""
    sessions = SessionManager(tmp_path / "a.db")
    assert {type(result) for result in await call_everything(sessions)} == {StoreClosedError}
    await sessions.open()
    results = await call_everything(sessions)
    assert not [result for result in results if isinstance(result, Exception)]
    await sessions.close()
    assert {type(result) for result in await call_everything(sessions)} == {StoreClosedError}


def test_the_constructor_does_nothing(tmp_path: Path) -> None:
    """It makes no file and no thread, and needs no event loop."""
    SessionManager(tmp_path / "new" / "a.db")
    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() == 1


@pytest.mark.parametrize("path", ["a.db", ":memory:"])
async def test_nothing_is_left_after_close(
    tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No task, thread, descriptor or WAL file outlives close(), also after a busy life."""
    monkeypatch.chdir(tmp_path)
    threads, files = threading.active_count(), descriptors()
    for _ in range(3):
        async with SessionManager(path, sweep_interval=0.01, on_end=print) as sessions:
            ids = await asyncio.gather(*(sessions.create_session("lina") for _ in range(50)))
            await asyncio.gather(*(sessions.update_activity(id_) for id_ in ids))
            await asyncio.gather(*(sessions.get_session(id_) for id_ in ids))
        assert nothing_left(threads, files)
    assert sorted(os.listdir()) == ([] if path == ":memory:" else ["a.db", "a.db-lock"])


async def test_open_and_close_are_safe_to_repeat(tmp_path: Path) -> None:
    """Twice in a row, and several at once, they do their work once; a closed store opens again."""
    sessions = SessionManager(tmp_path / "a.db")
    await sessions.close()
    for _ in range(3):
        await asyncio.gather(sessions.open(), sessions.open())
        await sessions.open()
        await sessions.create_session("lina")
        await asyncio.gather(sessions.close(), sessions.close(), sessions.close())
        await sessions.close()
        assert threading.active_count() == 1
    async with sessions:
        assert len(await sessions.get_active_sessions()) == 3


async def test_a_memory_database_ends_with_close() -> None:
    """A store in memory lives a whole life, and is empty when it is opened again."""
    sessions = SessionManager(":memory:")
    async with sessions:
        id_ = await sessions.create_session("lina", {"a": 1})
        session = await sessions.get_session(id_)
        assert session is not None
        assert session.data == {"a": 1}
    async with sessions:
        assert await sessions.get_session(id_) is None


async def test_close_finishes_what_was_accepted(tmp_path: Path) -> None:
    """Writes and reads that were queued before close() get their results, and are in the file."""
    sessions = SessionManager(tmp_path / "a.db", cache_size=0)
    await sessions.open()
    known = await sessions.create_session("lina")
    calls = [asyncio.create_task(sessions.create_session("lina")) for _ in range(2_000)]
    reads = [asyncio.create_task(sessions.get_session(known)) for _ in range(100)]
    await asyncio.sleep(0)
    await sessions.close()
    created = await asyncio.gather(*calls)
    assert all(session is not None for session in await asyncio.gather(*reads))
    async with sessions:
        stats = await sessions.get_session_stats()
        assert stats["active_sessions"] == 1 + len(created)


async def test_a_crowd_of_callers_is_served_or_refused(tmp_path: Path) -> None:
    """Of many calls that come just before close() each gets its result, and none hangs."""
    sessions = SessionManager(tmp_path / "a.db")
    await sessions.open()
    id_ = await sessions.create_session("lina")
    calls = [asyncio.create_task(sessions.update_activity(id_)) for _ in range(6_000)]
    await asyncio.sleep(0)
    await sessions.close()
    results = await asyncio.gather(*calls, return_exceptions=True)
    refused = [result for result in results if isinstance(result, StoreClosedError)]
    assert len(refused) + results.count(True) == 6_000
    async with sessions:
        session = await sessions.get_session(id_)
        assert session is not None
        assert session.interaction_count == results.count(True)


async def test_a_cancelled_close_still_closes(tmp_path: Path) -> None:
    """Cancelling the task that closes does not leave the store half open."""
    threads, files = threading.active_count(), descriptors()
    sessions = SessionManager(tmp_path / "a.db")
    await sessions.open()
    calls = [asyncio.create_task(sessions.create_session("lina")) for _ in range(500)]
    await asyncio.sleep(0)
    closing = asyncio.create_task(sessions.close())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await asyncio.gather(*calls)
    await sessions.close()
    assert nothing_left(threads, files)


async def test_a_cancelled_open_leaves_nothing(tmp_path: Path) -> None:
    """Cancelled at any of its steps, open() takes back what it had begun, and can be repeated."""
    threads, files = threading.active_count(), descriptors()
    for number in range(12):
        sessions = SessionManager(tmp_path / f"{number}.db")
        opening = asyncio.create_task(sessions.open())
        await asyncio.sleep(number / 1_000)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        if not opening.cancelled():
            await sessions.close()
        assert nothing_left(threads, files)
        async with sessions:
            await sessions.create_session("lina")


async def test_an_open_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """After SchemaError or StorageError no thread, task or descriptor is left."""
    (tmp_path / "garbage.db").write_bytes(b"garbage" * 1000)
    threads, files = threading.active_count(), descriptors()
    for path, error in [("garbage.db", StorageError), ("garbage.db/x.db", StorageError)]:
        for _ in range(3):
            with pytest.raises(error):
                await SessionManager(tmp_path / path).open()
            assert nothing_left(threads, files)


async def test_an_old_sqlite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library without RETURNING is named in the error, and no file is made."""
    monkeypatch.setattr(connection, "MINIMUM_SQLITE", (99, 0, 0))
    with pytest.raises(StorageError, match=r"3\.35"):
        await SessionManager(tmp_path / "a.db").open()
    assert os.listdir(tmp_path) == []


def test_another_event_loop_is_refused(tmp_path: Path) -> None:
    """Calls, open and close from a loop other than the one that opened raise a clear error."""
    sessions = SessionManager(tmp_path / "a.db")
    with asyncio.Runner() as one, asyncio.Runner() as other:
        one.run(sessions.open())
        id_ = one.run(sessions.create_session("lina"))
        for result in other.run(call_everything(sessions)):
            assert isinstance(result, StoreClosedError)
            assert "another event loop" in str(result)
        with pytest.raises(StoreClosedError, match="another event loop"):
            other.run(sessions.open())
        with pytest.raises(StoreClosedError, match="another event loop"):
            other.run(sessions.close())
        assert one.run(sessions.update_activity(id_))
        one.run(sessions.close())


async def test_cancelled_callers_harm_nobody(tmp_path: Path, clock: FakeClock) -> None:
    """With half of the callers cancelled at random moments, what was acknowledged is counted.

    acknowledged <= counted <= acknowledged + cancelled, nothing is left behind, and close is quick.
    """
    threads, files = threading.active_count(), descriptors()
    chance = random.Random(7)
    sessions = SessionManager(tmp_path / "a.db", clock=clock, cache_size=4)
    await sessions.open()
    ids = [await sessions.create_session("lina") for _ in range(10)]
    acknowledged, cancelled = 0, 0

    async def caller() -> None:
        nonlocal acknowledged, cancelled
        for _ in range(40):
            call = asyncio.create_task(sessions.update_activity(chance.choice(ids)))
            if chance.random() < 0.5:
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
                if chance.random() < 0.5:
                    await asyncio.sleep(chance.random() / 1_000)
                call.cancel()
            reading = asyncio.create_task(sessions.get_session(chance.choice(ids)))
            await asyncio.sleep(0)
            reading.cancel()
            results = await asyncio.gather(call, reading, return_exceptions=True)
            if results[0] is True:
                acknowledged += 1
            else:
                assert isinstance(results[0], asyncio.CancelledError)
                cancelled += 1

    await asyncio.gather(*(caller() for _ in range(50)))
    counted = sum(s.interaction_count for s in await sessions.get_active_sessions())
    assert acknowledged + cancelled == 2_000
    assert cancelled > 200
    assert acknowledged <= counted <= acknowledged + cancelled
    started = time.perf_counter()
    await sessions.close()
    assert time.perf_counter() - started < 1
    assert nothing_left(threads, files)


async def test_cancelling_every_task_hangs_nobody(tmp_path: Path) -> None:
    """After somebody has cancelled all tasks, whatever they were doing, the store works on."""
    async with SessionManager(tmp_path / "a.db", cache_size=0) as sessions:
        id_ = await sessions.create_session("lina")
        for steps in range(6):
            calls = [asyncio.create_task(sessions.update_activity(id_)) for _ in range(5)]
            calls += [asyncio.create_task(sessions.delete_session("x")) for _ in range(5)]
            reads = [asyncio.create_task(sessions.get_session(id_)) for _ in range(5)]
            for _ in range(steps):
                await asyncio.sleep(0)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            async with asyncio.timeout(5):
                assert await sessions.get_session(id_) is not None
                assert await sessions.update_activity(id_)
            await asyncio.gather(*calls, *reads, return_exceptions=True)


def run_script(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, and fail if it hangs."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_a_last_call_in_a_finally_block_does_not_hang_the_exit(tmp_path: Path) -> None:
    """Where asyncio.run cancels a worker, what its finally block calls is still done."""
    script = """
        import asyncio
        import warnings

        from sessionstore import SessionManager

        warnings.simplefilter("ignore", ResourceWarning)

        async def work(sessions, id_):
            try:
                await sessions.update_activity(id_)
            finally:
                print(await sessions.end_session(id_))

        async def main():
            global sessions, worker
            sessions = SessionManager("a.db")
            await sessions.open()
            id_ = await sessions.create_session("lina")
            worker = asyncio.create_task(work(sessions, id_))
            await asyncio.sleep(0)

        asyncio.run(main())
        """
    done = run_script(script, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_one_manager_may_serve_one_loop_after_the_other(tmp_path: Path) -> None:
    """Opened and closed in each, with calls of open at once, a manager bears several loops."""
    sessions = SessionManager(tmp_path / "a.db")

    async def live() -> None:
        await asyncio.gather(sessions.open(), sessions.open())
        await sessions.create_session("lina")
        await asyncio.gather(sessions.close(), sessions.close())

    for _ in range(3):
        asyncio.run(live())


@pytest.mark.parametrize("ending", ["return", "raise SystemExit(0)", "await asyncio.sleep(0)"])
def test_a_process_that_forgets_to_close_ends(tmp_path: Path, ending: str) -> None:
    """Exit without close() does not hang, prints nothing, and keeps what was acknowledged."""
    script = f"""
        import asyncio
        import warnings

        from sessionstore import SessionManager

        async def main():
            global sessions
            warnings.simplefilter("ignore", ResourceWarning)
            sessions = SessionManager("a.db")
            await sessions.open()
            id_ = await sessions.create_session("lina")
            global calls
            calls = [asyncio.create_task(sessions.update_activity(id_)) for _ in range(3000)]
            await calls[0]
            {ending}

        asyncio.run(main())
        """
    done = run_script(script, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    kept = asyncio.run(count_active(tmp_path / "a.db"))
    assert kept == 1


async def count_active(path: Path) -> int:
    """Return how many active sessions a file holds."""
    async with SessionManager(path, sweep_interval=None) as sessions:
        return len(await sessions.get_active_sessions())


def test_ctrl_c_closes_the_store(tmp_path: Path) -> None:
    """KeyboardInterrupt in the middle of traffic leaves by `async with`, and loses nothing."""
    script = """
        import asyncio
        import os
        import signal

        from sessionstore import SessionManager

        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job
        acknowledged = 0

        async def touch(sessions, id_):
            global acknowledged
            while True:
                touched = await sessions.update_activity(id_)
                acknowledged += touched

        async def main():
            async with SessionManager("a.db") as sessions:
                id_ = await sessions.create_session("lina")
                asyncio.get_running_loop().call_later(0.2, os.kill, os.getpid(), signal.SIGINT)
                async with asyncio.TaskGroup() as group:
                    for _ in range(50):
                        group.create_task(touch(sessions, id_))

        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            print(acknowledged)
        """
    done = run_script(script, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(os.listdir(tmp_path)) == ["a.db", "a.db-lock"]

    async def count() -> int:
        async with SessionManager(tmp_path / "a.db", sweep_interval=None) as sessions:
            return (await sessions.get_active_sessions())[0].interaction_count

    acknowledged = int(done.stdout)
    assert acknowledged > 0
    assert acknowledged <= asyncio.run(count()) <= acknowledged + 50


async def test_without_create_only_a_file_with_sessions_is_opened(tmp_path: Path) -> None:
    """A missing file is not made, and one without sessions stays as it is, byte for byte."""
    missing, foreign, ours = (tmp_path / name for name in ("missing", "foreign", "ours"))
    with closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE host (name TEXT)")
    before = foreign.read_bytes()
    with pytest.raises(StorageError, match="no such file"):
        await SessionManager(missing, create=False).open()
    with pytest.raises(SchemaError, match="no sessions"):
        await SessionManager(foreign, create=False).open()
    async with SessionManager(ours) as sessions:
        id_ = await sessions.create_session("lina")
    async with SessionManager(ours, create=False) as sessions:
        assert await sessions.get_session(id_) is not None
    assert foreign.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["foreign", "ours", "ours-lock"]
