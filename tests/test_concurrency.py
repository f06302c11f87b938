# SPDX-License-Identifier: MIT
"""Waiting that cancellation cannot tear apart, and the batching of calls."""

import asyncio
from collections.abc import Sequence

import pytest

from sessionstore import StoreClosedError
from sessionstore.concurrency import Batcher, finish


class Gate:
    """Runs batches of numbers, each when the test lets it, and answers with their doubles."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = asyncio.Event()

    async def run(self, items: list[int]) -> Sequence[int | Exception]:
        """Keep the batch and wait for the gate."""
        self.batches.append(items)
        await self.open.wait()
        return [ValueError(item) if item < 0 else 2 * item for item in items]


async def settle() -> None:
    """Let all tasks run until they wait."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_finish_outlasts_cancellation() -> None:
    """A cancelled waiter goes on waiting for the outcome, and then ends as cancelled."""
    future = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(finish(future))
    for _ in range(3):
        await settle()
        waiting.cancel()
    await settle()
    assert not waiting.done()
    assert not future.cancelled()
    future.set_result(1)
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_what_gathers_while_a_batch_runs_is_the_next_batch() -> None:
    """Items keep their order, and each caller gets the result of its own."""
    gate = Gate()
    batcher = Batcher(gate.run, batch_limit=3)
    calls = [asyncio.create_task(batcher.submit(1))]
    await settle()
    calls += [asyncio.create_task(batcher.submit(number)) for number in range(2, 7)]
    await settle()
    gate.open.set()
    assert await asyncio.gather(*calls) == [2, 4, 6, 8, 10, 12]
    assert gate.batches == [[1], [2, 3, 4], [5, 6]]


async def test_an_error_reaches_only_its_own_caller() -> None:
    """A batch with one bad item gives the others their results."""
    gate = Gate()
    gate.open.set()
    batcher = Batcher(gate.run)
    results = await asyncio.gather(*map(batcher.submit, [1, -1, 2]), return_exceptions=True)
    assert results[0] == 2
    assert isinstance(results[1], ValueError)
    assert results[2] == 4


async def test_an_error_of_the_whole_batch_reaches_all_its_callers() -> None:
    """Where the batch itself fails each caller hears of it, and the next batch runs."""
    calls = 0

    async def run(items: list[int]) -> list[int]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError("broken")
        return items

    batcher = Batcher(run)
    results = await asyncio.gather(*map(batcher.submit, [1, 2]), return_exceptions=True)
    assert [type(result) for result in results] == [OSError, OSError]
    assert await batcher.submit(3) == 3


async def test_past_the_bound_callers_wait() -> None:
    """No more items than the limit are accepted; the next caller gets in when one is taken."""
    gate = Gate()
    batcher = Batcher(gate.run, batch_limit=2, queue_limit=4)
    calls = [asyncio.create_task(batcher.submit(number)) for number in range(20)]
    await settle()
    assert gate.batches == [[0, 1]]
    assert len(batcher._queue) == 4
    gate.open.set()
    assert await asyncio.gather(*calls) == [2 * number for number in range(20)]


async def test_cancelled_callers_take_nobody_along() -> None:
    """Callers that give up in the queue, at its door or in a batch leave the rest alone."""
    gate = Gate()
    batcher = Batcher(gate.run, batch_limit=2, queue_limit=4)
    calls = [asyncio.create_task(batcher.submit(number)) for number in range(10)]
    await settle()
    for number in (0, 2, 7):
        calls[number].cancel()
    await settle()
    gate.open.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    for number, result in enumerate(results):
        if number in (0, 2, 7):
            assert isinstance(result, asyncio.CancelledError)
        else:
            assert result == 2 * number
    assert 2 not in [item for batch in gate.batches for item in batch]
    assert await batcher.submit(50) == 100


async def test_close_finishes_what_was_accepted_and_refuses_the_rest() -> None:
    """Accepted items get their results; callers at the door, and later ones, an error."""
    gate = Gate()
    batcher = Batcher(gate.run, batch_limit=2, queue_limit=2)
    calls = [asyncio.create_task(batcher.submit(number)) for number in range(6)]
    await settle()
    closing = asyncio.create_task(batcher.close())
    await settle()
    gate.open.set()
    await closing
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert results[:4] == [0, 2, 4, 6]
    assert [type(result) for result in results[4:]] == [StoreClosedError] * 2
    with pytest.raises(StoreClosedError):
        await batcher.submit(7)


async def test_no_task_lives_while_there_is_nothing_to_do() -> None:
    """After the last result only the test's own task is left."""
    gate = Gate()
    gate.open.set()
    batcher = Batcher(gate.run)
    await asyncio.gather(*map(batcher.submit, range(10)))
    await settle()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_cancelling_every_task_leaves_no_caller_waiting() -> None:
    """Where somebody cancels the batcher's own task, its callers get an error, not a hang."""
    gate = Gate()
    batcher = Batcher(gate.run, batch_limit=1)
    calls = [asyncio.create_task(batcher.submit(number)) for number in range(3)]
    await settle()
    (draining,) = asyncio.all_tasks() - {*calls, asyncio.current_task()}
    draining.cancel()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [StoreClosedError] * 3
