# SPDX-License-Identifier: MIT
"""The life of a store on a disk that fails, in a process of its own, and what may be left of it.

The process makes one call to the disk fail, or all from that one on, and leads a store through its
life meanwhile. Each call of the store must return what is right, or raise StorageError. The Ledger
knows what each session may look like then: one way after a call that returned, one more for each
that raised. In the middle, with the disk still failing, and at the end the parent looks at the
file.
"""

import asyncio
import errno
import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TypeGuard

from sessionstore import Session, SessionManager, StorageError
from sessionstore.sqlite import operations, queries, store, writer
from sessionstore.sqlite.lane import Call, Done, Lane
from sessionstore.store import Swept

from ..conftest import FakeClock
from ..sqlite.tools import longest_gap
from . import disk
from .disk import Kind

DATABASE = Path("new", "sessions.db")
INDEXED_FRAMES = 4_062  # that the first 32 KB of the WAL's index hold
FRAME = 2_072  # bytes: a page and its header
BATCH = 4  # calls at once: one failing call to the disk may make all of them raise
PATIENCE = 20.0  # seconds until a call that says nothing counts as hung
READERS_NEED_NOT = {Kind.WRITE, Kind.SYNC, Kind.TRUNCATE, Kind.UNLINK, Kind.MKDIR, Kind.LOCK}

# What a session may look like: its status, its interactions and its data; None if it is not there.
State = tuple[str, int, int] | None
Step = Callable[[State], State]


@dataclass
class Fault:
    """What fails."""

    kind: Kind
    number: int  # of the call, among those of its kind
    error: int
    lasting: bool = False
    hang: float = 0.0  # seconds for which each failing call hangs first
    long_wal: bool = False  # whether the WAL is about to need more of its index from the first on
    broken: str = ""  # on purpose: "lies", "no try" or "in the loop"

    def __str__(self) -> str:
        how = "from call {} on" if self.lasting else "call {}"
        return f"{Kind(self.kind).name} {errno.errorcode[self.error]} {how.format(self.number)}"


@dataclass
class Account:
    """What the process tells its parent."""

    may_be: dict[str, list[State]]  # by child
    violations: list[str]
    failed: int = 0  # calls to the disk
    raised: int = 0  # calls of the store
    returned: int = 0
    longest_gap: float = 0.0  # seconds in which the event loop stood still


# -- In the process whose disk fails ---------------------------------------------------------------


RAISED = object()


