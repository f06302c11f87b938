# SPDX-License-Identifier: MIT
"""Histories: what many processes on one file called, when, with what result; and what must hold.

Workers are processes of their own, which run the same random operations on a small window of hot
sessions. The window moves with the machine's monotonic clock, so that all go on together when the
sessions in it have ended. Each call leaves a record before it begins and one after it has returned,
written at once, so that they survive SIGKILL. Sessions never time out: the timeout is a day.

The checker sorts the calls of each session by time, and asks nothing of calls that overlap. A call
that began after another one had returned must see at least what that one did or saw. A call that
was invoked and never returned, since its process was killed, may have happened or not.

By hand: `python -m tests.torture.history run --help`.
"""

import argparse
import asyncio
import json
import os
import random
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple, Self
from zlib import crc32

from sessionstore import SessionManager
from sessionstore.cache import Cache, Entry, Ticket
from sessionstore.session import Record
from sessionstore.sqlite import reader
from sessionstore.sqlite.sidecar import SLOTS, Sidecar
from sessionstore.store import Commit

ROOT = Path(__file__).parents[2]
DAY = 86_400.0
SECOND = 1_000_000_000  # nanoseconds
NEVER = 1 << 63
PATIENCE = 60.0  # seconds that a worker may take longer than its run

OPERATIONS = ("get", "touch", "update", "end")
GET, TOUCH, UPDATE, END = range(len(OPERATIONS))
STATUSES = ("absent", "active", "ended", "timeout", "error")
ABSENT, ACTIVE, ENDED = range(3)

# Time, number of the call, session, count, operation, result. Its size divides that of a page, so
# that SIGKILL never cuts one in two.
RECORD = struct.Struct("<QIIiBB10x")
INVOKED = 255  # stands for the result in the record before the call


@dataclass(frozen=True)
class Workload:
    """What the workers do, for how long, and on what."""

    processes: int = 4
    hot: int = 12  # sessions in the window
    period: float = 0.25  # seconds until the window moves
    write_share: float = 0.05
    seconds: float = 1.5
    tasks: int = 6  # of each manager
    cache_size: int = 1_000
    sweep_interval: float = 0.2  # seconds
    broken: str = ""  # a key of BREAKS

    @property
    def sessions(self) -> int:
        """How many sessions all windows together have."""
        return self.hot * (int(self.seconds / self.period) + 1)

    def choose(self, age: int) -> tuple[int, int]:
        """Return an operation and a session, for nanoseconds since the start.

        In the first half of its time in the window, no session is ended.
        """
        window, position = divmod(age, int(self.period * SECOND))
        session = min(window * self.hot, self.sessions - self.hot) + random.randrange(self.hot)
        if random.random() >= self.write_share:
            return GET, session
        is_late = position > self.period * SECOND / 2
        kinds = (END, UPDATE, TOUCH)
        return random.choices(kinds, (0.2 if is_late else 0.0, 0.1, 0.7))[0], session

    def open(self, database: Path) -> SessionManager:
        """Return a manager with the settings of the workload."""
        return SessionManager(
            database, timeout=DAY, cache_size=self.cache_size, sweep_interval=self.sweep_interval
        )


