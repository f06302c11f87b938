# SPDX-License-Identifier: MIT
"""A fork under an open store: refused in the child, harmless for the parent.

Each test is a program of its own, since pytest's process has threads and descriptors that are not
the test's business. The parent's event loop does not survive in a child either; the programs leave
it alone there.
"""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

import pytest

from sessionstore import SessionManager

from ..children import PATIENCE, ROOT, is_locked

PROLOGUE = """
import asyncio, os, sys, threading, time, warnings
from sessionstore import SessionManager, StoreClosedError
from sessionstore.expiry import Expiry, Moment
from sessionstore.sqlite import SQLiteStore, schema

warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)  # Python 3.12 and newer


def fork(function):
    '''Run a function in a child and end it there; return its exit status.'''
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        except SystemExit as exit:
            status = exit.code
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_a_minute():
    '''Return a moment at which a session of now is live.'''
    return Moment(int((time.time() + 60) * 1_000_000), Expiry(1_800_000_000))


async def call_everything(sessions, id_):
    '''Call each public method, and return what became of it.'''
    async def iterate():
        return [session async for session in sessions.iter_active_sessions()]

    return await asyncio.gather(
        sessions.create_session("lina"),
        sessions.get_session(id_),
        sessions.update_activity(id_),
        sessions.update_session(id_, {"a": 1}),
        sessions.end_session(id_),
        sessions.end_sessions("lina"),
        sessions.delete_session(id_),
        sessions.get_active_sessions(),
        iterate(),
        sessions.get_sessions_for_child("lina"),
        sessions.list_sessions(),
        sessions.cleanup_inactive_sessions(),
        sessions.purge_ended_sessions(0),
        sessions.get_session_stats(),
        return_exceptions=True,
    )

"""


def program(text: str) -> str:
    """Return a whole program."""
    return PROLOGUE + textwrap.dedent(text)


def run(text: str, folder: Path) -> str:
    """Run a program, demand that it succeeds without a word of warning, and return its output."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program(text)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_fork_in_a_transaction_leaves_the_lock_to_the_parent(tmp_path: Path) -> None:
    """The child lets go of the lock file without unlocking what it shares with its parent."""
    text = """
        from tests.children import is_locked

        inside, go_on = threading.Event(), threading.Event()

        def change_slowly(record):
            inside.set()
            go_on.wait()
            return record._replace(data='{"a":1}')

        async def main():
            store = SQLiteStore("sessions.db")
            async with SessionManager(store, sweep_interval=None) as sessions:
                id_ = await sessions.create_session("lina")
                call = asyncio.ensure_future(store.edit(id_, in_a_minute(), change_slowly))
                await asyncio.to_thread(inside.wait)
                assert fork(lambda: None) == 0
                print(is_locked("sessions.db"))
                go_on.set()
                assert await call
                print((await sessions.get_session(id_)).data)

        asyncio.run(main())
    """
    assert run(text, tmp_path) == "True\n{'a': 1}\n"


def test_a_load_that_is_under_way_at_the_fork_is_the_parents(tmp_path: Path) -> None:
    """The parent gets all its answers, and the child nothing from its cache."""
    text = """
        async def main():
            async with SessionManager("sessions.db", sweep_interval=None) as sessions:
                ids = await asyncio.gather(*(sessions.create_session("lina") for _ in range(200)))
                async with SessionManager("sessions.db", sweep_interval=None) as other:
                    assert all(await asyncio.gather(*map(other.update_activity, ids[:100])))
                loads = [asyncio.create_task(sessions.get_session(id_)) for id_ in ids]
                await asyncio.sleep(0)

                async def get_nothing():
                    for id_ in ids:
                        try:
                            await sessions.get_session(id_)
                        except StoreClosedError:
                            continue
                        raise AssertionError

                def child():
                    # The parent's event loop counts as running in the child, too.
                    asyncio._set_running_loop(None)
                    asyncio.run(get_nothing())

                print(fork(child))
                found = await asyncio.gather(*loads)
                print([session.interaction_count for session in found] == [1] * 100 + [0] * 100)

        asyncio.run(main())
    """
    assert run(text, tmp_path) == "0\nTrue\n"


def test_every_call_in_the_child_says_what_to_do(tmp_path: Path) -> None:
    """A store that was open at the fork raises StoreClosedError for each method, and at open."""
    text = """
        with asyncio.Runner() as runner:
            sessions = SessionManager("a.db")
            runner.run(sessions.open())
            id_ = runner.run(sessions.create_session("lina"))
            runner.run(sessions.get_session(id_))

            async def child():
                results = await call_everything(sessions, id_)
                results += await asyncio.gather(
                    sessions.open(), sessions.close(), return_exceptions=True
                )
                for result in results:
                    assert isinstance(result, StoreClosedError), result

            print(fork(lambda: asyncio.run(child())))
            assert runner.run(sessions.update_activity(id_))
            runner.run(sessions.close())
        """
    assert run(text, tmp_path) == "0\n"


def test_a_child_cannot_open_the_file_but_others(tmp_path: Path) -> None:
    """SQLite's locks are the process's: under whatever name, the parent's file is refused."""
    (tmp_path / "link.db").symlink_to("a.db")
    text = """
        with asyncio.Runner() as runner:
            sessions = SessionManager("a.db")
            unopened = SessionManager("c.db")
            runner.run(sessions.open())

            async def live(manager):
                async with manager:
                    id_ = await manager.create_session("ben")
                    assert await manager.update_activity(id_)
                    assert (await manager.get_session(id_)).interaction_count == 1

            async def child():
                for name in ("a.db", os.path.abspath("a.db"), "sqlite:///a.db", "link.db"):
                    try:
                        await live(SessionManager(name))
                    except StoreClosedError as error:
                        assert "when the process was forked" in str(error)
                        assert "open it after" in str(error)
                    else:
                        raise AssertionError(name)
                for manager in (SessionManager("b.db"), SessionManager(":memory:"), unopened):
                    await live(manager)

            def grandchild():
                asyncio.run(child())
                assert fork(lambda: asyncio.run(child())) == 0

            print(fork(grandchild))
            runner.run(live(SessionManager("a.db")))
            runner.run(sessions.close())
            print(fork(lambda: asyncio.run(live(SessionManager("a.db")))))
            print(fork(lambda: asyncio.run(live(sessions))))
        """
    assert run(text, tmp_path) == "0\n0\n0\n"