class Ledger:
    """Makes the calls, checks what they return, and knows what may be in the file."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self._is_failing = True
        self.account = Account({}, [])
        self._ids: dict[str, str] = {}

    def be_well(self) -> None:
        """From now on nothing may raise."""
        self._is_failing = False

    def id_of(self, child: str) -> str:
        """Return the id of a child's session; of a made-up one if creating it has raised."""
        return self._ids.get(child, "0" * 36)

    async def call(self, name: str, call: Awaitable[object]) -> Any:
        """Make a call; return its result, or RAISED if it raised StorageError."""
        account = self.account
        try:
            async with asyncio.timeout(PATIENCE):
                result = await call
        except StorageError as error:
            account.raised += 1
            if not self._is_failing:
                account.violations.append(f"{name} raised on a sound disk: {error!r}")
            return RAISED
        except Exception as error:
            account.raised += 1
            account.violations.append(f"{name} raised {error!r}")
            return RAISED
        account.returned += 1
        return result

    async def create(self, sessions: SessionManager, child: str) -> None:
        """Create the session of a child."""
        id_ = await self.call("create_session", sessions.create_session(child))
        self.account.may_be[child] = [("active", 0, 0)]
        if id_ is RAISED:
            self.account.may_be[child].append(None)
        else:
            self._ids[child] = id_

    async def change(self, name: str, child: str, call: Awaitable[bool], step: Step) -> None:
        """Make a call that changes the session of one child."""
        changed = await self.call(name, call)
        if child not in self._ids:  # nobody knows its id, so the call was about no session
            if changed is True:
                self.account.violations.append(f"{name} changed a session that is not there")
            return
        before = self.account.may_be[child]
        if changed is RAISED:
            self.account.may_be[child] = _unique([*before, *map(step, before)])
            return
        possible = [step(state) for state in before if (step(state) != state) == changed]
        if not possible:
            self.account.violations.append(f"{name} returned {changed} for one of {before}")
        self.account.may_be[child] = _unique(possible)

    async def change_all(self, name: str, call: Awaitable[int], *steps: Step) -> None:
        """Make a call that changes whatever sessions it finds, in one transaction or several."""
        raised = await self.call(name, call) is RAISED
        for child, states in self.account.may_be.items():
            for step in steps:
                states = _unique([*(states if raised else []), *map(step, states)])
            self.account.may_be[child] = states

    async def look(self, sessions: SessionManager) -> None:
        """Read everything in each way."""
        for child, id_ in self._ids.items():
            session = await self._read("get_session", sessions.get_session(id_))
            if session is not RAISED:
                self._see(child, [session] if session else [])
        every = await self._read("list_sessions", sessions.list_sessions())
        await self._read("get_session_stats", sessions.get_session_stats())
        for child in self.account.may_be if every is not RAISED else ():
            self._see(child, [session for session in every if session.child_id == child])

    async def _read(self, name: str, call: Awaitable[object]) -> Any:
        result = await self.call(name, call)
        if result is RAISED and self._fault.kind in READERS_NEED_NOT:
            self.account.violations.append(f"{name} raised, but only writing fails")
        return result

    def _see(self, child: str, found: Sequence[Session]) -> None:
        states = [_state_of(session) for session in found] or [None]
        if len(states) > 1 or states[0] not in self.account.may_be[child]:
            may_be = self.account.may_be[child]
            self.account.violations.append(f"{child} was seen as {states}, not as one of {may_be}")


def _unique(states: Iterable[State]) -> list[State]:
    return list(dict.fromkeys(states))


def _state_of(session: Session) -> State:
    return session.status.value, session.interaction_count, int(session.data.get("n", 0))


def _is_active(state: State) -> TypeGuard[tuple[str, int, int]]:
    return state is not None and state[0] == "active"


def touched(state: State) -> State:
    """Return what a session becomes by update_activity."""
    return (state[0], state[1] + 1, state[2]) if _is_active(state) else state


def numbered(number: int) -> Step:
    """Return what makes of a session what update_session with a number does."""
    return lambda state: (state[0], state[1], number) if _is_active(state) else state


def ended(state: State) -> State:
    """Return what a session becomes by end_session."""
    return ("ended", *state[1:]) if _is_active(state) else state


def timed_out(state: State) -> State:
    """Return what a session becomes by cleanup_inactive_sessions."""
    return ("timeout", *state[1:]) if _is_active(state) else state


def erased(_: State) -> State:
    """Return what a session becomes by delete_session."""
    return None


def purged(state: State) -> State:
    """Return what a session becomes by purge_ended_sessions(0)."""
    return state if _is_active(state) else None


