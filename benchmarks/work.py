# SPDX-License-Identifier: MIT
"""The calls that are timed: which they are, and how many of them make a run.

Only what was acknowledged counts: an answer that says no is an error, never a call. What is called
is drawn before the clock runs, and the timed loop does nothing but call.
"""

import asyncio
import gc
import itertools
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from .rivals.base import Rival

Call = Callable[[str], Awaitable[object]]
Calls = Iterator[tuple[Call, str]]  # endless

SMALL = {
    "topic": "whales, and other mammals of the sea",
    "mood": "curious",
    "step": 12,
    "by": "Ada",
}
CHANGE = {"mood": "calm", "step": 13}
MOST = 200_000  # calls a run, or their list would take more time than they do


class UnacknowledgedError(Exception):
    """A call was answered with no."""


@dataclass
class Store:
    """A rival that is open, and the sessions that it was filled with."""

    rival: Rival
    folder: Path
    ids: list[str]
    data: dict[str, Any]


async def call_all(calls: Iterable[tuple[Call, str]]) -> None:
    """Make one call after the other."""
    for call, argument in calls:
        answer = await call(argument)
        if answer is None or answer is False:
            raise UnacknowledgedError(f"{call.__name__} answered {answer} for an active session")


async def time_calls(calls: Iterable[tuple[Call, str]], tasks: int) -> float:
    """Let some tasks make the calls, each its share, and return the seconds until all are back."""
    drawn = list(calls)
    shares = [drawn[number::tasks] for number in range(tasks)]
    set_garbage_aside()
    begun = time.perf_counter()
    if tasks == 1:
        await call_all(drawn)
    else:
        async with asyncio.TaskGroup() as group:
            for share in shares:
                group.create_task(call_all(share))
    return time.perf_counter() - begun


def set_garbage_aside() -> None:
    """Collect garbage, and let the collector look only at what is made from now on."""
    gc.collect()
    gc.freeze()


class Work:
    """Calls of one kind, in runs of about one length."""

    def __init__(self, calls: Calls, tasks: int, rival: Rival | None = None) -> None:
        """Take the calls, and the rival that makes sure of them in the end."""
        self._calls = calls
        self._tasks = tasks
        self._rival = rival
        self._count = 0

    async def measure(self, length: float) -> float:
        """Run once and return the calls a second. The first time, find out how many fill a run."""
        if not self._count:
            count = self._tasks
            while (seconds := await self.run(count)) < length / 4:
                count *= 4
            self._count = max(self._tasks, min(MOST, int(count / seconds * length)))
        return self._count / await self.run(self._count)

    async def run(self, count: int) -> float:
        """Make so many calls, and return the seconds until all are safe."""
        seconds = await time_calls(itertools.islice(self._calls, count), self._tasks)
        begun = time.perf_counter()
        if self._rival is not None:
            await self._rival.settle()
        return seconds + time.perf_counter() - begun


def shuffled(ids: list[str], seed: int = 1) -> list[str]:
    """Return the ids in a random order, the same for each rival."""
    return Random(seed).sample(ids, len(ids))


def gets(store: Store) -> Calls:
    """Get all sessions in a random order, over and over: a cache that holds a tenth never hits."""
    return zip(itertools.repeat(store.rival.get), itertools.cycle(shuffled(store.ids)))


def touches(store: Store, seed: int = 1) -> Calls:
    """Report activity in sessions drawn at random from all."""
    random = Random(seed)
    while True:
        yield store.rival.touch, random.choice(store.ids)


def updates(store: Store, change: dict[str, Any]) -> Calls:
    """Update sessions drawn at random from all."""

    async def update(session_id: str) -> bool:
        return await store.rival.update(session_id, change)

    return ((update, session_id) for _, session_id in touches(store))


def creates(store: Store) -> Calls:
    """Create sessions of a thousand children, by turns."""

    async def create(child: str) -> str:
        return await store.rival.create(child, store.data)

    return ((create, f"child-{number % 1_000}") for number in itertools.count())


def mix(store: Store, seed: int = 1) -> Calls:
    """Make 90 % gets, 9 % activity, and 1 % creates with their end, which count as one call.

    The k-th session is called 1/k as often as the first (Zipf's distribution).
    """

    async def create_and_end(child: str) -> bool:
        return await store.rival.end(await store.rival.create(child, store.data))

    random = Random(seed)
    ids = shuffled(store.ids)
    weights = list(itertools.accumulate(1 / rank for rank in range(1, len(ids) + 1)))
    kinds: list[Call] = [store.rival.get] * 90 + [store.rival.touch] * 9 + [create_and_end]
    while True:
        random.shuffle(kinds)
        yield from zip(kinds, random.choices(ids, cum_weights=weights, k=len(kinds)), strict=True)
