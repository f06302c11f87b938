# SPDX-License-Identifier: MIT
"""Waiting that cancellation cannot tear apart, and the batching of calls."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain

import pytest

from sessionstore import StoreClosedError
from sessionstore.sqlite.concurrency import CROWD, Batcher, Finish, finish


class Gate:
    """Runs batches of numbers, each when the test lets it, and answers with their doubles."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = asyncio.Event()

    def begin(self, items: list[int], _: float, finish: Finish[int]) -> None:
        """Keep the batch, and wait for the gate."""
        self.batches.append(items)
        opening = asyncio.ensure_future(self.open.wait())
        opening.add_done_callback(lambda _: finish(partial(self.conclude, items)))

    def conclude(self, items: list[int]) -> Sequence[int | Exception]:
        """Return the doubles, and an error for what is negative."""
        return [ValueError(item) if item < 0 else 2 * item for item in items]


async def call(batcher: Batcher[int, int], item: int) -> int:
    """Submit an item as a caller does."""
    return await batcher.submit(item)


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
    batcher = Batcher[int, int](gate.begin, batch_limit=3)
    calls = [asyncio.create_task(call(batcher, 1))]
    await settle()
    calls += [asyncio.create_task(call(batcher, number)) for number in range(2, 7)]
    await settle()
    gate.open.set()
    assert await asyncio.gather(*calls) == [2, 4, 6, 8, 10, 12]
    assert gate.batches == [[1], [2, 3, 4], [5, 6]]


async def test_an_error_reaches_only_its_own_caller() -> None:
    """A batch with one bad item gives the others their results."""
    gate = Gate()
    gate.open.set()
    batcher = Batcher[int, int](gate.begin)
    results = await asyncio.gather(
        *(call(batcher, item) for item in (1, -1, 2)), return_exceptions=True
    )
    assert results[0] == 2
    assert isinstance(results[1], ValueError)
    assert results[2] == 4


@pytest.mark.parametrize("when", ["at once", "later"])
async def test_an_error_of_the_whole_batch_reaches_all_its_callers(when: str) -> None:
    """Where the batch itself fails each caller hears of it, and the next batch runs."""
    calls = 0

    def begin(items: list[int], _: float, finish: Finish[int]) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            finish(lambda: items)
        elif when == "later":
            finish(fail)
        else:
            fail()

    def fail() -> list[int]:
        raise OSError("broken")

    batcher = Batcher[int, int](begin)
    calls_at_once = [call(batcher, number) for number in (1, 2)]
    results = await asyncio.gather(*calls_at_once, return_exceptions=True)
    assert [type(result) for result in results] == [OSError, OSError]
    assert await batcher.submit(3) == 3


async def test_past_the_bound_callers_wait() -> None:
    """No more items than the limit are accepted; the next caller gets in when one is taken."""
    gate = Gate()
    batcher = Batcher[int, int](gate.begin, batch_limit=2, queue_limit=4)
    calls = [asyncio.create_task(call(batcher, number)) for number in range(20)]
    await settle()
    assert gate.batches == [[0, 1]]
    assert len(batcher._queue) == 4
    gate.open.set()
    assert await asyncio.gather(*calls) == [2 * number for number in range(20)]


async def test_cancelled_callers_take_nobody_along() -> None:
    """Callers that give up in the queue, at its door or in a batch leave the rest alone."""
    gate = Gate()
    batcher = Batcher[int, int](gate.begin, batch_limit=2, queue_limit=4)
    calls = [asyncio.create_task(call(batcher, number)) for number in range(10)]
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
    batcher = Batcher[int, int](gate.begin, batch_limit=2, queue_limit=2)
    calls = [asyncio.create_task(call(batcher, number)) for number in range(6)]
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
    batcher = Batcher[int, int](gate.begin)
    await asyncio.gather(*(call(batcher, number) for number in range(10)))
    await settle()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("steps", [0, 1, 5])
async def test_nobody_can_cancel_the_batches(steps: int) -> None:
    """Where somebody cancels all tasks that there are, the next callers are served as ever."""
    loop = asyncio.get_running_loop()

    def begin(items: list[int], _: float, finish: Finish[int]) -> None:
        loop.call_later(0.01, finish, lambda: items)

    batcher = Batcher[int, int](begin)
    calls = [asyncio.create_task(call(batcher, number)) for number in range(3)]
    for _ in range(steps):
        await asyncio.sleep(0)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    assert await batcher.submit(7) == 7
    await asyncio.gather(*calls, return_exceptions=True)
    await batcher.close()


@pytest.mark.parametrize(
    ("callers", "begun"),
    [(CROWD - 1, [31]), (2 * CROWD - 1, [63]), (2 * CROWD, [32, 32]), (101, [51, 50])],
)
async def test_a_crowd_is_served_as_two(callers: int, begun: list[int]) -> None:
    """Where batches may overlap, many go in two that are under way together, and few in one."""
    gate = Gate()
    batcher = Batcher[int, int](gate.begin, may_overlap=lambda: True)
    calls = [asyncio.create_task(call(batcher, number)) for number in range(callers)]
    await settle()
    assert [len(batch) for batch in gate.batches] == begun
    gate.open.set()
    assert await asyncio.gather(*calls) == [2 * number for number in range(callers)]
    assert list(chain(*gate.batches)) == list(range(callers))


async def test_close_waits_for_both_batches() -> None:
    """Which of the two is the last to end does not matter."""
    finishing: list[Callable[[], None]] = []

    def begin(items: list[int], _: float, finish: Finish[int]) -> None:
        finishing.append(partial(finish, lambda: items))

    batcher = Batcher[int, int](begin, may_overlap=lambda: True)
    calls = [asyncio.create_task(call(batcher, number)) for number in range(2 * CROWD)]
    await settle()
    closing = asyncio.create_task(batcher.close())
    for end in finishing:
        await settle()
        assert not closing.done()
        end()
    await closing
    assert await asyncio.gather(*calls) == list(range(2 * CROWD))


@pytest.mark.parametrize("may_overlap", [True, False])
async def test_who_comes_later_waits_for_a_crowd_or_for_the_end(may_overlap: bool) -> None:
    """Beside a batch a second one begins as soon as there is a crowd, if at all; never a third."""
    gate = Gate()
    batcher = Batcher[int, int](gate.begin, may_overlap=lambda: may_overlap)
    calls = [asyncio.create_task(call(batcher, 0))]
    await settle()
    for number in range(1, 3 * CROWD):
        calls.append(asyncio.create_task(call(batcher, number)))
        await settle()
    begun = [1, CROWD] if may_overlap else [1]
    assert [len(batch) for batch in gate.batches] == begun
    closing = asyncio.create_task(batcher.close())
    await settle()
    assert not closing.done()
    gate.open.set()
    assert await asyncio.gather(*calls) == [2 * number for number in range(3 * CROWD)]
    await closing
    assert list(chain(*gate.batches)) == list(range(3 * CROWD))
