# SPDX-License-Identifier: MIT
"""Waiting that cancellation cannot tear apart, and many calls made into few.

Nothing here knows of databases. What is accepted is finished: cancelling a caller cancels no other
caller, and a batch that has begun is finished by callbacks, not by a task that somebody could
cancel. While there is nothing to do nothing is scheduled.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from .errors import StoreClosedError

Item = TypeVar("Item")
Result = TypeVar("Result")

# An item, the future of its result, and when it came, by the event loop's clock.
Queued = tuple[Item, "asyncio.Future[Result]", float]
# A batch that has begun: its future, and what makes the results, or exceptions, of its outcome.
Begun = tuple["asyncio.Future[Any]", Callable[[Any], Sequence[Result | Exception]]]


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
    items, and for how many seconds all of them have been waiting, and returns at once.
    """

    def __init__(
        self,
        begin: Callable[[list[Item], float], Begun[Result]],
        *,
        batch_limit: int = 500,
        queue_limit: int = 10_000,
    ) -> None:
        self._begin = begin
        self._batch_limit = batch_limit
        self._room = asyncio.Semaphore(queue_limit)
        self._queue: deque[Queued[Item, Result]] = deque()
        self._is_busy = False
        self._idle: asyncio.Future[None] | None = None  # what close() waits for
        self._closed = False

    async def submit(self, item: Item) -> Result:
        """Run the item in the next batch and return its result. Waits while the queue is full."""
        await self._room.acquire()
        if self._closed:
            self._room.release()
            raise StoreClosedError("the store was closed while this call waited for its turn")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._queue.append((item, future, loop.time()))
        if not self._is_busy:
            self._is_busy = True
            loop.call_soon(self._next)
        return await future

    async def close(self) -> None:
        """Refuse new items, and return when all that were accepted have their results."""
        self._closed = True
        if self._is_busy:
            if self._idle is None:
                self._idle = asyncio.get_running_loop().create_future()
            await finish(self._idle)

    def _next(self) -> None:
        """Begin the next batch, or come to rest."""
        while self._queue:
            batch = self._take()
            if not batch:
                continue
            try:
                waited = asyncio.get_running_loop().time() - batch[-1][2]
                running, conclude = self._begin([item for item, _, _ in batch], waited)
            except Exception as error:
                _resolve(batch, [error] * len(batch))
                continue
            running.add_done_callback(partial(self._finish, batch, conclude))
            return
        self._is_busy = False
        if self._idle is not None:
            self._idle.set_result(None)

    def _take(self) -> "list[Queued[Item, Result]]":
        """Take the next batch off the queue, without the items whose callers have given up."""
        taken = [self._queue.popleft() for _ in range(min(len(self._queue), self._batch_limit))]
        for _ in taken:
            self._room.release()
        return [queued for queued in taken if not queued[1].done()]

    def _finish(
        self,
        batch: "list[Queued[Item, Result]]",
        conclude: Callable[[Any], Sequence[Result | Exception]],
        running: "asyncio.Future[Any]",
    ) -> None:
        try:
            _resolve(batch, conclude(running.result()))
        except Exception as error:
            _resolve(batch, [error] * len(batch))
        self._next()


def _resolve(batch: "list[Queued[Item, Result]]", outcomes: Sequence[Result | Exception]) -> None:
    for (_, future, _), outcome in zip(batch, outcomes, strict=True):
        if future.done():
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
