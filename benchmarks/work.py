# SPDX-License-Identifier: MIT
"""The calls that are timed, which they are, and how many of them make a run.

Only what was acknowledged counts: an answer that says no is an error, never a call. The loop does
nothing but call, since what it does besides is measured along.
"""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from .rivals.protocol import Rival

Call = Callable[[str], Awaitable[object]]
Calls = tuple[list[Call], list[str]]  # each with its argument; no pairs, which the GC would count
Draw = Callable[[int], Awaitable[Calls]]  # chooses so many, before the clock runs

SMALL = {
    "topic": "whales, and other mammals of the sea",
    "mood": "curious",
    "step": 12,
    "by": "Ada",
}
MOST = 200_000  # calls a run, or their list would take more time than they do
CHANGE = {"mood": "calm", "step": 13}


class UnacknowledgedError(Exception):
    """Say that a call was answered with no."""


@dataclass
class Store:
    """A rival that is open, and the sessions that it was filled with."""

    rival: Rival
    folder: Path
    ids: list[str]
    data: dict[str, Any]


def pair(call: Call, arguments: list[str]) -> Calls:
    """Return the calls with each argument."""
    return [call] * len(arguments), arguments


def check(call: Call, answer: object) -> None:
    """Refuse an answer that says no."""
    if answer is None or answer is False:
        raise UnacknowledgedError(f"{call.__name__} answered {answer} for an active session")


async def call_all(calls: Iterable[tuple[Call, str]]) -> None:
    """Make one call after the other."""
    for call, argument in calls:
        answer = await call(argument)
        if answer is None or answer is False:  # without a call of check, which a hit would feel
            check(call, answer)


async def time_calls(calls: Calls, tasks: int, settle: Callable[[], Awaitable[None]]) -> float:
    """Have some tasks make the calls, each its share, and return the seconds until all is safe."""
    shares = [zip(*(each[number::tasks] for each in calls), strict=True) for number in range(tasks)]
    begun = time.perf_counter()
    if tasks == 1:
        await call_all(shares[0])
    else:
        async with asyncio.TaskGroup() as group:
            for share in shares:
                group.create_task(call_all(share))
    await settle()
    return time.perf_counter() - begun


async def settled() -> None:
    """Stand for Rival.settle where there is nothing to settle."""


class Work:
    """Calls of one kind, in runs of about one length."""

    def __init__(
        self, draw: Draw, tasks: int, settle: Callable[[], Awaitable[None]] = settled
    ) -> None:
        """Take what chooses the calls, and what makes sure of them in the end."""
        self._draw = draw
        self._tasks = tasks
        self._settle = settle
        self._count = 0

    async def measure(self, length: float) -> float:
        """Run once and return the calls a second. The first time, find out how many fill a run."""
        if not self._count:
            await self._calibrate(length)
        return self._count / await self._run(self._count)

    async def _calibrate(self, length: float) -> None:
        count = self._tasks
        while (seconds := await self._run(count)) < length / 4:
            count *= 4
        self._count = max(self._tasks, min(MOST, int(count / seconds * length)))

    async def _run(self, count: int) -> float:
        return await time_calls(await self._draw(count), self._tasks, self._settle)


def draw_from(call: Call, arguments: Iterator[str]) -> Draw:
    """Draw calls with the next of the arguments, which have no end."""

    async def draw(count: int) -> Calls:
        return [call] * count, list(itertools.islice(arguments, count))

    return draw


def draw_hits(store: Store, hot: int) -> Draw:
    """Draw gets of a few sessions in random order, of which each was got once before the first."""
    draw_more = draw_from(store.rival.get, shuffled(store.ids[:hot]))
    cold = store.ids[:hot]

    async def draw(count: int) -> Calls:
        while cold:
            await store.rival.get(cold.pop())
        return await draw_more(count)

    return draw


def draw_misses(store: Store) -> Draw:
    """Draw gets round all sessions."""
    return draw_from(store.rival.get, itertools.cycle(store.ids))


def draw_activity(store: Store, seed: int = 1) -> Draw:
    """Draw activity in random sessions."""
    return draw_from(store.rival.touch, shuffled(store.ids, seed))


def draw_ends(store: Store) -> Draw:
    """Draw the ends of sessions that are put in for it."""

    async def draw(count: int) -> Calls:
        return [store.rival.end] * count, await store.rival.fill(count, store.data)

    return draw


def shuffled(ids: Sequence[str], seed: int = 1) -> Iterator[str]:
    """Yield all ids in a random order, and again in another one, without end."""
    order = list(ids)
    random = Random(seed)
    while True:
        random.shuffle(order)
        yield from order


def children() -> Iterator[str]:
    """Yield ids of children, each of whom has several sessions."""
    return (f"child-{number % 1_000}" for number in itertools.count())


def draw_creates(store: Store) -> Draw:
    """Draw creations."""

    async def create(child: str) -> str:
        return await store.rival.create(child, store.data)

    return draw_from(create, children())


def draw_updates(store: Store, change: dict[str, Any]) -> Draw:
    """Draw updates of random sessions."""

    async def update(session_id: str) -> bool:
        return await store.rival.update(session_id, change)

    return draw_from(update, shuffled(store.ids))


def draw_mix(store: Store, seed: int = 1) -> Draw:
    """Draw the mix: 90 % get, 9 % activity, 1 % create with its end, which counts as one call.

    The distribution over the sessions is Zipf's: the k-th is called 1/k as often as the first.
    """
    random = Random(seed)
    weights = list(itertools.accumulate(1 / rank for rank in range(1, len(store.ids) + 1)))

    async def create_and_end(child: str) -> bool:
        return await store.rival.end(await store.rival.create(child, store.data))

    kinds: list[Call] = [store.rival.get] * 90 + [store.rival.touch] * 9 + [create_and_end]
    random.shuffle(kinds)
    endless = itertools.cycle(kinds)

    async def draw(count: int) -> Calls:
        ids = random.choices(store.ids, cum_weights=weights, k=count)
        return list(itertools.islice(endless, count)), ids

    return draw
