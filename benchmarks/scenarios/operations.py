# SPDX-License-Identifier: MIT
"""Each operation by itself, at one task and at many."""

from collections.abc import Callable

from benchmarks.bench import Bench, counted
from benchmarks.rivals.protocol import Durability
from benchmarks.work import (
    CHANGE,
    SMALL,
    Draw,
    Store,
    Work,
    draw_activity,
    draw_creates,
    draw_ends,
    draw_from,
    draw_hits,
    draw_misses,
    draw_updates,
    shuffled,
)

NAME = "operations"
MANY = 1_000  # tasks that some rivals need seconds for
BARE = "a dict"  # looked up by a bare coroutine


class Operations:
    """Get, create, activity, update and end, by all rivals."""

    name = NAME
    rules = (
        "Data of about 100 bytes. A hit comes from a cache, where there is one; a miss never does:"
        " the gets walk over ten times as many sessions as a cache may hold. Gets and activity run"
        " where a commit survives the crash of a process (synchronous=NORMAL, or like it); create,"
        " update and end where it survives a power cut (FULL)."
    )

    async def run(self, bench: Bench) -> None:
        """Measure first what needs no more than the weaker durability."""
        plan = bench.plan
        hot = plan.sessions // 10
        async with bench.stores(NAME, Durability.NORMAL, SMALL, plan.sessions) as stores:
            works = {key: Work(draw_hits(store, hot), 1) for key, store in stores.items()}
            works[BARE] = Work(draw_lookups(hot), 1)
            await bench.compare(NAME, f"get hit, {hot:,} ids", works, plan.repeats)
            works = {key: Work(draw_hits(store, 1), 1) for key, store in stores.items()}
            works[BARE] = Work(draw_lookups(1), 1)
            await bench.compare(NAME, "get hit, one id", works, plan.repeats)
            await compare(bench, stores, "get miss", draw_misses)
            await compare(bench, stores, "activity", draw_activity)
        async with bench.stores(NAME, Durability.FULL, SMALL, plan.sessions) as stores:
            await compare(bench, stores, "create", draw_creates)
            await compare(bench, stores, "update", lambda store: draw_updates(store, CHANGE))
            await compare(bench, stores, "end", draw_ends)


async def compare(
    bench: Bench, stores: dict[str, Store], operation: str, draw: Callable[[Store], Draw]
) -> None:
    """Measure an operation with each number of tasks."""
    plan = bench.plan
    for tasks in plan.tasks:
        works = {key: Work(draw(store), tasks, store.rival.settle) for key, store in stores.items()}
        case = f"{operation}, {counted(tasks, 'task', 'tasks')}"
        await bench.compare(NAME, case, works, plan.long_repeats if tasks >= MANY else plan.repeats)


def draw_lookups(hot: int) -> Draw:
    """Draw what a hit is held against."""
    sessions = {f"{number:036}": SMALL for number in range(hot)}

    async def look_up(session_id: str) -> object:
        return sessions.get(session_id)

    return draw_from(look_up, shuffled(list(sessions)))
