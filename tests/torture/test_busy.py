# SPDX-License-Identifier: MIT
"""Another program holds a lock, for nothing to half a minute, while a store is in full traffic.

Every call ends once it has waited for busy_timeout. What raised StoreBusyError has written nothing,
what returned is there, reads go on, and the event loop is not held up. Sweeps run meanwhile, which
empty the log unless a reader needs it. sqlite/test_waiting.py has what a single call does.
"""

import asyncio
import fcntl
import gc
import os
import random
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import (
    AbstractContextManager,
    asynccontextmanager,
    closing,
    contextmanager,
    suppress,
)
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

from sessionstore import SessionManager, StoreBusyError, manager
from sessionstore.sqlite import lane
from sessionstore.store import make_store

from ..children import Child, Line, holding
from ..seeds import draw_seed
from . import kills, old_files
from .kills import Call, Ledger

WRITERS = 6
MARGIN = 1.0  # seconds beyond the bound, for a machine that has other things to do
SLOW_READ = 1.0  # seconds, likewise
GAP = 0.05  # seconds for which the event loop may stand still
SWEEP = 0.05  # seconds between two sweeps


# -- Other programs --------------------------------------------------------------------------------


@contextmanager
def begin(database: Path, statement: str, *more: str) -> Iterator[None]:
    """Hold what a transaction holds."""
    with closing(sqlite3.connect(database, timeout=60, isolation_level=None)) as connection:
        connection.execute(statement)
        for query in more:
            connection.execute(query).fetchall()
        yield
        connection.execute("ROLLBACK")


def write(database: Path) -> AbstractContextManager[None]:
    """Hold SQLite's lock for writing."""
    return begin(database, "BEGIN IMMEDIATE")


def write_exclusively(database: Path) -> AbstractContextManager[None]:
    """Hold all that a transaction can hold."""
    return begin(database, "BEGIN EXCLUSIVE")


def read(database: Path) -> AbstractContextManager[None]:
    """Hold a snapshot, so that no checkpoint can empty the WAL."""
    return begin(database, "BEGIN", "SELECT count(*) FROM sessions")


@contextmanager
def hold_sidecar(database: Path) -> Iterator[None]:
    """Hold our own lock, as a process of ours does that stands still in a write."""
    with open(f"{database}-lock", "r+b") as sidecar:
        fcntl.flock(sidecar, fcntl.LOCK_EX)
        yield


@contextmanager
def write_often(database: Path) -> Iterator[None]:
    """Hold SQLite's lock for writing, again and again, for some milliseconds each time."""
    is_over = threading.Event()

    def write_on() -> None:
        chance = random.Random(3)
        while not is_over.wait(chance.random() / 50):
            with write(database):
                time.sleep(chance.random() / 50)

    thread = threading.Thread(target=write_on)
    thread.start()
    yield
    is_over.set()
    thread.join()


BLOCKERS = {
    "SQLite's lock": write,
    "an exclusive transaction": write_exclusively,
    "our lock": hold_sidecar,
}
OTHERS = {"a long reader": read, "many short writes": write_often}
PROGRAMS = BLOCKERS | OTHERS


async def hold_for(line: Line, database: Path, program: str, seconds: float) -> None:
    """Hold what that program holds, from a sign on, and tell from when to when it was held."""
    line.say()
    line.hear()
    with PROGRAMS[program](database):
        began = time.monotonic()
        await asyncio.sleep(seconds)
        ended = time.monotonic()
    line.say((began, ended))


# -- The store in traffic --------------------------------------------------------------------------


class Processor:
    """Tells for how long the threads of this process were ready to run, and the machine ran others.

    All of them: one that has the GIL and no processor stops the others. If the system does not
    tell, the time is zero, and a gap counts as it is.
    """

    def __enter__(self) -> Self:
        """Open what the system tells of each thread that there is now."""
        self._files: list[int] = []
        with suppress(OSError):
            for thread in os.listdir("/proc/self/task"):
                self._files.append(os.open(f"/proc/self/task/{thread}/schedstat", os.O_RDONLY))
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            os.close(file)

    def waited(self) -> float:
        """Return how many seconds they have waited in all."""
        return sum(int(os.pread(file, 100, 0).split()[1]) for file in self._files) / 1_000_000_000


