# SPDX-License-Identifier: MIT
"""Calls that are cut off, and stores and processes that end in the middle of traffic.

After all of it no task, thread, descriptor or lock is left, what was acknowledged is in the file,
and a process that is to end does so. kills.py has the traffic, and what must be true after it.
"""

import asyncio
import gc
import logging
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sessionstore import Session, SessionManager, StoreBusyError, StoreClosedError
from sessionstore.endings import Endings
from sessionstore.session import Record
from sessionstore.sqlite import SQLiteStore
from sessionstore.sqlite.lane import Call as LaneCall
from sessionstore.sqlite.lane import Lane
from sessionstore.sqlite.schema import MIGRATIONS
from sessionstore.store import Commit, Listener
from sessionstore.sweeper import Sweeper

from ..children import PATIENCE, ROOT, Program, hold_sidecar, hold_sqlite, holding, is_locked
from ..seeds import draw_seed
from . import kills, old_files
from .kills import Ledger
from .test_kills import visit

DAY = 86_400.0  # seconds
EXIT = 2.0  # seconds in which a process ends, on a machine that is not overloaded

Call = Coroutine[Any, Any, Any]


@pytest.fixture(autouse=True)
def _little_garbage() -> Iterator[None]:
    """Have each look for what is left pass over what all other tests have left."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def descriptors() -> int:
    """Return how many files this process has open."""
    return len(os.listdir("/proc/self/fd"))


def nothing_left(threads: int, files: int) -> bool:
    """Return whether no task, thread or descriptor has come since they were counted."""
    gc.collect()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    return (tasks, threading.active_count(), descriptors()) == (set(), threads, files)


async def soon(is_so: Callable[[], bool]) -> bool:
    """Return whether something becomes true in a moment: a thread may still be about to end."""
    deadline = time.monotonic() + in_time() / 2
    while not is_so() and time.monotonic() < deadline:  # noqa: ASYNC110  # no event tells
        await asyncio.sleep(0.002)
    return is_so()


def in_time() -> float:
    """Return the seconds in which a process ends, the longer the more others want a processor."""
    return EXIT * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


# -- Calls that are cut off ------------------------------------------------------------------------


class SiblingError(Exception):
    """Is raised by the sibling of a call in a task group."""


async def step(chance: random.Random) -> None:
    """Let the event loop go round a few times, or let a moment pass."""
    for _ in range(chance.randrange(8)):
        await asyncio.sleep(0)
    if chance.random() < 0.3:
        await asyncio.sleep(chance.random() / 200)


async def let_be(call: Call, _: random.Random) -> Any:
    """Wait for the call."""
    return await call


async def cancel(call: Call, chance: random.Random) -> Any:
    """Cancel it at some moment, and perhaps again and again until it has ended."""
    task = asyncio.create_task(call)
    await step(chance)
    task.cancel()
    while chance.random() < 0.5 and not task.done():
        await asyncio.sleep(0)
        task.cancel()
    return await task


async def wait_for(call: Call, chance: random.Random) -> Any:
    """Wait for a very short time."""
    return await asyncio.wait_for(call, chance.choice([0, 0.0001, 0.001, 0.01]))


async def time_out(call: Call, chance: random.Random) -> Any:
    """Call it under a very short timeout."""
    async with asyncio.timeout(chance.random() / 100):
        return await call


async def fail_beside(call: Call, chance: random.Random) -> Any:
    """Call it in a task group with a sibling that fails."""

    async def fail() -> None:
        await step(chance)
        raise SiblingError

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(call)
        tasks.create_task(fail())
    return task.result()


CUTS: list[Callable[[Call, random.Random], Awaitable[Any]]] = [
    let_be,
    let_be,
    cancel,
    cancel,
    wait_for,
    time_out,
    fail_beside,
]


@dataclass
class Facts:
    """What must be true of a session, and what may be, since a call may have been cut off late."""

    touched: int = 0
    maybe_touched: int = 0
    keys: set[str] = field(default_factory=set)
    maybe_keys: set[str] = field(default_factory=set)
    ended: bool = False
    maybe_ended: bool = False
    erased: bool = False
    maybe_erased: bool = False


@dataclass
class Caller:
    """A task that calls every method, cuts most calls off, and knows what must come of it."""

    sessions: SessionManager
    owner: str
    chance: random.Random
    known: dict[str, Facts] = field(default_factory=lambda: defaultdict(Facts))
    created: int = 0
    maybe_created: int = 0
    cut_off: int = 0
    faults: list[str] = field(default_factory=list)

    async def call(self, rounds: int) -> None:
        """Call at random until the rounds are over, or the store is closed."""
        acts = [self._create, self._touch, self._touch, self._update, self._end]
        acts += [self._delete, self._end_all, self._look]
        with suppress(StoreClosedError):
            for number in range(rounds):
                act = self.chance.choice(acts) if self.known else self._create
                await act(str(number))
                await asyncio.sleep(0)

    async def _cut(self, call: Call) -> Any:
        """Return the result, or None where the call was cut off."""
        cut = self.chance.choice(CUTS)
        try:
            return await cut(call, self.chance)
        except ExceptionGroup as group:
            closed, _ = group.split(StoreClosedError)
            if closed is not None:
                raise StoreClosedError from closed
            if group.split(SiblingError)[1] is not None:
                raise
        except (asyncio.CancelledError, TimeoutError) as error:
            if cut is let_be:
                self.faults.append(f"{error!r} for a call that nobody had cut off")
        self.cut_off += 1
        return None

    def _choose(self) -> tuple[str, Facts]:
        return self.chance.choice(list(self.known.items()))

    def _judge(self, id_: str, result: bool, facts: Facts) -> None:
        """Compare what a call said of a session with what had been said of it before."""
        if result and (facts.ended or facts.erased):
            self.faults.append(f"{id_} was active after its end")
        if not result and not (facts.maybe_ended or facts.maybe_erased):
            self.faults.append(f"{id_} was not active, and nobody had ended it")

    async def _create(self, _: str) -> None:
        id_ = await self._cut(self.sessions.create_session(self.owner))
        if id_ is None:
            self.maybe_created += 1
        else:
            self.created += 1
            assert self.known[id_].touched == 0

    async def _touch(self, _: str) -> None:
        id_, facts = self._choose()
        touched = await self._cut(self.sessions.update_activity(id_))
        facts.maybe_touched += touched is not False
        if touched is not None:
            self._judge(id_, touched, facts)
            facts.touched += touched

    async def _update(self, key: str) -> None:
        id_, facts = self._choose()
        call = self.sessions.update_session(id_, {key: 1}, metadata={key: 1})
        updated = await self._cut(call)
        if updated is not False:
            facts.maybe_keys.add(key)
        if updated is not None:
            self._judge(id_, updated, facts)
        if updated:
            facts.keys.add(key)

    async def _end(self, _: str) -> None:
        id_, facts = self._choose()
        ended = await self._cut(self.sessions.end_session(id_))
        if ended is not None:
            self._judge(id_, ended, facts)
            facts.ended = True
        facts.maybe_ended = True

    async def _delete(self, _: str) -> None:
        id_, facts = self._choose()
        erased = await self._cut(self.sessions.delete_session(id_))
        if erased is False and not facts.maybe_erased:
            self.faults.append(f"{id_} was not there, and nobody had erased it")
        facts.erased |= erased is not None
        facts.maybe_erased = True

    async def _end_all(self, _: str) -> None:
        known = list(self.known.values())
        ended = await self._cut(self.sessions.end_sessions(self.owner))
        for facts in known:
            facts.ended |= ended is not None
            facts.maybe_ended = True

    async def _look(self, _: str) -> None:
        id_, _facts = self._choose()
        calls: list[Call] = [
            self.sessions.get_session(id_),
            self.sessions.get_active_sessions(self.owner),
            self.sessions.get_sessions_for_child(self.owner),
            self.sessions.list_sessions(child_id=self.owner),
            self.sessions.get_session_stats(),
            self.sessions.cleanup_inactive_sessions(),
            self.sessions.purge_ended_sessions(DAY),
            self._iterate(),
        ]
        chosen = calls.pop(self.chance.randrange(len(calls)))
        for call in calls:
            call.close()
        await self._cut(chosen)

    async def _iterate(self) -> None:
        async for session in self.sessions.iter_active_sessions(self.owner):
            assert session.child_id == self.owner

    def check(self, rows: dict[str, kills.Row]) -> list[str]:
        """Return what is wrong with the sessions of the file."""
        faults = list(self.faults)
        unknown = rows.keys() - self.known.keys()
        if len(unknown) > self.maybe_created:
            faults.append(f"{len(unknown)} sessions that nobody created")
        for id_, facts in self.known.items():
            if id_ not in rows:
                if not facts.maybe_erased:
                    faults.append(f"{id_} is lost")
                continue
            status, data, metadata, count = rows[id_]
            keys = metadata.keys() - {"end_reason"}
            if facts.erased:
                faults.append(f"{id_} is there after it was erased")
            if keys != data.keys() or not facts.keys <= keys <= facts.maybe_keys:
                faults.append(f"{id_} has {data} and {metadata}, not {sorted(facts.keys)}")
            if not facts.touched <= count <= facts.maybe_touched:
                faults.append(f"{id_}: {count} touches, not {facts.touched}")
            if facts.ended if status == "active" else not facts.maybe_ended:
                faults.append(f"{id_} is {status}")
        return faults


def is_free(database: Path) -> bool:
    """Return whether another process could write at once."""
    with closing(sqlite3.connect(database, timeout=0, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    return not is_locked(database)


async def close_and_cancel(sessions: SessionManager, chance: random.Random) -> None:
    """Close by several calls, each of which is cancelled or not."""
    for _ in range(chance.randrange(3)):
        with suppress(asyncio.CancelledError):
            await cancel(sessions.close(), chance)
    await sessions.close()


async def storm(database: Path, seed: int, callers: int, rounds: int) -> list[str]:
    """Have callers cut each other's calls off, and the store close meanwhile; return the faults."""
    chance = random.Random(seed)
    heard: list[Session] = []

    async def hear(session: Session) -> None:
        await asyncio.sleep(chance.choice([0, 0.001]))
        heard.append(session)

    is_heard = chance.random() < 0.7
    sessions = SessionManager(
        database,
        cache_size=chance.choice([0, 4, 1_000]),
        sweep_interval=chance.choice([None, 0.01]),
        on_end=hear if is_heard else None,
    )
    await sessions.open()
    crowd = [
        Caller(sessions, f"owner-{number}", random.Random(chance.random()))
        for number in range(callers)
    ]
    tasks = [asyncio.create_task(caller.call(rounds)) for caller in crowd]
    if chance.random() < 0.5:
        await asyncio.sleep(chance.random() / 2)  # else all of the rounds are played
    else:
        await asyncio.gather(*tasks)
    await close_and_cancel(sessions, chance)
    await asyncio.gather(*tasks)
    found = kills.read(database)
    faults = list(found.faults)
    for caller in crowd:
        faults += caller.check(found.rows[caller.owner])
    if is_heard:
        faults += _unheard(found, heard)
    calls = Counter[str]()
    for caller in crowd:
        calls.update(created=caller.created, cut_off=caller.cut_off)
    print(f"{dict(calls)}, {len(heard)} ends heard, {len(faults)} faults")
    if not is_free(database):
        faults.append("a lock is held")
    return faults