class Trial:
    """One life of a store with one fault."""

    def __init__(self, fault: Fault, folder: Path) -> None:
        self._fault = fault
        self._ledger = Ledger(fault)
        self._path = folder / DATABASE
        self._clock = FakeClock()
        self._is_well = False
        self._made = 0

    async def suffer(self) -> Account:
        """Live with the fault, and leave the store open."""
        if self._fault.long_wal:
            await self._lengthen_wal()
        disk.fail(
            self._fault.kind,
            self._fault.number,
            self._fault.error,
            lasting=self._fault.lasting,
            hang=self._fault.hang,
        )
        await self._watched(self._live_twice())
        return self._ledger.account

    async def recover(self) -> Account:
        """Mend the disk; everything must work again at once, and close."""
        self._heal()
        await self._watched(self._live(self._manager))
        account = self._ledger.account
        await self._ledger.call("close", self._manager.close())
        if self._fault.long_wal:
            await self._other.close()
        if account.raised > BATCH and not self._fault.lasting:
            account.violations.append(f"one failing call made {account.raised} calls raise")
        return account

    async def _lengthen_wal(self) -> None:
        """Fill the WAL nearly as far as the first part of its index reaches."""
        queries.SET_WAL_AUTOCHECKPOINT = "PRAGMA wal_autocheckpoint = 0"
        self._other = SessionManager(self._path, sweep_interval=None)
        await self._other.open()
        id_ = await self._other.create_session("long")
        while os.stat(f"{self._path}-wal").st_size < (INDEXED_FRAMES - 50) * FRAME:
            await self._other.update_session(id_, {"text": "x" * 10_000})
        await self._other.delete_session(id_)

    async def _watched(self, living: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(living)
        gap = await longest_gap(task)
        self._ledger.account.longest_gap = max(self._ledger.account.longest_gap, gap)
        await task

    async def _live_twice(self) -> None:
        await self._open()
        await self._live(self._manager)
        await self._ledger.call("close", self._manager.close())
        await self._open()
        await self._live(self._manager, purge=False)

    async def _open(self) -> None:
        """Open; if that raises, once more, on a sound disk if it would raise for ever."""
        self._manager = SessionManager(
            self._path, clock=self._clock, sweep_interval=None, cache_size=2
        )
        raised = self._ledger.account.raised
        await self._ledger.call("open", self._manager.open())
        if self._ledger.account.raised > raised:
            if self._fault.lasting:
                self._heal()
            await self._ledger.call("open", self._manager.open())

    def _heal(self) -> None:
        if not self._is_well:
            self._ledger.account.failed = disk.heal()
        self._is_well = True
        self._ledger.be_well()

    async def _live(self, sessions: SessionManager, *, purge: bool = True) -> None:
        ledger, id_of = self._ledger, self._ledger.id_of
        self._made += 1
        ada, ben, cleo, dan = (f"{name} {self._made}" for name in ("ada", "ben", "cleo", "dan"))
        if self._fault.broken == "in the loop":
            write_in_the_loop(self._path, self._fault.hang)
        await ledger.create(sessions, ada)
        await ledger.create(sessions, ben)
        await self._touch(ada)
        await self._update(ada, 1)
        await ledger.look(sessions)
        await asyncio.gather(
            ledger.create(sessions, cleo),
            ledger.create(sessions, dan),
            self._update(ada, 2),
            self._touch(ben),
        )
        await self._touch(dan)
        await ledger.look(sessions)
        await ledger.change("end_session", ben, sessions.end_session(id_of(ben)), ended)
        await ledger.change("delete_session", cleo, sessions.delete_session(id_of(cleo)), erased)
        await ledger.look(sessions)
        if purge:
            self._clock.turn(1_800)
            await ledger.change_all("cleanup", sessions.cleanup_inactive_sessions(), timed_out)
            await ledger.change_all("purge", sessions.purge_ended_sessions(0), timed_out, purged)
            await ledger.look(sessions)
            await ledger.create(sessions, f"eve {self._made}")

    async def _touch(self, child: str) -> None:
        touch = self._manager.update_activity(self._ledger.id_of(child))
        await self._ledger.change("update_activity", child, touch, touched)

    async def _update(self, child: str, number: int) -> None:
        """Set a number, and enough text for many pages."""
        data = {"n": number, "text": str(number) * 10_000}
        update = self._manager.update_session(self._ledger.id_of(child), data)
        await self._ledger.change("update_session", child, update, numbered(number))


# -- What is broken on purpose ---------------------------------------------------------------------


def lie() -> None:
    """Have writes that failed count as done."""
    write = writer.Writer._write

    def write_and_lie(
        self: writer.Writer, lane: Lane, calls: Sequence[Call], done: list[Done]
    ) -> None:
        write(self, lane, calls, done)
        for number, (outcomes, commit) in enumerate(done):
            lies = [(call, _lie_of(call, result)) for call, result in outcomes]
            done[number] = Done(lies, commit)

    writer.Writer._write = write_and_lie  # type: ignore[method-assign]


def _lie_of(call: Call, result: object) -> object:
    if not isinstance(result, Exception):
        return result
    is_sweep = getattr(call.operation, "apply", None) is operations.time_out
    return Swept(1, has_more=False) if is_sweep else 1


def open_without_trying() -> None:
    """Have open() believe that what it can read it can write."""
    store.check_that_it_writes = lambda *_: None  # type: ignore[attr-defined]


def write_in_the_loop(path: Path, hang: float) -> None:
    """Write in the event loop's own thread, as nobody should, while the disk hangs."""
    disk.fail(Kind.OPEN, 1, errno.EIO, hang=hang)
    with suppress(sqlite3.Error), closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS others (id)")


def main() -> None:
    """Be the process whose disk fails, for one trial after the other."""
    logging.disable()
    queries.SET_WAL_AUTOCHECKPOINT = "PRAGMA wal_autocheckpoint = 25"
    for line in sys.stdin:
        order = json.loads(line)
        fault = Fault(**order["fault"])
        if fault.broken == "lies":
            lie()
        if fault.broken == "no try":
            open_without_trying()
        asyncio.run(_try(Trial(fault, Path(order["folder"]))))


async def _try(trial: Trial) -> None:
    print(json.dumps(asdict(await trial.suffer())), flush=True)
    sys.stdin.readline()  # the parent looks at the file meanwhile
    print(json.dumps(asdict(await trial.recover())), flush=True)


# -- In the parent ---------------------------------------------------------------------------------


class Patient:
    """The process whose disk fails, as its parent sees it."""

    def __init__(self, library: Path, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            cwd=disk.ROOT,
            env=disk.environment(library, folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def endure(self, fault: Fault) -> Account:
        """Lead a store through its life with a fault; check the file in the middle and after it."""
        self._number += 1
        folder = self._folder / str(self._number)
        folder.mkdir()
        account = self._ask({"fault": asdict(fault), "folder": os.path.realpath(folder)})
        # As a crash at this moment would leave it.
        shutil.copytree(folder, folder.with_suffix(".crash"))
        problems = check(folder.with_suffix(".crash") / DATABASE, account.may_be)
        account = self._ask("go on")
        problems += check(folder / DATABASE, account.may_be)
        account.violations += problems
        for left in (folder, folder.with_suffix(".crash")):
            shutil.rmtree(left)
        return account

    def _ask(self, order: object) -> Account:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(order)}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process has died"
        account = Account(**json.loads(answer))
        account.may_be = {
            child: [(state[0], state[1], state[2]) if state else None for state in states]
            for child, states in account.may_be.items()
        }
        return account


def check(path: Path, may_be: dict[str, list[State]]) -> list[str]:
    """Return what is wrong with a file in which each child's session may be as given."""
    try:
        with closing(sqlite3.connect(path)) as connection:
            problems = connection.execute("PRAGMA integrity_check").fetchall()
            rows = connection.execute(
                "SELECT child_id, status, interaction_count, ifnull(json_extract(data, '$.n'), 0)"
                "  FROM sessions"
            ).fetchall()
    except sqlite3.Error as error:
        return [f"{type(error).__name__}: {error}"]
    found = {child: (status, count, number) for child, status, count, number in rows}
    wrong = [f"{child} is unknown" for child in found.keys() - may_be.keys()]
    wrong += [
        f"{child} is {found.get(child)} in the file, not one of {states}"
        for child, states in may_be.items()
        if found.get(child) not in states
    ]
    if len(found) != len(rows):
        wrong.append("a child has two sessions")
    if problems != [("ok",)]:
        wrong.append(str(problems))
    return wrong


if __name__ == "__main__":
    main()