class Log:
    """The records of one process, in a file, unbuffered."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._calls = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def invoke(self, operation: int, session: int) -> int:
        """Record that a call begins, and return its number."""
        self._calls += 1
        self._write(time.monotonic_ns(), self._calls, session, 0, operation, INVOKED)
        return self._calls

    def returned(self, call: int, operation: int, session: int, result: int, count: int) -> None:
        """Record that a call has returned."""
        self._write(time.monotonic_ns(), call, session, count, operation, result)

    def _write(self, *fields: int) -> None:
        os.write(self._descriptor, RECORD.pack(*fields))


async def create_sessions(workload: Workload, database: Path) -> list[str]:
    """Create the sessions of all windows and return their ids."""
    async with workload.open(database) as manager:
        return await asyncio.gather(
            *(manager.create_session("lina") for _ in range(workload.sessions))
        )


async def play(
    manager: SessionManager, workload: Workload, ids: Sequence[str], start: int, log: Log
) -> None:
    """Run the tasks of one manager, from start on, and record what they call."""

    async def call_until_the_end() -> None:
        while (age := time.monotonic_ns() - start) < workload.seconds * SECOND:
            operation, session = workload.choose(age)
            call = log.invoke(operation, session)
            result, count = await _call(manager, operation, ids[session])
            log.returned(call, operation, session, result, count)
            await asyncio.sleep(0)  # a hit does not suspend

    await asyncio.sleep((start - time.monotonic_ns()) / SECOND)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(workload.tasks):
            tasks.create_task(call_until_the_end())


async def _call(manager: SessionManager, operation: int, session_id: str) -> tuple[int, int]:
    """Call the manager and return the result, a status or a truth value, and the count seen."""
    if operation == GET:
        session = await manager.get_session(session_id)
        if session is None:
            return ABSENT, 0
        return STATUSES.index(session.status), session.interaction_count
    if operation == TOUCH:
        return await manager.update_activity(session_id), 0
    if operation == UPDATE:
        return await manager.update_session(session_id, {"at": time.monotonic_ns()}), 0
    return await manager.end_session(session_id), 0


def work(plan: Path, log_path: Path) -> None:
    """Be a worker: read the plan, say that the file is open, and start when told."""
    settings = json.loads(plan.read_text())
    workload = Workload(**settings["workload"])
    if workload.broken:
        BREAKS[workload.broken]()

    async def run() -> None:
        async with workload.open(Path(settings["database"])) as manager:
            print("open", flush=True)
            start = int(await asyncio.to_thread(sys.stdin.readline))
            with Log(log_path) as log:
                await play(manager, workload, settings["ids"], start, log)
            stats = await manager.get_session_stats()
            print(json.dumps([stats["cache_hits"], stats["cache_misses"]]))

    asyncio.run(run())


# The protocol, broken on purpose, in the worker alone: what the checker must catch.


def serve_without_check() -> None:
    """Serve whatever is cached."""

    def get_anything(self: Cache, session_id: str) -> Entry | None:
        return self._entries.get(session_id)

    Cache.get = get_anything  # type: ignore[method-assign]


def note_late() -> None:
    """Note the version a little after the SELECT. All that is cached comes from one."""
    load, keep = reader.load, Cache.keep

    def load_slowly(*arguments: Any) -> Any:
        done = load(*arguments)
        time.sleep(0.002)
        return done

    def keep_late(self: Cache, record: Record, ticket: Ticket | None) -> None:
        keep(self, record, self.ticket(record.id))

    def keep_nothing(self: Cache, commit: Commit) -> None:
        for session_id in commit.versions_before:
            self._entries.pop(session_id, None)

    reader.load = load_slowly  # type: ignore[assignment]
    Cache.keep = keep_late  # type: ignore[method-assign]
    Cache.on_commit = keep_nothing  # type: ignore[method-assign]


def set_late() -> None:
    """Mark nothing before COMMIT; set the slots only a while after it."""
    mark, settle = Sidecar.mark, Sidecar.settle

    def mark_nothing(self: Sidecar, session_ids: Iterable[str]) -> dict[str, int]:
        slots = {id_: crc32(id_.encode()) % SLOTS for id_ in session_ids}
        before = {id_: self._words[slot] for id_, slot in slots.items()}
        mark(self, ())
        self._marked = slots
        return before

    def settle_late(self: Sidecar) -> int:
        time.sleep(0.03)
        return settle(self)

    Sidecar.mark = mark_nothing  # type: ignore[method-assign]
    Sidecar.settle = settle_late  # type: ignore[method-assign]


BREAKS = {"no check": serve_without_check, "noted late": note_late, "set late": set_late}


class Call(NamedTuple):
    """One call: by whom, when, and what came of it."""

    worker: str
    session: int
    operation: int
    begin: int  # nanoseconds
    end: int  # NEVER if it is in doubt
    result: int = 1  # a status for GET, a truth value for a write
    seen: int = 0  # the count, for a GET

    @property
    def is_in_doubt(self) -> bool:
        """Whether it was invoked and never returned."""
        return self.end == NEVER

    @property
    def saw_active(self) -> bool:
        """Whether the session was active at some moment during the call."""
        return not self.is_in_doubt and self.result == 1  # ACTIVE, and True

    @property
    def saw_final(self) -> bool:
        """Whether the session was not active any more when the call returned."""
        return not self.is_in_doubt and (self.result != 1 or self.operation == END)

    @property
    def may_have_written(self) -> bool:
        """Whether it changed the session, if it is a write, or may have done so."""
        return self.is_in_doubt or self.result == 1

    def __str__(self) -> str:
        results = STATUSES if self.operation == GET else ("False", "True")
        outcome = "in doubt" if self.is_in_doubt else results[self.result]
        count = f", count {self.seen}" if self.operation == GET else ""
        return (
            f"{OPERATIONS[self.operation]} by {self.worker} [{_milliseconds(self.begin)}.."
            f"{'' if self.is_in_doubt else _milliseconds(self.end)}]: {outcome}{count}"
        )


def _milliseconds(nanoseconds: int) -> str:
    return f"{nanoseconds / 1_000_000:.3f}"


def read_log(path: Path) -> Iterator[Call]:
    """Yield the calls of one process."""
    data = path.read_bytes()
    begins: dict[int, tuple[int, int, int]] = {}
    for time_, call, session, count, operation, result in RECORD.iter_unpack(data):
        if result == INVOKED:
            begins[call] = session, operation, time_
        else:
            session, operation, begin = begins.pop(call)
            yield Call(path.stem, session, operation, begin, time_, result, count)
    for session, operation, begin in begins.values():
        yield Call(path.stem, session, operation, begin, NEVER)


def read_logs(folder: Path) -> list[Call]:
    """Return the calls of all processes that left their logs in the folder."""
    return [call for path in folder.glob("*.log") for call in read_log(path)]


def read_rows(database: Path, ids: Sequence[str]) -> list[tuple[str, int]]:
    """Return the status and the count of each session, as the file has them."""
    with closing(sqlite3.connect(database)) as connection:
        rows = {
            id_: (status, count)
            for id_, status, count in connection.execute(
                "SELECT id, status, interaction_count FROM sessions"
            )
        }
    return [rows[id_] for id_ in ids]


def check(calls: Iterable[Call], rows: Sequence[tuple[str, int]]) -> list[str]:
    """Return a line for each violation. Takes O(n log n) for n calls."""
    by_session: defaultdict[int, list[Call]] = defaultdict(list)
    for call in calls:
        by_session[call.session].append(call)
    return [
        f"session {session}: {violation}"
        for session, (status, count) in enumerate(rows)
        for violation in [
            *_check_end(by_session[session], status),
            *_check_counts(by_session[session], count),
        ]
    ]


def _check_end(history: list[Call], status: str) -> Iterator[str]:
    """Ended once, by one call, and for all who call afterwards."""
    for call in history:
        if call.operation == GET and call.result not in (ACTIVE, ENDED):
            yield f"{call}, which nobody made it"
    winners = [call for call in history if call.operation == END and call.saw_active]
    if len(winners) > 1:
        yield f"ended by {len(winners)} calls: {', '.join(map(str, winners))}"
    possible = [call.begin for call in history if call.operation == END and call.may_have_written]
    first_possible = min(possible, default=NEVER)
    if status != "active" and not possible:
        yield f"{status} in the file, and no call ended it"

    final = min((call for call in history if call.saw_final), key=_end, default=None)
    if final is None:
        return
    if status == "active":
        yield f"active in the file after {final}"
    if final.end < first_possible:
        yield f"{final}, before any call that can have ended it"
    for call in history:
        if call.saw_active and call.begin > final.end:
            yield f"{call}, after {final}"


def _check_counts(history: list[Call], count: int) -> Iterator[str]:
    """Each touch is counted once, at a moment between its begin and its end."""
    touches = [call for call in history if call.operation == TOUCH and call.may_have_written]
    begins = sorted(touch.begin for touch in touches)
    acknowledged = sorted(touch.end for touch in touches if not touch.is_in_doubt)
    if not len(acknowledged) <= count <= len(touches):
        yield (
            f"count {count} in the file: {len(acknowledged)} touches were acknowledged,"
            f" {len(touches) - len(acknowledged)} are in doubt"
        )
    gets = sorted(
        (call for call in history if call.operation == GET and not call.is_in_doubt), key=_end
    )
    ends = [get.end for get in gets]
    highest = list(accumulate((get.seen for get in gets), max, initial=0))
    for get in gets:
        lowest = bisect_left(acknowledged, get.begin)
        most = bisect_right(begins, get.end)
        if not lowest <= get.seen <= most:
            yield f"{get}; {lowest} acknowledged before it, {most} invoked before it returned"
        before = highest[bisect_left(ends, get.begin)]
        if get.seen < before:
            yield f"{get}; {before} had been seen before it"


def _end(call: Call) -> int:
    return call.end


class Kill(NamedTuple):
    """The moment at which a worker was killed."""

    at: int
    worker: str


def longest_gap(calls: Iterable[Call], kills: Sequence[Kill], after: int = SECOND // 10) -> float:
    """Return the longest pause, in seconds, between writes of a survivor round or after a kill."""
    returns: defaultdict[str, list[int]] = defaultdict(list)
    for call in calls:
        if call.operation != GET and not call.is_in_doubt:
            returns[call.worker].append(call.end)
    longest = 0
    for worker, times in returns.items():
        times.sort()
        for kill in kills:
            if kill.worker != worker:
                around = times[max(0, bisect_left(times, kill.at) - 1) :]
                around = around[: bisect_left(around, kill.at + after) + 1]
                longest = max(longest, *(b - a for a, b in pairwise(around)), 0)
    return longest / SECOND


@dataclass
class Report:
    """What a run has shown."""

    violations: list[str]
    integrity: str
    operations: Counter[str]  # that returned, by kind
    writes: Counter[str]  # that returned, by worker; those that were not killed
    hit_share: float
    kills: int
    longest_gap: float  # seconds, round the kills

    def __str__(self) -> str:
        return (
            f"{self.operations.total():,} operations {dict(self.operations)}, hit share"
            f" {self.hit_share:.1%}, slowest/fastest {self.fairness:.2f}, {self.kills} kills,"
            f" longest gap {self.longest_gap * 1000:.0f} ms, integrity {self.integrity},"
            f" {len(self.violations)} violations"
        )

    @property
    def fairness(self) -> float:
        """The writes of the slowest worker over those of the fastest one."""
        return min(self.writes.values()) / max(1, *self.writes.values())


@dataclass
class Workers:
    """The processes of a run."""

    folder: Path
    workload: Workload
    database: Path = field(init=False)
    kills: list[Kill] = field(default_factory=list)
    _running: dict[str, "subprocess.Popen[str]"] = field(default_factory=dict)
    _started: int = 0

    def __post_init__(self) -> None:
        self.database = self.folder / "sessions.db"
        self.ids = asyncio.run(create_sessions(self.workload, self.database))
        plan = {"workload": asdict(self.workload), "database": str(self.database), "ids": self.ids}
        (self.folder / "plan.json").write_text(json.dumps(plan))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave no process behind, whatever went wrong."""
        for process in self._running.values():
            process.kill()
            process.communicate()

    def run(self, kill_every: float | None = None) -> Report:
        """Run all, kill and replace one of them from time to time, and check what they did."""
        for _ in range(self.workload.processes):
            self._start()
        for process in self._running.values():
            _wait_until_open(process)
        start = time.monotonic_ns()
        for process in self._running.values():
            _tell(process, start)
        if kill_every is not None:
            last = start + int((self.workload.seconds - 0.2) * SECOND)
            while time.monotonic_ns() < last:
                time.sleep(kill_every * random.uniform(0.5, 1.5))
                self._kill(random.choice(list(self._running)))
                _tell(self._start(), start)
        return self._report()

    def _start(self) -> "subprocess.Popen[str]":
        self._started += 1
        name = f"worker-{self._started}"
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.torture.history", "work"),
                *(self.folder / "plan.json", self.folder / f"{name}.log"),
            ],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._running[name] = process
        return process

    def _kill(self, name: str) -> None:
        process = self._running.pop(name)
        process.kill()
        self.kills.append(Kill(time.monotonic_ns(), name))
        _, errors = process.communicate()
        assert not errors, errors

    def _report(self) -> Report:
        hits = misses = 0
        survivors = set(self._running)
        while self._running:
            name, process = next(iter(self._running.items()))
            output, errors = process.communicate(timeout=self.workload.seconds + PATIENCE)
            del self._running[name]
            assert process.returncode == 0, errors
            assert not errors, errors
            of_worker = json.loads(output.splitlines()[-1])
            hits, misses = hits + of_worker[0], misses + of_worker[1]
        calls = read_logs(self.folder)
        returned = [call for call in calls if not call.is_in_doubt]
        writes = Counter(call.worker for call in returned if call.operation != GET)
        with closing(sqlite3.connect(self.database)) as connection:
            integrity = connection.execute("PRAGMA integrity_check").fetchone()[0]
        return Report(
            violations=check(calls, read_rows(self.database, self.ids)),
            integrity=integrity,
            operations=Counter(OPERATIONS[call.operation] for call in returned),
            writes=Counter({name: writes[name] for name in survivors}),
            hit_share=hits / max(1, hits + misses),
            kills=len(self.kills),
            longest_gap=longest_gap(calls, self.kills),
        )