def _unheard(found: kills.Found, heard: list[Session]) -> list[str]:
    """Return how on_end was not called once for each session that has ended."""
    times = Counter(session.id for session in heard)
    ended = {id_ for rows in found.rows.values() for id_, row in rows.items() if row[0] != "active"}
    active = {id_ for rows in found.rows.values() for id_ in rows} - ended
    return [
        *(f"on_end was called {n} times for {id_}" for id_, n in times.items() if n > 1),
        *(f"on_end was not called for {id_}" for id_ in ended - times.keys()),
        *(f"on_end was called for {id_}, which is active" for id_ in active & times.keys()),
    ]


async def weather(folder: Path, storms: int, callers: int, rounds: int) -> list[str]:
    """Have so many storms; return the faults of the first that is not without."""
    threads, files = threading.active_count(), descriptors()
    for number in range(storms):
        seed = draw_seed()
        faults = await storm(folder / f"{number}.db", seed, callers, rounds)
        if not await soon(partial(nothing_left, threads, files)):
            faults.append(f"left behind: {asyncio.all_tasks()}, {threading.enumerate()}")
        if faults:
            return [f"SEED={seed}", *faults]
    return []


async def test_storms_of_cut_off_calls_lose_nothing(tmp_path: Path) -> None:
    """Cancelled, timed out or beside a task that fails: each call happens as a whole or not."""
    assert await weather(tmp_path, storms=2, callers=20, rounds=40) == []


