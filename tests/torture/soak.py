# SPDX-License-Identifier: MIT
"""Mixed traffic on one file for a long time, and whether anything grows meanwhile.

    python -m tests.torture.soak --seconds 3600 --sessions 1000000 --plot docs/soak.png

So many sessions go through the whole of their life: they are created, read, touched, updated, and
then ended, erased, or left alone until a sweep times them out; the retention erases what has ended.
Nine of ten calls are reads. The clock runs fast, and the monotonic one with it, so that timeouts
and the retention come round often. The traffic is paced, and leaves part of a core to others.

Memory, descriptors, threads, tasks, WAL, file, rows and cache are looked at again and again. Each
is flat if the median of the last quarter of the time is at most GROWTH times that of the second
one, and a slack of its own; the first quarter is for warming up. The WAL may fill up to the limit
at which SQLite copies it into the file. The exit code is 1 if something was not flat, a call gave a
wrong answer, or there were too few sessions. It needs Linux's /proc.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import platform
import random
import resource
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from sessionstore import SessionManager
from sessionstore.expiry import Expiry
from sessionstore.sqlite import SQLiteStore
from sessionstore.sweeper import Sweeper

TASKS = 200  # that live one session after the other
CHILDREN = 500
TURNS = 4  # of a session, with a pause before each
PAUSE = 0.25  # real seconds at most
CATCH_UP = 0.95  # of the gap between two starts, at least, if the run is late
LATE = 1.5  # times the time that was asked for, after which no session is started
READS = 13  # in a turn, the last of them of another session
TIMEOUT = 1_800.0  # seconds by the fast clock
RETENTION_SHARE = 0.04  # of the run's length
SAMPLES = 400  # at most, and not more often than every quarter of a second

GROWTH = 1.1
MEGABYTE = 1_000_000


class Sample(NamedTuple):
    """What was seen at one moment."""

    seconds: float  # since the start, real
    memory: int  # resident, bytes
    descriptors: int
    threads: int
    tasks: int
    wal: int  # bytes
    file: int  # bytes
    rows: int
    cache: int  # sessions
    calls: float  # a second, since the sample before
    lag: float  # seconds, the longest of the event loop since the sample before


class Measure(NamedTuple):
    """A figure of a sample, and when it is flat."""

    title: str
    unit: float  # it is shown in
    slack: float | None  # that it may grow by, too; None: it is shown, and not judged
    limit: float = 0.0  # up to which it may fill up


MEASURES = {
    "memory": Measure("resident memory, MB", MEGABYTE, 2 * MEGABYTE),
    "descriptors": Measure("open descriptors", 1, 1),
    "threads": Measure("threads", 1, 0),
    "tasks": Measure("tasks", 1, 5),
    "wal": Measure("write-ahead log, MB", MEGABYTE, MEGABYTE, 16 * MEGABYTE),
    "file": Measure("database file, MB", MEGABYTE, MEGABYTE / 10),
    "rows": Measure("rows in the table", 1, 100),
    "cache": Measure("sessions in the cache", 1, 100),
    "calls": Measure("calls a second", 1, None),
    "lag": Measure("longest lag of the loop, ms", 0.001, None),
}


class Finding(NamedTuple):
    """How a figure was in the second quarter and in the last, by their medians."""

    name: str
    second: float
    last: float
    is_flat: bool

    def __str__(self) -> str:
        """Say it in a line."""
        measure = MEASURES[self.name]
        figures = f"{self.second / measure.unit:>12,.2f} {self.last / measure.unit:>12,.2f}"
        return f"{measure.title:<28} {figures}   {'flat' if self.is_flat else 'NOT FLAT'}"


class Report(NamedTuple):
    """What became of a run."""

    settings: dict[str, Any]
    created: int
    calls: Counter[str]
    endings: Counter[str]
    wrong: list[str]  # answers that no call may give
    cpu: float  # of one core, on average
    samples: list[Sample]

    def failures(self) -> list[str]:
        """Say what is against the run; nothing, if it is sound."""
        found = [f"{finding.name} grows" for finding in judge(self.samples) if not finding.is_flat]
        if self.wrong:
            found.append(f"{len(self.wrong)} wrong answers, the first: {self.wrong[0]}")
        if self.created < self.settings["sessions"]:
            found.append(f"only {self.created} sessions of {self.settings['sessions']}")
        return found


def judge(samples: Sequence[Sample]) -> list[Finding]:
    """Compare the last quarter of the time with the second one."""
    end = samples[-1].seconds
    second = [each for each in samples if end / 4 <= each.seconds < end / 2]
    last = [each for each in samples if each.seconds >= end * 3 / 4]
    findings = []
    for name, measure in MEASURES.items():
        if measure.slack is None:
            continue
        before = statistics.median(getattr(each, name) for each in second)
        after = statistics.median(getattr(each, name) for each in last)
        bound = max(GROWTH * before + measure.slack, measure.limit)
        findings.append(Finding(name, before, after, after <= bound))
    return findings


def fast_clock(pace: float) -> Callable[[], float]:
    """Return a clock that runs `pace` times as fast as real time, from now on."""
    start, begun = time.time(), time.monotonic()
    return lambda: start + (time.monotonic() - begun) * pace


async def sweep_on(sweeper: Sweeper, interval: float) -> None:
    """Sweep again and again: the manager's own sweeper would see the fast clock jump."""
    while True:
        await asyncio.sleep(interval)
        await sweeper.sweep()


