# SPDX-License-Identifier: MIT
"""Processes of their own, which tests start, talk to, stop and kill.

They are forked from a server that has imported the package and opened nothing, so that eight of
them start in the time that one interpreter needs. What a process runs is a coroutine function of
its test, with a Line to the test as its first argument. `holding` is for locks.
"""

import asyncio
import fcntl
import multiprocessing
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[1]
PATIENCE = 20.0  # seconds until a process that says nothing counts as hung

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["hypothesis", "pytest", "sessionstore", "tests.children"])


class Line:
    """One end of what a test and its process say to each other."""

    def __init__(self, connection: "Connection[Any, Any]") -> None:
        self._connection = connection

    def say(self, message: object = None) -> None:
        """Send a message, and do not wait."""
        self._connection.send(message)

    def hear(self) -> Any:
        """Wait for a message. EOFError: the other side has ended; TimeoutError: it hangs."""
        if not self._connection.poll(PATIENCE):
            raise TimeoutError
        return self._connection.recv()

    def has_news(self) -> bool:
        """Return whether there is a message, or the other side has ended."""
        return self._connection.poll()

    def close(self) -> None:
        """End the conversation."""
        self._connection.close()


Program = Callable[..., Coroutine[Any, Any, None]]


class Child:
    """A process that runs a program; it is killed at the end of the block."""

    def __init__(self, program: Program, *arguments: object) -> None:
        ours, theirs = _context.Pipe()
        self.line = Line(ours)
        self._process = _context.Process(target=_run, args=(program, theirs, arguments))
        self._process.start()
        theirs.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()  # also its descriptor: others count them
        self.line.close()

    def join(self) -> int | None:
        """Wait for its end and return its exit code; None if it hangs."""
        self._process.join(PATIENCE)
        return self._process.exitcode

    def kill(self) -> None:
        """Kill it, and return when it is dead."""
        self._process.kill()
        self._process.join()

    def stop(self) -> None:
        """Stop it where it is, and return when it stands still."""
        os.kill(self.pid, signal.SIGSTOP)
        stat = Path(f"/proc/{self.pid}/stat")
        while stat.read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.0002)

    def go_on(self) -> None:
        """Let it run again after stop()."""
        os.kill(self.pid, signal.SIGCONT)


def _run(program: Program, connection: "Connection[Any, Any]", arguments: Any) -> None:
    asyncio.run(program(Line(connection), *arguments))


@contextmanager
def holding(program: Program, database: Path) -> Iterator[Child]:
    """Have another process hold a lock during the block."""
    with Child(program, database) as child:
        child.line.hear()
        yield child
        child.line.say()
        assert child.join() == 0


async def hold_sidecar(line: Line, database: Path) -> None:
    """Hold our lock, as a process of ours in a long write does."""
    with open(f"{database}-lock", "r+b") as sidecar:  # noqa: ASYNC230  # nothing else runs here
        fcntl.flock(sidecar, fcntl.LOCK_EX)
        line.say()
        line._connection.recv()


async def hold_sqlite(line: Line, database: Path) -> None:
    """Hold SQLite's own lock for writing, as a foreign program does."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        line.say()
        line._connection.recv()
        connection.execute("ROLLBACK")


def is_locked(database: Path) -> bool:
    """Return whether some process holds our lock."""
    with open(f"{database}-lock", "r+b") as sidecar:
        try:
            fcntl.flock(sidecar, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