@pytest.mark.torture
async def test_hundreds_of_storms_lose_nothing(tmp_path: Path) -> None:
    """The same as above, 300 times."""
    assert await weather(tmp_path, storms=300, callers=30, rounds=60) == []


def cancel_neighbours(patch: pytest.MonkeyPatch) -> None:
    """Have one caller who gives up take its whole batch along."""
    take = Lane._take

    def take_or_cancel(self: Lane, limit: int) -> list[LaneCall]:
        has_quitter = any(call.future.done() for call in self._gathered)
        batch = take(self, limit)
        for call in batch if has_quitter else ():
            self._loop.call_soon_threadsafe(call.future.cancel)
        return batch

    patch.setattr(Lane, "_take", take_or_cancel)


def tell_in_the_caller(patch: pytest.MonkeyPatch) -> None:
    """Call on_end in the task of the caller, who may be cancelled meanwhile."""
    ended: list[Record] = []

    async def call(self: Endings, is_meant: Callable[[Record], bool]) -> None:
        for record in filter(is_meant, ended.copy()):
            ended.remove(record)
            if self._on_end is not None:
                await self._call(self._on_end, record)

    def remember(self: Endings, commit: Commit) -> None:
        ended.extend(commit.ended)

    patch.setattr(Endings, "on_commit", remember)
    patch.setattr(Endings, "wait", call)


