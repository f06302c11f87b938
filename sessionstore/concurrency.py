# SPDX-License-Identifier: MIT
"""Waiting that cancellation cannot tear apart, and many calls made into few.

Nothing here knows of databases. What is accepted is finished: cancelling a caller cancels no other
caller, and a batch that has begun is always waited for. No task lives while there is nothing to do.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from .errors import StoreClosedError

Item = TypeVar("Item")
Result = TypeVar("Result")


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

    There is no timer: a batch takes what has gathered while the one before it ran. `run` gets the
    items and returns a result, or an exception, for each.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Awaitable[Sequence[Result | Exception]]],
        *,
        batch_limit: int = 500,
        queue_limit: int = 10_000,
    ) -> None:
        self._run = run
        self._batch_limit = batch_limit
        self._room = asyncio.Semaphore(queue_limit)
        self._queue: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def submit(self, item: Item) -> Result:
        """Run the item in the next batch and return its result. Waits while the queue is full."""
        await self._room.acquire()
        if self._closed:
            self._room.release()
            raise StoreClosedError("the store was closed while this call waited for its turn")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.append((item, future))
        if self._task is None:
            self._task = asyncio.create_task(self._drain())
        return await future

    async def close(self) -> None:
        """Refuse new items, and return when all that were accepted have their results."""
        self._closed = True
        if self._task is not None:
            await finish(self._task)

    async def _drain(self) -> None:
        try:
            while self._queue:
                await self._run_batch(self._take())
        except BaseException:
            # Only the event loop's own shutdown comes here; no caller may be left waiting.
            while self._queue:
                _resolve(self._take(), StoreClosedError("the event loop is shutting down"))
            raise
        finally:
            self._task = None

    def _take(self) -> list[tuple[Item, "asyncio.Future[Result]"]]:
        """Take the next batch off the queue, without the items whose callers have given up."""
        taken = [self._queue.popleft() for _ in range(min(len(self._queue), self._batch_limit))]
        for _ in taken:
            self._room.release()
        return [(item, future) for item, future in taken if not future.done()]

    async def _run_batch(self, batch: list[tuple[Item, "asyncio.Future[Result]"]]) -> None:
        if not batch:
            return
        try:
            results = await self._run([item for item, _ in batch])
        except Exception as error:
            _resolve(batch, error)
        except BaseException:
            _resolve(batch, StoreClosedError("the event loop is shutting down"))
            raise
        else:
            for pair, result in zip(batch, results, strict=True):
                _resolve([pair], result)


def _resolve(
    batch: list[tuple[Item, "asyncio.Future[Result]"]], outcome: Result | Exception
) -> None:
    for _, future in batch:
        if future.done():
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
