# SPDX-License-Identifier: MIT
"""What each operation of sessionstore costs in stores of several sizes."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from random import Random

from sessionstore import SessionManager

from ..bench import OURS, Bench, counted
from ..figures import Reading, Unit
from ..rivals.base import Durability
from ..rivals.manager import TIMEOUT, Sessionstore
from ..rivals.table import FILE
from ..work import CHANGE, SMALL, Call, time_calls

PAGE = 100  # sessions
AGAIN = 20  # times that a page is asked for; statistics 5 times

RULES = (
    "sessionstore alone, without its cache. The time of an operation is that of a run divided by"
    f" its calls. A page has {PAGE} sessions. A sweep is cleanup_inactive_sessions: one that finds"
    " nothing, and one that finds as many sessions as the batch, at any size of the store. The"
    " longest get is the one that waited longest while statistics were counted."
)


class Clock:
    """The time of day, turned by some seconds."""

    offset = 0.0

    def __call__(self) -> float:
        """Return the seconds since the epoch."""
        return time.time() + self.offset


async def run(bench: Bench) -> None:
    """Fill a store of each size, and let them take turns."""
    async with AsyncExitStack() as stack:
        runs = {}
        for size in bench.plan.sizes:
            folder = stack.enter_context(bench.temporary_folder())
            with bench.guarding(OURS, f"filling it with {size:,} sessions"):
                rival = Sessionstore()
                await rival.open(folder, Durability.NORMAL, 0)
                ids = await rival.fill(size, SMALL)
                await rival.close()
                runs[counted(size, "session")] = partial(
                    measure, bench, folder / FILE, (folder / FILE).stat().st_size, ids
                )
        await bench.alternate("operations", runs, bench.plan.long_rounds)


async def measure(bench: Bench, path: Path, size: int, ids: list[str]) -> list[Reading]:
    """Time everything once, and leave as many active sessions as there were."""
    clock = Clock()
    plan = bench.plan
    async with SessionManager(
        path, timeout=TIMEOUT, sweep_interval=None, cache_size=0, clock=clock
    ) as sessions:
        times = await time_operations(sessions, ids, 1, max(1, plan.batch // 5))
        times |= await time_operations(sessions, ids, plan.crowd, plan.batch)
        times |= await time_queries(sessions, ids)
        times |= await time_sweeps(sessions, clock, plan.crowd, plan.batch)
    subject = counted(len(ids), "session")
    return [
        *(Reading(case, subject, Unit.SECONDS, seconds) for case, seconds in times.items()),
        Reading("file", subject, Unit.BYTES, size),
    ]


async def time_operations(
    sessions: SessionManager, ids: list[str], tasks: int, count: int
) -> dict[str, float]:
    """Return the seconds a call of each operation; what they create they end."""
    chosen = Random(tasks).choices(ids, k=count)
    created: list[str] = []

    async def create(child: str) -> str:
        created.append(await sessions.create_session(child, SMALL))
        return created[-1]

    async def update(session_id: str) -> bool:
        return await sessions.update_session(session_id, CHANGE)

    steps: list[tuple[str, Call, list[str]]] = [
        ("get", sessions.get_session, chosen),
        ("activity", sessions.update_activity, chosen),
        ("update", update, chosen),
        ("create", create, chosen),  # an id serves as the name of a child
        ("end", sessions.end_session, created),
    ]
    return {
        f"{name}, {counted(tasks, 'task')}": (
            await time_calls(zip(itertools.repeat(call), arguments), tasks) / count
        )
        for name, call, arguments in steps
    }


async def time_queries(sessions: SessionManager, ids: list[str]) -> dict[str, float]:
    """Return the seconds a call of what reads many sessions at once."""
    after = await sessions.get_session(ids[len(ids) // 2])
    longest, counting = 0.0, asyncio.create_task(count_often(sessions))
    for id_ in itertools.cycle(Random(2).sample(ids, min(len(ids), 1_000))):
        begun = time.perf_counter()
        await sessions.get_session(id_)
        longest = max(longest, time.perf_counter() - begun)
        if counting.done():
            break
    return {
        "first page": await timed(AGAIN, lambda: sessions.get_active_sessions(limit=PAGE)),
        "middle page": await timed(
            AGAIN, lambda: sessions.get_active_sessions(limit=PAGE, after=after)
        ),
        "statistics": await counting,
        "longest get beside statistics": longest,
    }


async def count_often(sessions: SessionManager) -> float:
    """Return the seconds of one call of the statistics."""
    return await timed(5, sessions.get_session_stats)


async def timed(times: int, call: Callable[[], Awaitable[object]]) -> float:
    """Return the seconds that each of several calls takes."""
    begun = time.perf_counter()
    for _ in range(times):
        await call()
    return (time.perf_counter() - begun) / times


async def time_sweeps(
    sessions: SessionManager, clock: Clock, tasks: int, count: int
) -> dict[str, float]:
    """Return the seconds of sweeps; what has timed out is purged."""
    empty = await timed(1, sessions.cleanup_inactive_sessions)
    clock.offset = -2 * TIMEOUT.total_seconds()
    children = (f"child-{number}" for number in range(count))
    await time_calls(zip(itertools.repeat(sessions.create_session), children), tasks)
    clock.offset = 0.0
    begun = time.perf_counter()
    if await sessions.cleanup_inactive_sessions() != count:
        raise RuntimeError(f"other sessions than the {count} have timed out")
    full = time.perf_counter() - begun
    await sessions.purge_ended_sessions(0)
    return {"sweep of nothing": empty, f"sweep of {count:,}": full}