def forget_the_sweeper(patch: pytest.MonkeyPatch) -> None:
    """Close without ending the sweeper's task."""
    patch.setattr(Sweeper, "stop", lambda self: asyncio.sleep(0))


@pytest.mark.parametrize(
    "break_it, symptom",
    [
        (cancel_neighbours, "nobody had cut off"),
        (tell_in_the_caller, "on_end was not called"),
        (forget_the_sweeper, "left behind"),
    ],
)
async def test_a_broken_shelter_is_caught(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    break_it: Callable[[pytest.MonkeyPatch], None],
    symptom: str,
) -> None:
    """Calls that take others along, ends that nobody hears of, and tasks that are left are seen."""
    break_it(monkeypatch)
    faults = await weather(tmp_path, storms=20, callers=20, rounds=40)
    assert any(symptom in fault for fault in faults), faults


# -- open() and close(), cut off at each step ------------------------------------------------------


class CutStore(SQLiteStore):
    """A store whose open() or close() is cut off when it suspends for the nth time.

    Whose task is cancelled: the caller's, or all that there are. "at once": before what is waited
    for has happened; "too late": when it has, and before the task hears of it; "for ever": from
    then on each time that it suspends.
    """

    def __init__(self, database: Path, method: str, step: int, whose: str, mode: str) -> None:
        super().__init__(database)
        self._method = method
        self._step = step
        self._mode = mode
        self._whose = whose
        self._spared = asyncio.current_task()  # the test's own
        self.caller: asyncio.Task[None] | None = None
        self.was_cut = False

    async def open(self, listener: Listener, now: int) -> None:
        """Open, or begin to."""
        opening = super().open(listener, now)
        await (Steps(opening, self._suspend) if self._method == "open" else opening)

    async def close(self) -> None:
        """Close, or begin to."""
        closing_ = super().close()
        await (Steps(closing_, self._suspend) if self._method == "close" else closing_)

    def _suspend(self, waited_for: "asyncio.Future[Any] | None") -> None:
        self._step -= 1
        if self._step == 0 or (self._step < 0 and self._mode == "for ever"):
            self.was_cut = True
            if self._mode == "too late" and waited_for is not None:
                waited_for.add_done_callback(self._cancel)
            else:
                asyncio.get_running_loop().call_soon(self._cancel)

    def _cancel(self, _: object = None) -> None:
        tasks = asyncio.all_tasks() if self._whose == "all" else {self.caller}
        for task in tasks - {self._spared, None}:
            task.cancel()  # type: ignore[union-attr]


class Steps:
    """Awaits a coroutine, and calls a function each time that it suspends."""

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, None],
        on_suspend: Callable[["asyncio.Future[Any] | None"], None],
    ) -> None:
        self._coroutine = coroutine
        self._on_suspend = on_suspend

    def __await__(self) -> Generator[Any, Any, None]:
        """Suspend when the coroutine does."""
        error: BaseException | None = None
        while True:
            try:
                waited_for = (
                    self._coroutine.send(None) if error is None else self._coroutine.throw(error)
                )
            except StopIteration:
                return
            self._on_suspend(waited_for)
            error = None
            try:
                yield waited_for
            except BaseException as thrown:
                error = thrown


