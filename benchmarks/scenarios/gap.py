# SPDX-License-Identifier: MIT
"""How long the event loop stands still while sessionstore handles very many sessions at once."""

from functools import partial

from benchmarks.bench import Bench
from benchmarks.children import started
from benchmarks.measure import Reading, Unit
from benchmarks.watcher import CALLERS, PULSE

NAME = "gap"


class LoopGap:
    """The longest time that no other callback got its turn."""

    name = NAME
    rules = (
        "sessionstore alone, in a process of its own. A task that sleeps"
        f" {PULSE * 1000:g} ms at a time notes the longest time from one awakening to the next."
        f" Meanwhile {CALLERS} tasks get a session and report an activity in it, over and over. The"
        " idle loop tells what the machine itself does."
    )

    async def run(self, bench: Bench) -> None:
        """Measure with a fresh store each round, since a purge leaves nothing to measure."""
        runs = {"sessionstore": partial(measure, bench)}
        await bench.alternate(NAME, "loop gap", runs, bench.plan.long_repeats)


async def measure(bench: Bench) -> list[Reading]:
    """Let a child measure once."""
    plan = bench.plan
    with bench.temporary_folder() as folder:
        async with started("watcher", str(folder), str(plan.listed), str(plan.window)) as child:
            gaps = await child.ask("")
    return [Reading("longest gap", name, Unit.SECONDS, gap) for name, gap in gaps.items()]
