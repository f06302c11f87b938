# SPDX-License-Identifier: MIT
"""Several processes on one file, as the workers of a web server are."""

import asyncio
import itertools
import mmap
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from ..bench import OURS, RELEASE, Bench, counted
from ..children import Begin, run_children
from ..figures import Reading, Unit
from ..rivals import load
from ..rivals.base import Durability
from ..work import SMALL, Call, Store, UnacknowledgedError, call_all, mix, touches

HOT = 12  # sessions that all processes get and touch
CREW = 4  # processes that do so
TASKS = 10  # of each of them
WRITES = (5, 60)  # percent
STALE, HITS = "stale gets", "cache hits"
FAIRNESS = "slowest to fastest"
SHARED = "acknowledged"  # a file of counters in the folder

RULES = (
    "Calls that came back in a window, of all processes together, each with as many tasks as the"
    " mix. Gets and activity as in the mix and the single operations, durability as there. Rivals"
    f" that one process has to itself are left out. The hot sessions are {HOT}, got and touched by"
    f" {TASKS} tasks of each process: a get is stale if it shows fewer interactions than had been"
    " acknowledged, to whatever process, before it began. The writers report activity in random"
    " sessions; of their calls the fewest of a process are held against the most of one."
)


async def run(bench: Bench) -> None:
    """Measure what all get done together, what their caches are worth, and how fair writing is."""
    plan = bench.plan
    keys = [key for key, rival in bench.rivals.items() if rival.is_shareable]
    async with bench.stores(Durability.NORMAL, plan.sessions, keys=keys) as stores:
        for kind, count in itertools.product(("activity", "mix"), plan.processes):
            case = f"{kind}, {counted(count, 'process')}"
            runs = {
                key: partial(run_crew, bench, case, key, store, kind, count)
                for key, store in stores.items()
            }
            await bench.alternate(case, runs, plan.long_rounds)
        managers = {key: stores[key] for key in (OURS, RELEASE) if key in stores}
        for share in WRITES:
            case = f"{CREW} processes, {HOT} sessions, {share} % writes"
            runs = {
                key: partial(run_hot, bench, case, key, store, share)
                for key, store in managers.items()
            }
            await bench.alternate(case, runs, plan.long_rounds)
        case = counted(plan.writers, "writing process")
        runs = {
            key: partial(run_writers, bench, case, key, store) for key, store in managers.items()
        }
        await bench.alternate(case, runs, plan.writer_rounds)


async def run_crew(
    bench: Bench, case: str, key: str, store: Store, kind: str, count: int
) -> list[Reading]:
    """Let the processes work for a part of the window, and add up their calls."""
    window = bench.plan.window / 4
    counts = await call_in_processes(bench, key, store, kind, count, window, bench.plan.crowd)
    return [Reading(case, key, Unit.RATE, sum(counts) / window)]


async def run_writers(bench: Bench, case: str, key: str, store: Store) -> list[Reading]:
    """Let the processes write for the window, and compare their calls."""
    window, count = bench.plan.window, bench.plan.writers
    counts = await call_in_processes(bench, key, store, "activity", count, window, TASKS)
    return [
        Reading(f"{FAIRNESS}, {case}", key, Unit.SHARE, min(counts) / max(counts)),
        Reading(f"activity, {case}", key, Unit.RATE, sum(counts) / window),
    ]


async def call_in_processes(
    bench: Bench, key: str, store: Store, kind: str, count: int, window: float, tasks: int
) -> list[int]:
    """Return how many calls each process has made."""
    common = (describe(bench, key, store, store.ids), kind, window, tasks)
    return await run_children(call_for, [(*common, seed) for seed in range(count)])


def describe(
    bench: Bench, key: str, store: Store, ids: list[str]
) -> tuple[str, str, str, list[str]]:
    """Return what a child needs to open the store."""
    return key, str(bench.release or ""), str(store.folder), ids


async def open_store(key: str, release: str, folder: str, ids: list[str]) -> Store:
    """Open a store that the parent has open, too."""
    rival = load(key, Path(release) if release else None)()
    await rival.open(Path(folder), Durability.NORMAL, max(HOT, len(ids) // 10))
    return Store(rival, Path(folder), ids, SMALL)


async def call_for(
    begin: Begin, described: list[Any], kind: str, window: float, tasks: int, seed: int
) -> int:
    """Return how many calls this process makes in the window."""
    store = await open_store(*described)
    calls = {"activity": touches, "mix": mix}[kind](store, seed)
    await call_all(itertools.islice(calls, tasks))
    await begin()
    end = time.monotonic() + window
    counts = await asyncio.gather(*(call_until(end, calls) for _ in range(tasks)))
    await store.rival.settle()
    await store.rival.close()
    return sum(counts)


async def call_until(end: float, calls: Iterator[tuple[Call, str]]) -> int:
    """Make one call after the other, and count those that came back before the end."""
    count = 0
    for call in calls:
        await call_all([call])
        if time.monotonic() >= end:
            break
        count += 1
    return count


async def run_hot(bench: Bench, case: str, key: str, store: Store, share: int) -> list[Reading]:
    """Let the processes get and touch the same few sessions, and count hits and stale gets."""
    file = store.folder / SHARED
    file.write_bytes(bytes(8 * HOT * CREW))
    ids = await store.rival.fill(HOT, SMALL)
    common = (describe(bench, key, store, ids), share, bench.plan.window)
    counts = await run_children(get_hot, [(*common, number) for number in range(CREW)])
    hits, misses, stale = map(sum, zip(*counts, strict=True))
    return [
        Reading(f"{HITS}, {case}", key, Unit.SHARE, hits / (hits + misses)),
        Reading(f"{STALE}, {case}", key, Unit.COUNT, stale),
    ]


async def get_hot(
    begin: Begin, described: list[Any], share: int, window: float, number: int
) -> tuple[int, int, int]:
    """Return the hits, the misses and the stale gets of this process."""
    store = await open_store(*described)
    rival: Any = store.rival
    ids = store.ids
    random = Random(number)
    stale = 0

    async def call_again_and_again(acknowledged: memoryview) -> None:
        nonlocal stale
        while time.monotonic() < end:
            place = random.randrange(len(ids))
            if random.random() < share / 100:
                if not await rival.touch(ids[place]):
                    raise UnacknowledgedError("an activity in an active session was refused")
                acknowledged[number * len(ids) + place] += 1  # nobody else writes this one
            else:
                at_least = sum(acknowledged[place :: len(ids)])
                session: Any = await rival.get(ids[place])
                stale += session.interaction_count < at_least

    with (
        (store.folder / SHARED).open("r+b") as file,
        mmap.mmap(file.fileno(), 0) as mapped,
        memoryview(mapped).cast("Q") as counters,
    ):
        await begin()
        end = time.monotonic() + window
        await asyncio.gather(*(call_again_and_again(counters) for _ in range(TASKS)))
    stats = await rival.manager.get_session_stats()
    await rival.close()
    return stats["cache_hits"], stats["cache_misses"], stale
