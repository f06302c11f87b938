# SPDX-License-Identifier: MIT
"""Each operation with data of several sizes."""

from collections.abc import Callable
from typing import Any

from benchmarks.bench import Bench
from benchmarks.rivals.protocol import Durability
from benchmarks.work import (
    Draw,
    Store,
    Work,
    draw_activity,
    draw_creates,
    draw_hits,
    draw_misses,
    draw_updates,
)

NAME = "payload"
SESSIONS = 200  # in each store; a tenth of them fits into a cache

WITH_NORMAL: dict[str, Callable[[Store], Draw]] = {
    "get hit": lambda store: draw_hits(store, SESSIONS // 10),
    "get miss": draw_misses,
    "activity": draw_activity,
}
WITH_FULL: dict[str, Callable[[Store], Draw]] = {
    "create": draw_creates,
    "update": lambda store: draw_updates(store, store.data),
}


class Payload:
    """Get, create, activity and update with small and with large data."""

    name = NAME
    rules = (
        "As the single operations. An update replaces all of the data. A get decodes what the"
        " library decodes by itself."
    )

    async def run(self, bench: Bench) -> None:
        """Measure one size of data after the other."""
        for size in bench.plan.payloads:
            data = {"text": "x" * (size - len('{"text": ""}'))}
            await compare(bench, data, f"{size:,} bytes", Durability.NORMAL, WITH_NORMAL)
            await compare(bench, data, f"{size:,} bytes", Durability.FULL, WITH_FULL)


async def compare(
    bench: Bench,
    data: dict[str, Any],
    size: str,
    durability: Durability,
    draws: dict[str, Callable[[Store], Draw]],
) -> None:
    """Measure some operations on the same stores."""
    async with bench.stores(NAME, durability, data, SESSIONS) as stores:
        for operation, draw in draws.items():
            tasks = 1 if operation == "get hit" else bench.plan.crowd
            works = {
                key: Work(draw(store), tasks, store.rival.settle) for key, store in stores.items()
            }
            await bench.compare(NAME, f"{operation}, {size}", works, bench.plan.long_repeats)
