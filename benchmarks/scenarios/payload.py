# SPDX-License-Identifier: MIT
"""Each operation with data of several sizes."""

from collections.abc import Callable

from ..bench import Bench
from ..rivals.base import Durability
from ..work import Calls, Store, Work, creates, gets, touches, updates
from .operations import hits

SESSIONS = 200  # in each store; a tenth of them fits into a cache

WITH_NORMAL: dict[str, Callable[[Store], Calls]] = {"get miss": gets, "activity": touches}
WITH_FULL: dict[str, Callable[[Store], Calls]] = {
    "create": creates,
    "update": lambda store: updates(store, store.data),
}

RULES = (
    "As the single operations, by as many tasks as the mix; hits by one. An update replaces all of"
    " the data. A get decodes what the library decodes by itself."
)


async def run(bench: Bench) -> None:
    """Measure one size of data after the other."""
    plan = bench.plan
    for size in plan.payloads:
        data = {"text": "x" * (size - len('{"text": ""}'))}
        for durability, draws in ((Durability.NORMAL, WITH_NORMAL), (Durability.FULL, WITH_FULL)):
            async with bench.stores(durability, SESSIONS, data) as stores:
                if durability == Durability.NORMAL:
                    works = {key: await hits(each, SESSIONS // 10) for key, each in stores.items()}
                    await bench.compare(f"get hit, {size:,} bytes", works, plan.long_rounds)
                for operation, draw in draws.items():
                    works = {
                        key: Work(draw(store), plan.crowd, store.rival)
                        for key, store in stores.items()
                    }
                    await bench.compare(f"{operation}, {size:,} bytes", works, plan.long_rounds)