async def cut(store: CutStore, call: Coroutine[Any, Any, None]) -> bool:
    """Make the call, which is cut off by its store; return whether it ended as cancelled."""
    store.caller = asyncio.create_task(call)
    async with asyncio.timeout(PATIENCE):
        await asyncio.wait({store.caller})
    if store.caller.cancelled():
        return True
    store.caller.result()
    return False


def make_nothing(_: Path) -> None:
    """Leave a file to be made."""


def make_current(database: Path) -> None:
    """Make a file of today."""
    old_files.make_release(len(MIGRATIONS), database, 0, old_files.APPLIED_AT)


def make_older(database: Path) -> None:
    """Make a file of 0.1.0."""
    old_files.RELEASES["0.1.0"](database, 0, old_files.APPLIED_AT)


# Of all tasks, those that clean up among them, none could ever end if they were cancelled for ever.
WAYS = pytest.mark.parametrize(
    "whose, mode",
    [(whose, mode) for whose in ("caller", "all") for mode in ("at once", "too late")]
    + [("caller", "for ever")],
)
FILES = {"new": make_nothing, "today's": make_current, "0.1.0": make_older}


async def open_and_cut(folder: Path, kind: str, whose: str, mode: str) -> tuple[int, list[str]]:
    """Cut open() off at each of its steps; return how many there are, and what was left behind."""
    threads, files = threading.active_count(), descriptors()
    template = folder / "template.db"
    FILES[kind](template)
    for step in range(1, 100):
        database = folder / f"{step}.db"
        if template.exists():
            shutil.copy(template, database)
        store = CutStore(database, "open", step, whose, mode)
        sessions = SessionManager(store)
        if not await cut(store, sessions.open()):
            await sessions.close()
        if not await soon(partial(nothing_left, threads, files)):
            return step, [f"after step {step}: {asyncio.all_tasks()}, {threading.enumerate()}"]
        await visit(database)
        assert is_free(database)
        if not store.was_cut:
            return step, []
    raise AssertionError("it never opened")


@pytest.mark.parametrize(
    "kind, whose, mode",
    [
        ("new", "caller", "at once"),
        ("today's", "caller", "too late"),
        ("0.1.0", "caller", "for ever"),
        ("new", "all", "at once"),
    ],
)
async def test_open_can_be_cut_off_at_each_step(
    tmp_path: Path, kind: str, whose: str, mode: str
) -> None:
    """It takes back what it had begun, however often it is cancelled, and the next one works."""
    steps, left = await open_and_cut(tmp_path, kind, whose, mode)
    assert left == []
    assert steps > 3


@pytest.mark.torture
@WAYS
@pytest.mark.parametrize("kind", FILES)
async def test_open_of_any_file_can_be_cut_off_in_any_way(
    tmp_path: Path, kind: str, whose: str, mode: str
) -> None:
    """The same as above, for each kind of file and each way of cancelling, 20 times."""
    for number in range(20):
        (tmp_path / str(number)).mkdir()
        steps, left = await open_and_cut(tmp_path / str(number), kind, whose, mode)
        assert left == []
        assert steps > 3


async def close_and_cut(folder: Path, whose: str, mode: str) -> tuple[int, list[str]]:
    """Cut close() off at each of its steps, in traffic; return their number, and what was left."""
    threads, files = threading.active_count(), descriptors()
    for step in range(1, 100):
        database = folder / f"{step}.db"
        store = CutStore(database, "close", step, whose, mode)
        sessions = SessionManager(store, on_end=lambda _: asyncio.sleep(0.001))
        await sessions.open()
        calls = [asyncio.create_task(sessions.create_session("lina")) for _ in range(40)]
        calls += [asyncio.create_task(live_shortly(sessions)) for _ in range(5)]
        await asyncio.sleep(0)
        await cut(store, sessions.close())
        was_cut = store.was_cut
        await sessions.close()  # there is nothing left to do for it
        results = await asyncio.gather(*calls, return_exceptions=True)
        if not await soon(partial(nothing_left, threads, files)):
            return step, [f"after step {step}: {asyncio.all_tasks()}, {threading.enumerate()}"]
        ids = {result for result in results if isinstance(result, str)}
        refused = {type(result) for result in results if not isinstance(result, str)}
        assert refused <= {StoreClosedError, asyncio.CancelledError}
        assert ids <= {id_ for rows in kills.read(database).rows.values() for id_ in rows}
        assert is_free(database)
        if not was_cut:
            return step, []
    raise AssertionError("it never closed")