def test_a_fork_while_a_store_opens(tmp_path: Path) -> None:
    """A store that has connected, but has not opened yet, is as unfit for the child."""
    text = """
        connected, forked = threading.Event(), threading.Event()
        check = schema.check

        def check_slowly(*arguments, **settings):
            connected.set()
            assert forked.wait(10)
            return check(*arguments, **settings)

        async def child():
            for manager in (sessions, SessionManager("a.db")):
                try:
                    await manager.open()
                except StoreClosedError:
                    continue
                raise AssertionError("it opened")

        async def main():
            schema.check = check_slowly
            opening = asyncio.create_task(sessions.open())
            await asyncio.to_thread(connected.wait, 10)
            schema.check = check
            print(fork(lambda: asyncio.run(child())))
            forked.set()
            await opening
            assert await sessions.create_session("lina")
            await sessions.close()

        sessions = SessionManager("a.db")
        asyncio.run(main())
        """
    assert run(text, tmp_path) == "0\n"


ENDS = {
    "_exit": "os._exit(0)",
    "exit": "sys.exit(0)",
    "collected": "del sessions; gc.collect(); sys.exit(0)",
    "error": "raise RuntimeError",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.mark.parametrize("end", ENDS)
def test_the_parent_is_unharmed_by_the_end_of_its_child(tmp_path: Path, end: str) -> None:
    """Also by a whole shutdown of the child's interpreter: the parent's writes are in the file."""
    text = f"""
        import gc, signal, sqlite3, subprocess

        runner = asyncio.Runner()
        sessions = SessionManager("a.db", sweep_interval=0.01)
        runner.run(sessions.open())
        id_ = runner.run(sessions.create_session("lina"))
        wal = os.stat("a.db-wal").st_ino
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            runner.get_loop()._closed = True  # its end would disturb the parent's loop
            {ENDS[end]}

        async def write():
            acknowledged, left = 0, 100
            while left:
                assert await sessions.update_activity(id_)
                acknowledged += 1
                left -= os.waitpid(child, os.WNOHANG)[0] == child if left == 100 else 1
            return acknowledged

        acknowledged = runner.run(write())
        assert os.stat("a.db-wal").st_ino == wal
        select = "SELECT interaction_count FROM sessions"
        read = "import sqlite3; print(*sqlite3.connect('a.db').execute(%r).fetchone())" % select
        seen = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True)
        print(int(seen.stdout) - acknowledged)
        runner.run(sessions.close())
        runner.close()
        print(acknowledged)
        """
    difference, acknowledged = run(text, tmp_path).split()
    assert (int(difference), int(acknowledged) >= 100) == (0, True)
    assert sorted(os.listdir(tmp_path)) == ["a.db", "a.db-lock"]
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("moment", ["between writes", "in a write"])
def test_a_child_that_survives_its_parent_holds_no_lock(tmp_path: Path, moment: str) -> None:
    """Killed in the middle of a write, a parent leaves the file free, though its child lives on."""
    text = f"""
        import signal

        in_write, forked = threading.Event(), threading.Event()

        def die_in_write(record):
            in_write.set()
            assert forked.wait(10)
            os.kill(os.getpid(), signal.SIGKILL)

        def fork_and_wait():
            if os.fork() == 0:
                print("forked", flush=True)
                os.read(0, 1)
                os._exit(0)
            forked.set()

        async def main():
            store = SQLiteStore("a.db")
            async with SessionManager(store) as sessions:
                id_ = await sessions.create_session("lina")
                if {moment == "between writes"}:
                    fork_and_wait()
                writing = asyncio.ensure_future(store.edit(id_, in_a_minute(), die_in_write))
                await asyncio.to_thread(in_write.wait, 10)
                if {moment == "in a write"}:
                    fork_and_wait()
                await writing

        asyncio.run(main())
        """
    database = tmp_path / "a.db"
    with subprocess.Popen(
        [sys.executable, "-c", program(text)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "forked\n"
        assert process.wait(PATIENCE) == -signal.SIGKILL
        assert not is_locked(database)
        assert asyncio.run(counts(database)) == [0]
        process.stdin.close()  # the child ends, and with it the output
        assert process.stdout.read() == ""


async def counts(database: Path) -> list[int]:
    """Open, write, and return the counts of the sessions that had been there."""
    async with SessionManager(database, busy_timeout=1) as sessions:
        await sessions.create_session("ben")
        found = await sessions.get_active_sessions("lina")
    return [session.interaction_count for session in found]
