# SPDX-License-Identifier: MIT
"""All operations together, as a small application makes them."""

from benchmarks.bench import Bench
from benchmarks.rivals.protocol import Durability
from benchmarks.work import SMALL, Work, draw_mix

NAME = "mix"


class Mix:
    """Nine tenths reads, over sessions of which a few are called most of the time."""

    name = NAME
    rules = (
        "90 % get, 9 % activity, 1 % create with its end, counted as one call. The sessions are"
        " chosen by Zipf's distribution; a tenth of them fits into a cache. The rivals run with the"
        " weaker durability (synchronous=NORMAL) throughout; sessionstore creates and ends with"
        " FULL all the same."
    )

    async def run(self, bench: Bench) -> None:
        """Measure with one number of tasks."""
        plan = bench.plan
        async with bench.stores(NAME, Durability.NORMAL, SMALL, plan.sessions) as stores:
            works = {
                key: Work(draw_mix(store), plan.crowd, store.rival.settle)
                for key, store in stores.items()
            }
            await bench.compare(NAME, f"mix, {plan.crowd} tasks", works, plan.repeats)
