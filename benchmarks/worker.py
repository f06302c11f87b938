# SPDX-License-Identifier: MIT
"""A child that works on a rival's store, in a folder that other processes have open as well."""

import asyncio
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .children import answer
from .rivals import RIVALS, Durability, Rival
from .work import SMALL, Call, Store, check, draw_activity, draw_mix

DRAWS = {"activity": draw_activity, "mix": draw_mix}
DRAWN = 20_000  # calls, which are then made over and over


async def main(key: str, folder: str, cache_size: str) -> None:
    """Open the store; draw calls on its sessions; then make them whenever the parent says so."""
    rival = next(rival for rival in RIVALS if rival.key == key)()
    drawn: dict[str, Iterator[tuple[Call, str]]] = {}

    async def reply(question: dict[str, Any]) -> int:
        if "ids" not in question:
            return await work(rival, drawn[question["kind"]], question)
        await rival.open(Path(folder), Durability.NORMAL, int(cache_size))
        store = Store(rival, Path(folder), question["ids"], SMALL)
        for kind, draw in DRAWS.items():
            drawn[kind] = itertools.cycle(
                zip(*await draw(store, question["seed"])(DRAWN), strict=True)
            )
        return 0

    await answer(reply)
    await rival.close()


async def work(rival: Rival, calls: Iterator[tuple[Call, str]], window: dict[str, Any]) -> int:
    """Return how many calls came back in the window; all processes have one monotonic clock."""
    await asyncio.sleep(window["begin"] - time.monotonic())
    end = window["begin"] + window["seconds"]
    counts = await asyncio.gather(*(call_until(end, calls) for _ in range(window["tasks"])))
    await rival.settle()
    return sum(counts)


async def call_until(end: float, calls: Iterator[tuple[Call, str]]) -> int:
    """Make one call after the other, and count those that came back before the end."""
    count = 0
    for call, argument in calls:
        check(call, await call(argument))
        if time.monotonic() >= end:
            break
        count += 1
    return count


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
