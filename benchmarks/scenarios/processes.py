# SPDX-License-Identifier: MIT
"""Several processes on one file, as the workers of a web server are."""

import asyncio
import time
from contextlib import AsyncExitStack
from functools import partial

from benchmarks.bench import Bench, Run, counted
from benchmarks.children import Child, started
from benchmarks.measure import Reading, Unit
from benchmarks.rivals.protocol import Durability
from benchmarks.work import SMALL, Store

NAME = "processes"
PAUSE = 0.05  # seconds between the question and the window, for all to be ready


class Processes:
    """What all processes get done together."""

    name = NAME
    rules = (
        "Calls that came back in a window that begins for all processes at the same moment, each"
        " with as many tasks as the mix. Gets and activity as in the mix and the single operations,"
        " durability as there. The rivals that one process has to itself are left out."
    )

    async def run(self, bench: Bench) -> None:
        """Start all processes, and let one, two or more of a rival work at a time."""
        plan = bench.plan
        rivals = [rival for rival in bench.rivals if rival.is_shareable]
        async with (
            bench.stores(NAME, Durability.NORMAL, SMALL, plan.sessions, rivals) as stores,
            AsyncExitStack() as stack,
        ):
            crews: dict[str, list[Child]] = {}
            for key, store in stores.items():
                bench.progress.show(f"starting processes for {key}")
                with bench.guarding(NAME, key, "starting processes"):
                    crews[key] = await start_crew(stack, store, max(plan.processes))
            for kind in ("activity", "mix"):
                for count in plan.processes:
                    case = f"{kind}, {counted(count, 'process', 'processes')}"
                    runs: dict[str, Run] = {
                        key: partial(run_crew, bench, case, kind, key, crew[:count])
                        for key, crew in crews.items()
                    }
                    await bench.alternate(NAME, case, runs, plan.long_repeats)


async def start_crew(stack: AsyncExitStack, store: Store, count: int) -> list[Child]:
    """Start processes that have the store open."""
    arguments = ("worker", store.rival.key, str(store.folder), str(len(store.ids) // 10))
    crew = [await stack.enter_async_context(started(*arguments)) for _ in range(count)]
    questions = [{"ids": store.ids, "seed": number} for number in range(count)]
    await asyncio.gather(*map(Child.ask, crew, questions))
    return crew


async def run_crew(
    bench: Bench, case: str, kind: str, key: str, crew: list[Child]
) -> list[Reading]:
    """Let the processes work for one window, and add up their calls."""
    seconds = bench.plan.window
    window = {
        "kind": kind,
        "tasks": bench.plan.crowd,
        "begin": time.monotonic() + PAUSE,
        "seconds": seconds,
    }
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(child.ask(window)) for child in crew]
    count = sum(task.result() for task in asked)
    return [Reading(case, key, Unit.RATE, count / seconds)]