async def live_shortly(sessions: SessionManager) -> str:
    """Create a session, end it, and return its id."""
    id_ = await sessions.create_session("ben")
    await sessions.end_session(id_)
    return id_


@WAYS
async def test_close_can_be_cut_off_at_each_step(tmp_path: Path, whose: str, mode: str) -> None:
    """It is finished all the same, and what was accepted before it is in the file."""
    steps, left = await close_and_cut(tmp_path, whose, mode)
    assert left == []
    assert steps >= 2


async def test_an_open_that_does_not_clean_up_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a cancelled open() leaves its store open, the test above sees that."""
    left_open: list[SQLiteStore] = []
    close = SQLiteStore.close

    async def close_later(self: SQLiteStore) -> None:
        left_open.append(self)

    monkeypatch.setattr(SQLiteStore, "close", close_later)
    _, left = await open_and_cut(tmp_path, "new", "caller", "at once")
    for store in left_open:
        await close(store)
    assert left != []


@pytest.mark.parametrize("program", [hold_sidecar, hold_sqlite])
async def test_close_does_not_wait_for_long_for_a_lock(database: Path, program: Program) -> None:
    """A store that has all its patience is closed in time, and who waits hears StoreBusyError."""
    sessions = SessionManager(database, sweep_interval=0.01)
    await sessions.open()
    id_ = await sessions.create_session("lina")
    with holding(program, database):
        given_up = [asyncio.create_task(sessions.update_activity(id_)) for _ in range(20)]
        await asyncio.sleep(0.05)  # a sweep waits behind them
        waiting = [asyncio.create_task(sessions.update_activity(id_)) for _ in range(1_000)]
        await asyncio.sleep(0.05)
        for task in given_up:
            task.cancel()
        started = time.monotonic()
        await sessions.close()
        assert time.monotonic() - started < in_time()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(result) for result in results} == {StoreBusyError}
    await visit(database)
    ((status, _, _, count),) = kills.read(database).rows["lina"].values()
    assert (status, count) == ("active", 0)


async def test_close_after_a_wait_in_vain_finishes_what_was_accepted(database: Path) -> None:
    """A lock that was in the way before is of no account when the store is closed."""
    async with SessionManager(database, busy_timeout=1) as sessions:
        id_ = await sessions.create_session("lina")
        with holding(hold_sqlite, database), pytest.raises(StoreBusyError):
            await sessions.update_activity(id_)
        touching = [asyncio.create_task(sessions.update_activity(id_)) for _ in range(1_200)]
        await asyncio.sleep(0)
    assert await asyncio.gather(*touching) == [True] * 1_200


# -- An event loop that is closed under a store ----------------------------------------------------


def abandon(database: Path, calls: int) -> None:
    """Open a store and call it in an event loop that is closed, and leave the store to itself."""

    async def begin() -> None:
        sessions = SessionManager(database, sweep_interval=0.01, on_end=lambda _: None)
        await sessions.open()
        id_ = await sessions.create_session("lina")
        tasks = [asyncio.create_task(sessions.update_activity(id_)) for _ in range(calls)]
        tasks += [asyncio.create_task(sessions.end_session(id_)) for _ in range(calls)]
        if tasks:
            await tasks[0]

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    loop.close()


def abandon_some(folder: Path, calls: int, stores: int = 3, patience: float = 5.0) -> list[str]:
    """Abandon stores one after the other; return what each has left."""
    left = []
    threads, files = threading.active_count(), descriptors()
    for number in range(stores):
        database = folder / f"{number}.db"
        abandon(database, calls)
        asyncio.run(visit(database))  # nothing is in its way
        deadline = time.monotonic() + patience
        while left_over := (threading.active_count() - threads, descriptors() - files):
            gc.collect()
            if left_over == (0, 0) or time.monotonic() > deadline:
                break
            time.sleep(0.002)
        if left_over != (0, 0):
            left.append("{} threads and {} descriptors".format(*left_over))
        assert is_free(database)
    return left


@pytest.fixture
def _forgetful(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Have Python and asyncio not complain of what a closed loop has left behind."""
    with warnings.catch_warnings(), caplog.at_level(logging.CRITICAL, "asyncio"):
        warnings.simplefilter("ignore", ResourceWarning)
        warnings.filterwarnings("ignore", ".*was never awaited", RuntimeWarning)
        yield