@dataclass
class Traffic:
    """Tasks that call a store all the time, and what they saw."""

    sessions: SessionManager
    chance: random.Random
    calls: dict[str, list[Call]] = field(default_factory=lambda: defaultdict(list))
    acknowledged_at: list[float] = field(default_factory=list)
    refused: int = 0
    slowest_write: float = 0.0  # seconds
    slowest_read: float = 0.0
    read_at: list[float] = field(default_factory=list)
    longest_gap: float = 0.0
    _is_over: bool = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the tasks during the block, and wait for what they call at its end."""
        hit = await self.sessions.create_session("reader")
        gc.collect()
        gc.freeze()  # the tests' own objects are not the store's to look through
        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(WRITERS):
                    tasks.create_task(self._write(f"writer-{number}"))
                tasks.create_task(self._read(hit))
                tasks.create_task(self._tick())
                yield
                self._is_over = True
        finally:
            gc.unfreeze()

    async def _write(self, owner: str) -> None:
        ids: list[str] = []
        calls = self.calls[owner]
        while not self._is_over:
            operation, id_ = kills.choose(self.chance, ids)
            call = Call(operation, id_, len(calls))
            started = time.monotonic()
            try:
                result = await kills.perform(self.sessions, owner, *call[:3])
            except StoreBusyError:
                self.refused += 1
            else:
                calls.append(call._replace(result=result))
                kills.keep_ids(ids, operation, id_, result)
                self.acknowledged_at.append(time.monotonic())
            self.slowest_write = max(self.slowest_write, time.monotonic() - started)

    async def _read(self, hit: str) -> None:
        while not self._is_over:
            calls: list[Coroutine[Any, Any, object]] = [
                self.sessions.get_session(hit),
                self.sessions.get_session("missing"),
                self.sessions.get_active_sessions("reader"),
                self.sessions.get_session_stats(),
            ]
            for call in calls:
                started = time.monotonic()
                await call
                self.slowest_read = max(self.slowest_read, time.monotonic() - started)
                self.read_at.append(time.monotonic())
            await asyncio.sleep(0.005)

    async def _tick(self) -> None:
        """Note the longest time in which the loop did nothing, but for that of other programs."""
        with Processor() as processor:
            before, waited = time.perf_counter(), processor.waited()
            while not self._is_over:
                await asyncio.sleep(0.001)
                now, waited_now = time.perf_counter(), processor.waited()
                gap = now - before - (waited_now - waited)
                self.longest_gap = max(self.longest_gap, gap)
                before, waited = now, waited_now

    def faults(
        self, database: Path, program: str, busy_timeout: float, began: float, ended: float
    ) -> list[str]:
        """Return what is wrong, if a program held its lock from one moment to another."""
        held = ended - began
        faults = Ledger().settle([self.calls], kills.read(database))
        if self.slowest_write > busy_timeout + MARGIN:
            faults.append(f"a call took {self.slowest_write:.2f} s")
        if self.slowest_read > SLOW_READ:
            faults.append(f"a read took {self.slowest_read:.2f} s")
        if self.longest_gap > GAP:
            faults.append(f"the event loop stood still for {self.longest_gap * 1000:.0f} ms")
        reads = sum(began < moment < ended for moment in self.read_at)
        if reads < int(held * 10):
            faults.append(f"only {reads} reads in {held:.1f} s")
        is_in_the_way = program in BLOCKERS and held > busy_timeout * 1.5
        if self.refused == 0 and is_in_the_way:
            faults.append("no call was refused")
        if self.refused and (program not in BLOCKERS or held + MARGIN < busy_timeout):
            faults.append(f"{self.refused} calls were refused")
        afterwards = [moment - ended for moment in self.acknowledged_at if moment > ended]
        if min(afterwards, default=held) > MARGIN:
            faults.append("no call was acknowledged after the lock was free")
        return faults

    def __str__(self) -> str:
        return (
            f"{sum(map(len, self.calls.values()))} acknowledged, {self.refused} refused, slowest"
            f" {self.slowest_write:.2f} s; {len(self.read_at)} reads, slowest"
            f" {self.slowest_read * 1000:.0f} ms; longest gap {self.longest_gap * 1000:.1f} ms"
        )


async def endure(
    database: Path, program: str, seconds: float, busy_timeout: float = 10.0
) -> list[str]:
    """Have another program hold its lock that long while a store is in traffic; return faults."""
    with Child(hold_for, database, program, seconds) as child:
        async with SessionManager(
            database, busy_timeout=busy_timeout, sweep_interval=SWEEP
        ) as sessions:
            child.line.hear()
            traffic = Traffic(sessions, random.Random(draw_seed()))
            async with traffic.running():
                await asyncio.sleep(0.03)
                child.line.say()
                async with asyncio.timeout(seconds + 30):
                    while not child.line.has_news():  # noqa: ASYNC110  # no event tells
                        await asyncio.sleep(0.002)
                began, ended = child.line.hear()
                await asyncio.sleep(0.15)
        assert child.join() == 0
    print(f"{program}, held for {ended - began:.2f} s: {traffic}")
    return traffic.faults(database, program, busy_timeout, began, ended)


@pytest.mark.parametrize(
    "program, seconds, busy_timeout",
    [
        *((name, 0.6, 0.3) for name in BLOCKERS),
        ("our lock", 0.2, 3.0),
        *((name, 0.2, 3.0) for name in OTHERS),
    ],
)
async def test_traffic_outlives_a_lock(
    database: Path, program: str, seconds: float, busy_timeout: float
) -> None:
    """Waiting is bounded, nothing is lost and nothing undone, reads and the loop go on."""
    assert await endure(database, program, seconds, busy_timeout) == []


@pytest.mark.torture
@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.5, 1.0, 3.0, 10.0, 30.0])
@pytest.mark.parametrize("program", PROGRAMS)
async def test_traffic_outlives_a_long_lock(database: Path, program: str, seconds: float) -> None:
    """The same as above, with the settings that a store has of itself."""
    assert await endure(database, program, seconds) == []


def hold_up_the_loop(patch: pytest.MonkeyPatch) -> None:
    """Have the guard, which lends a thread the GIL, do so for long."""
    patch.setattr(lane, "GUARD_HOLD", 0.5)


def never_give_up(patch: pytest.MonkeyPatch) -> None:
    """Have callers wait for as long as a lock is held."""
    patch.setattr(manager, "make_store", lambda database, **_: make_store(database))


def write_what_was_refused(patch: pytest.MonkeyPatch) -> None:
    """Refuse a call when its deadline is over, and do it all the same."""

    def wait(
        self: lane.Lane, calls: Sequence[lane.Call], attempt: Callable[[], bool], _: object = None
    ) -> Sequence[lane.Call]:
        while not attempt():
            late = [call for call in calls if call.deadline <= time.monotonic()]
            self._post([lane.Done([(call, StoreBusyError()) for call in late])], False)
            time.sleep(0.001)
        return calls

    patch.setattr(lane.Lane, "wait", wait)


@pytest.mark.parametrize(
    "break_it, seconds, symptom",
    [
        (hold_up_the_loop, 0.6, "the event loop stood still"),
        (never_give_up, 1.5, "a call took"),
        (write_what_was_refused, 0.6, "writer-"),
    ],
)
async def test_a_broken_bound_is_caught(
    database: Path,
    monkeypatch: pytest.MonkeyPatch,
    break_it: Callable[[pytest.MonkeyPatch], None],
    seconds: float,
    symptom: str,
) -> None:
    """A loop that is held up, a wait without an end, and a write that was refused are seen."""
    break_it(monkeypatch)
    for number in range(5):  # on a machine that is busy itself, one may go unseen
        path = database.with_name(f"{number}.db")
        faults = await endure(path, "our lock", seconds, busy_timeout=0.2)
        if any(symptom in fault for fault in faults):
            return
    raise AssertionError(faults)


async def hold_exclusively(line: Line, database: Path) -> None:
    """Have the whole file to itself, as a program with that setting does, for reading, too."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("CREATE TABLE IF NOT EXISTS host (name TEXT)")
        line.say()
        line.hear()


@pytest.mark.parametrize("kind", ["today's", "0.1.0"])
async def test_open_of_a_file_that_is_held_for_reading_too_gives_up(
    database: Path, kind: str
) -> None:
    """It raises StoreBusyError in time, holds the loop up for no moment, and works afterwards."""
    if kind == "0.1.0":
        old_files.RELEASES[kind](database, 0, old_files.APPLIED_AT)
    else:
        async with SessionManager(database, sweep_interval=None):
            pass
    sessions = SessionManager(database, busy_timeout=0.3, sweep_interval=None)
    with holding(hold_exclusively, database):
        started = time.monotonic()
        with pytest.raises(StoreBusyError, match="lock"):
            await sessions.open()
        assert time.monotonic() - started < 0.3 * 2 + MARGIN
    async with sessions:
        assert await sessions.create_session("lina")