class Traffic:
    """Takes sessions through their lives, and counts.

    If the machine stood for a while, what was missed is not made up for at once: the file would
    grow by the crowd of sessions, and stay as large.
    """

    def __init__(
        self,
        store: SessionManager,
        endings: Counter[str],
        sessions: int,
        seconds: float,
        pace: float,
    ) -> None:
        self._store = store
        self._total = sessions
        self._seconds = seconds
        self._patience = TIMEOUT / pace  # real seconds after which a session has timed out
        self._numbers = itertools.count()
        self._known: deque[str] = deque(maxlen=5_000)
        self._chance = random.Random()
        self._gap = seconds / sessions  # between two starts
        self._start = self._due = time.monotonic()
        self.is_ending = False
        self.created = 0
        self.calls: Counter[str] = Counter()
        self.endings = endings
        self.wrong: list[str] = []

    async def run(self) -> None:
        """Start sessions at an even pace, until there were enough."""
        async with asyncio.TaskGroup() as group:
            for _ in range(TASKS):
                group.create_task(self._live_again_and_again())

    async def _live_again_and_again(self) -> None:
        while (number := next(self._numbers)) < self._total:
            now = time.monotonic()
            due = max(now, self._start + number * self._gap, self._due + CATCH_UP * self._gap)
            self._due = due
            await asyncio.sleep(due - now)
            if time.monotonic() - self._start > LATE * self._seconds:
                break
            await self._live(number)
        self.is_ending = True

    async def _live(self, number: int) -> None:
        child = f"child-{number % CHILDREN}"
        active = time.monotonic()
        id_ = await self._store.create_session(child, {"number": number, "topic": "whales"})
        self.calls["create"] += 1
        self.created += 1
        self._known.append(id_)
        touched = 0
        for turn in range(TURNS):
            await asyncio.sleep(self._chance.uniform(0, PAUSE))
            await self._read(id_, touched, active)
            before = time.monotonic()
            if turn % 2:
                done = await self._store.update_session(id_, {"turn": turn})
                self.calls["update"] += 1
            else:
                done = await self._store.update_activity(id_)
                self.calls["activity"] += 1
                touched += done
            if not done:
                self._object(f"…{id_[-8:]} was lost in turn {turn}", active)
                return
            active = before
        await self._end(id_, child, active)

    async def _read(self, id_: str, touched: int, active: float) -> None:
        for _ in range(READS - 1):
            session = await self._store.get_session(id_)
            if session is None or not session.is_active or session.interaction_count != touched:
                self._object(f"…{id_[-8:]} was read as {session}, touched {touched} times", active)
        await self._store.get_session(self._chance.choice(self._known))
        self.calls["get"] += READS

    async def _end(self, id_: str, child: str, active: float) -> None:
        ending = self._chance.choices(["ended", "erased", "left"], [55, 10, 35])[0]
        if ending == "left":
            await self._store.get_active_sessions(child, limit=5)
            self.calls["list"] += 1
            return
        if ending == "ended":
            done = await self._store.end_session(id_)
            self.calls["end"] += 1
        else:
            done = await self._store.delete_session(id_)
            self.calls["delete"] += 1
            self.endings["erased"] += 1
        session = await self._store.get_session(id_)
        self.calls["get"] += 1
        if not done or (session is not None and session.is_active):
            self._object(f"…{id_[-8:]} was not {ending}, but is {session}", active)

    def _object(self, problem: str, active: float) -> None:
        """Note a wrong answer; but where the machine stood for long, a session may time out."""
        if time.monotonic() - active < self._patience:
            self.wrong.append(problem)