@pytest.mark.usefixtures("_forgetful")
@pytest.mark.parametrize("calls", [0, 1, 500])
def test_a_store_of_a_closed_loop_leaves_nothing(tmp_path: Path, calls: int) -> None:
    """With calls in flight or not, its threads and descriptors go, and it is in nobody's way."""
    assert abandon_some(tmp_path, calls) == []


# -- Processes that end ----------------------------------------------------------------------------

PROLOGUE = """
import asyncio, logging, os, pathlib, random, signal, sys, threading, time, warnings
from sessionstore import SessionManager
from tests.torture import kills

warnings.simplefilter("ignore", ResourceWarning)
warnings.filterwarnings("ignore", ".*was never awaited", RuntimeWarning)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
chance = random.Random({seed})
life = kills.Life("life", pathlib.Path("sessions.db"), {seed})
tasks = []
begun = asyncio.Event()


def say_when():
    print(time.monotonic(), flush=True)


async def wait():
    await begun.wait()
    await asyncio.sleep(chance.uniform(0.0, 0.2))


async def begin():
    global sessions
    sessions = SessionManager(life.database, sweep_interval=0.05)
    await sessions.open()
    log = kills.Log(life.log)
    tasks.extend(asyncio.create_task(task) for task in kills.traffic(sessions, life, log))
    while life.log.stat().st_size < 1_000:
        await asyncio.sleep(0.001)
    begun.set()


async def serve():
    await begin()
    try:
        print("ready", flush=True)
        await asyncio.Event().wait()
    finally:
        await sessions.close()

"""

# How a process comes to its end, and with which exit code. None: a signal handler that raises does
# so in any line of Python's and asyncio's own code, too; such a process may end in any way, or not.
ENDINGS: dict[str, tuple[str, int | None]] = {
    "SIGTERM": ("asyncio.run(serve())", -signal.SIGTERM),
    "SIGTERM that cancels": (
        """
        async def main():
            task = asyncio.current_task()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
            await serve()

        try:
            asyncio.run(main())
        except asyncio.CancelledError:
            sys.exit(3)
        """,
        3,
    ),
    "SIGTERM that raises": (
        """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
        asyncio.run(serve())
        """,
        None,
    ),
    "SIGINT": (
        """
        try:
            asyncio.run(serve())
        except KeyboardInterrupt:
            sys.exit(3)
        """,
        3,
    ),
    "SIGINT, twice": ("asyncio.run(serve())", None),
    "return": (
        """
        async def main():
            await begin()
            await wait()
            say_when()

        asyncio.run(main())
        """,
        0,
    ),
    "sys.exit": (
        """
        async def main():
            await begin()
            await wait()
            say_when()
            sys.exit(3)

        asyncio.run(main())
        """,
        3,
    ),
    "os._exit": (
        """
        async def main():
            await begin()
            await wait()
            say_when()
            os._exit(3)

        asyncio.run(main())
        """,
        3,
    ),
    "a task that fails": (
        """
        async def fail():
            await wait()
            say_when()
            raise RuntimeError

        async def main():
            async with asyncio.TaskGroup() as group:
                group.create_task(serve())
                group.create_task(fail())

        try:
            asyncio.run(main())
        except* RuntimeError:
            sys.exit(3)
        """,
        3,
    ),
    "a closed loop": (
        """
        async def main():
            await begin()
            await wait()

        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        loop.close()
        logging.disable()  # asyncio complains of the tasks
        say_when()
        """,
        0,
    ),
    "a daemon thread": (
        """
        threading.Thread(target=asyncio.run, args=[serve()], daemon=True).start()
        while not begun.is_set():
            time.sleep(0.001)
        time.sleep(chance.uniform(0.0, 0.2))
        say_when()
        sys.exit(3)
        """,
        3,
    ),
}


