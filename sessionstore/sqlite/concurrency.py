# SPDX-License-Identifier: MIT
"""Waiting that cancellation cannot tear apart, and many calls made into few.

Nothing here knows of databases. What is accepted is finished: cancelling a caller cancels no other
caller, and a batch that has begun is finished by callbacks, not by a task that somebody could
cancel. While there is nothing to do nothing is scheduled.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

from ..errors import StoreClosedError

CROWD = 32  # items that are worth a batch beside another one

Item = TypeVar("Item")
Result = TypeVar("Result")

# An item, the future of its result, and when it came, by the event loop's clock.
Queued = tuple[Item, "asyncio.Future[Result]", float]
# What became of something: a function that returns its result, or raises its error.
Outcome = Callable[[], Result]
# To be called when a batch has ended. Its outcome is a result, or an exception, for each item.
Finish = Callable[[Outcome[Sequence[Result | Exception]]], None]


def resolve(future: "asyncio.Future[Result]", outcome: Outcome[Result]) -> None:
    """Give the future its result or error, unless nobody waits for it any more."""
    if future.done():
        return
    try:
        future.set_result(outcome())
    except BaseException as error:
        future.set_exception(error)


async def finish(
    future: "asyncio.Future[Result]", give_up: Callable[[], bool] = lambda: False
) -> Result:
    """Wait until the future is done, even when cancelled meanwhile; then pass that on.

    When cancelled, give_up is asked first: it returns True where there is nothing to wait for.
    """
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not give_up() and not future.done():
            try:
                await asyncio.wait({future})
            except asyncio.CancelledError:
                continue  # the first one is raised below, once there is nothing left behind
        if future.done() and not future.cancelled():
            future.exception()  # its caller has gone: mark the outcome as seen
        raise


class Batcher(Generic[Item, Result]):
    """Gather the items of concurrent callers and run each gathering as one batch, in order.

    There is no timer: a batch takes what has gathered while the one before it ran. `begin` gets the
    items, for how many seconds all of them have been waiting, and what to call when the batch has
    ended, and returns at once. While batches may overlap, many callers are served as two crowds:
    the batch of one runs while the other one's results are handed out.
    """

    def __init__(
        self,
        begin: Callable[[list[Item], float, Finish[Result]], object],
        *,
        batch_limit: int = 500,
        queue_limit: int = 10_000,
        may_overlap: Callable[[], bool] = lambda: False,
    ) -> None:
        self._begin = begin
        self._loop = asyncio.get_running_loop()
        self._batch_limit = batch_limit
        self._queue_limit = queue_limit
        self._door = asyncio.Lock()  # only its holder may enter a queue that was full
        self._has_room = asyncio.Event()
        self._queue: deque[Queued[Item, Result]] = deque()
        self._may_overlap = may_overlap
        self._under_way = 0  # batches
        self._is_scheduled = False  # whether _next is about to be called
        self._idle: asyncio.Future[None] | None = None  # what close() waits for
        self._closed = False

    def submit(self, item: Item) -> Awaitable[Result]:
        """Run the item in the next batch; awaiting gives its result. Waits while the queue is full.

        Not a coroutine function: its frame would be felt where there are many calls.
        """
        if len(self._queue) < self._queue_limit and not self._door.locked():
            return self._enqueue(item)
        return self._wait_at_the_door(item)

    async def close(self) -> None:
        """Refuse new items, and return when all that were accepted have their results."""
        self._closed = True
        if self._under_way or self._is_scheduled:
            if self._idle is None:
                self._idle = self._loop.create_future()
            await finish(self._idle)

    async def _wait_at_the_door(self, item: Item) -> Result:
        async with self._door:
            while len(self._queue) >= self._queue_limit:
                self._has_room.clear()
                await self._has_room.wait()
            future = self._enqueue(item)
        return await future

    def _enqueue(self, item: Item) -> "asyncio.Future[Result]":
        if self._closed:
            raise StoreClosedError("the store was closed while this call waited for its turn")
        future: asyncio.Future[Result] = self._loop.create_future()
        self._queue.append((item, future, self._loop.time()))
        if not self._under_way or len(self._queue) == CROWD:
            self._schedule()
        return future

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._next)

    def _next(self) -> None:
        """Begin what may begin, or come to rest."""
        self._is_scheduled = False
        while count := self._count():
            batch = self._take(count)
            if not batch:
                continue
            self._under_way += 1
            try:
                waited = self._loop.time() - batch[-1][2]
                items = [item for item, _, _ in batch]
                self._begin(items, waited, partial(self._finish, batch))
            except Exception as error:
                self._under_way -= 1
                _resolve_all(batch, [error] * len(batch))
        if not self._under_way and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _count(self) -> int:
        """Return how many items the next batch takes; 0 where there is none, or it must wait."""
        count = len(self._queue)
        if self._under_way and (count < CROWD or self._under_way > 1 or not self._may_overlap()):
            return 0
        if not self._under_way and count >= 2 * CROWD and self._may_overlap():
            count = (count + 1) // 2
        return min(count, self._batch_limit)

    def _take(self, count: int) -> "list[Queued[Item, Result]]":
        """Take the next batch off the queue, without the items whose callers have given up."""
        taken = [self._queue.popleft() for _ in range(count)]
        self._has_room.set()
        return [queued for queued in taken if not queued[1].done()]

    def _finish(
        self,
        batch: "list[Queued[Item, Result]]",
        outcome: Outcome[Sequence[Result | Exception]],
    ) -> None:
        self._under_way -= 1
        try:
            _resolve_all(batch, outcome())
        except BaseException as error:
            _resolve_all(batch, [error] * len(batch))
        # The callers go on first, so that what they submit now is in the next batch.
        self._schedule()


def _resolve_all(
    batch: "list[Queued[Item, Result]]", results: Sequence[Result | BaseException]
) -> None:
    for (_, future, _), result in zip(batch, results, strict=True):
        if future.done():
            continue
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)