class Observer:
    """Looks at the process and the file again and again."""

    def __init__(
        self, store: SessionManager, traffic: Traffic, database: Path, interval: float
    ) -> None:
        self._store = store
        self._traffic = traffic
        self._database = database
        self._interval = interval
        self._lag = 0.0
        self.samples: list[Sample] = []

    async def watch_the_loop(self) -> None:
        """Keep the longest lag of the event loop."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.02)
            self._lag = max(self._lag, time.monotonic() - before - 0.02)

    async def take_samples(self) -> None:
        """Take a sample after each interval."""
        start = last = time.monotonic()
        calls = 0
        for number in itertools.count(1):
            await asyncio.sleep(max(0.0, start + number * self._interval - time.monotonic()))
            if self._traffic.is_ending:
                return
            stats = await self._store.get_session_stats()
            now, total = time.monotonic(), self._traffic.calls.total()
            self.samples.append(
                Sample(
                    seconds=now - start,
                    memory=resident(),
                    descriptors=len(os.listdir("/proc/self/fd")),
                    threads=threading.active_count(),
                    tasks=len(asyncio.all_tasks()),
                    wal=size_of(Path(f"{self._database}-wal")),
                    file=size_of(self._database),
                    rows=stats["total_sessions"],
                    cache=stats["memory_cache_size"],
                    calls=(total - calls) / (now - last),
                    lag=self._lag,
                )
            )
            last, calls, self._lag = now, total, 0.0


def resident() -> int:
    """Return the memory of this process that is resident, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def size_of(path: Path) -> int:
    """Return the size of a file in bytes; 0 if there is none."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


async def soak(
    database: Path,
    *,
    seconds: float,
    sessions: int,
    pace: float = 600.0,
    cache_size: int = 5_000,
    retains: bool = True,
    beside: Sequence[Any] = (),
) -> Report:
    """Run the traffic; `beside` are coroutines that run with it, such as a leak on purpose."""
    settings = {"seconds": seconds, "sessions": sessions, "pace": pace, "cache_size": cache_size}
    retention = int(RETENTION_SHARE * seconds * pace * 1_000_000) if retains else None
    clock = fast_clock(pace)
    endings: Counter[str] = Counter()
    cpu, begun = time.process_time(), time.monotonic()
    async with AsyncExitStack() as stack:
        engine = SQLiteStore(database)
        store = await stack.enter_async_context(
            SessionManager(
                engine,
                timeout=TIMEOUT,
                clock=clock,
                sweep_interval=None,
                cache_size=cache_size,
                on_end=lambda session: endings.update([session.status]),
            )
        )
        expiry = Expiry(int(TIMEOUT * 1_000_000))
        sweeper = Sweeper(engine, clock, expiry, retention, uptime=clock)
        traffic = Traffic(store, endings, sessions, seconds, pace)
        observer = Observer(store, traffic, database, max(0.25, seconds / SAMPLES))
        others = [observer.watch_the_loop(), observer.take_samples(), *beside]
        others.append(sweep_on(sweeper, min(1.0, seconds / 80)))
        watching = [asyncio.create_task(other) for other in others]
        try:
            await traffic.run()
        finally:
            for task in watching:
                task.cancel()
            ends = await asyncio.gather(*watching, return_exceptions=True)
    for end in ends:
        if isinstance(end, Exception):
            raise end
    share = (time.process_time() - cpu) / (time.monotonic() - begun)
    return Report(
        settings,
        traffic.created,
        traffic.calls,
        traffic.endings,
        traffic.wrong,
        share,
        observer.samples,
    )


def show(report: Report, out: TextIO) -> None:
    """Print what became of a run."""
    calls = ", ".join(f"{name} {count:,}" for name, count in report.calls.most_common())
    endings = ", ".join(f"{name} {count:,}" for name, count in report.endings.most_common())
    span = report.samples[-1].seconds
    print(f"{headline(report)}; {report.cpu:.0%} of a core", file=out)
    print(f"calls: {calls}\nendings: {endings}", file=out)
    print(f"{'':<28} {'2nd quarter':>12} {'last quarter':>12}", file=out)
    for finding in judge(report.samples):
        print(finding, file=out)
    print(f"{len(report.samples)} samples in {span:,.0f} s", file=out)
    for failure in report.failures():
        print(f"FAILED: {failure}", file=out)


def headline(report: Report) -> str:
    """Say in a line what was done."""
    minutes = report.samples[-1].seconds / 60
    days = minutes * report.settings["pace"] / 1_440
    return (
        f"{report.created:,} sessions and {report.calls.total():,} calls"
        f" in {minutes:,.3g} minutes, {days:,.3g} days by the store's clock"
    )


def draw(report: Report, path: Path) -> None:
    """Draw each figure over the time, with the two medians that are compared."""
    findings = {finding.name: finding for finding in judge(report.samples)}
    figure = import_module("matplotlib.figure").Figure(figsize=(10, 11), layout="constrained")
    minutes = [sample.seconds / 60 for sample in report.samples]
    for axes, (name, measure) in zip(
        figure.subplots(5, 2, sharex=True).flat, MEASURES.items(), strict=True
    ):
        values = [getattr(sample, name) / measure.unit for sample in report.samples]
        axes.plot(minutes, values, color="#0072b2", linewidth=0.9)
        title = measure.title
        if name in findings:
            title += draw_medians(axes, findings[name], minutes[-1])
        axes.set_title(title, loc="left", fontsize=9)
        axes.set_ylim(0, max(1.25 * max(values), 1e-9))
        axes.set_xlim(0, minutes[-1])
        axes.grid(axis="y", color="#e4e4e4", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    figure.suptitle(headline(report), fontsize=11)
    figure.supxlabel(
        "minutes. Orange: the medians of the second quarter and of the last, which are compared."
        f"\nCPython {platform.python_version()}, SQLite {sqlite3.sqlite_version},"
        f" {report.cpu:.0%} of a core",
        fontsize=8,
        color="#444444",
    )
    figure.savefig(path, dpi=130)


def draw_medians(axes: Any, finding: Finding, end: float) -> str:
    """Draw the two medians that are compared, and return them in words."""
    unit = MEASURES[finding.name].unit
    before, after = finding.second / unit, finding.last / unit
    for value, start, stop in ((before, end / 4, end / 2), (after, end * 3 / 4, end)):
        axes.plot([start, stop], [value, value], color="#d55e00", linewidth=2.2)
    digits = 1 if unit > 1 else 0
    return f": {before:,.{digits}f}, then {after:,.{digits}f}"


@contextlib.contextmanager
def place(database: Path | None) -> Iterator[Path]:
    """Yield the path of the database: what was asked for, or one in a folder of its own."""
    if database is not None:
        yield database
        return
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        yield Path(folder) / "sessions.db"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print what was found, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture.soak")
    parser.add_argument("--seconds", type=float, default=20.0, help="real ones that it takes")
    parser.add_argument("--sessions", type=int, default=4_000, help="that go through")
    parser.add_argument("--pace", type=float, default=600.0, help="how fast the clock runs")
    parser.add_argument("--cache-size", type=int, default=5_000)
    parser.add_argument("--database", type=Path, help="a file to use, and to keep")
    parser.add_argument("--plot", type=Path, help="a PNG or SVG to draw; needs matplotlib")
    parser.add_argument("--json", type=Path, help="a file for all samples")
    options = parser.parse_args(arguments)
    if options.plot is not None:
        try:
            import_module("matplotlib.figure")
        except ImportError:
            parser.error('--plot needs matplotlib, which is in the extra "bench"')
    with place(options.database) as database:
        report = asyncio.run(
            soak(
                database,
                seconds=options.seconds,
                sessions=options.sessions,
                pace=options.pace,
                cache_size=options.cache_size,
            )
        )
    show(report, sys.stdout)
    if options.json is not None:
        whole = report._asdict() | {"samples": [sample._asdict() for sample in report.samples]}
        whole |= {"failures": report.failures()}
        options.json.write_text(json.dumps(whole, indent=1) + "\n")
    if options.plot is not None:
        draw(report, options.plot)
    return 1 if report.failures() else 0


if __name__ == "__main__":
    sys.exit(main())
