# SPDX-License-Identifier: MIT
"""How long the event loop stands still while sessionstore handles very many sessions at once.

It is measured in a process of its own, since each collection of garbage looks at all that was ever
imported.
"""

import asyncio
import itertools
import time
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from sessionstore import SessionManager

from ..bench import OURS, Bench
from ..children import Begin, run_children
from ..figures import Reading, Unit
from ..rivals.base import Durability
from ..rivals.manager import TIMEOUT, Sessionstore
from ..rivals.table import FILE
from ..work import SMALL, Call, call_all, shuffled
from .growth import Clock, count_often

IDLE = "idle loop"
CASE = "longest gap"
LIST = "list in one piece"
AGAIN = 5  # calls of each
PULSE = 0.001  # seconds that the watch sleeps between two looks at the clock
CALLERS = 10  # tasks of the traffic
CALLED = 100  # sessions of the traffic
MOST = 1_000  # tasks
GROUP = 100  # of them, which begin at once

RULES = (
    "sessionstore alone, in a process of its own, with very many sessions. A task that sleeps"
    f" {PULSE * 1000:g} ms at a time notes the longest time from one awakening to the next."
    f" Meanwhile {CALLERS} tasks get a session and report an activity in it, over and over. The"
    " idle loop tells what the machine itself does."
)


async def run(bench: Bench) -> None:
    """Measure with a fresh store each round, since a purge leaves nothing to measure."""
    await bench.alternate(CASE, {OURS: partial(measure, bench)}, bench.plan.long_rounds)


async def measure(bench: Bench) -> list[Reading]:
    """Let a child measure once."""
    with bench.temporary_folder() as folder:
        plan = bench.plan
        arguments = (str(folder), plan.listed, min(plan.many, MOST), plan.window / 3)
        (gaps,) = await run_children(watch_all, [arguments])
    return [Reading(CASE, name, Unit.SECONDS, gap) for name, gap in gaps.items()]


async def watch_all(
    begin: Begin, folder: str, count: int, tasks: int, rest: float
) -> dict[str, float]:
    """Do one thing after the other with all sessions, and return the longest gap beside each."""
    rival = Sessionstore()
    await rival.open(Path(folder), Durability.NORMAL, 0)
    ids = await rival.fill(count, SMALL)
    await rival.close()
    await begin()
    clock = Clock()
    gaps = {IDLE: await watch(asyncio.sleep(rest))}
    async with SessionManager(
        Path(folder) / FILE, timeout=TIMEOUT, sweep_interval=None, clock=clock
    ) as sessions:
        activities: list[tuple[str, Coroutine[Any, Any, object]]] = [
            ("traffic alone", asyncio.sleep(rest)),
            (
                f"activity by {tasks:,} tasks",
                crowd(sessions.update_activity, shuffled(ids)[:tasks]),
            ),
            (f"create by {tasks:,} tasks", crowd(sessions.create_session, ids[:tasks])),
            (LIST, sessions.get_active_sessions()),
            ("iteration", iterate(sessions)),
            ("statistics", count_often(sessions)),
            ("cleanup", sessions.cleanup_inactive_sessions()),
            ("purge", sessions.purge_ended_sessions(0)),
        ]
        for name, activity in activities:
            clock.offset = TIMEOUT.total_seconds() if name in ("cleanup", "purge") else 0.0
            gaps[name] = await watch_in_traffic(sessions, activity)
    return gaps


async def crowd(call: Call, arguments: list[str]) -> None:
    """Let as many tasks make several calls each. They begin in groups, as requests come in."""
    async with asyncio.TaskGroup() as group:
        for number, argument in enumerate(arguments):
            group.create_task(call_all([(call, argument)] * AGAIN))
            if number % GROUP == 0:
                await asyncio.sleep(0)


async def iterate(sessions: SessionManager) -> list[object]:
    """Iterate over all sessions."""
    return [session.id async for session in sessions.iter_active_sessions()]


async def watch_in_traffic(
    sessions: SessionManager, activity: Coroutine[Any, Any, object]
) -> float:
    """Return the longest gap beside an activity, while tasks call sessions of their own."""
    ids = [await sessions.create_session("traffic", SMALL) for _ in range(CALLED)]
    is_over = asyncio.Event()

    async def call_again_and_again() -> None:
        for id_ in itertools.cycle(shuffled(ids)):
            if is_over.is_set():
                break
            await call_all([(sessions.get_session, id_), (sessions.update_activity, id_)])

    async with asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(call_again_and_again())
        try:
            return await watch(activity)
        finally:
            is_over.set()


async def watch(activity: Coroutine[Any, Any, object]) -> float:
    """Return the longest gap from before an activity to after it."""
    task = asyncio.create_task(activity)
    longest, last = 0.0, time.perf_counter()
    while not task.done():
        await asyncio.sleep(PULSE)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    await task
    return longest
