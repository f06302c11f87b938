# SPDX-License-Identifier: MIT
"""Each operation by itself, at one task and at many; create is a scenario of its own."""

import itertools
from collections.abc import Callable
from functools import partial

from ..bench import Bench, counted
from ..figures import Reading, Unit
from ..rivals.base import Durability
from ..work import (
    CHANGE,
    Calls,
    Store,
    Work,
    call_all,
    gets,
    shuffled,
    time_calls,
    touches,
    updates,
)

BARE = "a dict"  # looked up by a bare coroutine
MANY = 1_000  # tasks that some rivals need seconds for

RULES = (
    "Data of about 100 bytes. A hit comes from a cache, if there is one; a miss never does: a tenth"
    " of the sessions fits into a cache, and the gets go round all of them in a random order. Gets"
    " and activity run where a commit survives the crash of a process (synchronous=NORMAL, or like"
    " it), update and end where it survives a power cut (FULL)."
)


async def run(bench: Bench) -> None:
    """Measure first what needs no more than the weaker durability."""
    plan = bench.plan
    async with bench.stores(Durability.NORMAL, plan.sessions) as stores:
        hot = plan.sessions // 10
        works = {}
        for key, store in stores.items():
            with bench.guarding(key, "warming its cache"):
                works[key] = await hits(store, hot)
        works[BARE] = Work(look_ups(hot), 1)
        await bench.compare("get hit", works, plan.rounds)
        await compare(bench, stores, "get miss", gets, plan.tasks)
        await compare(bench, stores, "activity", touches, plan.tasks)
    async with bench.stores(Durability.FULL, plan.sessions) as stores:
        few = (1, plan.crowd)
        await compare(bench, stores, "update", lambda store: updates(store, CHANGE), few)
        for tasks, count in zip(few, (plan.singles, plan.many), strict=True):
            case = f"end, {counted(tasks, 'task')}"
            runs = {
                key: partial(end, case, key, store, tasks, count) for key, store in stores.items()
            }
            await bench.alternate(case, runs, plan.rounds)


async def compare(
    bench: Bench,
    stores: dict[str, Store],
    operation: str,
    draw: Callable[[Store], Calls],
    numbers: tuple[int, ...],
) -> None:
    """Measure an operation with each number of tasks."""
    for tasks in numbers:
        works = {key: Work(draw(store), tasks, store.rival) for key, store in stores.items()}
        rounds = bench.plan.long_rounds if tasks >= MANY else bench.plan.rounds
        await bench.compare(f"{operation}, {counted(tasks, 'task')}", works, rounds)


async def hits(store: Store, hot: int) -> Work:
    """Get a few sessions over and over, each of which has been got before."""
    ids = shuffled(store.ids)[:hot]
    await call_all((store.rival.get, id_) for id_ in ids)
    return Work(zip(itertools.repeat(store.rival.get), itertools.cycle(ids)), 1)


def look_ups(hot: int) -> Calls:
    """Make the calls that a hit is held against."""
    sessions = {f"{number:036}": number + 1 for number in range(hot)}

    async def look_up(session_id: str) -> object:
        return sessions.get(session_id)

    return zip(itertools.repeat(look_up), itertools.cycle(shuffled(list(sessions))))


async def end(case: str, key: str, store: Store, tasks: int, count: int) -> list[Reading]:
    """End sessions that are put in for it."""
    ids = shuffled(await store.rival.fill(count, store.data))
    seconds = await time_calls(zip(itertools.repeat(store.rival.end), ids), tasks)
    seconds += await Work(iter(()), 1, store.rival).run(0)
    return [Reading(case, key, Unit.RATE, count / seconds)]
