# SPDX-License-Identifier: MIT
"""Creating sessions, in a table that has few of them and in one that has many."""

from functools import partial

from ..bench import OURS, Bench, counted
from ..figures import Reading, Unit
from ..rivals.base import Durability
from ..work import Work, creates

LARGE = 100_000  # sessions from which on only some rivals are measured, at many tasks
IN_LARGE = (OURS, "sqlite3", "aiosqlite")

RULES = (
    "Data of about 100 bytes; a commit survives a power cut (synchronous=FULL, or like it). Each"
    " run has a store of its own, with so many sessions in it, and makes the same number of calls."
)


async def run(bench: Bench) -> None:
    """Measure with each number of sessions and of tasks."""
    plan = bench.plan
    for sessions in plan.tables:
        is_large = sessions >= LARGE
        keys = [key for key in bench.rivals if not is_large or key in IN_LARGE]
        for tasks, count in ((1, plan.singles), (plan.crowd, plan.many)):
            if is_large and tasks == 1:
                continue
            case = f"create, {counted(tasks, 'task')}, {sessions:,} sessions"
            runs = {key: partial(measure, bench, case, key, sessions, tasks, count) for key in keys}
            await bench.alternate(case, runs, plan.long_rounds if is_large else plan.rounds)


async def measure(
    bench: Bench, case: str, key: str, sessions: int, tasks: int, count: int
) -> list[Reading]:
    """Fill a store, warm it up, and create."""
    async with bench.stores(Durability.FULL, sessions, keys=[key]) as stores:
        if key not in stores:  # it could not be opened
            return []
        work = Work(creates(stores[key]), tasks, stores[key].rival)
        await work.run(tasks)
        return [Reading(case, key, Unit.RATE, count / await work.run(count))]
