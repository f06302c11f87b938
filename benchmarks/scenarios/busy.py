# SPDX-License-Identifier: MIT
"""Clients in an event loop that never rests, since other callbacks are ready all the time."""

import asyncio
import math
import time
from dataclasses import dataclass, field
from functools import partial
from random import Random
from statistics import median, quantiles
from typing import Self

from ..bench import OURS, Bench, Run
from ..figures import Reading, Unit
from ..rivals.base import Durability
from ..work import Store, UnacknowledgedError

ALONE = "no clients"  # the loop with its other work only
CLIENTS = 50
PERIOD = 0.01  # seconds from one call of a client to its next
SLICES = (0.000_2, 0.002)  # seconds of other work between two turns of the loop

RULES = (
    f"{CLIENTS} clients report an activity every {PERIOD * 1000:g} ms each, in sessions drawn at"
    " random, in a loop kept fully busy by slices of other work, all of the same amount. A wait is"
    " from the call to the client's next step; 99 of 100 are shorter than p99. A client that is"
    " late skips what it has missed. Calls that are not back one window after the end are let go on"
    " an idle loop, so that their waits are longer than shown. Calls and slices count within the"
    " window. Synchronous rivals are left out; most have fewer rounds."
)


async def run(bench: Bench) -> None:
    """Measure with each length of slices."""
    plan = bench.plan
    keys = [key for key, rival in bench.rivals.items() if rival.is_concurrent]
    others = {key: min(plan.long_rounds, plan.busy_rounds) for key in keys if key != OURS}
    async with bench.stores(Durability.NORMAL, plan.sessions, keys=keys) as stores:
        for seconds in SLICES:
            case = named(seconds)
            burden = Burden(seconds)
            runs: dict[str, Run] = {
                key: partial(run_clients, bench, case, burden, key, store)
                for key, store in stores.items()
            }
            runs[ALONE] = partial(run_alone, bench, case, burden)
            await bench.alternate(case, runs, plan.busy_rounds, others)


def named(seconds: float) -> str:
    """Return the name of a length of slices."""
    return f"{seconds * 1000:g} ms slices"


class Burden:
    """Other work of the loop: a callback that is ready again as soon as it has run."""

    def __init__(self, seconds: float) -> None:
        """Find out how many steps of work take so long when nothing else runs."""
        self._steps = 1_000
        while (taken := median(_time_burn(self._steps) for _ in range(25))) < seconds / 4:
            self._steps *= 2
        self._steps = int(self._steps * seconds / taken)
        self._next: asyncio.Handle | None = None
        self._slices = 0

    def __enter__(self) -> Self:
        self._next = asyncio.get_running_loop().call_soon(self._turn)
        return self

    def __exit__(self, *_: object) -> None:
        if self._next is not None:
            self._next.cancel()

    def _turn(self) -> None:
        _burn(self._steps)
        self._slices += 1
        self._next = asyncio.get_running_loop().call_soon(self._turn)

    async def count(self, window: float) -> float:
        """Return how many slices a second were done in the window that begins now."""
        before, begun = self._slices, time.perf_counter()
        await asyncio.sleep(window)
        return (self._slices - before) / (time.perf_counter() - begun)


def _burn(steps: int) -> None:
    """Do some work, always the same, that holds the GIL."""
    for _ in range(steps):
        pass


def _time_burn(steps: int) -> float:
    begun = time.perf_counter()
    _burn(steps)
    return time.perf_counter() - begun


@dataclass
class Clients:
    """Clients with one schedule, and how long their calls have waited."""

    store: Store
    end: float
    random: Random = field(default_factory=lambda: Random(1))
    waits: list[float] = field(default_factory=list)
    in_time: int = 0  # calls that came back within the window

    async def run(self, due: float) -> None:
        """Be one of them."""
        while due < self.end:
            await asyncio.sleep(due - time.monotonic())
            session_id = self.random.choice(self.store.ids)
            called = time.monotonic()
            if not await self.store.rival.touch(session_id):
                raise UnacknowledgedError("an activity in an active session was refused")
            now = time.monotonic()
            self.waits.append(now - called)
            self.in_time += now <= self.end
            due += PERIOD * max(1, math.ceil((now - due) / PERIOD))


async def run_clients(
    bench: Bench, case: str, burden: Burden, key: str, store: Store
) -> list[Reading]:
    """Run all clients for the window, and read off what they and the other work have done."""
    window = bench.plan.window
    begin = time.monotonic()
    clients = Clients(store, begin + window)
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(clients.run(begin + PERIOD * number / CLIENTS))
            for number in range(CLIENTS)
        ]
        with burden:
            slices = await burden.count(window)
            await asyncio.wait(tasks, timeout=window)
    await store.rival.settle()
    percentiles = quantiles(clients.waits, n=100, method="inclusive")
    return [
        Reading(f"activity, {case}", key, Unit.RATE, clients.in_time / window),
        Reading(f"median wait, {case}", key, Unit.SECONDS, percentiles[49]),
        Reading(f"p99 wait, {case}", key, Unit.SECONDS, percentiles[98]),
        Reading(f"other work, {case}", key, Unit.RATE, slices),
    ]


async def run_alone(bench: Bench, case: str, burden: Burden) -> list[Reading]:
    """Run the other work alone."""
    with burden:
        slices = await burden.count(bench.plan.window)
    return [Reading(f"other work, {case}", ALONE, Unit.RATE, slices)]