def _wait_until_open(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    if not process.stdout.readline():
        raise AssertionError(process.communicate()[1])


def _tell(process: "subprocess.Popen[str]", start: int) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{start}\n")
    process.stdin.flush()


def run(folder: Path, workload: Workload, kill_every: float | None = None) -> Report:
    """Run the workload on a new file in the folder and check it."""
    with Workers(folder, workload) as workers:
        return workers.run(kill_every)


def main() -> None:
    """Be a worker, or run a workload and print its report."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture.history")
    commands = parser.add_subparsers(dest="command", required=True)
    worker = commands.add_parser("work", help="be a worker")
    worker.add_argument("plan", type=Path)
    worker.add_argument("log", type=Path)
    runner = commands.add_parser("run", help="run workers on a new file and check their calls")
    for name, default in asdict(Workload()).items():
        choices = list(BREAKS) if name == "broken" else None
        runner.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, choices=choices
        )
    runner.add_argument("--kill-every", type=float, help="seconds")
    arguments = vars(parser.parse_args())
    if arguments.pop("command") == "work":
        work(arguments["plan"], arguments["log"])
        return
    kill_every = arguments.pop("kill_every")
    with tempfile.TemporaryDirectory() as folder:
        report = run(Path(folder), Workload(**arguments), kill_every)
    print(*report.violations[:20], report, sep="\n")
    sys.exit(bool(report.violations))


if __name__ == "__main__":
    main()
