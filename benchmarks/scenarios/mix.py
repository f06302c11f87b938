# SPDX-License-Identifier: MIT
"""All operations together, as a small application makes them."""

from ..bench import Bench, counted
from ..rivals.base import Durability
from ..work import Work, mix

RULES = (
    "90 % get, 9 % activity, 1 % create with its end, counted as one call. The sessions are chosen"
    " by Zipf's distribution; a tenth of them fits into a cache. The rivals run with the weaker"
    " durability (synchronous=NORMAL) throughout; sessionstore creates and ends with FULL all the"
    " same."
)


async def run(bench: Bench) -> None:
    """Measure with one number of tasks."""
    plan = bench.plan
    async with bench.stores(Durability.NORMAL, plan.sessions) as stores:
        works = {key: Work(mix(store), plan.crowd, store.rival) for key, store in stores.items()}
        await bench.compare(f"mix, {counted(plan.crowd, 'task')}", works, plan.rounds)
