# SPDX-License-Identifier: MIT
"""What each operation of sessionstore costs in stores of several sizes, and what they take."""

import sys
import time
from contextlib import AsyncExitStack
from functools import partial
from random import Random

from benchmarks.bench import Bench, counted
from benchmarks.children import started
from benchmarks.measure import Reading, Unit
from benchmarks.sized import AGAIN, TIMEOUT, Clock, Sized, fill
from benchmarks.work import CHANGE, SMALL, Call, pair, settled, time_calls
from sessionstore import SessionManager

NAME = "growth"
PAST = -2 * TIMEOUT.total_seconds()  # when a session that has timed out was created
PAGE = 100
WAL_UPDATES = 200  # few enough that the log does not begin anew meanwhile
MEMORY = {
    "resident": "memory of a process",
    "cached": "memory of a cached session",
    "iterate": "memory of iter_active_sessions",
}


class Growth:
    """Time, file size, log and memory against the number of sessions."""

    name = NAME
    rules = (
        "sessionstore alone. The time of an operation is that of a run divided by its calls. A page"
        f" has {PAGE} sessions. The log is what activity in random sessions adds to it, a call. A"
        " process by itself measures memory, all of its own: after gets, a page and the statistics;"
        " of a cached session, beside its data in JSON; and what iter_active_sessions adds at most."
    )

    async def run(self, bench: Bench) -> None:
        """Fill a store of each size, and let them take turns."""
        async with AsyncExitStack() as stack:
            stores = []
            for size in bench.plan.sizes:
                bench.progress.show(f"putting in {size:,} sessions")
                folder = stack.enter_context(bench.temporary_folder())
                stores.append(await fill(folder, size))
            runs = {sized.subject: partial(measure, bench, sized) for sized in stores}
            await bench.alternate(NAME, "operations", runs, bench.plan.long_repeats)
            runs = {sized.subject: partial(measure_log, bench, sized) for sized in stores}
            await bench.alternate(NAME, "log", runs, bench.plan.long_repeats)
            if sys.platform == "linux":
                runs = {sized.subject: partial(measure_memory, bench, sized) for sized in stores}
                await bench.alternate(NAME, "memory", runs, bench.plan.long_repeats)


async def measure(bench: Bench, sized: Sized) -> list[Reading]:
    """Time everything once, and leave as many active sessions as there were."""
    clock = Clock()
    batch = bench.plan.batch
    readings = [Reading("file", sized.subject, Unit.BYTES, sized.file_size())]
    async with sized.manager(clock) as sessions:
        times = await time_operations(sessions, sized.ids, 1, max(1, batch // 10))
        times |= await time_operations(sessions, sized.ids, bench.plan.crowd, batch)
        times |= await time_queries(sessions, sized.ids[len(sized.ids) // 2])
        clock.offset = PAST
        await time_calls(
            pair(sessions.create_session, sized.ids[:batch]), bench.plan.crowd, settled
        )
        clock.offset = 0
        begun = time.perf_counter()
        if await sessions.cleanup_inactive_sessions() != batch:
            raise RuntimeError(f"other sessions than the {batch} were cleaned up")
        times[f"cleanup of {batch:,}"] = time.perf_counter() - begun
        await sessions.purge_ended_sessions(0)
    readings += [Reading(case, sized.subject, Unit.SECONDS, taken) for case, taken in times.items()]
    return readings


async def time_operations(
    sessions: SessionManager, ids: list[str], tasks: int, count: int
) -> dict[str, float]:
    """Return the seconds a call of each operation; what they create they end."""
    chosen = Random(1).choices(ids, k=count)
    created: list[str] = []

    async def create(child: str) -> str:
        created.append(await sessions.create_session(child, SMALL))
        return created[-1]

    async def update(session_id: str) -> bool:
        return await sessions.update_session(session_id, CHANGE)

    steps: dict[str, tuple[Call, list[str]]] = {
        "get miss": (sessions.get_session, chosen),
        "activity": (sessions.update_activity, chosen),
        "update": (update, chosen),
        "create": (create, chosen),  # an id serves as the name of a child
        "end": (sessions.end_session, created),
    }
    suffix = counted(tasks, "task", "tasks")
    return {
        f"{name}, {suffix}": await time_calls(pair(call, arguments), tasks, settled) / count
        for name, (call, arguments) in steps.items()
    }


async def time_queries(sessions: SessionManager, middle: str) -> dict[str, float]:
    """Return the seconds a call of what reads many sessions at once."""
    after = await sessions.get_session(middle)

    async def first_page(_: str) -> object:
        return await sessions.get_active_sessions(limit=PAGE)

    async def middle_page(_: str) -> object:
        return await sessions.get_active_sessions(limit=PAGE, after=after)

    async def statistics(_: str) -> object:
        return await sessions.get_session_stats()

    queries = {"first page": first_page, "middle page": middle_page, "statistics": statistics}
    return {
        name: await time_calls(([query] * AGAIN, [""] * AGAIN), 1, settled) / AGAIN
        for name, query in queries.items()
    }


async def measure_log(bench: Bench, sized: Sized) -> list[Reading]:
    """Read off how much activity adds to the write-ahead log, which opening has left empty."""
    readings = []
    for tasks in (1, bench.plan.crowd):
        async with sized.manager() as sessions:
            ids = Random(1).choices(sized.ids, k=WAL_UPDATES)
            await time_calls(pair(sessions.update_activity, ids), tasks, settled)
            size = sized.log_size()
        case = f"log, activity, {counted(tasks, 'task', 'tasks')}"
        readings.append(Reading(case, sized.subject, Unit.BYTES, size / WAL_UPDATES))
    return readings


async def measure_memory(bench: Bench, sized: Sized) -> list[Reading]:
    """Let processes of their own measure their memory."""
    ids = sized.ids[: bench.plan.cached]
    kinds = ["resident", "iterate"] + ["cached"] * (len(ids) == bench.plan.cached)
    readings = []
    for kind in kinds:
        async with started("memory", kind, str(sized.path)) as child:
            bytes_ = await child.ask(ids)
        readings.append(Reading(MEMORY[kind], sized.subject, Unit.BYTES, bytes_))
    return readings