def end_process(
    ending: str,
    folder: Path,
    seed: int,
    break_it: str = "",
    limit: float | None = None,
    locked_by: Program | None = None,
) -> tuple[float, int, list[str]]:
    """Have a process in traffic end, a real interpreter, since its end is what is tested.

    Return how long that took, how many calls it had acknowledged, and what is wrong afterwards.
    """
    script, code = ENDINGS[ending]
    limit = limit or in_time()
    chance = random.Random(seed)
    database = folder / "sessions.db"
    program = PROLOGUE.format(seed=seed) + break_it + textwrap.dedent(script)
    with start_interpreter(program, folder) as process, ExitStack() as locks:
        assert process.stdout is not None
        assert process.stderr is not None
        word = process.stdout.readline()
        if ending.startswith("SIG"):
            assert word == "ready\n", process.stderr.read()
            if locked_by is not None:
                locks.enter_context(holding(locked_by, database))
            time.sleep(chance.uniform(0.0, 0.2))
            started = time.monotonic()
            process.send_signal(signal.Signals[ending.split()[0].strip(",")])
            if ending.endswith("twice"):
                time.sleep(chance.uniform(0.0, 0.02))
                process.send_signal(signal.SIGINT)
        else:
            while word == "ready\n":
                word = process.stdout.readline()
            assert word, process.stderr.read()
            started = float(word)
        with suppress(subprocess.TimeoutExpired):
            process.wait(limit)
        took = time.monotonic() - started
        process.kill()
        errors = process.stderr.read()
    faults: list[str] = []
    if code is not None:
        if process.returncode != code or (errors and locked_by is None):
            faults.append(f"it returned {process.returncode}: {errors}")
        if took >= limit:
            faults.append(f"it took {took:.1f} s")
    if not is_free(database):
        faults.append("a lock is held")
    ledger = Ledger()
    faults += ledger.settle([kills.read_log(folder / "life.log")[0]], kills.read(database))
    asyncio.run(visit(database))
    print(f"{ending}: {ledger.acknowledged} acknowledged calls, it ended in {took:.3f} s")
    return took, ledger.acknowledged, faults


def start_interpreter(script: str, folder: Path) -> "subprocess.Popen[str]":
    """Start a program in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end_processes(ending: str, folder: Path, number: int, locked_by: Program | None = None) -> None:
    """Have so many processes end, and demand that each does so in time and loses nothing."""
    slowest, acknowledged = 0.0, 0
    for run in range(number):
        seed = draw_seed()
        (folder / str(run)).mkdir()
        took, count, faults = end_process(ending, folder / str(run), seed, locked_by=locked_by)
        assert faults == [], f"SEED={seed}"
        slowest, acknowledged = max(slowest, took), acknowledged + count
    print(f"{ending}: {number} ends, {acknowledged:,} calls before, the slowest in {slowest:.3f} s")
    assert acknowledged


FEW_ENDINGS = [
    "SIGTERM",
    "SIGTERM that cancels",
    "a task that fails",
    "a closed loop",
    "a daemon thread",
]


@pytest.mark.parametrize("ending", FEW_ENDINGS)
def test_a_process_ends_in_the_middle_of_traffic(tmp_path: Path, ending: str) -> None:
    """It ends within two seconds, leaves no lock, and what it had acknowledged is in the file."""
    end_processes(ending, tmp_path, 1)


@pytest.mark.torture
@pytest.mark.parametrize("ending", ENDINGS)
def test_many_processes_end_in_the_middle_of_traffic(tmp_path: Path, ending: str) -> None:
    """The same as above, 30 times each."""
    end_processes(ending, tmp_path, 30)


@pytest.mark.torture
@pytest.mark.parametrize("ending", ["SIGTERM", "SIGTERM that cancels", "SIGINT"])
@pytest.mark.parametrize("program", [hold_sidecar, hold_sqlite])
def test_processes_end_while_another_holds_a_lock(
    tmp_path: Path, ending: str, program: Program
) -> None:
    """With the lock in the way of all their writes, processes end as fast, 10 of each."""
    end_processes(ending, tmp_path, 10, program)


def test_a_process_that_hangs_is_caught(tmp_path: Path) -> None:
    """Where the threads of a forgotten store hold up the end, the test above sees that."""
    break_it = "threading.Thread.daemon = property(lambda *_: False, lambda *_: None)\n"
    *_, faults = end_process("return", tmp_path, draw_seed(), break_it, limit=1.0)
    assert any("it took" in fault for fault in faults), faults
